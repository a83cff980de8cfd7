//! Changed pixels under the same name and size are detected in all formats; a copy or a `touch` is no change.

use std::{
    path::Path,
    sync::atomic::AtomicBool,
    time::{Duration, SystemTime},
};

use simclr_data::{
    Dataset, Split,
    pack::{PackOptions, pack},
};

use super::{binary, open, parquet::hub_parquet, png, put, tar::tar_of};

/// Writes a set of two images to a path; the number is the value of the second image's pixels.
type Form = fn(&Path, u8);

const FORMS: [(&str, Form); 7] = [
    ("folder", |path, value| {
        put(path, "a/1.png", &png(10));
        put(path, "b/2.png", &png(value));
    }),
    ("tar", |path, value| tar_of(path, &[("a/1.png", &png(10)), ("b/2.png", &png(value))])),
    ("parquet", |path, value| hub_parquet(path, &[(10, 0), (value, 1)], &["a", "b"])),
    ("idx", |path, value| {
        put(path, "train-images-idx3-ubyte", &binary::idx(&[2, 1, 2], &[10, 10, value, 30]))
    }),
    ("cifar", |path, value| {
        let record = |value| [vec![1], vec![value; 3072]].concat();
        put(path, "data_batch_1.bin", &[record(10), record(value)].concat());
    }),
    ("packed", |path, value| {
        let folder = path.with_extension("folder");
        FORMS[0].1(&folder, value);
        pack(&folder, path, &PackOptions::default(), &mut |_, _| {}, &AtomicBool::new(false)).unwrap();
    }),
    ("gzipped idx", |path, value| {
        let bytes = binary::gzip(&binary::idx(&[2, 1, 2], &[10, 10, value, 30]));
        put(path, "train-images-idx3-ubyte.gz", &bytes);
    }),
];

fn path_of(root: &Path, form: &str) -> std::path::PathBuf {
    let extension = if form == "tar" || form == "parquet" { form } else { "set" };
    root.join(form).with_extension(extension)
}

fn decoded(path: &Path) -> Dataset {
    let set = open(path, Split::Train);
    (0..set.len()).for_each(|index| drop(set.decode(index).unwrap()));
    set
}

#[test]
fn changed_pixels_under_the_same_name_and_size_are_detected() {
    let root = tempfile::tempdir().unwrap();
    for (form, write) in FORMS {
        let path = path_of(root.path(), form);
        write(&path, 20);
        let before = decoded(&path);
        assert!(
            open(&path, Split::Train).changes_since(&before.observed()).is_none(),
            "{form}: nothing changed"
        );
        write(&path, 40);
        let after = open(&path, Split::Train);
        assert_eq!(after.fingerprint(), before.fingerprint(), "{form}: names and sizes are the same");
        let changes = after.changes_since(&before.observed());
        assert_eq!((&changes.changed[..], &changes.unknown[..]), (&[1][..], &[][..]), "{form}");
        let digests = [before.content_digest(), decoded(&path).content_digest()];
        assert!(digests[0].is_some() && digests[0] != digests[1], "{form}: {digests:?}");
    }
}

#[test]
fn rewriting_the_same_bytes_is_no_change() {
    let root = tempfile::tempdir().unwrap();
    for (form, write) in FORMS {
        let path = path_of(root.path(), form);
        write(&path, 20);
        let before = decoded(&path);
        write(&path, 20);
        let after = open(&path, Split::Train);
        let changes = after.changes_since(&before.observed());
        assert!(changes.is_none() && changes.compared == 2, "{form}: {changes:?}");
        assert_eq!(after.content_digest(), before.content_digest(), "{form}");
    }
}

/// As after `rsync --times` or `cp --preserve`.
#[test]
fn changes_with_a_restored_modification_time_are_detected() {
    let root = tempfile::tempdir().unwrap();
    let hour_ago = SystemTime::now() - Duration::from_secs(3600);
    let write = |value| {
        put(root.path(), "a/1.png", &png(value));
        let file = fs_err::OpenOptions::new().write(true).open(root.path().join("a/1.png")).unwrap();
        file.file().set_modified(hour_ago).unwrap();
    };
    write(20);
    let before = decoded(root.path());
    write(40);
    assert_eq!(open(root.path(), Split::Train).changes_since(&before.observed()).changed, [0]);
}

#[test]
fn images_never_read_are_unknown() {
    let root = tempfile::tempdir().unwrap();
    FORMS[0].1(root.path(), 20);
    let before = open(root.path(), Split::Train);
    before.decode(0).unwrap();
    let observed = before.observed();
    assert_eq!(before.content_digest(), None);
    FORMS[0].1(root.path(), 20);
    let changes = open(root.path(), Split::Train).changes_since(&observed);
    assert_eq!((changes.changed.len(), &changes.unknown[..], changes.compared), (0, &[1][..], 1));
}

#[test]
fn packed_sets_have_the_content_digest_of_the_original() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("packed.set");
    FORMS[5].1(&path, 20);
    let folder = decoded(&path.with_extension("folder"));
    assert_eq!(open(&path, Split::Train).content_digest(), folder.content_digest());
    assert!(folder.content_digest().is_some());
}

#[test]
fn unicode_equivalent_class_folders_are_merged_over_splits_and_refused_within_one() {
    let (composed, decomposed) = ("caf\u{e9}", "cafe\u{301}");
    let root = tempfile::tempdir().unwrap();
    for (name, value) in [("train/bar/1.png", 1), ("test/bar/1.png", 2)] {
        put(root.path(), name, &png(value));
    }
    put(root.path(), &format!("train/{composed}/1.png"), &png(3));
    put(root.path(), &format!("test/{decomposed}/1.png"), &png(4));
    for (split, labels) in [(Split::Train, [0, 1]), (Split::Test, [0, 1])] {
        let set = open(root.path(), split);
        assert_eq!((set.classes().len(), set.labels().unwrap()), (2, labels.to_vec()));
        assert!(set.notes()[0].contains("cafe\\u{301}"), "{:?}", set.notes());
    }
    put(root.path(), &format!("train/{decomposed}/2.png"), &png(5));
    let channels = simclr_data::dataset::Channels::Auto;
    let error = Dataset::open(root.path(), Split::Train, channels).unwrap_err().to_string();
    assert!(error.contains("two class folders have one name") && error.contains("\\u{e9}"), "{error}");
}
