//! Packed sets: equal to the original set; truncated, foreign and contradictory files.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
};

use proptest::prelude::*;
use simclr_data::{
    AugmentConfig, DataError, Dataset, Loader, LoaderConfig, RangeChoice, Split, ValueRange,
    dataset::{Channels, Labels, as_one_path},
    decode::{Jpeg, Pages},
    pack::{PackOptions, Packed, pack},
};

use super::{binary::idx, names, open, png, put};

const PLAIN: PackOptions = PackOptions {
    channels: Channels::Auto,
    size: None,
    jpeg: Jpeg::Zune,
    range: RangeChoice::Auto,
    pages: Pages::Auto,
    labels: Labels::Auto,
    threads: 2,
};

fn packed(data: &Path, out: &Path, options: &PackOptions) -> Packed {
    pack(data, out, options, &mut |_, _| {}, &AtomicBool::new(false)).unwrap().unwrap()
}

/// Images of several sizes and kinds, two of which cannot be decoded, in two classes and two splits.
fn folder(root: &Path) {
    for index in 0..12u32 {
        let image = image::RgbImage::from_fn(9 + index, 20 - index, |x, y| {
            image::Rgb([(x * 13 + index) as u8, (y * 7) as u8, ((x * y) ^ index) as u8])
        });
        let split = if index % 4 == 3 { "test" } else { "train" };
        let path = root.join(format!("{split}/{}/{index}.png", ["ant", "bee"][index as usize % 2]));
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        match index {
            1 => image.save(path.with_extension("jpg")).unwrap(),
            2 => image::DynamicImage::from(image).into_luma16().save(path).unwrap(),
            _ => image.save(path).unwrap(),
        }
    }
    put(root, "train/bee/cut.png", &png(1)[..40]);
    put(root, "test/ant/empty.jpg", b"");
}

fn reason(error: DataError) -> String {
    let DataError::Decode { reason, .. } = error else { panic!("{error}") };
    reason
}

#[track_caller]
fn same(a: &Dataset, b: &Dataset) {
    assert_eq!((a.samples(), a.classes(), a.channels()), (b.samples(), b.classes(), b.channels()));
    assert_eq!(a.fingerprint(), b.fingerprint());
    for index in 0..a.len() {
        // Twice: the first decoding of an image also verifies its checksum.
        for _ in 0..2 {
            assert_eq!(a.decode(index).map_err(reason), b.decode(index).map_err(reason), "{index}");
        }
    }
}

#[test]
fn packed_sets_equal_the_original() {
    let root = tempfile::tempdir().unwrap();
    let (data, out) = (root.path().join("images"), root.path().join("images.pack"));
    folder(&data);
    put(&data, "unlabeled/x/free.png", &png(3));
    let mut progress = Vec::new();
    let packed =
        pack(&data, &out, &PLAIN, &mut |done, of| progress.push((done, of)), &AtomicBool::new(false));
    let packed = packed.unwrap().unwrap();
    assert_eq!((packed.train, packed.test, packed.bytes), (10, 4, fs_err::metadata(&out).unwrap().len()));
    let failed: Vec<_> = packed.failed.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(failed, ["train/bee/cut.png", "test/ant/empty.jpg"]);
    assert_eq!((packed.unlabelled, progress.last()), (1, Some(&(15, 15))));
    assert!(Dataset::has_split(&out, Split::Test));
    for split in [Split::Train, Split::Test, Split::Unlabelled] {
        for channels in [Channels::Auto, Channels::Count(1), Channels::Count(3)] {
            let [a, b] = [&data, &out].map(|path| Dataset::open(path, split, channels).unwrap());
            same(&a, &b);
        }
    }
    let part = |path: &Path| open(path, Split::Train).subset(&[7, 0, 9]);
    same(&part(&data), &part(&out));
    assert_eq!(fs_err::read_dir(root.path()).unwrap().count(), 2, "no temporary file is left");
}

#[test]
fn batches_of_packed_sets_equal_those_of_the_original() {
    let root = tempfile::tempdir().unwrap();
    let (data, out) = (root.path().join("images"), root.path().join("images.pack"));
    folder(&data);
    packed(&data, &out, &PLAIN);
    let batches = |path: &Path| {
        let config = LoaderConfig {
            views: 2,
            batch: 5,
            size: 16,
            seed: 3,
            threads: 2,
            prefetch: 2,
            max_bad_share: 0.5,
            ..LoaderConfig::default()
        };
        let set = Arc::new(open(path, Split::Train));
        let loader = Loader::new(set, AugmentConfig::default(), config).unwrap();
        loader.batches(0, 6).unwrap().map(Result::unwrap).collect::<Vec<_>>()
    };
    for (a, b) in batches(&data).iter().zip(&batches(&out)) {
        assert!((&a.ids, &a.pixels()) == (&b.ids, &b.pixels()), "step {}", a.step);
        assert_eq!(a.failed.len(), b.failed.len());
    }
}

#[test]
fn grey_sets_without_test_split_and_repeated_packing() {
    let root = tempfile::tempdir().unwrap();
    let data = root.path().join("idx");
    let pixels: Vec<u8> = (0..4 * 3 * 2).collect();
    put(&data, "train-images-idx3-ubyte", &idx(&[4, 3, 2], &pixels));
    put(&data, "train-labels-idx1-ubyte", &idx(&[4], &[1, 0, 2, 1]));
    let [once, twice] = ["once", "twice"].map(|name| root.path().join(name));
    packed(&data, &once, &PLAIN);
    packed(&once, &twice, &PLAIN);
    for file in [&once, &twice] {
        assert!(!Dataset::has_split(file, Split::Test));
        same(&open(&data, Split::Train), &open(file, Split::Train));
        let error = Dataset::open(file, Split::Test, Channels::Auto).unwrap_err();
        assert!(matches!(error, DataError::Empty { .. }), "{error}");
    }
    assert_eq!(fs_err::read(once).unwrap(), fs_err::read(twice).unwrap());
}

/// The pixels of one set would otherwise pass for those of the other.
#[test]
fn packed_sets_of_different_ranges_or_page_rules_are_refused_together() {
    let root = tempfile::tempdir().unwrap();
    let data = root.path().join("images");
    fs_err::create_dir(&data).unwrap();
    let deep = image::ImageBuffer::from_fn(3, 2, |x, y| image::Luma([100 * (x + y) as u16]));
    deep.save(data.join("1.png")).unwrap();
    let range = |high| RangeChoice::Set(ValueRange::Same([0.0, high]));
    let write = |name: &str, high: f64, pages: Pages| {
        packed(&data, &root.path().join(name), &PackOptions { range: range(high), pages, ..PLAIN });
    };
    write("a.pack", 500.0, Pages::Auto);
    write("same.pack", 500.0, Pages::Auto);
    write("range.pack", 900.0, Pages::Auto);
    write("pages.pack", 500.0, Pages::Images);
    let both = |other: &str| as_one_path(&["a.pack", other].map(|name| root.path().join(name))).unwrap();
    assert_eq!(open(&both("same.pack"), Split::Train).len(), 2);
    for (other, key) in [("range.pack", "data.range"), ("pages.pack", "data.pages")] {
        let error = Dataset::open(&both(other), Split::Train, Channels::Auto).unwrap_err();
        assert!(matches!(error, DataError::Format { .. }), "{error}");
        let error = error.to_string();
        assert!([other, "a.pack", key].iter().all(|part| error.contains(part)), "{error}");
    }
}

#[test]
fn scaled_sets_keep_small_images_and_differ_in_fingerprint() {
    let root = tempfile::tempdir().unwrap();
    let (data, out) = (root.path().join("images"), root.path().join("small.pack"));
    folder(&data);
    packed(&data, &out, &PackOptions { size: Some(12), ..PLAIN });
    let (before, after) = (open(&data, Split::Train), open(&out, Split::Train));
    assert_eq!(names(&before), names(&after));
    assert_ne!(before.fingerprint(), after.fingerprint());
    let mut scaled = 0;
    for index in 0..before.len() {
        let (Ok(a), Ok(b)) = (before.decode(index), after.decode(index)) else { continue };
        assert_eq!(a.width.min(a.height).min(12), b.width.min(b.height), "{index}");
        let ratio = (a.width as f64 / a.height as f64) / (b.width as f64 / b.height as f64);
        assert!((ratio - 1.0).abs() < 0.1, "{index}: {ratio}");
        assert_eq!(a == b, a.width.min(a.height) <= 12, "{index}");
        scaled += usize::from(a != b);
        let mean = |data: &[u8]| data.iter().map(|&byte| f64::from(byte)).sum::<f64>() / data.len() as f64;
        assert!((mean(&a.data) - mean(&b.data)).abs() < 4.0, "{index}");
    }
    assert!(scaled > 2, "{scaled}");
    // Where nothing is that large, nothing has changed.
    packed(&data, &out, &PackOptions { size: Some(100), ..PLAIN });
    same(&before, &open(&out, Split::Train));
}

#[test]
fn existing_files_are_replaced_atomically() {
    let root = tempfile::tempdir().unwrap();
    let (data, out) = (root.path().join("images"), root.path().join("images.pack"));
    folder(&data);
    let old = b"simclrpk, cut";
    fs_err::write(&out, old).unwrap();
    let stopped = pack(&data, &out, &PLAIN, &mut |_, _| {}, &AtomicBool::new(true));
    assert_eq!(stopped.unwrap(), None);
    let gone = pack(&root.path().join("gone"), &out, &PLAIN, &mut |_, _| {}, &AtomicBool::new(false));
    assert!(matches!(gone, Err(DataError::Empty { .. })), "{gone:?}");
    let nothing = PackOptions { size: Some(0), ..PLAIN };
    let nothing = pack(&data, &out, &nothing, &mut |_, _| {}, &AtomicBool::new(false));
    assert!(matches!(nothing, Err(DataError::Config { key: "size", .. })), "{nothing:?}");
    let nowhere = pack(
        &data,
        &root.path().join("no/such/folder.pack"),
        &PLAIN,
        &mut |_, _| {},
        &AtomicBool::new(false),
    );
    let nowhere = nowhere.unwrap_err().to_string();
    assert!(nowhere.contains("cannot write") && nowhere.contains("folder.pack"), "{nowhere}");
    assert_eq!(fs_err::read(&out).unwrap(), old);
    packed(&data, &out, &PLAIN);
    let itself = pack(&out, &out, &PLAIN, &mut |_, _| {}, &AtomicBool::new(false)).unwrap_err();
    assert!(itself.to_string().contains("the data set itself"), "{itself}");
    same(&open(&data, Split::Train), &open(&out, Split::Train));
    assert_eq!(fs_err::read_dir(root.path()).unwrap().count(), 2, "no temporary file is left");
}

/// A packed set and its bytes.
fn sample(root: &Path) -> (PathBuf, Vec<u8>) {
    let (data, out) = (root.join("images"), root.join("images.pack"));
    folder(&data);
    packed(&data, &out, &PLAIN);
    let bytes = fs_err::read(&out).unwrap();
    (out, bytes)
}

fn refused(file: &Path, bytes: &[u8]) -> String {
    fs_err::write(file, bytes).unwrap();
    let [train, test] =
        [Split::Train, Split::Test].map(|split| Dataset::open(file, split, Channels::Auto).unwrap_err());
    assert_eq!(train.to_string(), test.to_string());
    assert!(Dataset::has_split(file, Split::Test) || matches!(train, DataError::Empty { .. }), "{train}");
    train.to_string()
}

#[test]
fn truncated_extended_and_foreign_files_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let (file, whole) = sample(root.path());
    for length in [8, 12, 43, 44, 500, whole.len() - 28, whole.len() - 1] {
        let reason = refused(&file, &whole[..length]);
        assert!(reason.contains("images.pack") && reason.contains("cut short"), "{length}: {reason}");
    }
    for length in [0, 7] {
        assert!(refused(&file, &whole[..length]).contains("no images found"));
    }
    assert!(refused(&file, &[&whole[..], b"more"].concat()).contains("cut short"));
    assert!(refused(&file, b"PK\x03\x04 a zip file").contains("no images found"));
    let mut newer = whole.clone();
    newer[8] = 9;
    assert!(refused(&file, &newer).contains("of version 9, this program reads version 1"));
    // A byte of the index, and its place.
    for (from_end, part) in
        [(40, "checksum of its index"), (28, "which must end at byte"), (20, "which must end at byte")]
    {
        let mut damaged = whole.clone();
        let at = damaged.len() - from_end;
        damaged[at] ^= 1;
        let reason = refused(&file, &damaged);
        assert!(reason.contains(part), "{reason}");
    }
}

#[test]
fn damaged_pixels_fail_a_single_image() {
    let root = tempfile::tempdir().unwrap();
    let (file, mut bytes) = sample(root.path());
    let before = open(&file, Split::Train).decode(0).unwrap().data.len();
    bytes[16 + before + 5] ^= 0x10;
    // Not in place: the file may be mapped.
    let damaged = root.path().join("damaged.pack");
    fs_err::write(&damaged, bytes).unwrap();
    let set = open(&damaged, Split::Train);
    assert!(set.decode(0).is_ok() && set.decode(2).is_ok());
    for _ in 0..2 {
        let reason = set.decode(1).unwrap_err().to_string();
        assert!(reason.contains(names(&set)[1]) && reason.contains("checksum"), "{reason}");
    }
}

/// Reading the mapping beyond the new end would kill the process (SIGBUS).
#[test]
fn a_file_truncated_while_open_fails_images_behind_its_end() {
    let root = tempfile::tempdir().unwrap();
    let (file, _) = sample(root.path());
    let set = open(&file, Split::Train);
    let whole = set.decode(0).unwrap();
    fs_err::OpenOptions::new().write(true).open(&file).unwrap().set_len(0).unwrap();
    for index in 0..set.len() {
        let reason = set.decode(index).unwrap_err().to_string();
        assert!(reason.contains("truncated to 0 bytes") && reason.contains(names(&set)[index]), "{reason}");
    }
    drop(whole);
}

/// The file with another index of valid checksum and position.
fn with_index(whole: &[u8], change: impl Fn(&mut serde_json::Value)) -> Vec<u8> {
    let number = |at: usize| u64::from_le_bytes(whole[at..at + 8].try_into().unwrap()) as usize;
    let (start, length) = (number(whole.len() - 28), number(whole.len() - 20));
    let mut index = serde_json::from_slice(&whole[start..start + length]).unwrap();
    change(&mut index);
    let json = serde_json::to_vec(&index).unwrap();
    let sizes = [start as u64, json.len() as u64].map(u64::to_le_bytes).concat();
    [&whole[..start], &json, &sizes, &crc32c::crc32c(&json).to_le_bytes(), b"simclrpk"].concat()
}

#[test]
fn contradictory_indices_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let (file, whole) = sample(root.path());
    fs_err::write(&file, with_index(&whole, |_| {})).unwrap();
    same(&open(&root.path().join("images"), Split::Test), &open(&file, Split::Test));
    type Change = fn(&mut serde_json::Value);
    let changes: [(Change, &str); 8] = [
        (|index| index["channels"] = 0.into(), "0 channels"),
        (|index| index["channels"] = 4.into(), "declares pixels up to byte"),
        (|index| index["channels"] = u64::MAX.into(), "pixels and 18446744073709551615 channels"),
        (|index| index["train"]["widths"][0] = u32::MAX.into(), "of 4294967295x"),
        (|index| index["test"]["heights"][1] = 1.into(), "declares pixels up to byte"),
        (|index| index["train"]["labels"][2] = 2.into(), "label 2, but 2 classes"),
        (|index| drop(index["test"]["names"].as_array_mut().unwrap().pop()), "3 names, but columns"),
        (|index| index["train"] = serde_json::Value::Null, "damaged packed set"),
    ];
    for (change, part) in changes {
        let reason = refused(&file, &with_index(&whole, change));
        assert!(reason.contains(part), "expected `{part}` in `{reason}`");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn mutated_files_never_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        near_the_end in any::<bool>(), cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let root = tempfile::tempdir().unwrap();
        let data = root.path().join("idx");
        put(&data, "train-images-idx3-ubyte", &idx(&[2, 3, 2], &[5; 12]));
        let file = root.path().join("x.pack");
        packed(&data, &file, &PLAIN);
        let mut bytes = fs_err::read(&file).unwrap();
        for (at, byte) in edits {
            let reach = if near_the_end { bytes.len().min(30) } else { bytes.len() };
            let at = bytes.len() - 1 - at.index(reach);
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let changed = root.path().join("changed.pack");
        fs_err::write(&changed, bytes).unwrap();
        if let Ok(set) = Dataset::open(&changed, Split::Train, Channels::Auto) {
            for index in 0..set.len() {
                let _ = set.decode(index);
            }
        }
    }
}

#[test]
fn a_packed_set_holds_the_labels_of_a_table_in_all_parts() {
    let root = tempfile::tempdir().unwrap();
    let (data, out) = (root.path().join("images"), root.path().join("images.pack"));
    for (name, level) in [("train/1.png", 1), ("train/2.png", 2), ("train/3.png", 3), ("test/4.png", 4)] {
        put(&data, name, &png(level));
    }
    put(root.path(), "t.csv", b"path,label\n1,wasp\n2.png,ant\ntest/4.png,wasp\n");
    let table = Labels::Table(root.path().join("t.csv"));
    let written = packed(&data, &out, &PackOptions { labels: table.clone(), ..PLAIN });
    assert!(written.notes.iter().any(|note| note.contains("labels are those of")), "{:?}", written.notes);
    for split in [Split::Train, Split::Test] {
        let files = Dataset::open(&data, split, Channels::Auto).unwrap();
        let files = files.labelled(&table, &data, &[split]).unwrap();
        same(&files, &Dataset::open(&out, split, Channels::Auto).unwrap());
    }
    let train = open(&out, Split::Train);
    let labels: Vec<_> = train.samples().iter().map(|sample| sample.label).collect();
    assert_eq!(
        (train.classes(), labels),
        (&["ant".to_owned(), "wasp".to_owned()][..], vec![Some(1), Some(0), None])
    );
    packed(&data, &out, &PackOptions { labels: Labels::None, ..PLAIN });
    assert!(open(&out, Split::Train).classes().is_empty());
}
