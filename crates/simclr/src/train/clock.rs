//! How fast a run is, and how much of the time it waits for data.

use std::time::Instant;

/// Images per second and the share of waiting, smoothed over steps.
pub struct Clock {
    last: Instant,
    waited: f64,
    rate: Option<(f64, f64)>,
}

impl Default for Clock {
    fn default() -> Self {
        Self { last: Instant::now(), waited: 0.0, rate: None }
    }
}

impl Clock {
    /// Weight of the newest step in the running means.
    const NEWEST: f64 = 0.1;

    /// A step over `images` is done; `waited`: seconds waited for data so far. Gives images per second and the share of
    /// waiting.
    pub fn tick(&mut self, images: usize, waited: f64) -> (f64, f64) {
        let seconds = self.last.elapsed().as_secs_f64().max(1e-9);
        let (rate, wait) = (images as f64 / seconds, ((waited - self.waited) / seconds).clamp(0.0, 1.0));
        let (old_rate, old_wait) = self.rate.unwrap_or((rate, wait));
        let mix = |old: f64, new: f64| old + Self::NEWEST * (new - old);
        self.rate = Some((mix(old_rate, rate), mix(old_wait, wait)));
        self.waited = waited;
        self.last = Instant::now();
        self.rate.unwrap_or((rate, wait))
    }

    /// Leaves what happened since the last step (an evaluation) out of the rate.
    pub fn restart(&mut self) {
        self.last = Instant::now();
    }
}
