//! CIFAR binary and IDX, whole and contradictory.

use std::io::Write;

use simclr_data::{DataError, Dataset, Split, dataset::Channels};

use super::{firsts, open, put};

/// Records of `labels` and 32x32 planes of red = label, green = 1, blue = 2.
pub fn cifar(records: &[&[u8]]) -> Vec<u8> {
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
    assert!(!Dataset::has_split(hundred.path(), Split::Test));
    for wrong in [cifar(&[&[1]])[1..].to_vec(), cifar(&[&[11]])] {
        put(root.path(), "data_batch_2.bin", &wrong);
        let error = Dataset::open(root.path(), Split::Train, Channels::Auto).unwrap_err();
        assert!(matches!(error, DataError::Format { .. }), "{error}");
    }
}

pub fn idx(shape: &[u32], bytes: &[u8]) -> Vec<u8> {
    let sizes = shape.iter().flat_map(|size| size.to_be_bytes());
    [0, 0, 8, shape.len() as u8].into_iter().chain(sizes).chain(bytes.iter().copied()).collect()
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
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
fn a_single_idx_file_is_the_training_part_only() {
    let root = tempfile::tempdir().unwrap();
    put(root.path(), "t10k-images-idx3-ubyte", &idx(&[2, 1, 2], &[1, 2, 3, 4]));
    put(root.path(), "t10k-labels-idx1-ubyte", &idx(&[2], &[0, 3]));
    let set = open(root.path(), Split::Train);
    assert_eq!((firsts(&set), set.labels().unwrap(), set.classes().len()), (vec![1, 3], vec![0, 3], 4));
    assert_eq!(Dataset::splits(root.path()), [Split::Train]);
    let error = Dataset::open(root.path(), Split::Test, Channels::Auto).unwrap_err();
    assert!(matches!(error, DataError::Empty { .. }), "{error}");
}

#[test]
fn contradictory_idx_files_are_refused() {
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
