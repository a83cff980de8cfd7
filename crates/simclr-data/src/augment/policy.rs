//! AutoAugment (Cubuk et al. 2019, arXiv 1805.09501): one of 25 pairs of operations per view, learned with labels on ImageNet
//! or CIFAR-10 (tables in its appendix).
//!
//! Follows torchvision 0.26 `AutoAugment` on PIL images: ten magnitudes per operation, signs drawn with probability 1/2, the
//! nearest pixel for geometry, black outside. The official code (tensorflow/models `research/autoaugment`
//! `augmentation_transforms.py`) differs in ranges: colour factors of 0.1 to 1.9 instead of 1 +- 0.9, for instance.

use serde::{Deserialize, Serialize};

use super::{
    View,
    affine::{self, Affine},
    enhance,
    levels::{self, Levels},
};
use crate::rng::Stream;

/// `augment.policy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// No policy.
    #[default]
    None,
    /// AutoAugment's policy for ImageNet.
    AutoaugmentImagenet,
    /// AutoAugment's policy for CIFAR-10.
    AutoaugmentCifar10,
}

/// What an operation of a policy does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// Shear rows; magnitude: pixels per row.
    ShearX,
    /// Shear columns; magnitude: pixels per column.
    ShearY,
    /// Move to the right; magnitude: share of the side.
    TranslateX,
    /// Move down; magnitude: share of the side.
    TranslateY,
    /// Turn anticlockwise; magnitude: degrees.
    Rotate,
    /// Blend with black; magnitude m: x (1 + m).
    Brightness,
    /// Blend with the grey image by 1 + magnitude.
    Color,
    /// Blend with the mean grey by 1 + magnitude.
    Contrast,
    /// Blend with the smoothed image by 1 + magnitude.
    Sharpness,
    /// Keep the upper bits; magnitude: their number.
    Posterize,
    /// Invert levels of at least the magnitude.
    Solarize,
    /// Stretch the levels of every channel to 0 to 255.
    AutoContrast,
    /// Equalize the histogram of every channel.
    Equalize,
    /// Invert all levels.
    Invert,
}

/// An operation of a view.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PolicyStep {
    /// What is done.
    pub operation: Operation,
    /// Unit and meaning depend on the operation; 0 if it has none.
    pub magnitude: f32,
}

/// Operation, probability, and number of its magnitude, 0 to 9.
type Choice = (Operation, f32, u8);

impl Policy {
    /// The pairs, of which a view gets one.
    pub fn pairs(self) -> &'static [[Choice; 2]] {
        match self {
            Self::None => &[],
            Self::AutoaugmentImagenet => &IMAGENET,
            Self::AutoaugmentCifar10 => &CIFAR10,
        }
    }

    /// Samples the operations of a view, at most two. All numbers are drawn, also those that are not used.
    pub(super) fn draw(self, stream: &mut Stream) -> Vec<PolicyStep> {
        if self == Self::None {
            return Vec::new();
        }
        let pair = self.pairs()[stream.below(self.pairs().len())];
        let step = |(operation, probability, number): Choice| {
            let (runs, negative) = (stream.chance(probability), stream.chance(0.5));
            let magnitude = operation.magnitude(number);
            let magnitude = if negative && operation.is_signed() { -magnitude } else { magnitude };
            runs.then_some(PolicyStep { operation, magnitude })
        };
        pair.map(step).into_iter().flatten().collect()
    }
}

impl Operation {
    /// The magnitude of `number`, 0 to 9 (torchvision's `_augmentation_space`).
    pub fn magnitude(self, number: u8) -> f32 {
        let share = f64::from(number) / 9.0;
        let magnitude = match self {
            Self::ShearX | Self::ShearY => 0.3 * share,
            Self::TranslateX | Self::TranslateY => 150.0 / 331.0 * share,
            Self::Rotate => 30.0 * share,
            Self::Brightness | Self::Color | Self::Contrast | Self::Sharpness => 0.9 * share,
            Self::Posterize => 8.0 - (4.0 * share).round_ties_even(),
            Self::Solarize => 255.0 * (1.0 - share),
            Self::AutoContrast | Self::Equalize | Self::Invert => 0.0,
        };
        magnitude as f32
    }

    /// Whether the magnitude gets a random sign.
    pub fn is_signed(self) -> bool {
        !matches!(self, Self::Posterize | Self::Solarize | Self::AutoContrast | Self::Equalize | Self::Invert)
    }
}

/// Applies `steps` in order, each on 8-bit levels.
pub(super) fn apply(view: &mut View, steps: &[PolicyStep], memory: (&mut Vec<u8>, &mut Vec<u8>)) {
    levels::on_levels(view, memory, |levels| steps.iter().for_each(|step| step.apply(levels)));
}

impl PolicyStep {
    /// Where the pixels of a view of `side` pixels come from; `None` unless the operation moves pixels.
    pub fn affine(self, side: usize) -> Option<Affine> {
        match self.operation {
            Operation::ShearX => Some(affine::shear_x(self.magnitude)),
            Operation::ShearY => Some(affine::shear_y(self.magnitude)),
            Operation::TranslateX => Some(affine::translate(side, self.magnitude, 0.0)),
            Operation::TranslateY => Some(affine::translate(side, 0.0, self.magnitude)),
            Operation::Rotate => Some(affine::rotate(side, self.magnitude)),
            _ => None,
        }
    }

    fn apply(self, levels: &mut Levels) {
        let magnitude = self.magnitude;
        match self.operation {
            Operation::ShearX
            | Operation::ShearY
            | Operation::TranslateX
            | Operation::TranslateY
            | Operation::Rotate => {
                self.affine(levels.side).into_iter().for_each(|affine| affine.gather(levels));
            }
            Operation::Brightness => enhance::brightness(levels, 1.0 + magnitude),
            Operation::Color => enhance::color(levels, 1.0 + magnitude),
            Operation::Contrast => enhance::contrast(levels, 1.0 + magnitude),
            Operation::Sharpness => enhance::sharpness(levels, 1.0 + magnitude),
            Operation::Posterize => {
                let dropped = 8 - (magnitude as u32).min(8);
                levels.map(|level| level & (0xff_u32 << dropped) as u8);
            }
            Operation::Solarize => {
                levels.map(|level| if f32::from(level) < magnitude { level } else { 255 - level });
            }
            Operation::AutoContrast => levels.map_by_histogram(levels::stretching),
            Operation::Equalize => levels.map_by_histogram(levels::equalizing),
            Operation::Invert => levels.map(|level| 255 - level),
        }
    }
}

use Operation::{
    AutoContrast, Brightness, Color, Contrast, Equalize, Invert, Posterize, Rotate, Sharpness, ShearX,
    ShearY, Solarize, TranslateX, TranslateY,
};

const IMAGENET: [[Choice; 2]; 25] = [
    [(Posterize, 0.4, 8), (Rotate, 0.6, 9)],
    [(Solarize, 0.6, 5), (AutoContrast, 0.6, 0)],
    [(Equalize, 0.8, 0), (Equalize, 0.6, 0)],
    [(Posterize, 0.6, 7), (Posterize, 0.6, 6)],
    [(Equalize, 0.4, 0), (Solarize, 0.2, 4)],
    [(Equalize, 0.4, 0), (Rotate, 0.8, 8)],
    [(Solarize, 0.6, 3), (Equalize, 0.6, 0)],
    [(Posterize, 0.8, 5), (Equalize, 1.0, 0)],
    [(Rotate, 0.2, 3), (Solarize, 0.6, 8)],
    [(Equalize, 0.6, 0), (Posterize, 0.4, 6)],
    [(Rotate, 0.8, 8), (Color, 0.4, 0)],
    [(Rotate, 0.4, 9), (Equalize, 0.6, 0)],
    [(Equalize, 0.0, 0), (Equalize, 0.8, 0)],
    [(Invert, 0.6, 0), (Equalize, 1.0, 0)],
    [(Color, 0.6, 4), (Contrast, 1.0, 8)],
    [(Rotate, 0.8, 8), (Color, 1.0, 2)],
    [(Color, 0.8, 8), (Solarize, 0.8, 7)],
    [(Sharpness, 0.4, 7), (Invert, 0.6, 0)],
    [(ShearX, 0.6, 5), (Equalize, 1.0, 0)],
    [(Color, 0.4, 0), (Equalize, 0.6, 0)],
    [(Equalize, 0.4, 0), (Solarize, 0.2, 4)],
    [(Solarize, 0.6, 5), (AutoContrast, 0.6, 0)],
    [(Invert, 0.6, 0), (Equalize, 1.0, 0)],
    [(Color, 0.6, 4), (Contrast, 1.0, 8)],
    [(Equalize, 0.8, 0), (Equalize, 0.6, 0)],
];

const CIFAR10: [[Choice; 2]; 25] = [
    [(Invert, 0.1, 0), (Contrast, 0.2, 6)],
    [(Rotate, 0.7, 2), (TranslateX, 0.3, 9)],
    [(Sharpness, 0.8, 1), (Sharpness, 0.9, 3)],
    [(ShearY, 0.5, 8), (TranslateY, 0.7, 9)],
    [(AutoContrast, 0.5, 0), (Equalize, 0.9, 0)],
    [(ShearY, 0.2, 7), (Posterize, 0.3, 7)],
    [(Color, 0.4, 3), (Brightness, 0.6, 7)],
    [(Sharpness, 0.3, 9), (Brightness, 0.7, 9)],
    [(Equalize, 0.6, 0), (Equalize, 0.5, 0)],
    [(Contrast, 0.6, 7), (Sharpness, 0.6, 5)],
    [(Color, 0.7, 7), (TranslateX, 0.5, 8)],
    [(Equalize, 0.3, 0), (AutoContrast, 0.4, 0)],
    [(TranslateY, 0.4, 3), (Sharpness, 0.2, 6)],
    [(Brightness, 0.9, 6), (Color, 0.2, 8)],
    [(Solarize, 0.5, 2), (Invert, 0.0, 0)],
    [(Equalize, 0.2, 0), (AutoContrast, 0.6, 0)],
    [(Equalize, 0.2, 0), (Equalize, 0.6, 0)],
    [(Color, 0.9, 9), (Equalize, 0.6, 0)],
    [(AutoContrast, 0.8, 0), (Solarize, 0.2, 8)],
    [(Brightness, 0.1, 3), (Color, 0.7, 0)],
    [(Solarize, 0.4, 5), (AutoContrast, 0.9, 0)],
    [(TranslateY, 0.9, 9), (TranslateY, 0.7, 9)],
    [(AutoContrast, 0.9, 0), (Solarize, 0.8, 3)],
    [(Equalize, 0.8, 0), (Invert, 0.1, 0)],
    [(TranslateY, 0.7, 9), (AutoContrast, 0.9, 0)],
];
