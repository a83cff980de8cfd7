//! Progress of a run on stderr: facts at the start, a progress bar on a terminal or periodic lines elsewhere, messages.

use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use simclr::{
    health::Health,
    train::{Observer, StepReport},
};

use crate::terminal;

/// Interval between lines about steps.
pub const LINE_SECONDS: u64 = 10;

/// Shows a run on stderr.
pub struct Terminal {
    bar: Option<ProgressBar>,
    last_line: Option<Instant>,
    /// Start time and first step of the current training.
    started: Option<(Instant, u64)>,
    began: Instant,
    last_step: Option<u64>,
    /// First words of the last verdict.
    judgement: String,
}

impl Terminal {
    /// A bar if stderr is a terminal, else lines.
    pub fn new() -> Self {
        Self {
            bar: terminal::bar(),
            last_line: None,
            started: None,
            began: Instant::now(),
            last_step: None,
            judgement: String::new(),
        }
    }

    /// Prints a line above the bar.
    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| terminal::message(text)),
            None => terminal::message(text),
        }
    }

    /// Whether a verdict begins with other words than the one before: `learning`, `not learning`, `collapsed`.
    fn changes_judgement(&mut self, verdict: &str) -> bool {
        let judgement = verdict.split(':').next().unwrap_or_default();
        let changed = self.judgement != judgement;
        self.judgement = judgement.to_owned();
        changed
    }

    /// Remaining time at the mean rate of the current training; an evaluation trains several models in sequence.
    fn eta(&mut self, report: &StepReport) -> Duration {
        if self.last_step.replace(report.step).is_some_and(|last| last >= report.step) {
            self.started = None;
        }
        let (start, first) = *self.started.get_or_insert((self.began, report.step));
        let done = report.step + 1 - first;
        let left = report.total_steps - report.step - 1;
        start.elapsed().mul_f64(left as f64 / done as f64)
    }
}

impl Observer for Terminal {
    fn start(&mut self, facts: &[(String, String)]) {
        self.began = Instant::now();
        for (name, value) in facts {
            let value = value.replace('\n', "\n               ");
            self.line(&format!("{name:<14} {value}"));
        }
    }

    fn step(&mut self, report: &StepReport) {
        let eta = clock(self.eta(report));
        let text = format!(
            "step {}/{}  epoch {:.2}  loss {:.3} (chance {:.3})  {} acc {:.0} %  lr {:.3e}  {:.0} images/s  waiting for data {:.0} %  ETA {eta}",
            report.step + 1,
            report.total_steps,
            report.epoch,
            report.loss,
            report.chance_loss,
            report.accuracy_of,
            100.0 * report.accuracy,
            report.lr,
            report.images_per_second,
            100.0 * report.data_wait,
        );
        if let Some(bar) = &self.bar {
            bar.set_length(report.total_steps);
            bar.set_position(report.step + 1);
            bar.set_message(text);
            return;
        }
        let due = self.last_line.is_none_or(|last| last.elapsed().as_secs() >= LINE_SECONDS);
        if due || report.step + 1 == report.total_steps {
            self.last_line = Some(Instant::now());
            self.line(&text);
        }
    }

    fn progress(&mut self, what: &str, done: usize, of: usize) {
        if let Some(bar) = &self.bar {
            bar.set_length(of as u64);
            bar.set_position(done as u64);
            bar.set_message(format!("{what} {done}/{of}"));
            return;
        }
        if self.last_line.is_none_or(|last| last.elapsed().as_secs() >= LINE_SECONDS) {
            self.last_line = Some(Instant::now());
            self.line(&format!("{what} {done}/{of}"));
        }
    }

    fn health(&mut self, health: &Health) {
        if health.spread.is_nan() {
            return;
        }
        let verdict = health.verdict();
        let changed = self.changes_judgement(&verdict);
        let follows_a_line = self.last_line.is_some_and(|last| last.elapsed().as_secs() < 1);
        let due = if self.bar.is_some() { changed } else { follows_a_line };
        if due {
            self.line(&verdict);
        }
    }

    fn message(&mut self, text: &str) {
        self.line(text);
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// `m:ss`, or `h:mm:ss`.
fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds / 3600 {
        0 => format!("{}:{:02}", seconds / 60, seconds % 60),
        hours => format!("{hours}:{:02}:{:02}", seconds / 60 % 60, seconds % 60),
    }
}

/// A line on stderr whenever the stage changes.
pub struct Stages {
    last: String,
}

impl Stages {
    pub fn new() -> Self {
        Self { last: String::new() }
    }

    /// Shows `stage` unless it is the current one.
    pub fn show(&mut self, stage: &str) {
        if self.last != stage {
            self.last = stage.to_owned();
            terminal::message(stage);
        }
    }

    /// Shows progress in steps of 10 %.
    pub fn show_progress(&mut self, done: usize, of: usize) {
        self.show(&format!("{} % of {of} images", 10 * (10 * done / of.max(1))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_repeated_only_with_other_first_words() {
        let mut terminal = Terminal::new();
        let verdicts = [
            "not learning yet: loss 5",
            "not learning yet: loss 4",
            "learning: loss 3",
            "learning: loss 2",
            "collapsed: all",
        ];
        let changed = verdicts.map(|verdict| terminal.changes_judgement(verdict));
        assert_eq!(changed, [true, false, true, false, true]);
    }
}
