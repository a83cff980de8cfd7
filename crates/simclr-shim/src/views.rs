//! Views made on a GPU (C++ side: `views_gpu.cpp`, `gpu/views.cu`): images as bytes and a table of dice go in, pixels come out.

use std::ffi::{c_char, c_int};

use tch::{Device, Tensor};
use torch_sys::C_tensor;

use crate::{ShimError, check, upload};

/// Most channels that the kernels take.
pub const MOST_CHANNELS: usize = 16;
/// Largest side of a view: a block computes the weights of its blur at once, one a thread.
pub const MOST_SIDE: usize = 2048;
/// Most changes of a view.
pub const MOST_CHANGES: usize = 5;

/// What is done to the colour of a pixel, clipped to `[0, 1]` after each.
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

    /// Scale the distance from the mean of the view. Once in a view, at most.
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

/// All that is known of a view before its pixels are, as the kernels read it (`gpu/views.h`).
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
    /// Quarter turns anticlockwise, 0 to 3.
    pub turns: i32,
    /// Of the blur, in pixels of the view; 0: none.
    pub sigma: f32,
    /// Whether values from the threshold on are inverted.
    pub inverts: i32,
    /// The threshold.
    pub threshold: f32,
    /// Left, right, top, bottom of the grey square; right and bottom are beyond it.
    pub cut: [i32; 4],
    /// How many changes there are.
    pub changes: i32,
    /// What is done to the colour, in this order.
    pub change: [Change; MOST_CHANGES],
}

impl View {
    /// Whether its crop lies in its image, and that within `bytes` bytes of `channels` channels.
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
            && (0..=MOST_CHANGES as i32).contains(&self.changes)
            && contrasts <= 1
            && self.sigma >= 0.0
    }
}

/// How views are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ViewOptions {
    /// C.
    pub channels: usize,
    /// S.
    pub side: usize,
    /// Keys' cubic; else a triangle.
    pub cubic: bool,
    /// All source pixels count where a crop shrinks; else as `tf.image.resize`.
    pub antialias: bool,
    /// Contrast about the mean of the grey image; else of each channel.
    pub gray_mean: bool,
    /// Whether any view may be blurred.
    pub blurs: bool,
}

#[repr(C)]
struct COptions {
    channels: i64,
    side: i64,
    cubic: c_int,
    antialias: c_int,
    gray_mean: c_int,
    blurs: c_int,
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

/// Bytes of images and what is to be made of them, checked against each other.
#[derive(Debug)]
pub struct KernelInputs {
    pixels: Tensor,
    table: Tensor,
    channels: usize,
}

impl KernelInputs {
    /// Copies both to `device`. To a GPU they go through pinned memory, and nobody waits for them: what is started there
    /// afterwards finds them.
    ///
    /// # Errors
    /// A view beyond the pixels, or more than the kernels take; no memory.
    pub fn upload(pixels: &[u8], views: &[View], channels: usize, device: Device) -> Result<Self, ShimError> {
        if !(1..=MOST_CHANNELS).contains(&channels) {
            return Err(ShimError(format!("{channels} channels, where kernels take 1 to {MOST_CHANNELS}")));
        }
        if let Some(view) = views.iter().find(|view| !view.fits(pixels.len(), channels)) {
            return Err(ShimError(format!("a view that its image does not hold: {view:?}")));
        }
        // SAFETY: the struct is plain numbers without padding (a test tells), so it is bytes, as many as named.
        let table = unsafe { std::slice::from_raw_parts(views.as_ptr().cast::<u8>(), size_of_val(views)) };
        let said = |error: tch::TchError| ShimError(error.to_string());
        let pixels = upload(pixels, device).map_err(said)?;
        Ok(Self { pixels, table: upload(table, device).map_err(said)?, channels })
    }

    /// What lies on the device.
    pub fn tensors(&self) -> [&Tensor; 2] {
        [&self.pixels, &self.table]
    }

    /// Makes the views `[B, C, S, S]`, `f32` in `[0, 1]`, channels last. Starts kernels, and waits for none of them.
    ///
    /// # Errors
    /// A device without kernels, other channels, too large a view, no memory.
    pub fn views(&self, making: ViewOptions) -> Result<Tensor, ShimError> {
        let ViewOptions { channels, side, cubic, antialias, gray_mean, blurs } = making;
        if channels != self.channels || !(1..=MOST_SIDE).contains(&side) {
            return Err(ShimError(format!("{making:?} of images with {} channels", self.channels)));
        }
        let options = COptions {
            channels: channels as i64,
            side: side as i64,
            cubic: c_int::from(cubic),
            antialias: c_int::from(antialias),
            gray_mean: c_int::from(gray_mean),
            blurs: c_int::from(blurs),
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

    /// The numbers fill it without a gap, and C++ has the same.
    #[test]
    fn a_view_is_the_struct_of_the_kernels() {
        // SAFETY: returns a number.
        assert_eq!(size_of::<View>(), unsafe { simclr_gpu_view_size() });
        assert_eq!(size_of::<View>(), 8 + 16 * 4 + MOST_CHANGES * 8);
    }
}
