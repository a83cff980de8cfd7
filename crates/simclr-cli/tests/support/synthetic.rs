//! Small image sets with classes that colour or texture tell apart: stained tissue, bands of a satellite, parts with scratches.

use std::path::Path;

use image::{GrayImage, Luma, Rgb, RgbImage};

const SIDE: u32 = 24;
const BANDS: usize = 13;

/// A pseudo-random number below `limit`, a function of `key`.
fn noise(key: u32, limit: u32) -> u32 {
    let mixed = (key ^ 0x9e37_79b9).wrapping_mul(0x85eb_ca6b);
    ((mixed ^ (mixed >> 13)).wrapping_mul(0xc2b2_ae35) >> 8) % limit
}

/// Makes `count` images of a kind in `folder`.
///
/// `tissue`: tiles in folders of slides. `bands`: TIFF files of 13 bands, 16 bits. `parts`: grey. `textures`: in colour. With `-labels`:
/// folders `train` and `test`, each with a folder for each class, of tissue slides and a table `labels.csv`.
pub fn make(kind: &str, folder: &Path, count: usize) {
    let (kind, labelled) = kind.strip_suffix("-labels").map_or((kind, false), |kind| (kind, true));
    let mut table = String::from("path,label\n");
    for index in 0..count {
        // Classes and slides are spread over each part.
        let (split, item) = match (labelled, index % 3) {
            (false, _) => ("", index),
            (true, 0) => ("test/", index / 3),
            (true, _) => ("train/", index / 3),
        };
        // Not periodic in `index`, so that the evenly spaced images of `views` have several classes.
        let varied = item + item / 8;
        let key = index as u32 + if labelled { 10_000 } else { 0 };
        let class = |names: &[&str]| {
            if labelled { format!("{}/", names[varied % names.len()]) } else { String::new() }
        };
        match kind {
            "tissue" => {
                let slide = item / 3 % 4 + if split == "test/" { 4 } else { 0 };
                let name = format!("{split}slide-{slide}/{index:04}.png");
                table += &format!("{name},{}\n", ["stroma", "tumour", "fat"][varied % 3]);
                save(folder, &name, |path| tile(key, slide as u32, varied % 3).save(path).unwrap());
            }
            "bands" => {
                let name = format!("{split}{}{index:04}.tif", class(&["water", "forest", "field"]));
                save(folder, &name, |path| fs_err::write(path, scene(key, varied % 3)).unwrap());
            }
            "parts" => {
                // One of ten parts of the unlabelled set has a scratch.
                let scratch = if labelled { varied % 2 == 1 } else { varied % 10 == 9 };
                let name = format!("{split}{}{index:04}.png", class(&["good", "scratch"]));
                save(folder, &name, |path| part(key, scratch).save(path).unwrap());
            }
            "textures" => {
                let name = format!("{split}{}{index:04}.png", class(&["stripes", "dots", "plain"]));
                save(folder, &name, |path| tile(key, noise(key, 8), varied % 3).save(path).unwrap());
            }
            other => panic!("no kind of images `{other}`"),
        }
    }
    if kind == "tissue" && labelled {
        fs_err::write(folder.join("labels.csv"), table).unwrap();
    }
}

fn save(folder: &Path, name: &str, write: impl FnOnce(&Path)) {
    let path = folder.join(name);
    fs_err::create_dir_all(path.parent().unwrap()).unwrap();
    write(&path);
}

/// Stain by slide, texture by tissue: stripes, dots, or empty.
fn tile(key: u32, slide: u32, tissue: usize) -> RgbImage {
    let stain = [200 - 9 * slide, 120 + 7 * slide, 190 - 5 * slide];
    RgbImage::from_fn(SIDE, SIDE, |x, y| {
        let on = match tissue {
            0 => (x + 2 * y + key) % 8 < 4,
            1 => (x + key) % 5 < 2 && (y + key) % 5 < 2,
            _ => false,
        };
        let grain = noise(key * 4096 + y * 64 + x, 16);
        Rgb(stain.map(|level| (level - if on { 90 } else { 0 } + grain) as u8))
    })
}

/// A grey part with a grain, and a bright line across it.
fn part(key: u32, scratch: bool) -> GrayImage {
    let (level, at) = (90 + noise(key, 40), 4 + noise(key + 7, SIDE - 8));
    GrayImage::from_fn(SIDE, SIDE, |x, y| {
        let on = scratch && (y + x / 4).abs_diff(at) < 2 && x > 3 && x < SIDE - 3;
        Luma([(level + noise(key * 4096 + y * 64 + x, 24) + if on { 80 } else { 0 }) as u8])
    })
}

/// Reflectances of 300 to 2800 with a spectrum and a texture of the class.
fn scene(key: u32, class: usize) -> Vec<u8> {
    let mut samples = Vec::new();
    for (y, x) in (0..SIDE).flat_map(|y| (0..SIDE).map(move |x| (y, x))) {
        for band in 0..BANDS as u32 {
            let infrared = if band > 6 { 1200 } else { 0 };
            let spectrum = [1500 - 90 * band, 400 + 30 * band + infrared, 900 + 100 * band][class];
            let texture =
                [100 * ((y + key) / 3 % 2), 150 * ((x + key) / 2 % 2), 250 * ((x + y + key) / 4 % 2)][class];
            samples.push((spectrum + texture + noise(key * 65_536 + (y * SIDE + x) * 16 + band, 100)) as u16);
        }
    }
    tiff(&samples)
}

/// A TIFF file of [`BANDS`] interleaved bands of 16 bits, little-endian, uncompressed.
fn tiff(samples: &[u16]) -> Vec<u8> {
    const ENTRIES: u32 = 11;
    const SHORT: u32 = 3;
    const LONG: u32 = 4;
    let bands = BANDS as u32;
    let bits = 8 + 2 + 12 * ENTRIES + 4;
    let (extra, pixels) = (bits + 2 * bands, bits + 2 * bands + 2 * (bands - 1));
    // Tag, type, count, value or its position.
    let entries: [[u32; 4]; ENTRIES as usize] = [
        [256, LONG, 1, SIDE],
        [257, LONG, 1, SIDE],
        [258, SHORT, bands, bits],
        [259, LONG, 1, 1],
        [262, LONG, 1, 1],
        [273, LONG, 1, pixels],
        [277, LONG, 1, bands],
        [278, LONG, 1, SIDE],
        [279, LONG, 1, 2 * samples.len() as u32],
        [284, LONG, 1, 1],
        [338, SHORT, bands - 1, extra],
    ];
    let mut bytes = [&b"II*\0"[..], &8u32.to_le_bytes(), &(ENTRIES as u16).to_le_bytes()].concat();
    for [tag, kind, count, value] in entries {
        bytes.extend([tag as u16, kind as u16].map(u16::to_le_bytes).concat());
        bytes.extend([count, value].map(u32::to_le_bytes).concat());
    }
    bytes.extend(0u32.to_le_bytes());
    let arrays = std::iter::repeat_n(16u16, BANDS).chain(std::iter::repeat_n(0, BANDS - 1));
    bytes.extend(arrays.chain(samples.iter().copied()).flat_map(u16::to_le_bytes));
    bytes
}
