//! Mutated files: reading them ends with images or an error, never with a panic. The mutations are functions of a seed, so a failure
//! repeats. `FUZZ=100000 cargo test --release --test fuzz` runs that many mutations of every format; `FUZZ_SEED` chooses others.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::{
    io::Cursor,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use arrow_array::{ArrayRef, BinaryArray, RecordBatch, StringArray};
use simclr_data::{
    Dataset, RangeChoice, Split,
    dataset::{Channels, Labels},
    decode::{Decoding, Jpeg, Pages, decode},
    pack::{PackOptions, pack},
    rng::{Key, Stream},
};

/// Longest time for one input.
const SLOWEST: Duration = Duration::from_secs(10);
/// Sizes and counts at which readers overflow.
const EXTREME: [u64; 8] = [0, 1, 0x7f, 0xff, 0x7fff, 0xffff_ffff, 0x7fff_ffff_ffff_ffff, u64::MAX];

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap())
}

/// `seed` with one to four changes; `other` is another valid file.
fn mutated(seed: &[u8], other: &[u8], stream: &mut Stream) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=stream.below(4) {
        if bytes.is_empty() {
            return bytes;
        }
        let at = stream.below(bytes.len());
        let length = (1 + stream.below(16)).min(bytes.len() - at);
        match stream.below(8) {
            0 => bytes[at] ^= 1 << stream.below(8),
            1 => bytes[at] = stream.bits() as u8,
            2 => drop(bytes.drain(at..at + length)),
            3 => bytes.truncate(at),
            4 => {
                let copy = bytes[at..at + length].to_vec();
                bytes.splice(at..at, copy);
            }
            5 => {
                let from = stream.below(other.len().max(1)).min(other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
            kind => {
                let value = EXTREME[stream.below(EXTREME.len())];
                let width = [1, 2, 4, 8][stream.below(4)].min(bytes.len() - at);
                let [little, big] = [value.to_le_bytes(), value.to_be_bytes()];
                let chosen = if kind == 6 { &little[..width] } else { &big[8 - width..] };
                bytes[at..at + width].copy_from_slice(chosen);
            }
        }
    }
    bytes
}

/// Feeds mutations of `seeds` to `read`.
fn fuzz(format: u64, seeds: &[Vec<u8>], default: u64, read: impl Fn(&[u8])) {
    let (count, seed) = (setting("FUZZ", default), setting("FUZZ_SEED", 0));
    for number in 0..count {
        let mut stream = Key { seed, epoch: format, image: number, view: 0 }.stream();
        let [one, other] = [(); 2].map(|()| &seeds[stream.below(seeds.len())]);
        let input = mutated(one, other, &mut stream);
        let begin = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| read(&input)));
        if outcome.is_err() || begin.elapsed() > SLOWEST {
            let kept = std::env::temp_dir().join(format!("fuzz-{format}-{seed}-{number}"));
            fs_err::write(&kept, &input).unwrap();
            panic!("mutation {number} of seed {seed}: {:?}, {}", begin.elapsed(), kept.display());
        }
    }
}

fn encoded(format: image::ImageFormat) -> Vec<u8> {
    let image =
        image::RgbImage::from_fn(19, 13, |x, y| image::Rgb([x as u8 * 13, y as u8 * 19, (x * y) as u8]));
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn of_file(name: &str) -> Vec<u8> {
    fs_err::read(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/images").join(name)).unwrap()
}

fn decoded(bytes: &[u8]) {
    for (channels, jpeg) in [(3, Jpeg::Zune), (1, Jpeg::Libjpeg)] {
        let how = Decoding { jpeg, ..channels.into() };
        if let Ok(image) = decode("fuzz", bytes, how) {
            assert_eq!(image.data.len(), image.width * image.height * channels);
        }
    }
}

#[test]
fn jpegs() {
    let names = ["cmyk.jpg", "grey.jpg", "progressive.jpg", "restarts.jpg", "ycck.jpg"];
    let mut seeds: Vec<_> = names.map(of_file).into();
    seeds.push(encoded(image::ImageFormat::Jpeg));
    fuzz(0, &seeds, 1500, decoded);
}

#[test]
fn other_images() {
    use image::ImageFormat::{Bmp, Gif, Png, Pnm, Tiff, WebP};
    let mut seeds: Vec<_> = [Bmp, Gif, Png, Pnm, Tiff, WebP].map(encoded).into();
    seeds.extend(["palette.png", "palette8.bmp", "cmyk8.tif", "lossy.webp"].map(of_file));
    fuzz(1, &seeds, 2500, decoded);
}

/// Opens `bytes` as the file `name` and reads all labels and the first images.
fn opened(folder: &Path, name: &str, bytes: &[u8]) {
    let path = folder.join(name);
    fs_err::write(&path, bytes).unwrap();
    for split in [Split::Train, Split::Test] {
        let Ok(set) = Dataset::open(&path, split, Channels::Auto) else { continue };
        let _ = (set.labels(), set.fingerprint());
        (0..set.len().min(4)).for_each(|index| drop(set.decode(index)));
    }
}

fn fuzz_set(format: u64, name: &str, seeds: &[Vec<u8>], default: u64) {
    let folder = tempfile::tempdir().unwrap();
    fuzz(format, seeds, default, |bytes| opened(folder.path(), name, bytes));
}

fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn tars() {
    let png = encoded(image::ImageFormat::Png);
    let plain = tar_of(&[("a/1.png", &png), ("b/2.png", &png)]);
    let web = tar_of(&[("1.png", &png), ("1.cls", b"3"), ("2.png", &png), ("2.json", b"{\"label\": 1}")]);
    fuzz_set(2, "train-000.tar", &[plain, web], 600);
}

#[test]
fn parquet_files() {
    let folder = tempfile::tempdir().unwrap();
    let png = encoded(image::ImageFormat::Png);
    let file = |compression, rows: usize| {
        let images: ArrayRef = Arc::new(BinaryArray::from_iter_values(vec![&png; 5]));
        let labels: ArrayRef = Arc::new(StringArray::from_iter_values(["a", "b", "a", "c", "b"]));
        let batch = RecordBatch::try_from_iter([("image", images), ("label", labels)]).unwrap();
        let properties = parquet::file::properties::WriterProperties::builder()
            .set_max_row_group_row_count(Some(rows))
            .set_compression(compression)
            .build();
        let path = folder.path().join("seed.parquet");
        let out = fs_err::File::create(&path).unwrap().into_file();
        let mut writer = parquet::arrow::ArrowWriter::try_new(out, batch.schema(), Some(properties)).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        fs_err::read(&path).unwrap()
    };
    use parquet::basic::Compression::{SNAPPY, UNCOMPRESSED};
    fuzz_set(3, "train-000.parquet", &[file(SNAPPY, 3), file(UNCOMPRESSED, 5)], 600);
}

#[test]
fn idx_files() {
    let header = |dimensions: &[u32]| {
        let mut bytes = vec![0, 0, 8, dimensions.len() as u8];
        dimensions.iter().for_each(|size| bytes.extend(size.to_be_bytes()));
        bytes.extend((0..dimensions.iter().product::<u32>()).map(|at| at as u8));
        bytes
    };
    let folder = tempfile::tempdir().unwrap();
    fs_err::write(folder.path().join("train-labels-idx1-ubyte"), header(&[6])).unwrap();
    fuzz(4, &[header(&[6, 5, 5])], 1500, |bytes| {
        fs_err::write(folder.path().join("train-images-idx3-ubyte"), bytes).unwrap();
        if let Ok(set) = Dataset::open(folder.path(), Split::Train, Channels::Auto) {
            (0..set.len().min(4)).for_each(|index| drop(set.decode(index)));
        }
    });
}

#[test]
fn packed_sets() {
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("images");
    for class in ["a", "b"] {
        fs_err::create_dir_all(images.join(class)).unwrap();
        (0..4).for_each(|at| {
            fs_err::write(images.join(class).join(format!("{at}.png")), encoded(image::ImageFormat::Png))
                .unwrap();
        });
    }
    let packed = folder.path().join("seed.pack");
    let options = PackOptions {
        channels: Channels::Auto,
        size: None,
        jpeg: Jpeg::Zune,
        range: RangeChoice::Auto,
        pages: Pages::Auto,
        labels: Labels::Auto,
        threads: 1,
    };
    pack(&images, &packed, &options, &mut |_, _| {}, &AtomicBool::new(false)).unwrap();
    fuzz_set(5, "set.pack", &[fs_err::read(&packed).unwrap()], 600);
}

/// Inputs on which a parser panicked.
#[test]
fn files_that_were_found_by_mutation_are_damaged() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/damaged");
    let error = Dataset::open(&folder.join("division-by-zero.parquet"), Split::Train, Channels::Auto);
    let error = error.and_then(|set| set.decode(0).map(drop)).unwrap_err().to_string();
    assert!(error.contains("its parser failed: attempt to divide by zero"), "{error}");
}
