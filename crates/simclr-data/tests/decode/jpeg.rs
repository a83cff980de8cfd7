//! Truncated and zeroed JPEG data: refused, or decoded without a loss; and valid files are not changed by the checks.

use proptest::prelude::*;
use simclr_data::{
    DataError, Image,
    decode::{Decoding, Jpeg, decode},
};

use super::{fixture, worst};

const DECODERS: [Jpeg; 3] = [Jpeg::Zune, Jpeg::Libjpeg, Jpeg::LibjpegFast];
const END: [u8; 2] = [0xff, 0xd9];

/// Parameters of a test JPEG.
#[derive(Debug, Clone, Copy)]
struct Recipe {
    picture: usize,
    size: (usize, usize),
    quality: f32,
    progressive: bool,
    own_codes: bool,
    /// Pixels per chroma sample, horizontally and vertically; `None` for grey.
    chroma: Option<(u8, u8)>,
}

/// 0: waves and noise; 1, 2: lower half grey or white; 3: a ramp; 4: plain grey.
fn picture(kind: usize, (width, height): (usize, usize)) -> Vec<u8> {
    let mut noise = 7u32;
    let mut pixels = Vec::new();
    for (y, x, channel) in
        (0..height).flat_map(|y| (0..width).flat_map(move |x| (0..3).map(move |channel| (y, x, channel))))
    {
        noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let wave = 60.0 * (x as f32 / 7.0 + channel as f32).sin() + 40.0 * (y as f32 / 5.0).cos();
        pixels.push(match kind {
            1 if y >= height / 2 => 128,
            2 if y >= height / 2 => 255,
            0..=2 => (120.0 + wave + (noise >> 28) as f32) as u8,
            3 => (x * 5) as u8,
            _ => 128,
        });
    }
    pixels
}

fn written(recipe: &Recipe) -> Vec<u8> {
    let mut encoder = mozjpeg::Compress::new(mozjpeg::ColorSpace::JCS_RGB);
    encoder.set_size(recipe.size.0, recipe.size.1);
    encoder.set_fastest_defaults();
    match recipe.chroma {
        Some(pixels) => encoder.set_chroma_sampling_pixel_sizes(pixels, pixels),
        None => encoder.set_color_space(mozjpeg::ColorSpace::JCS_GRAYSCALE),
    }
    encoder.set_quality(recipe.quality);
    encoder.set_optimize_coding(recipe.own_codes);
    if recipe.progressive {
        encoder.set_progressive_mode();
    }
    let mut encoder = encoder.start_compress(Vec::new()).unwrap();
    encoder.write_scanlines(&picture(recipe.picture, recipe.size)).unwrap();
    encoder.finish().unwrap()
}

fn recipes() -> impl Iterator<Item = Recipe> {
    let sizes = [(40, 40), (37, 51), (8, 8)];
    let chroma = [Some((1, 1)), Some((2, 1)), Some((2, 2)), None];
    (0..480).map(move |index| Recipe {
        picture: index % 5,
        size: sizes[index / 5 % 3],
        chroma: chroma[index / 15 % 4],
        progressive: index / 60 % 2 == 1,
        own_codes: index / 120 % 2 == 1,
        quality: [40.0, 92.0][index / 240],
    })
}

/// Start of the entropy-coded data of the first scan.
fn data_start(jpeg: &[u8]) -> usize {
    let scan = jpeg.windows(2).position(|pair| pair == [0xff, 0xda]).unwrap() + 2;
    scan + usize::from(u16::from_be_bytes([jpeg[scan], jpeg[scan + 1]]))
}

/// Pixels of the JPEG with its data from `at` on cut off or zeroed; `None` if refused.
fn without(jpeg: &[u8], at: usize, zeroed: bool, decoder: Jpeg) -> Option<Vec<u8>> {
    let mut damaged = jpeg[..at].to_vec();
    if zeroed {
        damaged.resize(jpeg.len() - 2, 0);
    }
    damaged.extend(END);
    match decode("x", &damaged, Decoding { jpeg: decoder, ..3.into() }) {
        Ok(image) => Some(image.data.to_vec()),
        Err(DataError::Decode { reason, .. }) => {
            assert!(!reason.is_empty());
            None
        }
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn files_with_half_of_the_data_cut_off_or_zeroed_are_refused() {
    for recipe in recipes().filter(|recipe| recipe.picture < 3 && recipe.size.0 > 8) {
        let jpeg = written(&recipe);
        let half = usize::midpoint(data_start(&jpeg), jpeg.len());
        for (decoder, zeroed) in DECODERS.into_iter().flat_map(|decoder| [(decoder, false), (decoder, true)])
        {
            let found = without(&jpeg, half, zeroed, decoder);
            assert!(found.is_none(), "{recipe:?}, {decoder:?}, zeroed: {zeroed}");
        }
    }
}

/// Zeros are valid codes; those that happen to end with the image cannot be detected.
#[test]
fn zeroed_data_is_detected_in_99_percent_of_the_cases() {
    let (mut tried, mut missed) = (0, 0);
    for recipe in recipes().step_by(7) {
        let jpeg = written(&recipe);
        let whole = decode("x", &jpeg, 3).unwrap().data;
        for at in (data_start(&jpeg)..jpeg.len() - 2 - 16).step_by(31) {
            let found = without(&jpeg, at, true, Jpeg::Zune);
            tried += 1;
            missed += usize::from(found.is_some_and(|found| whole != found));
        }
    }
    assert!(tried > 500 && missed * 100 <= tried, "{missed} of {tried}");
}

#[test]
fn missing_scans_are_detected() {
    for chroma in [Some((2, 2)), None] {
        let jpeg = written(&Recipe { progressive: true, chroma, ..recipes().next().unwrap() });
        let scans: Vec<usize> = (1..jpeg.len() - 1).filter(|&at| jpeg[at..at + 2] == [0xff, 0xda]).collect();
        assert!(scans.len() > 4);
        for (&at, decoder) in scans[1..].iter().flat_map(|at| DECODERS.map(|decoder| (at, decoder))) {
            let cut = [&jpeg[..at], &END].concat();
            let refused = decode("x", &cut, Decoding { jpeg: decoder, ..3.into() }).unwrap_err().to_string();
            assert!(refused.contains("lacks scans"), "{refused}");
        }
    }
}

/// The decoder's own result.
fn plain_decode(jpeg: &[u8], decoder: Jpeg) -> Vec<u8> {
    if decoder == Jpeg::Zune {
        return zune_jpeg::JpegDecoder::new(zune_core::bytestream::ZCursor::new(jpeg)).decode().unwrap();
    }
    let mut plain = mozjpeg::Decompress::new_mem(jpeg).unwrap();
    plain.dct_method(match decoder {
        Jpeg::LibjpegFast => mozjpeg::DctMethod::IntegerFast,
        _ => mozjpeg::DctMethod::IntegerSlow,
    });
    plain.rgb().unwrap().read_scanlines().unwrap()
}

/// Valid variants: further bytes after the end marker, or between the last code and the end marker; a thumbnail.
fn valid_variants(jpeg: &[u8]) -> Vec<Vec<u8>> {
    let data = &jpeg[..jpeg.len() - 2];
    let behind = |bytes: &[u8]| [jpeg, bytes].concat();
    let before = |bytes: &[u8]| [data, bytes, &END].concat();
    let mut with_thumbnail = vec![0xff, 0xd8, 0xff, 0xe1];
    with_thumbnail.extend((jpeg.len() as u16 + 8).to_be_bytes());
    with_thumbnail.extend(b"Exif\0\0");
    with_thumbnail.extend(jpeg);
    with_thumbnail.extend(&jpeg[2..]);
    let mut all =
        vec![jpeg.to_vec(), behind(&[0; 40]), behind(b"more\xff\xd9"), behind(jpeg), with_thumbnail];
    all.extend([&[0xff; 3][..], &[0x55; 30], &[0xff, 0xfe, 0, 4, 0, 0]].map(before));
    // After codes of zeros, which encoders use for flat areas, zero padding looks like lost data.
    if !data.ends_with(&[0; 2]) {
        all.extend([&[0; 1][..], &[0; 60]].map(before));
    }
    all
}

#[test]
fn valid_jpegs_are_not_changed_by_the_checks() {
    let mut whole: Vec<_> = recipes().step_by(2).map(|recipe| written(&recipe)).collect();
    // Pillow 13: `save(name, quality=60, restart_marker_rows=1)`; `restart_marker_blocks=3, progressive=True`.
    whole.extend(["restarts.jpg", "restarts_progressive.jpg", "progressive.jpg"].map(fixture));
    for jpeg in whole {
        for (file, decoder) in
            valid_variants(&jpeg).iter().flat_map(|file| DECODERS.map(|decoder| (file, decoder)))
        {
            let plain = plain_decode(&jpeg, decoder);
            // The decoder writes into the memory of an earlier image.
            Image::new(plain.len(), 1, 1, vec![0xaa; plain.len()]).recycle();
            let image = decode("x", file, Decoding { jpeg: decoder, ..3.into() }).unwrap();
            let grey = plain.len() * 3 == image.data.len();
            let plain = if grey { plain.iter().flat_map(|&grey| [grey; 3]).collect() } else { plain };
            assert!(image.data == plain, "{decoder:?}, {} bytes", file.len());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn truncated_jpegs_are_refused_or_lossless(
        recipe in prop::sample::select(recipes().collect::<Vec<_>>()),
        cut in any::<prop::sample::Index>(),
        decoder in prop::sample::select(DECODERS.to_vec()),
    ) {
        let jpeg = written(&recipe);
        let lost = 1 + cut.index(jpeg.len() - 2 - data_start(&jpeg));
        if let Some(found) = without(&jpeg, jpeg.len() - 2 - lost, false, decoder) {
            let whole = decode("x", &jpeg, Decoding { jpeg: decoder, ..3.into() }).unwrap();
            // The last bytes of a progressive file may be correction bits, which zune reads past the end.
            let corrections = decoder == Jpeg::Zune && recipe.progressive && lost < 8;
            let allowed = if corrections { 16 } else { 0 };
            prop_assert!(worst(&found, &whole.data) <= allowed);
        }
    }
}
