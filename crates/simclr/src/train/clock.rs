//! Throughput of a run and the share of time spent waiting for data, smoothed over steps.

use std::time::Instant;

pub(super) struct Clock {
    last: Instant,
    /// Total seconds waited at the last step.
    waited: f64,
    /// Images per second and share of waiting.
    smoothed: Option<(f64, f64)>,
}

impl Default for Clock {
    fn default() -> Self {
        Self { last: Instant::now(), waited: 0.0, smoothed: None }
    }
}

impl Clock {
    /// Weight of the newest step in the exponential moving averages.
    const NEWEST_WEIGHT: f64 = 0.1;

    /// Records a step over `images`; `waited` is the total of seconds waited for data. Returns images per second and the share of
    /// waiting in `[0, 1]`.
    pub fn tick(&mut self, images: usize, waited: f64) -> (f64, f64) {
        let seconds = self.last.elapsed().as_secs_f64().max(1e-9);
        let rate = images as f64 / seconds;
        let wait = ((waited - self.waited) / seconds).clamp(0.0, 1.0);
        let (old_rate, old_wait) = self.smoothed.unwrap_or((rate, wait));
        let smooth = |old: f64, new: f64| old + Self::NEWEST_WEIGHT * (new - old);
        let smoothed = (smooth(old_rate, rate), smooth(old_wait, wait));
        self.smoothed = Some(smoothed);
        self.waited = waited;
        self.last = Instant::now();
        smoothed
    }

    /// Excludes the time since the last step, such as an evaluation, from the rate.
    pub fn restart(&mut self) {
        self.last = Instant::now();
    }
}
