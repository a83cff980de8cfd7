//! All formats of image sets, written by the tests and read back: order, labels, splits, pixels.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod binary;
mod folder;
mod identity;
mod labels;
mod packed;
mod parquet;
mod several;
mod tar;
mod values;

use std::{io::Cursor, path::Path};

use simclr_data::{DataError, Dataset, Split, dataset::Channels};

fn png(value: u8) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    let image = image::RgbImage::from_pixel(3, 2, image::Rgb([value, 0, 255 - value]));
    image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

fn put(root: &Path, name: &str, bytes: &[u8]) {
    let path = root.join(name);
    fs_err::create_dir_all(path.parent().unwrap()).unwrap();
    fs_err::write(path, bytes).unwrap();
}

fn open(path: &Path, split: Split) -> Dataset {
    Dataset::open(path, split, Channels::Auto).unwrap()
}

fn names(set: &Dataset) -> Vec<&str> {
    set.samples().iter().map(|sample| sample.name.as_str()).collect()
}

/// First byte of every image, in order.
fn firsts(set: &Dataset) -> Vec<u8> {
    (0..set.len()).map(|index| set.decode(index).unwrap().data[0]).collect()
}

#[test]
fn class_folders_of_any_depth_are_sorted() {
    let root = tempfile::tempdir().unwrap();
    for (name, value) in [("b/2.png", 2), ("b/1.PNG", 1), ("a/deep/er/3.jpeg", 3), ("b/.hidden.png", 9)] {
        put(root.path(), name, &png(value));
    }
    put(root.path(), "readme.txt", b"no image");
    put(root.path(), ".thumbs/x.png", &png(9));
    let set = open(root.path(), Split::Train);
    assert_eq!(names(&set), ["a/deep/er/3.jpeg", "b/1.PNG", "b/2.png"]);
    assert_eq!(set.labels().unwrap(), [0, 1, 1]);
    assert_eq!(
        (set.classes(), firsts(&set), set.channels()),
        (&["a".to_owned(), "b".into()][..], vec![3, 1, 2], 3)
    );
    assert!(!Dataset::has_split(root.path(), Split::Test));
    let error = Dataset::open(root.path(), Split::Test, Channels::Auto).unwrap_err();
    assert!(matches!(error, DataError::Empty { .. }), "{error}");
}

#[test]
fn flat_folders_have_no_labels_and_split_folders_are_found() {
    let root = tempfile::tempdir().unwrap();
    put(root.path(), "x.png", &png(4));
    let set = open(root.path(), Split::Train);
    assert_eq!((set.labels(), set.classes().len(), firsts(&set)), (None, 0, vec![4]));
    for test in ["test", "val", "validation"] {
        let root = tempfile::tempdir().unwrap();
        put(root.path(), "train/a/1.png", &png(1));
        put(root.path(), "train/b/1.png", &png(2));
        put(root.path(), &format!("{test}/b/1.png"), &png(3));
        assert!(Dataset::has_split(root.path(), Split::Test));
        assert_eq!(open(root.path(), Split::Train).labels().unwrap(), [0, 1]);
        let set = open(root.path(), Split::Test);
        assert_eq!((set.labels().unwrap(), set.classes().len(), firsts(&set)), (vec![1], 2, vec![3]));
    }
}

#[test]
fn training_and_validation_split_can_be_joined() {
    let root = tempfile::tempdir().unwrap();
    for (name, value) in [("train/a/1.png", 1), ("train/b/1.png", 2), ("val/b/1.png", 3), ("test/a/1.png", 4)]
    {
        put(root.path(), name, &png(value));
    }
    let set = Dataset::open_with_validation(root.path(), Channels::Auto).unwrap();
    assert_eq!(names(&set), ["train/a/1.png", "train/b/1.png", "val/b/1.png"]);
    assert_eq!((set.labels().unwrap(), firsts(&set), set.channels()), (vec![0, 1, 1], vec![1, 2, 3], 3));
    assert_eq!(firsts(&set.subset(&[2, 0])), [3, 1]);
    assert_ne!(set.fingerprint(), open(root.path(), Split::Train).fingerprint());
    fs_err::remove_dir_all(root.path().join("test")).unwrap();
    let error = Dataset::open_with_validation(root.path(), Channels::Auto).unwrap_err();
    assert!(error.to_string().contains("no validation part"), "then val is the test part: {error}");
}

#[test]
fn links_are_followed_and_loops_skipped() {
    let (root, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    put(elsewhere.path(), "real.png", &png(7));
    put(root.path(), "a/1.png", &png(1));
    std::os::unix::fs::symlink(elsewhere.path().join("real.png"), root.path().join("a/2.png")).unwrap();
    std::os::unix::fs::symlink(root.path(), root.path().join("a/circle")).unwrap();
    std::os::unix::fs::symlink("/nowhere.png", root.path().join("a/3.png")).unwrap();
    let set = open(root.path(), Split::Train);
    assert_eq!(names(&set), ["a/1.png", "a/2.png", "a/3.png"]);
    assert_eq!(set.decode(1).unwrap().data[0], 7);
    let error = set.decode(2).unwrap_err().to_string();
    assert!(error.contains("a/3.png") && error.contains("link to nowhere"), "{error}");
}

#[test]
fn order_and_fingerprint_do_not_depend_on_the_file_system() {
    let write = |order: &[&str], class: &str| {
        let root = tempfile::tempdir().unwrap();
        for name in order {
            put(root.path(), name, &png(1));
        }
        put(root.path(), &format!("{class}/x.png"), &png(2));
        let set = open(root.path(), Split::Train);
        (names(&set).into_iter().map(str::to_owned).collect::<Vec<_>>(), set.fingerprint())
    };
    let first = write(&["a/1.png", "b/2.png"], "a");
    assert_eq!(first, write(&["b/2.png", "a/1.png"], "a"));
    assert_ne!(first.1, write(&["a/1.png", "b/2.png"], "b").1);
    assert!(first.1.len() == 16 && first.1.chars().all(|digit| digit.is_ascii_hexdigit()), "{}", first.1);
}

#[test]
fn fingerprints_depend_on_labels_and_sizes() {
    let root = tempfile::tempdir().unwrap();
    let print = |label: u8, width: u32| {
        put(root.path(), "train-images-idx3-ubyte", &binary::idx(&[1, 1, width], &vec![0; width as usize]));
        put(root.path(), "train-labels-idx1-ubyte", &binary::idx(&[1], &[label]));
        open(root.path(), Split::Train).fingerprint()
    };
    let prints = [print(0, 4), print(1, 4), print(0, 5)];
    assert!(prints[0] != prints[1] && prints[0] != prints[2] && prints[0] == print(0, 4), "{prints:?}");
}

#[test]
fn paths_without_images_are_refused() {
    let root = tempfile::tempdir().unwrap();
    put(root.path(), "notes.txt", b"text");
    for path in [root.path().to_owned(), root.path().join("gone"), root.path().join("notes.txt")] {
        let error = Dataset::open(&path, Split::Train, Channels::Auto).unwrap_err();
        assert!(matches!(error, DataError::Empty { .. }) && error.hint().is_some(), "{error}");
        assert!(!Dataset::has_split(&path, Split::Test));
    }
    put(root.path(), "x.png", &png(1));
    let error = Dataset::open(root.path(), Split::Train, Channels::Count(0)).unwrap_err();
    assert!(matches!(error, DataError::Config { key: "channels", .. }), "{error}");
}
