//! TIFF of all sample types, layouts and byte orders: decoded values equal the written ones.

use proptest::prelude::*;
use simclr_data::{
    Dataset, Split, ValueRange,
    dataset::Channels,
    decode::{Decoding, decode, native_channels},
};

use super::tiff_writer::{FLOAT, Page, SIGNED, UNSIGNED, tiff};

/// Pixels of a decoded file.
fn levels(bytes: &[u8], channels: usize, range: ValueRange) -> Vec<u8> {
    let how = Decoding { range, ..channels.into() };
    decode("x.tif", bytes, how).unwrap().data.to_vec()
}

/// 0, 1, 2, ..., representable in all types.
pub fn ramp(count: usize) -> Vec<f64> {
    (0..count).map(|value| (value % 101) as f64).collect()
}

const KINDS: [(u16, u16); 10] = [
    (8, UNSIGNED),
    (16, UNSIGNED),
    (32, UNSIGNED),
    (64, UNSIGNED),
    (8, SIGNED),
    (16, SIGNED),
    (32, SIGNED),
    (64, SIGNED),
    (32, FLOAT),
    (64, FLOAT),
];

proptest! {
    #[test]
    fn all_types_layouts_and_byte_orders_hold_the_same_image(
        kind in 0..KINDS.len(), bands in 1usize..7, width in 1usize..9, height in 1usize..9,
        (planar, big, big_endian) in any::<(bool, bool, bool)>(),
    ) {
        let samples = ramp(width * height * bands);
        let page = Page { planar: planar && bands > 1, ..Page::grey((width, height), bands, KINDS[kind], samples.clone()) };
        let bytes = tiff(&[page], big, big_endian);
        prop_assert_eq!(native_channels(&bytes), if bands == 1 { 3 } else { bands });
        let expected: Vec<u8> = samples.iter().map(|value| (value * 255.0 / 100.0 + 0.5) as u8).collect();
        prop_assert_eq!(levels(&bytes, bands, ValueRange::Same([0.0, 100.0])), expected);
    }

    #[test]
    fn damaged_directories_and_pages_never_panic(at in 0usize..400, value in any::<u8>(), big in any::<bool>()) {
        let page = Page { planar: true, ..Page::grey((5, 4), 3, (16, UNSIGNED), ramp(60)) };
        let palette = Page { photometric: 3, palette: vec![7; 768], ..Page::grey((5, 4), 1, (8, UNSIGNED), ramp(20)) };
        for pages in [vec![page.clone(), page], vec![palette]] {
            let mut bytes = tiff(&pages, big, false);
            let at = at % bytes.len();
            bytes[at] = value;
            native_channels(&bytes);
            let _ = decode("x.tif", &bytes, 3);
            bytes.truncate(at);
            let _ = decode("x.tif", &bytes, 3);
        }
    }
}

#[test]
fn negative_values_are_scaled_and_no_data_becomes_0() {
    let samples = vec![-50.0, 50.0, -9999.0, f64::NAN];
    let page = Page { no_data: Some("-9999"), ..Page::grey((4, 1), 1, (32, FLOAT), samples) };
    let bytes = tiff(&[page], false, false);
    assert_eq!(levels(&bytes, 1, ValueRange::Same([-50.0, 50.0])), [0, 255, 0, 0]);
}

/// Texts of GDAL have 15 digits or fewer, and may be those of another type.
#[test]
fn no_data_values_are_compared_as_pixels_hold_them() {
    let count = |pages: &[Page]| {
        let folder = tempfile::tempdir().unwrap();
        fs_err::write(folder.path().join("x.tif"), tiff(pages, false, false)).unwrap();
        let set = Dataset::open(folder.path(), Split::Train, Channels::Auto).unwrap();
        set.stored_values(0).unwrap().missing()
    };
    let page = |text, bits, value| Page {
        no_data: Some(text),
        ..Page::grey((2, 1), 1, (bits, FLOAT), vec![value, 3.0])
    };
    for (text, bits, value) in [
        ("-3.40282346638529e+38", 32, f64::from(f32::MIN)),
        ("3.40282346638529e+38", 32, f64::from(f32::MAX)),
        ("-1.79769313486232e+308", 32, f64::from(f32::MIN)),
        ("-1.79769313486232e+308", 64, f64::MIN),
        ("-3.4e+38", 32, -3.4e38),
        ("-9999.9", 32, -9999.9),
        ("-9999.9", 64, -9999.9),
    ] {
        assert_eq!(count(&[page(text, bits, value)]), 1, "{text}, {bits} bits");
    }
    let stack = [page("3", 32, 1.0), Page { no_data: None, ..page("3", 32, 1.0) }];
    assert_eq!(count(&stack), 2, "the value of the first page");
}

#[test]
fn rgb_keeps_a_fourth_band_unless_it_is_alpha() {
    let of = |extra: u16, big: bool| {
        let page =
            Page { photometric: 2, extra: vec![extra], ..Page::grey((2, 1), 4, (8, UNSIGNED), ramp(8)) };
        tiff(&[page], big, false)
    };
    for big in [false, true] {
        assert_eq!(native_channels(&of(0, big)), 4);
        assert_eq!(levels(&of(0, big), 4, ValueRange::Full), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(native_channels(&of(2, big)), 3);
        assert_eq!(levels(&of(2, big), 3, ValueRange::Full), [0, 1, 2, 4, 5, 6]);
        assert_eq!(levels(&of(2, big), 4, ValueRange::Full), [0, 1, 2, 3, 4, 5, 6, 7], "asked for");
    }
}

/// Alpha that is the same everywhere says nothing.
#[test]
fn alpha_that_differs_between_pixels_is_left_out_with_a_note() {
    let tiff_of = |alpha: [f64; 2]| {
        let values = vec![1.0, 2.0, 3.0, alpha[0], 5.0, 6.0, 7.0, alpha[1]];
        let page = Page { photometric: 2, extra: vec![2], ..Page::grey((2, 1), 4, (8, UNSIGNED), values) };
        tiff(&[page], false, false)
    };
    let png_of = |alpha: [f64; 2], deep: bool| {
        let [first, second] = alpha.map(|value| value as u16 * 257);
        let grey = image::ImageBuffer::from_raw(2, 1, vec![9, first, 9, second]).unwrap();
        let grey = image::DynamicImage::ImageLumaA16(grey);
        let mut bytes = std::io::Cursor::new(Vec::new());
        let image = if deep { grey } else { grey.into_rgba8().into() };
        image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        bytes.into_inner()
    };
    for (alpha, is_noted) in [([255.0, 0.0], true), ([7.0, 7.0], false)] {
        for (name, bytes) in
            [("x.tif", tiff_of(alpha)), ("x.png", png_of(alpha, false)), ("x.png", png_of(alpha, true))]
        {
            let folder = tempfile::tempdir().unwrap();
            fs_err::write(folder.path().join(name), bytes).unwrap();
            let notes = |channels: Channels| {
                let set = Dataset::open(folder.path(), Split::Train, channels).unwrap();
                set.with_range(&Default::default()).unwrap().0.notes().to_vec()
            };
            let found =
                notes(Channels::Auto).iter().any(|note| note.contains("1 of 1 images: alpha is left out"));
            assert_eq!(found, is_noted, "{name} {alpha:?}: {:?}", notes(Channels::Auto));
            let kept = notes(Channels::Count(4));
            assert!(!kept.iter().any(|note| note.contains("alpha")), "{name}: {kept:?}");
        }
    }
}

#[test]
fn palettes_are_expanded() {
    for (bits, scale) in [(8u16, 257u16), (4, 257), (8, 1)] {
        let entries = 1usize << bits;
        let mut palette = vec![0; 3 * entries];
        for (channel, level) in [10, 20, 30].into_iter().enumerate() {
            palette[channel * entries + 5] = level * scale;
        }
        let page =
            Page { photometric: 3, palette, ..Page::grey((3, 1), 1, (bits, UNSIGNED), vec![5.0, 0.0, 5.0]) };
        let bytes = tiff(&[page], false, false);
        assert_eq!(native_channels(&bytes), 3);
        assert_eq!(levels(&bytes, 3, ValueRange::Full), [10, 20, 30, 0, 0, 0, 10, 20, 30], "{bits} bits");
    }
}

#[test]
fn fewer_than_8_bits_are_scaled_to_8() {
    let two = Page::grey((3, 2), 1, (2, UNSIGNED), vec![0.0, 1.0, 2.0, 3.0, 0.0, 3.0]);
    assert_eq!(levels(&tiff(&[two], false, false), 1, ValueRange::Full), [0, 85, 170, 255, 0, 255]);
}

#[test]
fn by_default_like_pages_are_channels_and_others_left_out_with_a_note() {
    let grey = |first: f64, side: usize| {
        Page::grey((side, 1), 1, (8, UNSIGNED), (0..side).map(|at| first + at as f64).collect())
    };
    let reduced = Page { subfile: 1, ..grey(99.0, 1) };
    let full = Page { photometric: 2, extra: Vec::new(), ..Page::grey((2, 1), 3, (8, UNSIGNED), ramp(6)) };
    let pyramid = tiff(&[reduced.clone(), full.clone()], false, false);
    assert_eq!(levels(&pyramid, 3, ValueRange::Full), [0, 1, 2, 3, 4, 5], "the second page is the image");
    let stack = tiff(&[grey(10.0, 2), grey(20.0, 2), reduced, grey(30.0, 2)], true, false);
    assert_eq!(native_channels(&stack), 3);
    assert_eq!(levels(&stack, 3, ValueRange::Full), [10, 20, 30, 11, 21, 31]);
    let others = tiff(&[full.clone(), full, grey(1.0, 4)], false, true);
    assert_eq!(levels(&others, 3, ValueRange::Full), [0, 1, 2, 3, 4, 5]);
    let folder = tempfile::tempdir().unwrap();
    fs_err::write(folder.path().join("x.tif"), others).unwrap();
    let set = Dataset::open(folder.path(), Split::Train, Channels::Auto).unwrap();
    let (set, _) = set.with_range(&Default::default()).unwrap();
    assert!(set.notes().iter().any(|note| note.contains("2 of 3 pages are not used")), "{:?}", set.notes());
}
