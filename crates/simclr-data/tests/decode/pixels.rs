//! Pixel values by format, color type, orientation and number of channels.

use std::io::Cursor;

use image::{DynamicImage, ImageFormat};
use simclr_data::{
    Image,
    decode::{Decoding, Jpeg, decode},
};
use tiff::encoder::{TiffEncoder, colortype, colortype::ColorType};

use super::{HEIGHT, WIDTH, encoded, fixture, reason, with_orientation, worst};

/// Images and PIL's results are from `reference/bad_images.py`.
#[test]
fn fixtures_decode_as_by_pil() {
    // JPEG decoders differ in the inverse transform and upsampling, WebP in upsampling: a few levels.
    let cases = [
        ("cmyk.jpg", 2),
        ("ycck.jpg", 4),
        ("progressive.jpg", 4),
        ("grey.jpg", 2),
        ("palette.png", 0),
        ("palette8.bmp", 0),
        ("lossy.webp", 2),
        ("cmyk8.tif", 2),
    ];
    for (name, tolerance) in cases {
        let image = decode(name, &fixture(name), 3).unwrap();
        assert_eq!((image.width, image.height, image.channels), (16, 12, 3), "{name}");
        let golden = fixture(&format!("{}.rgb", name.rsplit_once('.').unwrap().0));
        let worst = worst(&image.data, &golden);
        assert!(worst <= tolerance, "{name}: {worst} levels from PIL");
    }
}

/// Pillow uses libjpeg-turbo.
#[test]
fn libjpeg_decodes_exactly_as_pil() {
    let accurate = |channels: usize| Decoding { jpeg: Jpeg::Libjpeg, ..channels.into() };
    for name in ["progressive.jpg", "grey.jpg"] {
        let image = decode(name, &fixture(name), accurate(3)).unwrap();
        assert_eq!(image.data, fixture(&format!("{}.rgb", name.rsplit_once('.').unwrap().0)), "{name}");
    }
    let grey = decode("grey.jpg", &fixture("grey.jpg"), accurate(1)).unwrap();
    assert_eq!((grey.channels, grey.data.len()), (1, (WIDTH * HEIGHT) as usize));
    let turned = with_orientation(&fixture("progressive.jpg"), 6);
    assert_eq!(decode("turned", &turned, accurate(3)).unwrap().width, HEIGHT as usize);
    for name in ["cmyk.jpg", "ycck.jpg"] {
        let refused = decode(name, &fixture(name), accurate(3)).unwrap_err().to_string();
        assert!(refused.contains("transform.jpeg = \"zune\" does"), "{refused}");
    }
}

#[test]
fn grey_is_unchanged_and_luma_has_bt_601_weights() {
    let grey = decode("grey.jpg", &fixture("grey.jpg"), 1).unwrap();
    let tripled = decode("grey.jpg", &fixture("grey.jpg"), 3).unwrap();
    assert_eq!(grey.data, tripled.data.iter().step_by(3).copied().collect::<Vec<_>>());
    for (pixel, expected) in
        [([255, 0, 0], 76), ([0, 255, 0], 150), ([0, 0, 255], 29), ([255, 255, 255], 255)]
    {
        let png = encoded(&image::RgbImage::from_pixel(1, 1, image::Rgb(pixel)).into(), ImageFormat::Png);
        assert_eq!(decode("x", &png, 1).unwrap().data, [expected]);
    }
}

#[test]
fn alpha_is_dropped_not_blended() {
    let pixel = image::RgbaImage::from_pixel(2, 1, image::Rgba([200, 100, 50, 10]));
    let png = encoded(&pixel.into(), ImageFormat::Png);
    assert_eq!(decode("x", &png, 3).unwrap().data, [200, 100, 50, 200, 100, 50]);
    let pixel = image::GrayAlphaImage::from_pixel(1, 1, image::LumaA([90, 0]));
    let png = encoded(&pixel.into(), ImageFormat::Png);
    assert_eq!(decode("x", &png, 1).unwrap().data, [90]);
    assert_eq!(decode("x", &png, 3).unwrap().data, [90; 3]);
}

#[test]
fn sixteen_bits_are_rounded_to_eight() {
    let values = [0, 127, 129, 32_767, 32_896, 65_406, 65_407, 65_535];
    let rounded: Vec<u8> = values.iter().map(|&value| (f64::from(value) / 257.0).round() as u8).collect();
    let wide = image::ImageBuffer::<image::Luma<u16>, _>::from_raw(8, 1, values.to_vec()).unwrap();
    for format in [ImageFormat::Png, ImageFormat::Tiff] {
        let bytes = encoded(&DynamicImage::ImageLuma16(wide.clone()), format);
        assert_eq!(decode("x", &bytes, 1).unwrap().data, rounded, "{format:?}");
    }
}

#[test]
fn sixteen_bit_cmyk_tiff_is_converted() {
    let mut bytes = Cursor::new(Vec::new());
    // White, cyan, half black, full black.
    let pixels: [u16; 16] = [0, 0, 0, 0, 65_535, 0, 0, 0, 0, 0, 0, 32_768, 0, 0, 0, 65_535];
    TiffEncoder::new(&mut bytes).unwrap().write_image::<colortype::CMYK16>(2, 2, &pixels).unwrap();
    let image = decode("x", &bytes.into_inner(), 3).unwrap();
    assert!(
        worst(&image.data, &[255, 255, 255, 0, 255, 255, 127, 127, 127, 0, 0, 0]) <= 1,
        "{:?}",
        image.data
    );
}

/// Five bands, as in TIFF files of sensors.
struct FiveBands;

impl ColorType for FiveBands {
    type Inner = u8;
    const TIFF_VALUE: tiff::tags::PhotometricInterpretation =
        tiff::tags::PhotometricInterpretation::BlackIsZero;
    const BITS_PER_SAMPLE: &'static [u16] = &[8; 5];
    const SAMPLE_FORMAT: &'static [tiff::tags::SampleFormat] = &[tiff::tags::SampleFormat::Uint; 5];

    fn horizontal_predict(row: &[u8], result: &mut Vec<u8>) {
        result.extend_from_slice(row);
    }
}

#[test]
fn bands_are_kept_and_other_channel_counts_are_errors() {
    let mut bytes = Cursor::new(Vec::new());
    let pixels: Vec<u8> = (0..30).collect();
    TiffEncoder::new(&mut bytes).unwrap().write_image::<FiveBands>(3, 2, &pixels).unwrap();
    let bytes = bytes.into_inner();
    assert_eq!(decode("x", &bytes, 5).unwrap(), Image::new(3, 2, 5, pixels));
    assert_eq!(simclr_data::decode::native_channels(&bytes), 5);
    assert_eq!(reason(&bytes, 3), "it has 5 channels, expected 3");
    assert_eq!(reason(&fixture("grey.jpg"), 5), "it has 3 channels, expected 5");
}

/// RGB and a fourth sample of 8 or 16 bits, as in aerial images.
struct Four<T>(std::marker::PhantomData<T>);

macro_rules! four {
    ($kind:ty, $bits:literal) => {
        impl ColorType for Four<$kind> {
            type Inner = $kind;
            const TIFF_VALUE: tiff::tags::PhotometricInterpretation =
                tiff::tags::PhotometricInterpretation::RGB;
            const BITS_PER_SAMPLE: &'static [u16] = &[$bits; 4];
            const SAMPLE_FORMAT: &'static [tiff::tags::SampleFormat] = &[tiff::tags::SampleFormat::Uint; 4];

            fn horizontal_predict(row: &[$kind], result: &mut Vec<$kind>) {
                result.extend_from_slice(row);
            }
        }
    };
}
four!(u8, 8);
four!(u16, 16);

/// A fourth sample that is not declared as alpha is near infrared (TIFF 6.0, ExtraSamples).
#[test]
fn a_fourth_band_is_kept_unless_it_is_alpha() {
    let pixels: Vec<u8> = (0..24).collect();
    let wide: Vec<u16> = pixels.iter().map(|&value| u16::from(value) * 257).collect();
    let file = |extra: u16, deep: bool| {
        let mut bytes = Cursor::new(Vec::new());
        let mut encoder = TiffEncoder::new(&mut bytes).unwrap();
        if deep {
            let mut image = encoder.new_image::<Four<u16>>(3, 2).unwrap();
            image.encoder().write_tag(tiff::tags::Tag::ExtraSamples, extra).unwrap();
            image.write_data(&wide).unwrap();
        } else {
            let mut image = encoder.new_image::<Four<u8>>(3, 2).unwrap();
            image.encoder().write_tag(tiff::tags::Tag::ExtraSamples, extra).unwrap();
            image.write_data(&pixels).unwrap();
        }
        bytes.into_inner()
    };
    for deep in [false, true] {
        let infrared = file(0, deep);
        assert_eq!(simclr_data::decode::native_channels(&infrared), 4, "{deep}");
        assert_eq!(decode("x", &infrared, 4).unwrap(), Image::new(3, 2, 4, pixels.clone()), "{deep}");
        assert_eq!(reason(&infrared, 3), "it has 4 channels, expected 3");
        let alpha = file(2, deep);
        assert_eq!(simclr_data::decode::native_channels(&alpha), 3, "{deep}");
        let colours: Vec<u8> = pixels.chunks(4).flat_map(|pixel| &pixel[..3]).copied().collect();
        assert_eq!(decode("x", &alpha, 3).unwrap().data, colours, "{deep}");
    }
}

/// Positions of row 0 and column 0 as in EXIF (CIPA DC-008, tag 274).
#[test]
fn all_eight_orientations_are_applied() {
    let stored = decode("grey.jpg", &fixture("grey.jpg"), 1).unwrap();
    let at = |image: &Image, y: usize, x: usize| image.data[y * image.width + x];
    let (w, h) = (stored.width, stored.height);
    for orientation in 1..=8 {
        let image = decode("x", &with_orientation(&fixture("grey.jpg"), orientation), 1).unwrap();
        let size = if orientation >= 5 { (h, w) } else { (w, h) };
        assert_eq!((image.width, image.height), size, "orientation {orientation}");
        for (y, x) in (0..h).flat_map(|y| (0..w).map(move |x| (y, x))) {
            let (row, column) = match orientation {
                1 => (y, x),                 // row 0 top, column 0 left
                2 => (y, w - 1 - x),         // top, right
                3 => (h - 1 - y, w - 1 - x), // bottom, right
                4 => (h - 1 - y, x),         // bottom, left
                5 => (x, y),                 // left, top
                6 => (x, h - 1 - y),         // right, top
                7 => (w - 1 - x, h - 1 - y), // right, bottom
                _ => (w - 1 - x, y),         // left, bottom
            };
            assert_eq!(
                at(&image, row, column),
                at(&stored, y, x),
                "orientation {orientation}, row {y}, column {x}"
            );
        }
    }
    let unknown = decode("x", &with_orientation(&fixture("grey.jpg"), 9), 1).unwrap();
    assert_eq!(unknown, stored);
}

#[test]
fn format_is_detected_by_content_and_one_pixel_is_enough() {
    let png = encoded(&image::RgbImage::from_pixel(1, 1, image::Rgb([7, 8, 9])).into(), ImageFormat::Png);
    assert_eq!(decode("named.jpg", &png, 3).unwrap(), Image::new(1, 1, 3, vec![7, 8, 9]));
}
