//! Cases of `reference/augment.py` and `reference/broader.py` (images, parameters, names of goldens), for all implementations of
//! the augmentation.

use std::{collections::HashMap, path::PathBuf};

use safetensors::{Dtype, SafeTensors};
use simclr_data::{
    AugmentConfig, Image, ViewParams,
    augment::{ColorModel, Crop, Interpolation, Jitter, MotionBlur},
    rng::Key,
};

pub fn goldens() -> HashMap<String, Vec<f32>> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../simclr-data/tests/golden");
    let mut all = HashMap::new();
    for name in ["augment.safetensors", "broader.safetensors"] {
        let bytes = fs_err::read(folder.join(name)).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        all.extend(file.tensors().into_iter().map(|(name, view)| (name, values(view.dtype(), view.data()))));
    }
    all
}

/// Bytes are levels of 255.
fn values(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        Dtype::U8 => bytes.iter().map(|&level| f32::from(level) / 255.0).collect(),
        _ => bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
    }
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

/// Side of the images of `reference/broader.py` that are not resized.
pub const BROADER_SIDE: usize = 28;

/// Images of `reference/broader.py` by the last part of the names of its goldens.
pub fn broader_images() -> [(&'static str, Image); 3] {
    let rgb = picture(BROADER_SIDE, BROADER_SIDE, 3);
    let dark = rgb.data.iter().map(|level| level / 4 + 20).collect();
    let dark = Image::new(BROADER_SIDE, BROADER_SIDE, 3, dark);
    [("rgb", rgb), ("gray", picture(BROADER_SIDE, BROADER_SIDE, 1)), ("dark", dark)]
}

/// Equalize, motion blur, Sobel and vertical flip on images that are not resized.
pub fn broader_operators() -> Vec<Case> {
    let case = |name: String, image: &Image, params: ViewParams| {
        let config = AugmentConfig::nothing();
        Case { name, image: image.clone(), params, config, size: image.width }
    };
    let mut cases = Vec::new();
    for (kind, image) in broader_images() {
        cases.push(case(format!("equalize.{kind}"), &image, ViewParams { equalize: true, ..plain(&image) }));
    }
    let image = picture(16, 16, 3);
    let lines = [(5.0, 0.0), (4.0, 90.0), (7.3, 33.0), (12.6, 140.0), (1.0, 20.0)];
    for (number, (length, degrees)) in lines.into_iter().enumerate() {
        let motion_blur = Some(MotionBlur { length, degrees });
        let params = ViewParams { motion_blur, ..plain(&image) };
        cases.push(case(format!("motion_blur.{number}"), &image, params));
    }
    cases.push(case("sobel".into(), &image, ViewParams { sobel: true, ..plain(&image) }));
    let half_turn = ViewParams { flip: true, quarter_turns: 2, vertical_flip: true, ..plain(&image) };
    cases.push(case("vertical_flip".into(), &image, ViewParams { vertical_flip: true, ..plain(&image) }));
    cases.push(case("nothing".into(), &image, half_turn));
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
