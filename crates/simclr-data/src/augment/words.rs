//! Augmentation parameters in words, for pictures of views.

use super::{Crop, Jitter, Operation, PolicyStep, ViewParams};

impl ViewParams {
    /// The enabled operators with their strengths, for an image of this width and height; brightness, contrast, saturation and hue by
    /// their first letters.
    pub fn words(&self, (width, height): (usize, usize)) -> Vec<String> {
        let area = (width * height) as f64;
        let Crop { width, height, .. } = self.crop;
        let mut words = vec![format!("crop {:.0}%", 100.0 * (width * height) as f64 / area)];
        words.extend(self.flip.then(|| "flip".into()));
        words.extend(self.vertical_flip.then(|| "vflip".into()));
        words
            .extend((self.quarter_turns > 0).then(|| format!("turn {}", 90 * u32::from(self.quarter_turns))));
        words.extend(self.policy.iter().map(policy_step));
        words.extend(self.jitter.iter().map(|operation| match operation {
            Jitter::Brightness(factor) => format!("b{factor:.2}"),
            Jitter::BrightnessShift(shift) => format!("b{shift:+.2}"),
            Jitter::Contrast(factor) => format!("c{factor:.2}"),
            Jitter::Saturation(factor) => format!("s{factor:.2}"),
            Jitter::Hue(shift) => format!("h{shift:+.2}"),
        }));
        words.extend(self.gray.then(|| "gray".into()));
        words.extend(self.blur.map(|sigma| format!("blur {sigma:.1}")));
        words.extend(self.motion_blur.map(|blur| format!("motion {:.0}", blur.length)));
        words.extend(self.equalize.then(|| "equalize".into()));
        words.extend(self.solarize.map(|_| "solarize".into()));
        words.extend(self.sobel.then(|| "sobel".into()));
        words.extend(self.noise.map(|_| "noise".into()));
        words.extend(self.cutout.map(|_| "cutout".into()));
        words
    }
}

/// Such as `rotate -27`; shares in per cent.
fn policy_step(step: &PolicyStep) -> String {
    use Operation as Op;
    let (name, magnitude) = (format!("{:?}", step.operation).to_lowercase(), step.magnitude);
    match step.operation {
        Op::AutoContrast | Op::Equalize | Op::Invert => name,
        Op::Rotate | Op::Posterize | Op::Solarize => format!("{name} {magnitude:.0}"),
        Op::ShearX | Op::ShearY | Op::TranslateX | Op::TranslateY => {
            format!("{name} {:.0}%", 100.0 * magnitude)
        }
        Op::Brightness | Op::Color | Op::Contrast | Op::Sharpness => format!("{name} {:.1}", 1.0 + magnitude),
    }
}
