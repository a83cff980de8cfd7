//! Strong-Wolfe line search (Nocedal and Wright, Numerical Optimization, algorithms 3.5 and 3.6).

/// Sufficient decrease (Armijo) and curvature constants of the strong Wolfe conditions.
const C1: f64 = 1e-4;
const C2: f64 = 0.9;
/// Function evaluations of one line search.
const MAX_TRIALS: usize = 30;

/// Line search of one function.
#[derive(Clone)]
pub(super) struct LineSearch {
    /// Length of the next trial.
    pub(super) step: f64,
    /// Trials evaluated so far.
    trials: usize,
    phase: Phase,
}

#[derive(Clone, Copy)]
enum Phase {
    /// Doubles the step until it brackets a minimum (algorithm 3.5), from the last trial.
    Bracket(Trial),
    /// Narrows the bracket between the lowest trial so far and another (algorithm 3.6).
    Zoom(Trial, Trial),
    /// Accepts the next trial unconditionally.
    Final,
}

/// Length, value, slope along the direction.
#[derive(Clone, Copy)]
struct Trial {
    step: f64,
    value: f64,
    slope: f64,
}

/// Next action of a search.
pub(super) enum Action {
    Try(f64),
    /// Accept the trial as the next point.
    Accept,
    /// No lower point was found.
    Fail,
}

impl LineSearch {
    pub(super) fn new(step: f64) -> Self {
        Self { step, trials: 0, phase: Phase::Bracket(Trial { step: 0.0, value: f64::NAN, slope: f64::NAN }) }
    }

    /// The action after the trial at `step`, from value and slope at the start and at the trial. Accepts a point that satisfies
    /// the strong Wolfe conditions or, after the last trial, the lowest point below the start.
    pub(super) fn next(&mut self, (start, slope): (f64, f64), (value, along): (f64, f64)) -> Action {
        if slope >= 0.0 || !slope.is_finite() {
            return Action::Fail;
        }
        let trial = Trial { step: self.step, value, slope: along };
        self.trials += 1;
        // False for NaN and infinite values.
        let decreases = trial.value <= start + C1 * trial.step * slope;
        let flat = trial.slope.abs() <= -C2 * slope;
        match self.phase {
            Phase::Final => Action::Accept,
            Phase::Bracket(low) => {
                let low = if self.trials == 1 { Trial { step: 0.0, value: start, slope } } else { low };
                if !decreases || (self.trials > 1 && trial.value >= low.value) {
                    return self.narrow(start, low, trial);
                }
                if flat || (trial.slope < 0.0 && self.trials == MAX_TRIALS) {
                    return Action::Accept;
                }
                if trial.slope >= 0.0 {
                    return self.narrow(start, trial, low);
                }
                self.phase = Phase::Bracket(trial);
                Action::Try(2.0 * trial.step)
            }
            Phase::Zoom(low, _) if !decreases || trial.value >= low.value => self.narrow(start, low, trial),
            Phase::Zoom(..) if flat => Action::Accept,
            Phase::Zoom(low, high) => {
                let turned = trial.slope * (high.step - low.step) >= 0.0;
                self.narrow(start, trial, if turned { low } else { high })
            }
        }
    }

    /// Continues between `low` and `high`, or ends at `low`.
    fn narrow(&mut self, start: f64, low: Trial, high: Trial) -> Action {
        let closed = matches!(self.phase, Phase::Zoom(..))
            && (high.step - low.step).abs() <= f64::EPSILON * low.step.max(high.step);
        if self.trials < MAX_TRIALS && !closed {
            self.phase = Phase::Zoom(low, high);
            return Action::Try(interpolate(low, high));
        }
        if !(low.step > 0.0 && low.value < start) {
            return Action::Fail;
        }
        if low.step == self.step {
            return Action::Accept;
        }
        self.phase = Phase::Final;
        Action::Try(low.step)
    }
}

/// Minimum of the cubic through both values and slopes, kept away from the ends of the bracket; its middle if the cubic has
/// no minimum.
fn interpolate(a: Trial, b: Trial) -> f64 {
    let width = b.step - a.step;
    let d1 = a.slope + b.slope - 3.0 * (a.value - b.value) / (a.step - b.step);
    let d2 = (d1 * d1 - a.slope * b.slope).sqrt().copysign(width);
    let cubic = b.step - width * (b.slope + d2 - d1) / (b.slope - a.slope + 2.0 * d2);
    let share = (cubic - a.step) / width;
    if share.is_finite() { a.step + share.clamp(0.1, 0.9) * width } else { a.step + 0.5 * width }
}
