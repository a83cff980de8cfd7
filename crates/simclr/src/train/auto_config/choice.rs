//! What a run takes where nothing is written: a function of the images and of what small steps took, no more.

use crate::{encoder::BatchNormScope, task::MethodKind};

/// On a CPU, sides of a view by the number of images that a run goes through, over all epochs. ResNet-18 on two
/// cores takes about 0.025 s an image at 128 px and a quarter of that at 64 px, so that a run up to the first
/// limit is done overnight.
const SIDES: [(f64, usize); 3] = [(1e6, 128), (2e6, 96), (f64::INFINITY, 64)];
/// What follows a side that does not fit.
const SMALLER: [usize; 5] = [96, 64, 48, 32, 16];
/// Fewer images in a chunk give batch norm statistics by which the two views of an image are recognised.
const LEAST_SHUFFLED: usize = 32;
/// Images of a chunk in lock step: its memory is that of the batch, so chunks are as large as is quick.
const LOCK_STEP: usize = 64;

/// Side of a view on a CPU: by the work of the run, and never more pixels than the images have. `short`: the
/// median of the images' shorter sides.
pub fn side(images: usize, epochs: f64, short: usize) -> usize {
    let passes = images as f64 * epochs;
    let by_work = SIDES.iter().find(|(most, _)| passes <= *most).map_or(64, |(_, side)| *side);
    by_work.min(short / 4 * 4).max(8)
}

/// The next smaller side, if there is one.
pub fn smaller(side: usize) -> Option<usize> {
    SMALLER.into_iter().find(|&next| next < side)
}

/// The largest power of two that `images` holds.
pub fn batch(images: usize) -> usize {
    1 << images.max(2).ilog2()
}

/// Bytes as a straight line over images.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Line {
    /// Without images.
    pub fixed: f64,
    /// More for each image.
    pub each: f64,
}

impl Line {
    /// Through two points (images, bytes); memory that falls with the images counts as level.
    pub fn through(few: (usize, f64), more: (usize, f64)) -> Self {
        let each = ((more.1 - few.1) / (more.0 - few.0) as f64).max(0.0);
        Self { fixed: (few.1 - each * few.0 as f64).max(0.0), each }
    }

    /// A line so many times as high.
    pub fn times(self, factor: f64) -> Self {
        Self { fixed: factor * self.fixed, each: factor * self.each }
    }

    /// Bytes of so many images.
    pub fn at(&self, images: usize) -> f64 {
        self.fixed + self.each * images as f64
    }
}

/// What goes into the memory of a process.
#[derive(Debug, Clone, PartialEq)]
pub struct Needs {
    /// The process with a step that takes so many images in one pass.
    pub whole: Line,
    /// The process with a step of so many images in chunks in lock step; none where there can be none.
    pub lock_step: Option<Line>,
    /// Beyond the step, whatever its size: decoding on all threads, a checkpoint on its way to disk.
    pub rest: f64,
    /// Views of one image as the loader hands them over, where they lie in the same memory.
    pub views: f64,
    /// Batches or chunks made ahead.
    pub prefetch: usize,
    /// Bytes of views up to which those of a batch in chunks are kept.
    pub kept_views: f64,
}

/// How a batch goes through the encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// In one pass.
    Whole,
    /// In chunks of so many images, batch norm over the batch.
    LockStep(usize),
    /// In chunks of so many images, batch norm over the chunk.
    Chunks(usize),
}

impl Needs {
    /// Bytes at the peak for a process's part of a batch.
    pub fn of(&self, way: Way, part: usize) -> f64 {
        // Those in the queue, and the one that waits for room there.
        let ahead = |images: usize| self.views * (images * (self.prefetch + 1)) as f64;
        match way {
            Way::Whole => self.whole.at(part) + self.rest + ahead(part),
            Way::LockStep(chunk) => {
                self.lock_step.unwrap_or(self.whole).at(part) + self.rest + ahead(chunk.min(part))
            }
            Way::Chunks(chunk) => {
                let kept = Some(self.views * part as f64).filter(|&bytes| bytes <= self.kept_views);
                self.whole.at(chunk) + self.rest + ahead(chunk) + kept.unwrap_or_default()
            }
        }
    }
}

/// What may be chosen.
#[derive(Debug, Clone, Copy)]
pub struct Open {
    /// Whether chunks are possible at all: not where nothing is trained below the last layer.
    pub chunks: bool,
    /// `train.batch_norm` as it is.
    pub norm: BatchNormScope,
    /// Whether that may change.
    pub norm_open: bool,
    /// What is minimised.
    pub objective: MethodKind,
}

/// The ways that are open, best first: one pass, the same loss in chunks, chunks with batch norm of their own.
fn ways(needs: &Needs, open: &Open, part: usize) -> Vec<Way> {
    let mut ways = vec![Way::Whole];
    if !open.chunks || part < 4 {
        return ways;
    }
    let half = batch(part / 2);
    let down_from = |most: usize, least: usize| {
        std::iter::successors(Some(most), |chunk| Some(chunk / 2)).take_while(move |&chunk| chunk >= least)
    };
    let may_shuffle = open.norm_open && open.objective.is_contrastive();
    if open.norm == BatchNormScope::Global {
        ways.extend(needs.lock_step.map(|_| Way::LockStep(half.min(LOCK_STEP))));
        if may_shuffle {
            ways.extend(down_from(half, LEAST_SHUFFLED.min(half)).map(Way::Chunks));
        }
    } else {
        ways.extend(down_from(half, 2).map(Way::Chunks));
    }
    ways
}

/// The best way that fits `budget` bytes; where none does, the one that needs least, and how much.
pub fn way(needs: &Needs, open: &Open, part: usize, budget: f64) -> Result<Way, (Way, f64)> {
    let ways = ways(needs, open, part);
    let fits = ways.iter().find(|&&way| needs.of(way, part) <= budget);
    let least = || ways.iter().map(|&way| (way, needs.of(way, part))).min_by(|a, b| a.1.total_cmp(&b.1));
    fits.copied().ok_or_else(|| least().unwrap_or((Way::Whole, needs.of(Way::Whole, part))))
}

/// Seconds of a process for an image, and how its hands share the processors.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    /// Of a step, over all of its own threads.
    pub step: f64,
    /// Of every step, whatever its size.
    pub fixed: f64,
    /// Of decoding and views, over all threads of the loader.
    pub loader: f64,
    /// Whether loader and step use the same processors: then one's work is the other's wait.
    pub shared: bool,
}

impl Pace {
    /// Seconds of a step over `part` images of this process.
    pub fn of_step(&self, part: usize) -> f64 {
        let (step, loader) = (self.fixed + self.step * part as f64, self.loader * part as f64);
        if self.shared { step + loader } else { step.max(loader) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: f64 = 1073741824.0;
    const OPEN: Open = Open {
        chunks: true,
        norm: BatchNormScope::Global,
        norm_open: true,
        objective: MethodKind::Contrastive,
    };

    /// 60 MiB an image in one pass, 15 MiB in lock step, 1 GiB besides.
    fn needs() -> Needs {
        Needs {
            whole: Line { fixed: 0.5 * GIB, each: 60.0 * GIB / 1024.0 },
            lock_step: Some(Line { fixed: 0.5 * GIB, each: 15.0 * GIB / 1024.0 }),
            rest: 0.5 * GIB,
            views: 0.0,
            prefetch: 4,
            kept_views: GIB,
        }
    }

    #[test]
    fn sides_follow_the_work_and_the_images() {
        assert_eq!(side(400, 100.0, 3000), 128);
        assert_eq!(side(20_000, 100.0, 3000), 96);
        assert_eq!(side(50_000, 100.0, 3000), 64);
        assert_eq!(side(400, 100.0, 100), 100);
        assert_eq!(side(60_000, 100.0, 28), 28);
        assert_eq!(side(400, 100.0, 33), 32);
        assert_eq!(side(400, 100.0, 1), 8);
        assert_eq!(
            (smaller(128), smaller(96), smaller(28), smaller(16)),
            (Some(96), Some(64), Some(16), None)
        );
    }

    #[test]
    fn a_small_set_gets_a_batch_that_it_holds() {
        assert_eq!([2, 3, 100, 128, 255].map(batch), [2, 2, 64, 128, 128]);
    }

    #[test]
    fn a_line_goes_through_both_points() {
        let line = Line::through((8, 180.0), (16, 260.0));
        assert_eq!((line.fixed, line.each, line.at(256)), (100.0, 10.0, 2660.0));
        assert_eq!(Line::through((8, 50.0), (16, 40.0)), Line { fixed: 50.0, each: 0.0 });
    }

    /// 16 GiB at once, 4.75 GiB in lock step, then half as much and 1 GiB for every halving.
    #[test]
    fn the_first_way_that_fits_is_taken() {
        let at = |gib: f64| way(&needs(), &OPEN, 256, gib * GIB);
        assert_eq!(at(16.1), Ok(Way::Whole));
        assert_eq!(at(15.9), Ok(Way::LockStep(64)));
        assert_eq!(at(4.7), Ok(Way::Chunks(32)));
        assert_eq!(at(2.0), Err((Way::Chunks(32), needs().of(Way::Chunks(32), 256))));
    }

    #[test]
    fn only_what_is_open_is_chosen() {
        let at = |open: Open, gib: f64| way(&needs(), &open, 256, gib * GIB);
        let global = Open { norm_open: false, ..OPEN };
        assert_eq!(at(global, 4.7), Err((Way::LockStep(64), needs().of(Way::LockStep(64), 256))));
        let own = Open { norm: BatchNormScope::ChunkShuffled, norm_open: false, ..OPEN };
        assert_eq!(at(own, 8.6), Ok(Way::Chunks(128)));
        assert_eq!(at(own, 1.2), Ok(Way::Chunks(2)), "what is written may have small chunks");
        assert!(matches!(at(own, 1.0), Err((Way::Chunks(2), _))));
        let labels = Open { objective: MethodKind::Supervised, ..OPEN };
        assert!(matches!(at(labels, 4.7), Err((Way::LockStep(64), _))));
        let frozen = Open { chunks: false, ..OPEN };
        assert!(matches!(at(frozen, 4.8), Err((Way::Whole, _))));
    }

    #[test]
    fn views_made_ahead_and_kept_count() {
        let needs = Needs { views: GIB / 256.0, ..needs() };
        let step = |images: usize| needs.whole.at(images) + needs.rest;
        assert_eq!(needs.of(Way::Whole, 256), step(256) + 5.0 * GIB);
        assert_eq!(needs.of(Way::Chunks(64), 256), step(64) + 1.25 * GIB + GIB);
        assert_eq!(needs.of(Way::Chunks(64), 512), step(64) + 1.25 * GIB, "more than is kept is made twice");
    }

    #[test]
    fn hands_that_share_processors_add_up() {
        let pace = Pace { step: 0.1, fixed: 1.0, loader: 0.25, shared: true };
        assert!((pace.of_step(10) - 4.5).abs() < 1e-12);
        assert!((Pace { shared: false, ..pace }.of_step(10) - 2.5).abs() < 1e-12);
    }
}
