//! The sampled augmentation parameters of a view, as plain data.
//!
//! Parameters are drawn in a fixed order, also those of operators that do not run, so two configurations that differ in one
//! operator share all other parameters (paired comparisons). The crop, which takes a variable number of draws, comes last.
//! Operators that were added later draw from streams of their own and only if they are configured, so the parameters of all
//! other operators do not depend on them.

use serde::{Deserialize, Serialize};

use super::{
    config::{AugmentConfig, Brightness, CropSampler},
    motion_blur::MotionBlur,
    policy::{Policy, PolicyStep},
};
use crate::rng::{Key, Stream};

/// A crop in pixels of the decoded image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Crop {
    /// Left column.
    pub x: usize,
    /// Top row.
    pub y: usize,
    /// Columns, at least 1.
    pub width: usize,
    /// Rows, at least 1.
    pub height: usize,
}

/// An operation of the colour jitter.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Jitter {
    /// Multiply by a factor (SimCLR v2).
    Brightness(f32),
    /// Add a shift (SimCLR v1).
    BrightnessShift(f32),
    /// Blend with the mean by a factor.
    Contrast(f32),
    /// Multiply the saturation by a factor.
    Saturation(f32),
    /// Shift the hue, in turns.
    Hue(f32),
}

/// Parameters of the Gaussian noise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoiseSeed {
    /// Standard deviation in millionths of the value range: an integer, so that parameters compare exactly.
    pub sigma_millionths: u32,
    /// Seed of the noise, see [`Key`].
    pub seed: u64,
}

/// Position of the grey square.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Cutout {
    /// Centre column as a share of the side, in `[0, 1)`.
    pub x: f32,
    /// Centre row as a share of the side.
    pub y: f32,
}

/// The augmentation parameters of one view. `None` and `false` disable an operator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ViewParams {
    /// The region that is resized to the view; the whole image if cropping is off.
    pub crop: Crop,
    /// Mirror left and right.
    pub flip: bool,
    /// Swap top and bottom.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub vertical_flip: bool,
    /// Quarter turns anticlockwise, 0 to 3.
    pub quarter_turns: u8,
    /// Operations of AutoAugment in the order of application; empty if there is no policy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policy: Vec<PolicyStep>,
    /// Operations in the order of application; empty if the jitter does not run.
    pub jitter: Vec<Jitter>,
    /// Drop the colour.
    pub gray: bool,
    /// Standard deviation of the Gaussian blur in pixels of the view.
    pub blur: Option<f32>,
    /// Motion blur.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub motion_blur: Option<MotionBlur>,
    /// Equalize the histogram of every channel.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub equalize: bool,
    /// Threshold above which values are inverted.
    pub solarize: Option<f32>,
    /// Replace by the gradient magnitude.
    pub sobel: bool,
    /// Additive noise.
    pub noise: Option<NoiseSeed>,
    /// Grey square.
    pub cutout: Option<Cutout>,
}

/// Numbers of the streams of operators that were added later, see [`Key::substream`]; part of the format of a run.
const VERTICAL_FLIP: u64 = 1;
const MOTION_BLUR: u64 = 2;
const EQUALIZE: u64 = 3;
const POLICY: u64 = 4;

impl AugmentConfig {
    /// Samples the view `key` of an image of `width` x `height` pixels.
    pub fn draw(&self, key: Key, width: usize, height: usize) -> ViewParams {
        let mut stream = key.stream();
        let flip = stream.chance(self.flip);
        let rotated = stream.chance(self.rotate);
        let turns = stream.below(4) as u8;
        let jittered = stream.chance(self.jitter);
        let jitter = self.draw_jitter(&mut stream);
        let gray = stream.chance(self.gray);
        let blurred = stream.chance(self.blur);
        let sigma = stream.uniform(self.blur_sigma[0], self.blur_sigma[1]);
        let solarized = stream.chance(self.solarize);
        let sobel = stream.chance(self.sobel);
        let noisy = stream.chance(self.noise);
        let noise_sigma = stream.uniform(0.0, self.noise_sigma);
        let noise_seed = stream.bits();
        let cut = stream.chance(self.cutout);
        let centre = Cutout { x: stream.unit(), y: stream.unit() };
        let whole = Crop { x: 0, y: 0, width, height };
        let runs = |number, probability| probability > 0.0 && key.substream(number).chance(probability);
        ViewParams {
            crop: if self.crop { self.draw_crop(&mut stream, width, height) } else { whole },
            flip,
            vertical_flip: runs(VERTICAL_FLIP, self.vertical_flip),
            quarter_turns: if rotated { turns } else { 0 },
            policy: if self.policy == Policy::None {
                Vec::new()
            } else {
                self.policy.draw(&mut key.substream(POLICY))
            },
            jitter: if jittered { jitter } else { Vec::new() },
            gray,
            blur: blurred.then_some(sigma),
            motion_blur: self.draw_motion_blur(key),
            equalize: runs(EQUALIZE, self.equalize),
            solarize: solarized.then_some(self.solarize_threshold),
            sobel,
            noise: noisy
                .then_some(NoiseSeed { sigma_millionths: (noise_sigma * 1e6) as u32, seed: noise_seed }),
            cutout: cut.then_some(centre),
        }
    }

    fn draw_motion_blur(&self, key: Key) -> Option<MotionBlur> {
        if self.motion_blur == 0.0 {
            return None;
        }
        let mut stream = key.substream(MOTION_BLUR);
        let runs = stream.chance(self.motion_blur);
        let length = stream.uniform(self.motion_blur_length[0], self.motion_blur_length[1]);
        runs.then_some(MotionBlur { length, degrees: stream.uniform(0.0, 180.0) })
    }

    /// The four operations in random order, as in the official code (`data_util.py` `color_jitter_rand`).
    fn draw_jitter(&self, stream: &mut Stream) -> Vec<Jitter> {
        let [brightness, contrast, saturation, hue] =
            self.jitter_strengths.map(|strength| strength * self.color);
        // The official code clamps the lower end at 0: a negative factor would invert.
        let mut factor = |strength: f32| stream.uniform((1.0 - strength).max(0.0), 1.0 + strength);
        let [scale, contrast, saturation] = [brightness, contrast, saturation].map(&mut factor);
        let shift = stream.uniform(-brightness, brightness);
        let hue = stream.uniform(-hue, hue);
        let brightness = match self.brightness {
            Brightness::Multiplicative => Jitter::Brightness(scale),
            Brightness::Additive => Jitter::BrightnessShift(shift),
        };
        let ops = [brightness, Jitter::Contrast(contrast), Jitter::Saturation(saturation), Jitter::Hue(hue)];
        let order = stream.permutation(4);
        if self.color == 0.0 { Vec::new() } else { order.into_iter().map(|op| ops[op]).collect() }
    }

    fn draw_crop(&self, stream: &mut Stream, width: usize, height: usize) -> Crop {
        match self.crop_sampler {
            CropSampler::Torchvision => self.torchvision_crop(stream, width, height),
            CropSampler::Tensorflow => self.tensorflow_crop(stream, width, height),
        }
    }

    /// `RandomResizedCrop`: area uniform, aspect ratio log-uniform, ten attempts, then the central crop with the aspect ratio
    /// clamped.
    fn torchvision_crop(&self, stream: &mut Stream, width: usize, height: usize) -> Crop {
        let [low, high] = self.crop_ratio;
        let area = (width * height) as f32;
        for _ in 0..10 {
            let target = area * stream.uniform(self.crop_scale[0], self.crop_scale[1]);
            let aspect = stream.uniform(low.ln(), high.ln()).exp();
            let w = (target * aspect).sqrt().round() as usize;
            let h = (target / aspect).sqrt().round() as usize;
            if (1..=width).contains(&w) && (1..=height).contains(&h) {
                let (x, y) = (stream.below(width - w + 1), stream.below(height - h + 1));
                return Crop { x, y, width: w, height: h };
            }
        }
        let (w, h) = if (width as f32) < low * height as f32 {
            (width, ((width as f32 / low).round() as usize).clamp(1, height))
        } else if width as f32 > high * height as f32 {
            (((height as f32 * high).round() as usize).clamp(1, width), height)
        } else {
            (width, height)
        };
        Crop { x: (width - w) / 2, y: (height - h) / 2, width: w, height: h }
    }

    /// `sample_distorted_bounding_box`: aspect ratio uniform, height uniform, at least 10 % of the image covered, a hundred
    /// attempts, then the whole image (`sample_distorted_bounding_box_op.cc`).
    fn tensorflow_crop(&self, stream: &mut Stream, width: usize, height: usize) -> Crop {
        /// `min_object_covered` of the official call; the object is the whole image.
        const MIN_COVERED: f32 = 0.1;
        let area = (width * height) as f32;
        let (min_area, max_area) = (self.crop_scale[0] * area, self.crop_scale[1] * area);
        for _ in 0..100 {
            let aspect = stream.uniform(self.crop_ratio[0], self.crop_ratio[1]);
            let lowest = (min_area / aspect).sqrt().round_ties_even() as usize;
            let fitting = ((width as f32 + 0.5 - 1e-7) / aspect) as usize;
            let highest = ((max_area / aspect).sqrt().round_ties_even() as usize).min(height).min(fitting);
            let mut h = lowest.min(highest) + stream.below(highest - lowest.min(highest) + 1);
            let mut w = (h as f32 * aspect).round_ties_even() as usize;
            if ((w * h) as f32) < min_area {
                h += 1;
                w = (h as f32 * aspect).round_ties_even() as usize;
            }
            if (w * h) as f32 > max_area {
                h = h.saturating_sub(1);
                w = (h as f32 * aspect).round_ties_even() as usize;
            }
            let covered = (w * h) as f32;
            let fits = (1..=width).contains(&w) && (1..=height).contains(&h);
            if fits && (min_area..=max_area).contains(&covered) && covered >= MIN_COVERED * area {
                // As in the official sampler, the upper end is exclusive: the last offset is never drawn.
                let (x, y) = (stream.below((width - w).max(1)), stream.below((height - h).max(1)));
                return Crop { x, y, width: w, height: h };
            }
        }
        Crop { x: 0, y: 0, width, height }
    }
}
