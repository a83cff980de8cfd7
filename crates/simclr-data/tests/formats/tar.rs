//! Tars of class folders and WebDataset shards, valid and truncated.

use std::path::Path;

use ::tar::EntryType;
use simclr_data::{DataError, Dataset, Split, dataset::Channels};

use super::{firsts, names, open, png};

pub fn tar_of(path: &Path, members: &[(&str, &[u8])]) {
    let mut builder = ::tar::Builder::new(fs_err::File::create(path).unwrap());
    for (name, bytes) in members {
        let mut header = ::tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *bytes).unwrap();
    }
    builder.into_inner().unwrap();
}

#[test]
fn tars_of_class_folders_with_splits_and_long_names() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("set.tar");
    let long = format!("train/b/{}.png", "n".repeat(150));
    let images = [1, 2, 3].map(png);
    tar_of(
        &path,
        &[
            ("train/a/1.png", &images[0]),
            (&long, &images[1]),
            ("notes.txt", b"x"),
            ("test/b/3.png", &images[2]),
        ],
    );
    let set = open(&path, Split::Train);
    assert_eq!((names(&set), set.labels().unwrap()), (vec!["train/a/1.png", long.as_str()], vec![0, 1]));
    assert_eq!(firsts(&set), [1, 2]);
    assert!(Dataset::has_split(&path, Split::Test));
    let test = open(&path, Split::Test);
    assert_eq!((test.labels().unwrap(), firsts(&test)), (vec![1], vec![3]));
}

#[test]
fn webdataset_shards_number_classes_alike_in_all_splits() {
    let root = tempfile::tempdir().unwrap();
    let images = [1, 2, 3, 4].map(png);
    let shard = |name: &str| root.path().join(name);
    tar_of(
        &shard("train-0.tar"),
        &[("000.png", &images[0]), ("000.cls", b"9\n"), ("001.cls", b"2"), ("001.png", &images[1])],
    );
    tar_of(&shard("train-1.tar"), &[("000.png", &images[2]), ("000.cls", b"10")]);
    tar_of(&shard("val-0.tar"), &[("000.png", &images[3]), ("000.cls", b"10")]);
    let set = open(root.path(), Split::Train);
    assert_eq!(set.classes(), ["2", "9", "10"]);
    assert_eq!((set.labels().unwrap(), firsts(&set)), (vec![1, 0, 2], vec![1, 2, 3]));
    assert_eq!(names(&set), ["train-0:000.png", "train-0:001.png", "train-1:000.png"]);
    let test = open(root.path(), Split::Test);
    assert_eq!((test.labels().unwrap(), firsts(&test)), (vec![2], vec![4]));
}

#[test]
fn masks_of_webdataset_samples_are_skipped() {
    let root = tempfile::tempdir().unwrap();
    let images = [1, 2, 3].map(png);
    let path = root.path().join("train-0.tar");
    tar_of(
        &path,
        &[
            ("000.png", &images[0]),
            ("000.seg.png", &images[2]),
            ("000.cls", b"1"),
            ("001.rgb.png", &images[1]),
            ("001.cls", b"0"),
        ],
    );
    let set = open(&path, Split::Train);
    assert_eq!((names(&set), set.labels().unwrap()), (vec!["000.png", "001.rgb.png"], vec![1, 0]));
    assert_eq!(set.notes(), ["1 further images of labelled samples are skipped, as masks: .seg.png 1"]);
    tar_of(&path, &[("photo.png", &images[0]), ("photo.v2.png", &images[1])]);
    assert_eq!(open(&path, Split::Train).len(), 2, "members of unlabelled samples are images");
}

#[test]
fn tables_of_img2dataset_shards_are_ignored() {
    let root = tempfile::tempdir().unwrap();
    tar_of(&root.path().join("00000.tar"), &[("000000000.png", &png(5))]);
    fs_err::write(
        root.path().join("00000.parquet"),
        b"a table of keys and addresses, as img2dataset writes it",
    )
    .unwrap();
    assert_eq!(firsts(&open(root.path(), Split::Train)), [5]);
}

#[test]
fn truncated_shards_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("set.tar");
    tar_of(&path, &[("a/1.png", &png(1)), ("a/2.png", &png(2))]);
    let whole = fs_err::read(&path).unwrap();
    let end = whole.len() - 1024;
    for length in [end / 2, end / 2 + 100, end / 2 + 512 + 10, end - 512, end] {
        fs_err::write(&path, &whole[..length]).unwrap();
        let error = Dataset::open(&path, Split::Train, Channels::Auto).unwrap_err();
        assert!(matches!(error, DataError::Format { .. }), "{length}: {error}");
        assert!(
            error.to_string().contains("set.tar") && error.to_string().contains("damaged tar"),
            "{error}"
        );
    }
    assert!(Dataset::has_split(&path, Split::Test), "a damaged set must be opened and reported, not skipped");
}

#[test]
fn tar_images_are_read_from_many_threads() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("set.tar");
    let images: Vec<_> = (0..50).map(|value| (format!("{value:02}.png"), png(value))).collect();
    tar_of(&path, &images.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect::<Vec<_>>());
    let set = open(&path, Split::Train);
    std::thread::scope(|scope| {
        for start in 0..4 {
            let set = &set;
            scope.spawn(move || {
                for index in (0..200).map(|step| (step * 7 + start) % 50) {
                    assert_eq!(usize::from(set.decode(index).unwrap().data[0]), index);
                }
            });
        }
    });
}

#[test]
fn other_members_are_counted_and_hidden_ones_ignored() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("set.tar");
    let mut builder = ::tar::Builder::new(fs_err::File::create(&path).unwrap());
    let image = png(1);
    let mut add = |kind: EntryType, name: &str, bytes: &[u8]| {
        let mut header = ::tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(bytes.len() as u64);
        match kind {
            EntryType::Link | EntryType::Symlink => {
                builder.append_link(&mut header, name, "000.png").unwrap()
            }
            _ => builder.append_data(&mut header, name, bytes).unwrap(),
        }
    };
    add(EntryType::Directory, "folder/", b"");
    add(EntryType::Regular, "000.png", &image);
    add(EntryType::Regular, "000.cls", b"3");
    add(EntryType::Regular, "._000.cls", b"\0\xff Mac OS X");
    add(EntryType::Regular, ".000.json", b"{\"label\": [1]}");
    add(EntryType::Regular, "000.txt", b"a caption");
    add(EntryType::Regular, "001.txt", b"a caption");
    add(EntryType::Regular, "001.cls", &[b'9'; 2000]);
    add(EntryType::Link, "hard.png", b"");
    add(EntryType::Symlink, "soft.png", b"");
    add(EntryType::Symlink, "._soft.png", b"");
    builder.into_inner().unwrap();
    let set = open(&path, Split::Train);
    assert_eq!((names(&set), set.classes()), (vec!["000.png"], &["3".to_owned()][..]));
    assert_eq!(set.notes(), ["5 files of other kinds are skipped: .txt 2, links 2, .cls 1"]);
}

#[test]
fn tars_behind_the_end_mark_are_read_and_other_data_noted() {
    let root = tempfile::tempdir().unwrap();
    let [path, other] = ["set.tar", "other.tar"].map(|name| root.path().join(name));
    tar_of(&path, &[("a/1.png", &png(1))]);
    tar_of(&other, &[("b/2.png", &png(2))]);
    let [first, second] = [&path, &other].map(|path| fs_err::read(path).unwrap());
    let padded = [&first[..], &[0; 8192], &second].concat();
    fs_err::write(&path, &padded).unwrap();
    let set = open(&path, Split::Train);
    assert_eq!((names(&set), firsts(&set)), (vec!["a/1.png", "b/2.png"], vec![1, 2]));
    assert!(set.notes().is_empty(), "{:?}", set.notes());
    for rest in [&b"no header"[..], &[b'x'; 2000]] {
        fs_err::write(&path, [&padded[..], rest].concat()).unwrap();
        let set = open(&path, Split::Train);
        let [note] = set.notes() else { panic!("{:?}", set.notes()) };
        assert!(set.len() == 2 && note.contains("set.tar`: what follows its end mark at byte"), "{note}");
    }
    // The second tar without its end mark.
    fs_err::write(&path, &padded[..padded.len() - 1024]).unwrap();
    let error = Dataset::open(&path, Split::Train, Channels::Auto).unwrap_err().to_string();
    assert!(error.contains("no end mark"), "{error}");
}

/// The key ends at the first dot of the file name.
#[test]
fn samples_of_one_key_with_different_labels_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("set.tar");
    let images = [1, 2].map(png);
    for (ending, labels) in [("cls", ["1", "2"]), ("json", [r#"{"label": 1}"#, r#"{"label": 2}"#])] {
        let names = ["a.0", "a.1"].map(|key| format!("{key}.{ending}"));
        let write = |labels: [&str; 2]| {
            tar_of(
                &path,
                &[
                    ("a.0.png", &images[0]),
                    (&names[0], labels[0].as_bytes()),
                    ("a.1.png", &images[1]),
                    (&names[1], labels[1].as_bytes()),
                ],
            );
            Dataset::open(&path, Split::Train, Channels::Auto)
        };
        let error = write(labels).unwrap_err().to_string();
        assert!(error.contains("set.tar") && error.contains("`a` has two labels, `1` and `2`"), "{error}");
        assert_eq!(write([labels[0]; 2]).unwrap().labels(), Some(vec![0, 0]));
    }
}
