//! The deterministic transform of images outside training (evaluation, export), as declared in `[transform]`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{AugmentBuffers, Crop, Interpolation, crop};
use crate::{DataError, Dataset, Image, ValueRange, decode::Jpeg, range::word};

/// Section `[transform]`: how images outside training become inputs of the encoder.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TransformConfig {
    /// `"whole"` (squeezed to a square), or the share of the shorter side that a central square covers, such as 0.875.
    pub crop: EvalCrop,
    /// Filter of the resize.
    pub interpolation: Interpolation,
    /// Whether an image that shrinks is averaged over all source pixels, as by Pillow; not so in the official code.
    pub antialias: bool,
    /// The decoder of JPEG files, also for training images.
    pub jpeg: Jpeg,
}

impl Default for TransformConfig {
    /// Resizes the whole image, antialiased.
    fn default() -> Self {
        Self {
            crop: EvalCrop::Whole,
            interpolation: Interpolation::Bicubic,
            antialias: true,
            jpeg: Jpeg::Zune,
        }
    }
}

/// `transform.crop`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum EvalCrop {
    /// `"whole"`.
    #[serde(with = "whole")]
    Whole,
    /// A central square; its side as a share of the shorter side.
    Share(f64),
}

word!(whole, "whole");

/// A [`TransformConfig`] with the shape of its result and the range of stored values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvalTransform {
    /// S: the result is `[C, S, S]` in `[0, 1]`.
    pub size: usize,
    /// C, see `size`.
    pub channels: usize,
    /// The region of the image that is resized.
    pub crop: EvalCrop,
    /// Filter of the resize.
    pub interpolation: Interpolation,
    /// See [`TransformConfig::antialias`].
    pub antialias: bool,
    /// See [`TransformConfig::jpeg`].
    #[serde(default)]
    pub jpeg: Jpeg,
    /// Which stored values become 0 and 1.
    #[serde(default)]
    pub range: ValueRange,
}

impl TransformConfig {
    /// Share of the shorter side that the official code evaluates on (google-research/simclr `data_util.py`
    /// `CROP_PROPORTION`).
    pub const OFFICIAL_SHARE: f64 = 0.875;

    /// The transform of runs that recorded none, by the first versions of this program.
    pub fn of_an_older_run(image_size: usize) -> Self {
        let crop = if image_size <= 32 { EvalCrop::Whole } else { EvalCrop::Share(Self::OFFICIAL_SHARE) };
        Self { crop, ..Self::default() }
    }

    /// Overrides the fields that `change` sets.
    #[must_use]
    pub fn changed(self, change: &TransformChange) -> Self {
        Self {
            crop: change.crop.unwrap_or(self.crop),
            interpolation: change.interpolation.unwrap_or(self.interpolation),
            antialias: change.antialias.unwrap_or(self.antialias),
            jpeg: change.jpeg.unwrap_or(self.jpeg),
        }
    }

    /// With the shape of the result; values over the full range.
    pub fn to(self, size: usize, channels: usize) -> EvalTransform {
        let Self { crop, interpolation, antialias, jpeg } = self;
        EvalTransform { size, channels, crop, interpolation, antialias, jpeg, range: ValueRange::Full }
    }

    /// Checks the ranges of all values.
    ///
    /// # Errors
    /// [`DataError::Config`].
    pub fn validate(&self) -> Result<(), DataError> {
        match self.crop {
            EvalCrop::Share(share) if !(share > 0.0 && share <= 1.0) => {
                let reason = "expected `whole` or a share of the shorter side above 0 and up to 1";
                Err(DataError::config("transform.crop", share, reason))
            }
            _ => Ok(()),
        }
    }
}

/// Overrides of a run's [`TransformConfig`] for one command; `None` keeps the run's value.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TransformChange {
    /// See [`TransformConfig::crop`].
    pub crop: Option<EvalCrop>,
    /// See [`TransformConfig::interpolation`].
    pub interpolation: Option<Interpolation>,
    /// See [`TransformConfig::antialias`].
    pub antialias: Option<bool>,
    /// See [`TransformConfig::jpeg`].
    pub jpeg: Option<Jpeg>,
}

impl FromStr for EvalCrop {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || "expected `whole` or a share of the shorter side such as 0.875".to_owned();
        if text == "whole" { Ok(Self::Whole) } else { text.parse().map(Self::Share).map_err(|_| expected()) }
    }
}

impl EvalTransform {
    /// Changes whenever the same transform gives other pixels; part of the keys of stored figures. 2: rows are filtered first.
    pub const REVISION: u32 = 2;

    /// For images with stored values in `range`.
    #[must_use]
    pub fn of_range(self, range: ValueRange) -> Self {
        Self { range, ..self }
    }

    /// Computes `[C, S, S]` into `out`.
    ///
    /// # Panics
    /// If `out` is not `C * S * S` long.
    pub fn apply(&self, image: &Image, out: &mut [f32], buffers: &mut AugmentBuffers) {
        assert_eq!(out.len(), image.channels * self.size * self.size, "the view fills its slot");
        let resampling = crop::Resampling {
            interpolation: self.interpolation,
            antialias: self.antialias,
            rows_first: true,
        };
        crop::crop_and_resize(image, self.region(image), (resampling, self.size), out, buffers);
        if !self.antialias {
            // `preprocess_for_eval` clips the cubic's overshoot after the resize.
            out.iter_mut().for_each(|value| *value = value.clamp(0.0, 1.0));
        }
    }

    /// The region of `image` that is resized: the official `_compute_crop_shape` and `center_crop` for a square.
    pub fn region(&self, image: &Image) -> Crop {
        let (width, height) = (image.width, image.height);
        let EvalCrop::Share(share) = self.crop else { return Crop { x: 0, y: 0, width, height } };
        let shorter = width.min(height);
        // In f32 as in the official code: 0.9 of 5 px rounds differently in f64.
        let side = ((share as f32 * shorter as f32).round_ties_even() as usize).clamp(1, shorter);
        Crop { x: (width - side).div_ceil(2), y: (height - side).div_ceil(2), width: side, height: side }
    }

    /// For the transfer protocol (paper B.8.1), which resizes the shorter side to S and crops the central square: a share
    /// becomes 1.
    #[must_use]
    pub fn of_the_transfer_protocol(self) -> Self {
        let crop = match self.crop {
            EvalCrop::Whole => EvalCrop::Whole,
            EvalCrop::Share(_) => EvalCrop::Share(1.0),
        };
        Self { crop, ..self }
    }

    /// Warnings on images of very different aspect ratios that are squeezed to squares, and on images that lose most of their
    /// resolution, judged by evenly spaced samples.
    pub fn notes_on_images(&self, set: &Dataset) -> Vec<String> {
        const SAMPLES: usize = 24;
        let count = SAMPLES.min(set.len());
        let images = (0..count).filter_map(|at| set.decode(at * set.len() / count).ok());
        let sizes: Vec<_> = images.map(|image| (image.width, image.height)).collect();
        self.note_on_shapes(&sizes).into_iter().chain(self.note_on_sizes(&sizes)).collect()
    }

    fn note_on_shapes(&self, sizes: &[(usize, usize)]) -> Option<String> {
        /// Ratio of the widest to the narrowest aspect ratio, such as 3:2 to 1:1; common within sets of photographs.
        const DIFFERENT: f64 = 1.5;
        if self.crop != EvalCrop::Whole {
            return None;
        }
        let ratios = sizes.iter().map(|&(width, height)| width as f64 / height as f64);
        let (low, high) = ratios
            .fold((f64::INFINITY, 0.0), |(low, high): (f64, f64), ratio| (low.min(ratio), high.max(ratio)));
        (high >= DIFFERENT * low).then(|| {
            format!(
                "images of very different shapes (width / height from {low:.2} to {high:.2}) are squeezed to one square; \
                 transform.crop = 1 cuts out the central square of the shorter side instead"
            )
        })
    }

    fn note_on_sizes(&self, sizes: &[(usize, usize)]) -> Option<String> {
        /// ImageNet's photographs have 1.7 times the 224 px of a view.
        const MOST: usize = 8;
        let mut shorter: Vec<usize> = sizes.iter().map(|&(width, height)| width.min(height)).collect();
        shorter.sort_unstable();
        let &median = shorter.get(shorter.len() / 2)?;
        let (size, times) = (self.size, median / self.size);
        (times >= MOST).then(|| {
            format!(
                "a shorter side of {median} px is reduced to {size} px: details of less than {times} px are lost \
                 (train.image_size)"
            )
        })
    }
}

impl fmt::Display for EvalTransform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.crop {
            EvalCrop::Whole => write!(f, "whole image")?,
            EvalCrop::Share(share) => write!(f, "central square of {} % of the shorter side", 100.0 * share)?,
        }
        let kind = match self.interpolation {
            Interpolation::Bicubic => "bicubic",
            Interpolation::Bilinear => "bilinear",
        };
        let antialias = if self.antialias { "antialiased" } else { "not antialiased" };
        write!(f, " to {size} x {size} px, {kind}, {antialias}", size = self.size)?;
        match self.jpeg {
            Jpeg::Zune => {}
            Jpeg::Libjpeg => write!(f, ", JPEG files by libjpeg")?,
            Jpeg::LibjpegFast => write!(f, ", JPEG files by libjpeg with the fast DCT")?,
        }
        match &self.range {
            ValueRange::Full => Ok(()),
            range => write!(f, ", values {range}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_name_images_that_are_distorted_or_much_too_large() {
        let whole = TransformConfig::default().to(32, 0);
        let squares = [(32, 32), (300, 240), (640, 480)];
        assert_eq!((whole.note_on_shapes(&squares), whole.note_on_sizes(&squares)), (None, None));
        let note = whole.note_on_shapes(&[(100, 100), (150, 100)]).unwrap();
        assert!(note.contains("from 1.00 to 1.50"), "{note}");
        let cropped = EvalTransform { crop: EvalCrop::Share(1.0), ..whole.clone() };
        assert_eq!(cropped.note_on_shapes(&[(100, 100), (150, 100)]), None);
        let note = whole.note_on_sizes(&[(640, 480), (480, 640), (64, 64)]).unwrap();
        assert!(
            note.starts_with("a shorter side of 480 px is reduced to 32 px: details of less than 15 px"),
            "{note}"
        );
        assert_eq!(whole.note_on_sizes(&[]), None);
    }
}
