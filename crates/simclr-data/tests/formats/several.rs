//! One data path for several sources.

use std::{io::Write, path::Path};

use flate2::{Compression, write::GzEncoder};
use simclr_data::{
    Dataset, Split,
    dataset::{Channels, as_one_path},
};

use super::{firsts, names, open, png, put, tar::tar_of};

/// A folder with parts and a flat one.
fn two_sets(root: &Path) -> [std::path::PathBuf; 2] {
    put(root, "one/train/cat/1.png", &png(1));
    put(root, "one/test/cat/2.png", &png(2));
    put(root, "two/dog/3.png", &png(3));
    put(root, "two/cat/4.png", &png(4));
    ["one", "two"].map(|name| root.join(name))
}

#[test]
fn sets_are_concatenated_and_classes_merged_by_name() {
    let root = tempfile::tempdir().unwrap();
    let path = as_one_path(&two_sets(root.path())).unwrap();
    let set = open(&path, Split::Train);
    assert_eq!(names(&set), ["one/train/cat/1.png", "two/cat/4.png", "two/dog/3.png"]);
    assert_eq!(
        (set.classes(), set.labels().unwrap()),
        (&["cat".to_owned(), "dog".to_owned()][..], vec![0, 0, 1])
    );
    let values: Vec<u8> = (0..3).map(|index| set.decode(index).unwrap().data[0]).collect();
    assert_eq!(values, [1, 4, 3]);
    assert_eq!(names(&open(&path, Split::Test)), ["one/test/cat/2.png"]);
    assert_eq!(Dataset::splits(&path), [Split::Train, Split::Test]);
}

#[test]
fn lists_of_sets_or_images() {
    let root = tempfile::tempdir().unwrap();
    two_sets(root.path());
    let list = root.path().join("sets.txt");
    fs_err::write(&list, "# two sets\none\n\ntwo\n").unwrap();
    assert_eq!(open(&list, Split::Train).len(), 3);
    fs_err::write(&list, "one/train/cat/1.png\ntwo/dog/3.png\n").unwrap();
    assert_eq!(names(&open(&list, Split::Train)), ["one/train/cat/1.png", "two/dog/3.png"]);
    for (text, expected) in
        [("", "names no path"), ("sets.txt\none\n", "which is not supported"), ("none\n", "no such")]
    {
        fs_err::write(&list, text).unwrap();
        let error = Dataset::open(&list, Split::Train, Channels::Auto).unwrap_err().to_string();
        assert!(error.contains(expected), "{text:?}: {error}");
    }
}

/// In hidden folders, from the folder of the list, and from the root.
#[test]
fn every_listed_image_is_read() {
    let root = tempfile::tempdir().unwrap();
    for (name, value) in
        [("set/a/1.png", 1), ("set/.b/2.png", 2), ("x/3.png", 3), ("x/.4.png", 4), ("x/5.png", 5)]
    {
        put(root.path(), name, &png(value));
    }
    let list = root.path().join("set/list.txt");
    let absolute = root.path().join("set/../x/5.png");
    let lines = format!("./a/1.png\n.b/2.png\n../x/3.png\n../x/.4.png\n{}\n", absolute.display());
    fs_err::write(&list, lines).unwrap();
    let expected = ["set/.b/2.png", "set/a/1.png", "x/.4.png", "x/3.png", "x/5.png"];
    let set = open(&list, Split::Train);
    assert_eq!((names(&set), firsts(&set)), (expected.to_vec(), vec![2, 1, 4, 3, 5]));
    assert_eq!((set.classes().len(), set.labels().unwrap()), (2, vec![0, 0, 1, 1, 1]));
    let pattern = root.path().join("{set/.b/2,set/./a/1,set/../x/{.4,3,5}}.png");
    let same = open(&pattern, Split::Train);
    assert_eq!((same.samples(), same.fingerprint()), (set.samples(), set.fingerprint()));
}

#[test]
fn several_paths_must_be_utf_8() {
    use std::os::unix::ffi::OsStrExt;
    let root = tempfile::tempdir().unwrap();
    let odd = root.path().join(std::ffi::OsStr::from_bytes(b"\xff"));
    fs_err::create_dir(&odd).unwrap();
    assert_eq!(as_one_path(std::slice::from_ref(&odd)).unwrap(), odd);
    let error = as_one_path(&[root.path().to_owned(), odd]).unwrap_err().to_string();
    assert!(error.contains("UTF-8"), "{error}");
}

#[test]
fn brace_patterns_of_shards_are_one_set_also_compressed() {
    let root = tempfile::tempdir().unwrap();
    for shard in 0..3u8 {
        let path = root.path().join(format!("s-{shard:03}.tar"));
        tar_of(&path, &[(&format!("{shard}.png"), &png(shard)), (&format!("{shard}.cls"), b"7")]);
        let mut gz = GzEncoder::new(Vec::new(), Compression::fast());
        gz.write_all(&fs_err::read(&path).unwrap()).unwrap();
        put(root.path(), &format!("z-{shard:03}.tar.gz"), &gz.finish().unwrap());
    }
    for (pattern, first) in [("s-{001..002}.tar", "s-001:1.png"), ("z-{001..002}.tar.gz", "z-001.tar:1.png")]
    {
        let set = open(&root.path().join(pattern), Split::Train);
        assert_eq!((set.len(), names(&set)[0]), (2, first));
        assert_eq!(set.decode(1).unwrap().data[0], 2);
        assert_eq!(set.classes(), ["7"]);
    }
    let alone = open(&root.path().join("z-000.tar.gz"), Split::Train);
    assert_eq!(alone.decode(0).unwrap().data[0], 0);
    put(root.path(), "bad.tar.gz", b"no archive");
    let error = Dataset::open(&root.path().join("bad.tar.gz"), Split::Train, Channels::Auto).unwrap_err();
    assert!(error.to_string().contains("cannot be unpacked"), "{error}");
}
