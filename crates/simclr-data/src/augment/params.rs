//! Every random choice of a view, as plain data, before any pixel is touched.
//!
//! Draws have a fixed order and are made whether they are used or not, so two configurations that differ in one
//! operator still share all other choices (paired comparisons). The crop, whose number of draws varies, comes last.

use serde::{Deserialize, Serialize};

use super::config::{AugmentConfig, Brightness, CropSampler};
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

/// One colour operation of the jitter.
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

/// Gaussian noise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoiseSeed {
    /// Standard deviation in millionths of the value range: an integer, so that parameters compare exactly.
    pub sigma_millionths: u32,
    /// Seed of the noise's own stream.
    pub seed: u64,
}

/// A filled square.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Cutout {
    /// Centre column as a share of the side, in `[0, 1)`.
    pub x: f32,
    /// Centre row as a share of the side.
    pub y: f32,
}

/// All draws of one view. `None` and `false` mean that the operator does not run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ViewParams {
    /// What is resized to the view; the whole image where there is no crop.
    pub crop: Crop,
    /// Mirror left and right.
    pub flip: bool,
    /// Quarter turns anticlockwise, 0 to 3.
    pub quarter_turns: u8,
    /// Colour jitter in the order of application; empty where it does not run.
    pub jitter: Vec<Jitter>,
    /// Drop the colour.
    pub gray: bool,
    /// Standard deviation of the Gaussian blur in pixels of the view.
    pub blur: Option<f32>,
    /// Threshold above which values are inverted.
    pub solarize: Option<f32>,
    /// Replace by the gradient magnitude.
    pub sobel: bool,
    /// Additive noise.
    pub noise: Option<NoiseSeed>,
    /// Grey square.
    pub cutout: Option<Cutout>,
}

impl AugmentConfig {
    /// Draws the view `key` of an image of `width` x `height` pixels.
    pub fn draw(&self, key: Key, width: usize, height: usize) -> ViewParams {
        let mut dice = key.stream();
        let flip = dice.chance(self.flip);
        let rotated = dice.chance(self.rotate);
        let turns = dice.below(4) as u8;
        let jittered = dice.chance(self.jitter);
        let jitter = self.draw_jitter(&mut dice);
        let gray = dice.chance(self.gray);
        let blurred = dice.chance(self.blur);
        let sigma = dice.uniform(self.blur_sigma[0], self.blur_sigma[1]);
        let solarized = dice.chance(self.solarize);
        let sobel = dice.chance(self.sobel);
        let noisy = dice.chance(self.noise);
        let noise_sigma = dice.uniform(0.0, self.noise_sigma);
        let noise_seed = dice.bits();
        let cut = dice.chance(self.cutout);
        let centre = Cutout { x: dice.unit(), y: dice.unit() };
        let whole = Crop { x: 0, y: 0, width, height };
        ViewParams {
            crop: if self.crop { self.draw_crop(&mut dice, width, height) } else { whole },
            flip,
            quarter_turns: if rotated { turns } else { 0 },
            jitter: if jittered { jitter } else { Vec::new() },
            gray,
            blur: blurred.then_some(sigma),
            solarize: solarized.then_some(self.solarize_threshold),
            sobel,
            noise: noisy
                .then_some(NoiseSeed { sigma_millionths: (noise_sigma * 1e6) as u32, seed: noise_seed }),
            cutout: cut.then_some(centre),
        }
    }

    /// The four operations in a fresh random order, as the official code does (`data_util.py` `color_jitter_rand`).
    fn draw_jitter(&self, dice: &mut Stream) -> Vec<Jitter> {
        let [brightness, contrast, saturation, hue] =
            self.jitter_strengths.map(|strength| strength * self.color);
        // A factor below 0 would invert: the official code clamps the lower end at 0.
        let mut factor = |strength: f32| dice.uniform((1.0 - strength).max(0.0), 1.0 + strength);
        let (scale, contrast, saturation) = (factor(brightness), factor(contrast), factor(saturation));
        let shift = dice.uniform(-brightness, brightness);
        let hue = dice.uniform(-hue, hue);
        let brightness = match self.brightness {
            Brightness::Multiplicative => Jitter::Brightness(scale),
            Brightness::Additive => Jitter::BrightnessShift(shift),
        };
        let ops = [brightness, Jitter::Contrast(contrast), Jitter::Saturation(saturation), Jitter::Hue(hue)];
        let order = dice.permutation(4);
        if self.color == 0.0 { Vec::new() } else { order.into_iter().map(|op| ops[op]).collect() }
    }

    fn draw_crop(&self, dice: &mut Stream, width: usize, height: usize) -> Crop {
        match self.crop_sampler {
            CropSampler::Torchvision => self.torchvision_crop(dice, width, height),
            CropSampler::Tensorflow => self.tensorflow_crop(dice, width, height),
        }
    }

    /// `RandomResizedCrop`: area uniform, aspect log-uniform, ten attempts, then the central crop whose aspect is
    /// clamped (spec 5.1).
    fn torchvision_crop(&self, dice: &mut Stream, width: usize, height: usize) -> Crop {
        let [low, high] = self.crop_ratio;
        let area = (width * height) as f32;
        for _ in 0..10 {
            let target = area * dice.uniform(self.crop_scale[0], self.crop_scale[1]);
            let aspect = dice.uniform(low.ln(), high.ln()).exp();
            let (w, h) =
                ((target * aspect).sqrt().round() as usize, (target / aspect).sqrt().round() as usize);
            if (1..=width).contains(&w) && (1..=height).contains(&h) {
                let (x, y) = (dice.below(width - w + 1), dice.below(height - h + 1));
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

    /// `sample_distorted_bounding_box`: aspect uniform, height uniform, at least 10 % of the image covered, a
    /// hundred attempts, then the whole image (spec 5.1; `sample_distorted_bounding_box_op.cc`).
    fn tensorflow_crop(&self, dice: &mut Stream, width: usize, height: usize) -> Crop {
        /// `min_object_covered` of the official call, the object being the whole image.
        const MIN_COVERED: f32 = 0.1;
        let area = (width * height) as f32;
        let (min_area, max_area) = (self.crop_scale[0] * area, self.crop_scale[1] * area);
        for _ in 0..100 {
            let aspect = dice.uniform(self.crop_ratio[0], self.crop_ratio[1]);
            let lowest = (min_area / aspect).sqrt().round_ties_even() as usize;
            let fitting = ((width as f32 + 0.5 - 1e-7) / aspect) as usize;
            let highest = ((max_area / aspect).sqrt().round_ties_even() as usize).min(height).min(fitting);
            let mut h = lowest.min(highest) + dice.below(highest - lowest.min(highest) + 1);
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
                // The upper end is exclusive in the official sampler: the last offset is never drawn.
                let (x, y) = (dice.below((width - w).max(1)), dice.below((height - h).max(1)));
                return Crop { x, y, width: w, height: h };
            }
        }
        Crop { x: 0, y: 0, width, height }
    }
}
