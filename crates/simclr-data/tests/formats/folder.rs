//! Folders with various names of splits and with other files among the images.

use simclr_data::{Dataset, Split};

use super::{firsts, names, open, png, put, tar::tar_of};

#[test]
fn common_names_of_split_folders() {
    for [train, test] in [
        ["Train", "Test"],
        ["train", "valid"],
        ["Training", "Testing"],
        ["TRAIN", "TEST"],
        ["train", "eval"],
        ["training_set", "test_set"],
        ["train", "dev"],
        ["train2017", "val2017"],
    ] {
        for around in ["", "archive/data/"] {
            let root = tempfile::tempdir().unwrap();
            for (class, value) in [("a", 1), ("b", 2)] {
                put(root.path(), &format!("{around}{train}/{class}/1.png"), &png(value));
                put(root.path(), &format!("{around}{test}/{class}/1.png"), &png(value + 10));
            }
            let set = open(root.path(), Split::Train);
            assert_eq!((set.classes().len(), firsts(&set)), (2, vec![1, 2]), "{around}{train}");
            assert!(set.notes().is_empty(), "{:?}", set.notes());
            assert_eq!(firsts(&open(root.path(), Split::Test)), [11, 12], "{around}{test}");
        }
    }
}

#[test]
fn skipped_files_are_noted_with_counts() {
    let root = tempfile::tempdir().unwrap();
    for name in ["train/a/1.png", "train/b/1.png", "test/a/1.png", "extra/1.png", "extra/2.png"] {
        put(root.path(), name, &png(1));
    }
    for name in ["slides/1.svs", "slides/2.SVS", "sizes.csv", "README", ".hidden/x.heic"] {
        put(root.path(), name, b"no image");
    }
    let notes = open(root.path(), Split::Train).notes().to_vec();
    assert_eq!(
        notes,
        [
            "2 images lie outside of the parts of the set and are not used: 2 in `extra`",
            "4 files of other kinds are skipped: .svs 2, .csv 1, without an ending 1"
        ]
    );
    assert!(open(root.path(), Split::Test).notes().is_empty(), "once for a set");
}

#[test]
fn images_without_a_label_are_noted() {
    let root = tempfile::tempdir().unwrap();
    for name in ["a/1.png", "b/1.png", "views.png"] {
        put(root.path(), name, &png(1));
    }
    let set = open(root.path(), Split::Train);
    assert_eq!(set.labels(), None);
    assert_eq!(set.notes(), ["1 of 3 images have no label; evaluations with labels skip them: `views.png`"]);
}

#[test]
fn archives_next_to_folders_of_images_are_skipped() {
    let root = tempfile::tempdir().unwrap();
    put(root.path(), "a/1.png", &png(1));
    put(root.path(), "b/1.png", &png(2));
    let mut archive = ::tar::Builder::new(Vec::new());
    let mut header = ::tar::Header::new_gnu();
    let thumb = png(9);
    header.set_size(thumb.len() as u64);
    archive.append_data(&mut header, "thumb.png", &thumb[..]).unwrap();
    put(root.path(), "annotations.tar", &archive.into_inner().unwrap());
    let set = open(root.path(), Split::Train);
    assert_eq!(names(&set), ["a/1.png", "b/1.png"]);
    assert_eq!(set.notes(), ["1 file of another kind is skipped: .tar 1"]);
    assert!(!Dataset::has_split(root.path(), Split::Test));
}

#[test]
fn an_archive_among_images_is_skipped_and_a_preview_among_shards_too() {
    let root = tempfile::tempdir().unwrap();
    put(root.path(), "1.png", &png(1));
    put(root.path(), "2.png", &png(2));
    tar_of(&root.path().join("backup.tar"), &[("thumb.png", &png(9))]);
    let set = open(root.path(), Split::Train);
    assert_eq!(names(&set), ["1.png", "2.png"]);
    assert_eq!(set.notes(), ["1 file of another kind is skipped: .tar 1"]);
    let shards = tempfile::tempdir().unwrap();
    put(shards.path(), "preview.png", &png(9));
    tar_of(&shards.path().join("0.tar"), &[("a.png", &png(1))]);
    tar_of(&shards.path().join("1.tar"), &[("b.png", &png(2))]);
    assert_eq!(firsts(&open(shards.path(), Split::Train)), [1, 2]);
}

#[test]
fn gif_ppm_and_pgm_are_images() {
    let root = tempfile::tempdir().unwrap();
    let pixels = image::RgbImage::from_pixel(3, 2, image::Rgb([200, 0, 0]));
    let image = image::DynamicImage::from(pixels);
    for (name, format) in [
        ("1.gif", image::ImageFormat::Gif),
        ("2.ppm", image::ImageFormat::Pnm),
        ("3.jpe", image::ImageFormat::Png),
    ] {
        image.save_with_format(root.path().join(name), format).unwrap();
    }
    put(root.path(), "4.pgm", b"P5 2 1 255 \xc8\xc8");
    assert_eq!(firsts(&open(root.path(), Split::Train)), [200; 4]);
}
