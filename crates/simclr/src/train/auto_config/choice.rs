//! Image size, batch size and chunking of a new run, as functions of the data set and of measured costs.

use crate::{encoder::BatchNormScope, task::MethodKind};

/// On a CPU: image size in pixels by the number of images over all epochs, at most the first value. ResNet-18 on two cores takes
/// about 0.025 s per image at 128 px and a quarter of that at 64 px, so a run at the first limit takes about a night.
const IMAGE_SIZES: [(f64, usize); 3] = [(1e6, 128), (2e6, 96), (f64::INFINITY, 64)];
/// Tried in order if an image size does not fit into memory.
const SMALLER_SIZES: [usize; 5] = [96, 64, 48, 32, 16];
/// With fewer images per chunk the batch-norm statistics identify the two views of an image.
const MIN_SHUFFLED_CHUNK: usize = 32;
/// Images per chunk under global batch norm. Memory does not depend on it, so it is the fastest size.
const GLOBAL_NORM_CHUNK: usize = 64;

/// Largest image size on a CPU for a run over `total` images, summed over epochs.
pub fn cpu_image_size(total: f64) -> usize {
    IMAGE_SIZES.iter().find(|(max, _)| total <= *max).map_or(64, |(_, size)| *size)
}

/// Image size of at most `most`, and of at most `shorter_side`, the median of the images' shorter sides.
pub fn image_size(most: usize, shorter_side: usize) -> usize {
    most.min(shorter_side / 4 * 4).max(8)
}

/// The next smaller image size, if there is one.
pub fn smaller_size(size: usize) -> Option<usize> {
    SMALLER_SIZES.into_iter().find(|&next| next < size)
}

/// The largest power of two that is at most `images`.
pub fn batch(images: usize) -> usize {
    1 << images.max(2).ilog2()
}

/// Bytes as a linear function of the number of images.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MemoryModel {
    pub fixed: f64,
    pub per_image: f64,
}

impl MemoryModel {
    /// The line through two points (images, bytes); a negative slope counts as 0.
    pub fn through(small: (usize, f64), large: (usize, f64)) -> Self {
        let per_image = ((large.1 - small.1) / (large.0 - small.0) as f64).max(0.0);
        Self { fixed: (small.1 - per_image * small.0 as f64).max(0.0), per_image }
    }

    pub fn scaled(self, factor: f64) -> Self {
        Self { fixed: factor * self.fixed, per_image: factor * self.per_image }
    }

    pub fn bytes(&self, images: usize) -> f64 {
        self.fixed + self.per_image * images as f64
    }
}

/// Memory of a process by component, in bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct MemoryNeeds {
    /// A step in one pass.
    pub whole: MemoryModel,
    /// A step in chunks with global batch norm; `None` if that is impossible or was not measured.
    pub global_norm: Option<MemoryModel>,
    /// Independent of the batch: decoding on all threads, a checkpoint while it is written.
    pub rest: f64,
    /// Views of one image in the loader's queue; 0 if the queue is in other memory than the step.
    pub views: f64,
    /// Length of that queue in batches or chunks.
    pub prefetch: usize,
    /// Largest size up to which the views of a batch are kept between the two passes over its chunks.
    pub kept_views: f64,
}

/// How a batch passes through the encoder; chunks with their number of images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchMode {
    /// In one pass.
    Whole,
    /// In chunks, with batch norm over the whole batch.
    GlobalNorm(usize),
    /// In chunks, with batch norm over each chunk.
    ChunkNorm(usize),
}

impl MemoryNeeds {
    /// Peak memory in bytes of a process that holds `part` images of a batch.
    pub fn peak(&self, mode: BatchMode, part: usize) -> f64 {
        // The queue, and the batch that waits for room in it.
        let ahead = |images: usize| self.views * (images * (self.prefetch + 1)) as f64;
        match mode {
            BatchMode::Whole => self.whole.bytes(part) + self.rest + ahead(part),
            BatchMode::GlobalNorm(chunk) => {
                self.global_norm.unwrap_or(self.whole).bytes(part) + self.rest + ahead(chunk.min(part))
            }
            BatchMode::ChunkNorm(chunk) => {
                let kept = Some(self.views * part as f64).filter(|&bytes| bytes <= self.kept_views);
                self.whole.bytes(chunk) + self.rest + ahead(chunk) + kept.unwrap_or_default()
            }
        }
    }
}

/// Constraints on the batch mode.
#[derive(Debug, Clone, Copy)]
pub struct Constraints {
    /// Whether chunks are possible: not with a frozen encoder or groups of batch norm.
    pub chunks: bool,
    /// `train.batch_norm` of the configuration.
    pub norm: BatchNormScope,
    /// Whether `norm` may be changed.
    pub norm_is_free: bool,
    pub objective: MethodKind,
}

/// Possible modes in order of preference: one pass, chunks with global batch norm, chunks with batch norm over each.
fn candidates(needs: &MemoryNeeds, constraints: &Constraints, part: usize) -> Vec<BatchMode> {
    let mut modes = vec![BatchMode::Whole];
    if !constraints.chunks || part < 4 {
        return modes;
    }
    let half = batch(part / 2);
    let halvings = |max: usize, min: usize| {
        std::iter::successors(Some(max), |chunk| Some(chunk / 2)).take_while(move |&chunk| chunk >= min)
    };
    let may_shuffle = constraints.norm_is_free && constraints.objective.is_contrastive();
    if constraints.norm == BatchNormScope::Global {
        modes.extend(needs.global_norm.map(|_| BatchMode::GlobalNorm(half.min(GLOBAL_NORM_CHUNK))));
        if may_shuffle {
            modes.extend(halvings(half, MIN_SHUFFLED_CHUNK.min(half)).map(BatchMode::ChunkNorm));
        }
    } else {
        modes.extend(halvings(half, 2).map(BatchMode::ChunkNorm));
    }
    modes
}

/// The first candidate that fits into `budget` bytes.
///
/// # Errors
/// If none fits, the candidate with the least memory, and its bytes.
pub fn best_mode(
    needs: &MemoryNeeds,
    constraints: &Constraints,
    part: usize,
    budget: f64,
) -> Result<BatchMode, (BatchMode, f64)> {
    let modes = candidates(needs, constraints, part);
    let fits = modes.iter().find(|&&mode| needs.peak(mode, part) <= budget);
    let smallest =
        || modes.iter().map(|&mode| (mode, needs.peak(mode, part))).min_by(|a, b| a.1.total_cmp(&b.1));
    fits.copied().ok_or_else(|| smallest().unwrap_or((BatchMode::Whole, needs.peak(BatchMode::Whole, part))))
}

/// Duration of a step of one process, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepTime {
    /// Forward, backward and update, per image.
    pub per_image: f64,
    /// Forward, backward and update, independent of the number of images.
    pub fixed: f64,
    /// Decoding and augmentation per image, divided over the loader's threads.
    pub loader: f64,
    /// Whether loader and step compete for the same processors.
    pub shared: bool,
}

impl StepTime {
    /// Seconds of a step over `images` images.
    pub fn seconds(&self, images: usize) -> f64 {
        let step = self.fixed + self.per_image * images as f64;
        let loader = self.loader * images as f64;
        if self.shared { step + loader } else { step.max(loader) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: f64 = 1073741824.0;
    const FREE: Constraints = Constraints {
        chunks: true,
        norm: BatchNormScope::Global,
        norm_is_free: true,
        objective: MethodKind::Contrastive,
    };

    /// 60 MiB per image in one pass, 15 MiB in chunks with global batch norm, and 1 GiB.
    fn needs() -> MemoryNeeds {
        MemoryNeeds {
            whole: MemoryModel { fixed: 0.5 * GIB, per_image: 60.0 * GIB / 1024.0 },
            global_norm: Some(MemoryModel { fixed: 0.5 * GIB, per_image: 15.0 * GIB / 1024.0 }),
            rest: 0.5 * GIB,
            views: 0.0,
            prefetch: 4,
            kept_views: GIB,
        }
    }

    #[test]
    fn image_size_follows_the_work_and_the_images() {
        assert_eq!([4e4, 2e6, 5e6].map(cpu_image_size), [128, 96, 64]);
        assert_eq!([3000, 100, 33, 1].map(|side| image_size(128, side)), [128, 100, 32, 8]);
        assert_eq!(image_size(cpu_image_size(6e6), 28), 28);
        assert_eq!(
            (smaller_size(128), smaller_size(96), smaller_size(28), smaller_size(16)),
            (Some(96), Some(64), Some(16), None)
        );
    }

    #[test]
    fn the_batch_is_a_power_of_two_that_the_set_holds() {
        assert_eq!([2, 3, 100, 128, 255].map(batch), [2, 2, 64, 128, 128]);
    }

    #[test]
    fn the_memory_model_goes_through_both_points() {
        let model = MemoryModel::through((8, 180.0), (16, 260.0));
        assert_eq!((model.fixed, model.per_image, model.bytes(256)), (100.0, 10.0, 2660.0));
        assert_eq!(MemoryModel::through((8, 50.0), (16, 40.0)), MemoryModel { fixed: 50.0, per_image: 0.0 });
    }

    /// 16 GiB in one pass, 4.75 GiB in chunks with global batch norm, then half plus 1 GiB per halving.
    #[test]
    fn the_first_mode_that_fits_is_chosen() {
        let at = |gib: f64| best_mode(&needs(), &FREE, 256, gib * GIB);
        assert_eq!(at(16.1), Ok(BatchMode::Whole));
        assert_eq!(at(15.9), Ok(BatchMode::GlobalNorm(64)));
        assert_eq!(at(4.7), Ok(BatchMode::ChunkNorm(32)));
        assert_eq!(at(2.0), Err((BatchMode::ChunkNorm(32), needs().peak(BatchMode::ChunkNorm(32), 256))));
    }

    #[test]
    fn constraints_limit_the_choice() {
        let at = |open: Constraints, gib: f64| best_mode(&needs(), &open, 256, gib * GIB);
        let global = Constraints { norm_is_free: false, ..FREE };
        assert_eq!(
            at(global, 4.7),
            Err((BatchMode::GlobalNorm(64), needs().peak(BatchMode::GlobalNorm(64), 256)))
        );
        let own = Constraints { norm: BatchNormScope::ChunkShuffled, norm_is_free: false, ..FREE };
        assert_eq!(at(own, 8.6), Ok(BatchMode::ChunkNorm(128)));
        assert_eq!(at(own, 1.2), Ok(BatchMode::ChunkNorm(2)), "a configured scope allows small chunks");
        assert!(matches!(at(own, 1.0), Err((BatchMode::ChunkNorm(2), _))));
        let labels = Constraints { objective: MethodKind::Supervised, ..FREE };
        assert!(matches!(at(labels, 4.7), Err((BatchMode::GlobalNorm(64), _))));
        let frozen = Constraints { chunks: false, ..FREE };
        assert!(matches!(at(frozen, 4.8), Err((BatchMode::Whole, _))));
    }

    #[test]
    fn prefetched_and_kept_views_count() {
        let needs = MemoryNeeds { views: GIB / 256.0, ..needs() };
        let step = |images: usize| needs.whole.bytes(images) + needs.rest;
        assert_eq!(needs.peak(BatchMode::Whole, 256), step(256) + 5.0 * GIB);
        assert_eq!(needs.peak(BatchMode::ChunkNorm(64), 256), step(64) + 1.25 * GIB + GIB);
        assert_eq!(
            needs.peak(BatchMode::ChunkNorm(64), 512),
            step(64) + 1.25 * GIB,
            "views above the limit are computed twice"
        );
    }

    #[test]
    fn times_on_shared_processors_add_up() {
        let time = StepTime { per_image: 0.1, fixed: 1.0, loader: 0.25, shared: true };
        assert!((time.seconds(10) - 4.5).abs() < 1e-12);
        assert!((StepTime { shared: false, ..time }.seconds(10) - 2.5).abs() < 1e-12);
    }
}
