//! Each stored form of an image set, written by the test and read back: order, labels, splits, pixels.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::{
    io::{Cursor, Write},
    path::Path,
    sync::Arc,
};

use arrow_array::{Array, ArrayRef, BinaryArray, Int64Array, RecordBatch, StringArray, StructArray};
use arrow_schema::{DataType, Field, Schema};
use parquet::arrow::ArrowWriter;
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
fn class_folders_of_any_depth_in_sorted_order() {
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
    assert!(!Dataset::has_test_split(root.path()));
    let error = Dataset::open(root.path(), Split::Test, Channels::Auto).unwrap_err();
    assert!(matches!(error, DataError::Empty { .. }), "{error}");
}

#[test]
fn flat_folders_have_no_labels_and_splits_are_folders() {
    let root = tempfile::tempdir().unwrap();
    put(root.path(), "x.png", &png(4));
    let set = open(root.path(), Split::Train);
    assert_eq!((set.labels(), set.classes().len(), firsts(&set)), (None, 0, vec![4]));
    for test in ["test", "val", "validation"] {
        let root = tempfile::tempdir().unwrap();
        put(root.path(), "train/a/1.png", &png(1));
        put(root.path(), "train/b/1.png", &png(2));
        put(root.path(), &format!("{test}/b/1.png"), &png(3));
        assert!(Dataset::has_test_split(root.path()));
        assert_eq!(open(root.path(), Split::Train).labels().unwrap(), [0, 1]);
        let set = open(root.path(), Split::Test);
        assert_eq!((set.labels().unwrap(), set.classes().len(), firsts(&set)), (vec![1], 2, vec![3]));
    }
}

#[test]
fn links_are_followed_and_circles_end() {
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

fn tar_of(path: &Path, members: &[(&str, &[u8])]) {
    let mut builder = tar::Builder::new(fs_err::File::create(path).unwrap());
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *bytes).unwrap();
    }
    builder.into_inner().unwrap();
}

#[test]
fn a_tar_of_class_folders_with_splits_and_long_names() {
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
    assert!(Dataset::has_test_split(&path));
    let test = open(&path, Split::Test);
    assert_eq!((test.labels().unwrap(), firsts(&test)), (vec![1], vec![3]));
}

#[test]
fn webdataset_shards_number_their_classes_alike_in_both_splits() {
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
fn cut_shards_are_refused_at_any_place() {
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
    assert!(Dataset::has_test_split(&path), "a damaged set must be opened and reported, not passed over");
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

/// Records of `labels` and 32x32 planes of red = label, green = 1, blue = 2.
fn cifar(records: &[&[u8]]) -> Vec<u8> {
    let record = |labels: &&[u8]| {
        let planes = [labels[labels.len() - 1], 1, 2].map(|value| [value; 1024]);
        [labels.to_vec(), planes.concat()].concat()
    };
    records.iter().flat_map(record).collect()
}

#[test]
fn cifar_10_and_100_binaries() {
    let root = tempfile::tempdir().unwrap();
    put(root.path(), "data_batch_1.bin", &cifar(&[&[3], &[9]]));
    put(root.path(), "data_batch_2.bin", &cifar(&[&[0]]));
    put(root.path(), "test_batch.bin", &cifar(&[&[5]]));
    put(
        root.path(),
        "batches.meta.txt",
        "plane\ncar\nbird\ncat\ndeer\ndog\nfrog\nhorse\nship\ntruck\n\n".as_bytes(),
    );
    let set = open(root.path(), Split::Train);
    assert_eq!((set.labels().unwrap(), firsts(&set)), (vec![3, 9, 0], vec![3, 9, 0]));
    assert_eq!(
        (set.classes()[3].as_str(), &set.decode(0).unwrap().data[..6]),
        ("cat", &[3, 1, 2, 3, 1, 2][..])
    );
    assert_eq!(open(root.path(), Split::Test).labels().unwrap(), [5]);
    let hundred = tempfile::tempdir().unwrap();
    put(hundred.path(), "train.bin", &cifar(&[&[7, 42]]));
    let set = open(hundred.path(), Split::Train);
    assert_eq!((set.labels().unwrap(), set.classes().len()), (vec![42], 100));
    assert!(!Dataset::has_test_split(hundred.path()));
    for wrong in [cifar(&[&[1]])[1..].to_vec(), cifar(&[&[11]])] {
        put(root.path(), "data_batch_2.bin", &wrong);
        let error = Dataset::open(root.path(), Split::Train, Channels::Auto).unwrap_err();
        assert!(matches!(error, DataError::Format { .. }), "{error}");
    }
}

fn idx(shape: &[u32], bytes: &[u8]) -> Vec<u8> {
    let sizes = shape.iter().flat_map(|size| size.to_be_bytes());
    [0, 0, 8, shape.len() as u8].into_iter().chain(sizes).chain(bytes.iter().copied()).collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn idx_plain_and_gzipped_with_and_without_labels() {
    let root = tempfile::tempdir().unwrap();
    let pixels: Vec<u8> = (0..12).collect();
    put(root.path(), "train-images-idx3-ubyte.gz", &gzip(&idx(&[2, 2, 3], &pixels)));
    put(root.path(), "train-labels-idx1-ubyte.gz", &gzip(&idx(&[2], &[1, 0])));
    put(root.path(), "t10k-images-idx3-ubyte", &idx(&[1, 2, 3], &pixels[6..]));
    let set = open(root.path(), Split::Train);
    assert_eq!((set.channels(), set.labels().unwrap(), firsts(&set)), (1, vec![1, 0], vec![0, 6]));
    let image = set.decode(1).unwrap();
    assert_eq!((image.width, image.height, &image.data[..]), (3, 2, &pixels[6..]));
    let test = open(root.path(), Split::Test);
    assert_eq!((test.labels(), firsts(&test)), (None, vec![6]));
    let rgb = Dataset::open(root.path(), Split::Test, Channels::Count(3)).unwrap();
    assert_eq!(rgb.decode(0).unwrap().data[..6], [6, 6, 6, 7, 7, 7]);
}

#[test]
fn idx_that_contradicts_itself_is_refused() {
    let images = [
        idx(&[2, 2, 3], &[0; 11]),
        idx(&[2, 2, 3], &[0; 13]),
        idx(&[0, 2, 3], &[]),
        idx(&[u32::MAX; 3], &[0; 9]),
        vec![0, 0, 8],
        vec![0, 0, 13, 1, 0, 0, 0, 0],
        gzip(&idx(&[1 << 20, 1 << 20, 1], &[0; 1 << 16])),
        gzip(&idx(&[2, 2, 3], &[0; 12]))[..30].to_vec(),
    ];
    for (case, bytes) in images.iter().enumerate() {
        let root = tempfile::tempdir().unwrap();
        put(root.path(), "train-images-idx3-ubyte", bytes);
        let error = Dataset::open(root.path(), Split::Train, Channels::Auto).unwrap_err();
        assert!(matches!(error, DataError::Format { .. }), "{case}: {error}");
    }
    let root = tempfile::tempdir().unwrap();
    put(root.path(), "train-images-idx3-ubyte", &idx(&[2, 1, 1], &[0; 2]));
    put(root.path(), "train-labels-idx1-ubyte", &idx(&[3], &[0; 3]));
    let error = Dataset::open(root.path(), Split::Train, Channels::Auto).unwrap_err().to_string();
    assert!(error.contains("expected 2 labels"), "{error}");
}

/// Columns, names and metadata as the Hugging Face `datasets` library writes them.
fn hub_parquet(path: &Path, rows: &[(u8, i64)], names: &[&str]) {
    let images: ArrayRef = Arc::new(BinaryArray::from_iter_values(rows.iter().map(|row| png(row.0))));
    let paths: ArrayRef =
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| format!("{}.png", row.0))));
    let fields = vec![
        (Arc::new(Field::new("bytes", DataType::Binary, true)), images),
        (Arc::new(Field::new("path", DataType::Utf8, true)), paths),
    ];
    let image = StructArray::from(fields);
    let labels = Int64Array::from_iter_values(rows.iter().map(|row| row.1));
    let schema = Schema::new(vec![
        Field::new("image", image.data_type().clone(), true),
        Field::new("label", DataType::Int64, true),
    ]);
    let metadata =
        serde_json::json!({"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}});
    let schema = Arc::new(schema.with_metadata([("huggingface".to_owned(), metadata.to_string())]));
    let batch = RecordBatch::try_new(schema.clone(), vec![Arc::new(image), Arc::new(labels)]).unwrap();
    fs_err::create_dir_all(path.parent().unwrap()).unwrap();
    let mut writer =
        ArrowWriter::try_new(fs_err::File::create(path).unwrap().into_file(), schema, None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

#[test]
fn parquet_as_the_hub_writes_it() {
    let root = tempfile::tempdir().unwrap();
    let classes = ["ant", "bee", "cow"];
    hub_parquet(&root.path().join("data/train-00000-of-00002.parquet"), &[(10, 2), (20, 0)], &classes);
    hub_parquet(&root.path().join("data/train-00001-of-00002.parquet"), &[(30, -1)], &classes);
    hub_parquet(&root.path().join("data/validation-00000-of-00001.parquet"), &[(40, 1)], &classes);
    let set = open(root.path(), Split::Train);
    assert_eq!((set.classes(), firsts(&set)), (&classes.map(str::to_owned)[..], vec![10, 20, 30]));
    let labels: Vec<_> = set.samples().iter().map(|sample| sample.label).collect();
    assert_eq!(labels, [Some(2), Some(0), None]);
    assert!(Dataset::has_test_split(root.path()));
    let test = open(root.path(), Split::Test);
    assert_eq!((test.labels().unwrap(), firsts(&test)), (vec![1], vec![40]));
}

#[test]
fn parquet_that_is_damaged_or_of_another_kind_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("x.parquet");
    hub_parquet(&path, &[(1, 0), (2, 5)], &["only"]);
    let error = Dataset::open(&path, Split::Train, Channels::Auto).unwrap_err().to_string();
    assert!(error.contains("label 5, expected below 1"), "{error}");
    hub_parquet(&path, &[(1, 1 << 40)], &[]);
    let error = Dataset::open(&path, Split::Train, Channels::Auto).unwrap_err().to_string();
    assert!(error.contains("expected below"), "{error}");
    let whole = fs_err::read(&path).unwrap();
    for bytes in [&whole[..whole.len() / 2], b"PAR1", b""] {
        fs_err::write(&path, bytes).unwrap();
        let error = Dataset::open(&path, Split::Train, Channels::Auto).unwrap_err();
        assert!(matches!(error, DataError::Format { .. }), "{error}");
    }
}

#[test]
fn order_and_fingerprint_do_not_depend_on_where_or_when_a_set_was_written() {
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
fn the_fingerprint_knows_labels_and_sizes() {
    let root = tempfile::tempdir().unwrap();
    let print = |label: u8, width: u32| {
        put(root.path(), "train-images-idx3-ubyte", &idx(&[1, 1, width], &vec![0; width as usize]));
        put(root.path(), "train-labels-idx1-ubyte", &idx(&[1], &[label]));
        open(root.path(), Split::Train).fingerprint()
    };
    let prints = [print(0, 4), print(1, 4), print(0, 5)];
    assert!(prints[0] != prints[1] && prints[0] != prints[2] && prints[0] == print(0, 4), "{prints:?}");
}

#[test]
fn nothing_to_read_is_said_so() {
    let root = tempfile::tempdir().unwrap();
    put(root.path(), "notes.txt", b"text");
    for path in [root.path().to_owned(), root.path().join("gone"), root.path().join("notes.txt")] {
        let error = Dataset::open(&path, Split::Train, Channels::Auto).unwrap_err();
        assert!(matches!(error, DataError::Empty { .. }) && error.hint().is_some(), "{error}");
        assert!(!Dataset::has_test_split(&path));
    }
    put(root.path(), "x.png", &png(1));
    let error = Dataset::open(root.path(), Split::Train, Channels::Count(0)).unwrap_err();
    assert!(matches!(error, DataError::Config { key: "channels", .. }), "{error}");
}
