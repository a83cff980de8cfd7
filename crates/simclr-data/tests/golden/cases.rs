//! Cases of `reference/augment.py` (images, parameters, names of goldens), for all implementations of the augmentation.

use std::{collections::HashMap, path::PathBuf};

use safetensors::SafeTensors;
use simclr_data::{
    AugmentConfig, Image, ViewParams,
    augment::{ColorModel, Crop, Interpolation, Jitter},
    rng::Key,
};

pub fn goldens() -> HashMap<String, Vec<f32>> {
    let path =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../simclr-data/tests/golden/augment.safetensors");
    let bytes = fs_err::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let floats =
        |bytes: &[u8]| bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    file.tensors().into_iter().map(|(name, view)| (name, floats(view.data()))).collect()
}

/// As `picture` in `reference/augment.py`.
pub fn picture(width: usize, height: usize, channels: usize) -> Image {
    let mut data = Vec::new();
    for y in 0..height {
        for x in 0..width {
            for k in 0..channels {
                let (x, y, k) = (x as f64, y as f64, k as f64);
                let value = 127.5
                    + 90.0 * (0.21 * x * (k + 1.0) + 0.13 * y).sin()
                    + 37.0 * (0.9 * y - 0.5 * x * k).cos();
                data.push(value.clamp(0.0, 255.0).floor() as u8);
            }
        }
    }
    Image::new(width, height, channels, data)
}

/// The whole image, without operators.
pub fn plain(image: &Image) -> ViewParams {
    let key = Key { seed: 0, epoch: 0, image: 0, view: 0 };
    AugmentConfig::nothing().draw(key, image.width, image.height)
}

/// Inputs of a view and the name of its golden.
pub struct Case {
    pub name: String,
    pub image: Image,
    pub params: ViewParams,
    pub config: AugmentConfig,
    pub size: usize,
}

/// Crops resized to 16 px, by both filters, of three channels and of five.
pub fn resizes() -> Vec<Case> {
    let (image, size) = (picture(40, 30, 3), 16);
    let mut cases = Vec::new();
    for (name, x, y, width, height) in
        [("shrink", 3, 2, 30, 26), ("grow", 10, 5, 9, 7), ("whole", 0, 0, 40, 30), ("pixel", 7, 7, 1, 1)]
    {
        let params = ViewParams { crop: Crop { x, y, width, height }, ..plain(&image) };
        for (kind, interpolation) in
            [("bicubic", Interpolation::Bicubic), ("bilinear", Interpolation::Bilinear)]
        {
            let config = AugmentConfig { interpolation, ..AugmentConfig::nothing() };
            let (name, image, params) = (format!("{kind}.{name}"), image.clone(), params.clone());
            cases.push(Case { name, image, params, config, size });
        }
    }
    let image = picture(40, 30, 5);
    let params = ViewParams { crop: Crop { x: 3, y: 2, width: 30, height: 26 }, ..plain(&image) };
    cases.push(Case { name: "five".into(), image, params, config: AugmentConfig::nothing(), size });
    cases
}

/// Every operator on an image that is not resized.
pub fn operators() -> Vec<Case> {
    let image = picture(16, 16, 3);
    let tensorflow = AugmentConfig::nothing();
    let torchvision = AugmentConfig { color_model: ColorModel::Torchvision, ..AugmentConfig::nothing() };
    let jitter = |op| ViewParams { jitter: vec![op], ..plain(&image) };
    let operators = [
        ("brightness", jitter(Jitter::Brightness(1.4)), &tensorflow),
        ("brightness_shift", jitter(Jitter::BrightnessShift(-0.3)), &tensorflow),
        ("contrast", jitter(Jitter::Contrast(1.6)), &tensorflow),
        ("saturation", jitter(Jitter::Saturation(1.7)), &tensorflow),
        ("hue", jitter(Jitter::Hue(0.17)), &tensorflow),
        ("gray", ViewParams { gray: true, ..plain(&image) }, &tensorflow),
        ("tv_contrast", jitter(Jitter::Contrast(1.6)), &torchvision),
        ("tv_saturation", jitter(Jitter::Saturation(0.4)), &torchvision),
        ("tv_hue", jitter(Jitter::Hue(0.17)), &torchvision),
        ("blur", ViewParams { blur: Some(1.3), ..plain(&image) }, &tensorflow),
        ("flip", ViewParams { flip: true, ..plain(&image) }, &tensorflow),
        ("rotate", ViewParams { quarter_turns: 1, ..plain(&image) }, &tensorflow),
        ("solarize", ViewParams { solarize: Some(0.5), ..plain(&image) }, &tensorflow),
    ];
    let case = |(name, params, config): (&str, ViewParams, &AugmentConfig)| Case {
        name: name.into(),
        image: image.clone(),
        params,
        config: config.clone(),
        size: 16,
    };
    let mut cases: Vec<_> = operators.into_iter().map(case).collect();
    let wide = picture(60, 60, 3);
    let params = ViewParams { blur: Some(1.7), ..plain(&wide) };
    cases.push(Case { name: "blur_wide".into(), image: wide, params, config: tensorflow, size: 60 });
    cases
}

/// All operators together.
pub fn whole_view() -> Case {
    let image = picture(40, 30, 3);
    let params = ViewParams {
        crop: Crop { x: 3, y: 2, width: 30, height: 26 },
        flip: true,
        jitter: vec![
            Jitter::Hue(-0.08),
            Jitter::Brightness(0.7),
            Jitter::Saturation(1.3),
            Jitter::Contrast(0.5),
        ],
        blur: Some(0.6),
        ..plain(&image)
    };
    Case { name: "view".into(), image, params, config: AugmentConfig::nothing(), size: 16 }
}
