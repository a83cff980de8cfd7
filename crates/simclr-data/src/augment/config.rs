//! Configuration section `[augment]` (google-research/simclr `data_util.py`).

use serde::{Deserialize, Serialize};

use super::policy::Policy;
use crate::DataError;

/// Probabilities and strengths of the operators. Probabilities are per view.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AugmentConfig {
    /// Random crop; if off, the whole image is resized.
    pub crop: bool,
    /// Area of a crop as a share of the image's, minimum and maximum (paper: 0.08 to 1).
    pub crop_scale: [f32; 2],
    /// Aspect ratio of a crop, width / height, minimum and maximum (paper: 3/4 to 4/3).
    pub crop_ratio: [f32; 2],
    /// Distribution of crops.
    pub crop_sampler: CropSampler,
    /// Filter of the resize.
    pub interpolation: Interpolation,
    /// Whether a crop that shrinks is averaged over all its source pixels (Pillow, torchvision) or over four per direction
    /// (`tf.image.resize` in the official code).
    pub antialias: bool,
    /// Probability of a left-right flip (paper: 0.5).
    pub flip: f32,
    /// Probability of a top-bottom flip.
    pub vertical_flip: f32,
    /// A learned policy: `none`, `autoaugment-imagenet` or `autoaugment-cifar10` (arXiv 1805.09501). Runs before the colour
    /// distortion; in the paper's Table 1 AutoAugment replaces it: `color` = 0, `gray` = 0, `blur` = 0.
    pub policy: Policy,
    /// Strength s of the colour distortion (paper: 1 on ImageNet, 0.5 on CIFAR-10); 0 switches the jitter off.
    pub color: f32,
    /// Probability of the colour jitter (paper: 0.8).
    pub jitter: f32,
    /// Brightness, contrast, saturation, hue of the jitter at s = 1 (paper: 0.8, 0.8, 0.8, 0.2).
    pub jitter_strengths: [f32; 4],
    /// Multiplicative brightness (SimCLR v2) or additive (v1).
    pub brightness: Brightness,
    /// TensorFlow's or torchvision's definition of contrast and saturation.
    pub color_model: ColorModel,
    /// Probability of dropping the colour (paper: 0.2).
    pub gray: f32,
    /// Probability of a Gaussian blur (paper: 0.5 on ImageNet, 0 on CIFAR-10).
    pub blur: f32,
    /// Standard deviation of the blur in pixels of the view, minimum and maximum (paper: 0.1 to 2).
    pub blur_sigma: [f32; 2],
    /// Probability of a motion blur (paper B.2, without parameters: all of them are ours).
    pub motion_blur: f32,
    /// Length of the motion blur in pixels of the view, minimum and maximum, at least 1; the direction is uniform.
    pub motion_blur_length: [f32; 2],
    /// Probability of equalizing the histogram of every channel (paper B.2).
    pub equalize: f32,
    /// Probability of solarization.
    pub solarize: f32,
    /// Values from here on are inverted by solarization.
    pub solarize_threshold: f32,
    /// Probability of a rotation by 0, 90, 180 or 270 degrees.
    pub rotate: f32,
    /// Probability of a grey square of half the side.
    pub cutout: f32,
    /// Probability of Gaussian noise.
    pub noise: f32,
    /// Maximal standard deviation of the noise; each view draws its own, uniform from 0.
    pub noise_sigma: f32,
    /// Probability of the Sobel filter.
    pub sobel: f32,
    /// Keys with another value for the second view.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub second_view: Option<SecondView>,
}

macro_rules! second_view {
    ($($key:ident: $kind:ty,)*) => {
        /// Table `[augment.second_view]`: keys of `[augment]` with another value for the second view of an image, for policies that
        /// differ between the views (BYOL, arXiv 2006.07733, table 6; the paper's section 3.1, where one view is only cropped). What
        /// is not set is as for the first view. Filter, antialiasing and colour model are the same for both.
        #[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct SecondView {
            $(
                #[doc = concat!("See [`AugmentConfig::", stringify!($key), "`].")]
                #[serde(skip_serializing_if = "Option::is_none")]
                pub $key: Option<$kind>,
            )*
        }

        impl SecondView {
            /// All keys of the table, such as `augment.second_view.blur`.
            pub const KEYS: &[&str] = &[$(concat!("augment.second_view.", stringify!($key))),*];

            fn over(&self, first: &AugmentConfig) -> AugmentConfig {
                AugmentConfig { $($key: self.$key.unwrap_or(first.$key),)* second_view: None, ..*first }
            }
        }
    };
}

second_view! {
    crop: bool,
    crop_scale: [f32; 2],
    crop_ratio: [f32; 2],
    crop_sampler: CropSampler,
    flip: f32,
    vertical_flip: f32,
    policy: Policy,
    color: f32,
    jitter: f32,
    jitter_strengths: [f32; 4],
    brightness: Brightness,
    gray: f32,
    blur: f32,
    blur_sigma: [f32; 2],
    motion_blur: f32,
    motion_blur_length: [f32; 2],
    equalize: f32,
    solarize: f32,
    solarize_threshold: f32,
    rotate: f32,
    cutout: f32,
    noise: f32,
    noise_sigma: f32,
    sobel: f32,
}

/// `augment.crop_sampler`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CropSampler {
    /// torchvision's `RandomResizedCrop`.
    Torchvision,
    /// TensorFlow's `sample_distorted_bounding_box` with the arguments of the official code.
    Tensorflow,
}

/// `augment.interpolation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Interpolation {
    /// Keys' cubic, a = -0.5 (official code).
    Bicubic,
    /// Triangle (torchvision's default).
    Bilinear,
}

impl std::str::FromStr for Interpolation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "bicubic" => Ok(Self::Bicubic),
            "bilinear" => Ok(Self::Bilinear),
            _ => Err("expected bicubic or bilinear".into()),
        }
    }
}

/// `augment.brightness`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Brightness {
    /// x * f (SimCLR v2; official code at HEAD).
    Multiplicative,
    /// x + d (SimCLR v1).
    Additive,
}

/// `augment.color_model`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ColorModel {
    /// Contrast about each channel's mean, saturation in HSV.
    Tensorflow,
    /// Contrast about the mean of the grey image, saturation as a blend with the grey image.
    Torchvision,
}

impl Default for AugmentConfig {
    /// The ImageNet recipe of the official code at HEAD (SimCLR v2).
    fn default() -> Self {
        Self {
            crop: true,
            crop_scale: [0.08, 1.0],
            crop_ratio: [3.0 / 4.0, 4.0 / 3.0],
            crop_sampler: CropSampler::Torchvision,
            interpolation: Interpolation::Bicubic,
            antialias: true,
            flip: 0.5,
            vertical_flip: 0.0,
            policy: Policy::None,
            color: 1.0,
            jitter: 0.8,
            jitter_strengths: [0.8, 0.8, 0.8, 0.2],
            brightness: Brightness::Multiplicative,
            color_model: ColorModel::Tensorflow,
            gray: 0.2,
            blur: 0.5,
            blur_sigma: [0.1, 2.0],
            motion_blur: 0.0,
            motion_blur_length: [3.0, 15.0],
            equalize: 0.0,
            solarize: 0.0,
            solarize_threshold: 0.5,
            rotate: 0.0,
            cutout: 0.0,
            noise: 0.0,
            noise_sigma: 0.1,
            sobel: 0.0,
            second_view: None,
        }
    }
}

/// Longest motion blur in pixels.
const MAX_MOTION_BLUR: f32 = 100.0;

impl AugmentConfig {
    /// All operators off but the resize.
    pub fn nothing() -> Self {
        Self { crop: false, flip: 0.0, color: 0.0, jitter: 0.0, gray: 0.0, blur: 0.0, ..Self::default() }
    }

    /// The policies of the first and of the second view.
    pub fn of_views(&self) -> [Self; 2] {
        let first = Self { second_view: None, ..self.clone() };
        let second = self.second_view.as_ref().map_or_else(|| first.clone(), |changes| changes.over(&first));
        [first, second]
    }

    /// Checks the ranges of all values.
    ///
    /// # Errors
    /// [`DataError::Config`].
    pub fn validate(&self) -> Result<(), DataError> {
        let [first, second] = self.of_views();
        first.validate_view()?;
        second.validate_view().map_err(|error| match error {
            DataError::Config { key, value, reason } => {
                let own = |own: &&&str| own.rsplit('.').next() == key.rsplit('.').next();
                let key = SecondView::KEYS.iter().find(own).copied().unwrap_or(key);
                DataError::Config { key, value, reason }
            }
            other => other,
        })
    }

    fn validate_view(&self) -> Result<(), DataError> {
        let probabilities = [
            ("augment.flip", self.flip),
            ("augment.vertical_flip", self.vertical_flip),
            ("augment.motion_blur", self.motion_blur),
            ("augment.equalize", self.equalize),
            ("augment.jitter", self.jitter),
            ("augment.gray", self.gray),
            ("augment.blur", self.blur),
            ("augment.solarize", self.solarize),
            ("augment.solarize_threshold", self.solarize_threshold),
            ("augment.rotate", self.rotate),
            ("augment.cutout", self.cutout),
            ("augment.noise", self.noise),
            ("augment.sobel", self.sobel),
        ];
        for (key, value) in probabilities {
            check((0.0..=1.0).contains(&value), key, value, "a number between 0 and 1")?;
        }
        for strength in self.jitter_strengths {
            let fine = strength.is_finite() && strength >= 0.0;
            check(fine, "augment.jitter_strengths", strength, "numbers of at least 0")?;
        }
        let color = self.color;
        check((0.0..=10.0).contains(&color), "augment.color", color, "a strength between 0 and 10")?;
        let hue = self.jitter_strengths[3] * color;
        check(hue <= 0.5, "augment.color", color, "a strength that shifts the hue by at most half a turn")?;
        let sigma = self.noise_sigma;
        check((0.0..=1.0).contains(&sigma), "augment.noise_sigma", sigma, "between 0 and 1")?;
        range("augment.crop_scale", self.crop_scale, 1.0)?;
        range("augment.crop_ratio", self.crop_ratio, 100.0)?;
        range("augment.blur_sigma", self.blur_sigma, 100.0)?;
        let length = self.motion_blur_length;
        range("augment.motion_blur_length", length, MAX_MOTION_BLUR)?;
        check(length[0] >= 1.0, "augment.motion_blur_length", length[0], "lengths of at least 1 pixel")
    }

    /// Notes on combinations of operators and on images without three channels, for the start of a run.
    pub fn notes(&self, channels: usize) -> Vec<String> {
        let distorts = |view: &Self| view.color * view.jitter > 0.0 || view.gray > 0.0;
        let both = |view: &Self| view.policy != Policy::None && distorts(view);
        let both = self.of_views().iter().any(both).then(|| "augment.policy and the colour distortion both run; in the paper's Table 1 AutoAugment replaces it (augment.color = 0, augment.gray = 0)".into());
        both.into_iter().chain(self.notes_on_channels(channels)).collect()
    }

    fn notes_on_channels(&self, channels: usize) -> Vec<String> {
        let jitters = self.jitter > 0.0 && self.color > 0.0;
        match channels {
            3 => Vec::new(),
            1 if jitters => vec!["one channel: of the colour jitter, brightness and contrast act; hue, saturation and grayscale change nothing".into()],
            1 => Vec::new(),
            n => {
                let mut notes = Vec::new();
                if jitters {
                    notes.push(format!("{n} channels: brightness and contrast act per channel, saturation towards the largest channel, hue not at all"));
                }
                if self.gray > 0.0 {
                    notes.push(format!("{n} channels: grayscale is the mean of the channels"));
                }
                notes
            }
        }
    }
}

fn check(is_valid: bool, key: &'static str, value: f32, expected: &str) -> Result<(), DataError> {
    if is_valid { Ok(()) } else { Err(DataError::config(key, value, format!("expected {expected}"))) }
}

fn range(key: &'static str, [low, high]: [f32; 2], max: f32) -> Result<(), DataError> {
    if 0.0 < low && low <= high && high <= max {
        return Ok(());
    }
    let reason = format!("expected two numbers above 0, the first not above the second, at most {max}");
    Err(DataError::config(key, format!("[{low}, {high}]"), reason))
}
