//! Views computed on a GPU (C++ side: `views_gpu.cpp`, `gpu/view_*.cu`) from images as bytes and a table of augmentation
//! parameters.

use std::ffi::{c_char, c_int};

use tch::{Device, Tensor};
use torch_sys::C_tensor;

use crate::{ShimError, check, upload};

/// Maximum number of channels.
pub const MAX_CHANNELS: usize = 16;
/// Maximum side of a view: a block computes the weights of its blur with one thread each.
pub const MAX_SIDE: usize = 2048;
/// Maximum length of a motion blur in pixels: a block computes its points with one thread each.
const MAX_LENGTH: f32 = 256.0;
/// Maximum number of changes of a view.
pub const MAX_CHANGES: usize = 5;
/// Maximum number of a view's operations of AutoAugment.
pub const MAX_STEPS: usize = 2;

/// A change of a pixel's colour, clamped to `[0, 1]` afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[repr(C)]
pub struct Change {
    kind: i32,
    value: f32,
}

impl Change {
    /// Multiply by a factor.
    pub const fn scale(factor: f32) -> Self {
        Self { kind: 1, value: factor }
    }

    /// Add a number.
    pub const fn shift(by: f32) -> Self {
        Self { kind: 2, value: by }
    }

    /// Scale the distance from the mean of the view. At most one per view.
    pub const fn contrast(factor: f32) -> Self {
        Self { kind: CONTRAST, value: factor }
    }

    /// Scale the saturation in HSV.
    pub const fn saturation(factor: f32) -> Self {
        Self { kind: 4, value: factor }
    }

    /// Blend with the grey image.
    pub const fn blend(factor: f32) -> Self {
        Self { kind: 5, value: factor }
    }

    /// Shift the hue, in turns.
    pub const fn hue(turns: f32) -> Self {
        Self { kind: 6, value: turns }
    }

    /// Drop the colour.
    pub const fn gray() -> Self {
        Self { kind: 7, value: 0.0 }
    }
}

const CONTRAST: i32 = 3;

/// An operation of AutoAugment on values rounded to 8-bit levels; the default is none.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[repr(C)]
pub struct Step {
    operation: i32,
    value: f32,
    source: [[i32; 2]; 3],
}

impl Step {
    const fn with(operation: i32, value: f32) -> Self {
        Self { operation, value, source: [[0; 2]; 3] }
    }

    /// Column and row of the pixel that comes to (x, y) are `start` + x `across` + y `down`, in 16.16 fixed point.
    pub const fn gather(start: [i32; 2], across: [i32; 2], down: [i32; 2]) -> Self {
        Self { operation: 1, value: 0.0, source: [start, across, down] }
    }

    /// Blend with the grey image.
    pub const fn color(factor: f32) -> Self {
        Self::with(2, factor)
    }

    /// Blend with the smoothed image.
    pub const fn sharpness(factor: f32) -> Self {
        Self::with(3, factor)
    }

    /// Blend with black.
    pub const fn brightness(factor: f32) -> Self {
        Self::with(4, factor)
    }

    /// Blend with the mean of the grey image.
    pub const fn contrast(factor: f32) -> Self {
        Self::with(5, factor)
    }

    /// Keep the upper `bits`, rounded down and at most 8.
    pub const fn posterize(bits: f32) -> Self {
        Self::with(6, bits)
    }

    /// Invert levels of at least `threshold`.
    pub const fn solarize(threshold: f32) -> Self {
        Self::with(7, threshold)
    }

    /// Stretch the levels of every channel to 0 to 255.
    pub const fn auto_contrast() -> Self {
        Self::with(8, 0.0)
    }

    /// Equalize the histogram of every channel.
    pub const fn equalize() -> Self {
        Self::with(9, 0.0)
    }
}

/// The augmentation parameters of a view, in the memory layout of the kernels (`gpu/views.h`).
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C)]
pub struct View {
    /// First byte of its image `[height, width, C]`.
    pub at: i64,
    /// Columns of the image.
    pub width: i32,
    /// Rows of the image.
    pub height: i32,
    /// Left column of the crop.
    pub left: i32,
    /// Top row of the crop.
    pub top: i32,
    /// Columns of the crop.
    pub columns: i32,
    /// Rows of the crop.
    pub rows: i32,
    /// Left and right swapped.
    pub mirrored: i32,
    /// Top and bottom swapped.
    pub flipped: i32,
    /// Quarter turns anticlockwise, 0 to 3.
    pub turns: i32,
    /// Number of operations of AutoAugment.
    pub steps: i32,
    /// The operations, in order.
    pub step: [Step; MAX_STEPS],
    /// Of the blur, in pixels of the view; 0: no blur.
    pub sigma: f32,
    /// Of the motion blur, in pixels of the view; 0: none.
    pub length: f32,
    /// Its direction, of length 1: columns to the right, rows down.
    pub direction: [f32; 2],
    /// Whether the histogram of every channel is equalized.
    pub equalizes: i32,
    /// Whether Sobel's gradient magnitude replaces the values.
    pub edges: i32,
    /// Whether values >= `threshold` are inverted (solarization).
    pub inverts: i32,
    /// The threshold.
    pub threshold: f32,
    /// Standard deviation of the noise; 0: none.
    pub noise: f32,
    /// Seed of the noise, its lower and its upper half.
    pub seed: [u32; 2],
    /// Left, right, top, bottom of the grey square; right and bottom are exclusive.
    pub cut: [i32; 4],
    /// Number of changes.
    pub changes: i32,
    /// Changes of the colour, in order.
    pub change: [Change; MAX_CHANGES],
}

impl View {
    /// Whether the crop lies within the image, and the image within `bytes` bytes of `channels` channels.
    fn fits(&self, bytes: usize, channels: usize) -> bool {
        let inside = |from: i32, length: i32, all: i32| {
            from >= 0 && length >= 1 && i64::from(from) + i64::from(length) <= i64::from(all)
        };
        let size = i128::from(self.width) * i128::from(self.height) * channels as i128;
        let contrasts = self.change.iter().filter(|change| change.kind == CONTRAST).count();
        self.at >= 0
            && i128::from(self.at) + size <= bytes as i128
            && inside(self.left, self.columns, self.width)
            && inside(self.top, self.rows, self.height)
            && (0..=3).contains(&self.turns)
            && (0..=MAX_CHANGES as i32).contains(&self.changes)
            && contrasts <= 1
            && (0..=MAX_STEPS as i32).contains(&self.steps)
            && self.step.iter().all(|step| (0..=9).contains(&step.operation) && step.value.is_finite())
            && (0.0..f32::INFINITY).contains(&self.noise)
            && self.sigma >= 0.0
            && (0.0..=MAX_LENGTH).contains(&self.length)
            && self.direction.iter().all(|share| share.abs() <= 1.0)
    }
}

/// Options common to all views of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ViewOptions {
    /// Channels C.
    pub channels: usize,
    /// Side S in pixels.
    pub side: usize,
    /// Keys' cubic filter; else a triangle filter.
    pub cubic: bool,
    /// Antialiased downscaling; else as `tf.image.resize`.
    pub antialias: bool,
    /// Contrast relative to the mean of the grey image; else to that of each channel.
    pub gray_mean: bool,
    /// Whether any view may have operations of AutoAugment.
    pub policies: bool,
    /// Whether any view may be blurred.
    pub blurs: bool,
    /// Whether any view may have a motion blur, an equalized histogram or edges.
    pub filters: bool,
    /// Whether any view may have noise.
    pub noise: bool,
}

#[repr(C)]
struct COptions {
    channels: i64,
    side: i64,
    cubic: c_int,
    antialias: c_int,
    gray_mean: c_int,
    policies: c_int,
    blurs: c_int,
    filters: c_int,
    noise: c_int,
}

unsafe extern "C" {
    fn simclr_gpu_views(
        pixels: *const C_tensor,
        table: *const C_tensor,
        options: *const COptions,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
    #[cfg(test)]
    fn simclr_gpu_view_size() -> usize;
}

/// Images as bytes and the parameters of their views, validated against each other.
#[derive(Debug)]
pub struct KernelInputs {
    pixels: Tensor,
    table: Tensor,
    channels: usize,
}

impl KernelInputs {
    /// Copies both to `device`; to a GPU asynchronously from pinned memory, ordered before later work on the stream.
    ///
    /// # Errors
    /// A view outside its image, another parameter out of range, too many channels; out of memory.
    pub fn upload(pixels: &[u8], views: &[View], channels: usize, device: Device) -> Result<Self, ShimError> {
        if !(1..=MAX_CHANNELS).contains(&channels) {
            return Err(ShimError(format!("{channels} channels; kernels support 1 to {MAX_CHANNELS}")));
        }
        if let Some(view) = views.iter().find(|view| !view.fits(pixels.len(), channels)) {
            return Err(ShimError(format!("augmentation parameters out of range for their image: {view:?}")));
        }
        // SAFETY: the struct has no padding (checked by a test), so all of its bytes are initialised.
        let table = unsafe { std::slice::from_raw_parts(views.as_ptr().cast::<u8>(), size_of_val(views)) };
        Ok(Self { pixels: upload(pixels, device)?, table: upload(table, device)?, channels })
    }

    /// Pixels and table on the device.
    pub fn tensors(&self) -> [&Tensor; 2] {
        [&self.pixels, &self.table]
    }

    /// The views `[B, C, S, S]`, `f32` in `[0, 1]`, channels last. Asynchronous.
    ///
    /// # Errors
    /// A device without kernels, another number of channels, a side above [`MAX_SIDE`], out of memory.
    pub fn views(&self, options: ViewOptions) -> Result<Tensor, ShimError> {
        let ViewOptions { channels, side, cubic, antialias, gray_mean, policies, blurs, filters, noise } =
            options;
        if channels != self.channels || !(1..=MAX_SIDE).contains(&side) {
            return Err(ShimError(format!("{options:?} of images with {} channels", self.channels)));
        }
        let options = COptions {
            channels: channels as i64,
            side: side as i64,
            cubic: c_int::from(cubic),
            antialias: c_int::from(antialias),
            gray_mean: c_int::from(gray_mean),
            policies: c_int::from(policies),
            blurs: c_int::from(blurs),
            filters: c_int::from(filters),
            noise: c_int::from(noise),
        };
        let mut out = std::ptr::null_mut();
        // SAFETY: tensors and options live through the call; every view lies within the pixels, as `upload` has checked; `out` is
        // an owned tensor on success.
        unsafe {
            let (pixels, table) = (self.pixels.as_ptr(), self.table.as_ptr());
            check(simclr_gpu_views(pixels, table, &options, &mut out))?;
            Ok(Tensor::from_ptr(out))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn view_has_no_padding_and_the_size_of_the_cpp_struct() {
        // SAFETY: returns a number.
        assert_eq!(size_of::<View>(), unsafe { simclr_gpu_view_size() });
        assert_eq!(size_of::<View>(), 8 + 26 * 4 + MAX_STEPS * 32 + MAX_CHANGES * 8);
    }

    #[test]
    fn values_that_kernels_do_not_have_are_refused() {
        let view = |change: &dyn Fn(&mut View)| {
            // SAFETY: all fields are numbers.
            let mut view: View = unsafe { std::mem::zeroed() };
            (view.width, view.height, view.columns, view.rows) = (2, 2, 2, 2);
            change(&mut view);
            view.fits(12, 3)
        };
        assert!(view(&|_| ()));
        assert!(view(&|view| (view.steps, view.step) = (2, [Step::equalize(), Step::posterize(4.0)])));
        assert!(!view(&|view| view.steps = 3));
        assert!(!view(&|view| view.steps = -1));
        assert!(!view(&|view| view.step[1] = Step::with(10, 0.0)));
        assert!(!view(&|view| view.step[0] = Step::brightness(f32::NAN)));
        assert!(view(&|view| view.noise = 0.1));
        for noise in [-0.1, f32::NAN, f32::INFINITY] {
            assert!(!view(&|view| view.noise = noise));
        }
    }
}
