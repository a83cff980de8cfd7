//! What a fuzz target does with one input: `cargo fuzz` feeds it inputs chosen by coverage, tests/fuzz.rs deterministic mutations. A
//! target panics if a reader is wrong; errors are fine.

use std::{cell::OnceCell, path::Path};

use simclr_data::{
    Dataset, Image, Split,
    dataset::Channels,
    decode::{Decoding, Jpeg, decode},
};

/// An image file, decoded as colour and as grey, by both JPEG decoders, the first also into memory with another content.
pub fn image(bytes: &[u8]) {
    for (channels, jpeg, contents) in [(3, Jpeg::Zune, &[0x55, 0xaa][..]), (1, Jpeg::Libjpeg, &[])] {
        let decoded = || decode("fuzz", bytes, Decoding { jpeg, ..channels.into() });
        let Ok(image) = decoded() else { continue };
        assert_eq!(image.data.len(), image.width * image.height * channels);
        for &content in contents {
            let len = image.data.len();
            Image::new(len, 1, 1, vec![content; len]).recycle();
            assert!(decoded().is_ok_and(|again| again == image), "memory of {content}");
        }
    }
}

/// A data set in one file, named as its format is recognised.
fn single_file(name: &str, bytes: &[u8]) {
    in_folder(|folder| {
        let path = folder.join(name);
        fs_err::write(&path, bytes).expect("a temporary file is written");
        for split in [Split::Train, Split::Test] {
            read(&path, split);
        }
    });
}

/// Reads all labels and the first images.
fn read(path: &Path, split: Split) {
    let Ok(set) = Dataset::open(path, split, Channels::Auto) else { return };
    let _ = (set.labels(), set.fingerprint());
    (0..set.len().min(4)).for_each(|index| drop(set.decode(index)));
}

pub fn tar(bytes: &[u8]) {
    single_file("train-000.tar", bytes);
}

pub fn parquet(bytes: &[u8]) {
    single_file("train-000.parquet", bytes);
}

pub fn packed(bytes: &[u8]) {
    single_file("set.pack", bytes);
}

/// The images of an IDX set; its labels are six zeros.
pub fn idx(bytes: &[u8]) {
    in_folder(|folder| {
        fs_err::write(folder.join("train-labels-idx1-ubyte"), [0, 0, 8, 1, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0])
            .expect("a temporary file is written");
        fs_err::write(folder.join("train-images-idx3-ubyte"), bytes).expect("a temporary file is written");
        read(folder, Split::Train);
    });
}

/// A table of labels next to two images: the first byte chooses its kind.
pub fn labels(bytes: &[u8]) {
    let Some((&kind, table)) = bytes.split_first() else { return };
    let name = ["labels.csv", "metadata.csv", "metadata.jsonl", "metadata.parquet"][usize::from(kind % 4)];
    in_folder(|folder| {
        // A PGM of one pixel.
        for image in ["1.pgm", "2.pgm"] {
            fs_err::write(folder.join(image), b"P5 1 1 255 \0").expect("a temporary file is written");
        }
        fs_err::write(folder.join(name), table).expect("a temporary file is written");
        read(folder, Split::Train);
        fs_err::remove_file(folder.join(name)).expect("a temporary file is removed");
    });
}

/// A folder for the files of the calling thread.
fn in_folder(work: impl FnOnce(&Path)) {
    thread_local! {
        static FOLDER: OnceCell<tempfile::TempDir> = const { OnceCell::new() };
    }
    FOLDER
        .with(|folder| work(folder.get_or_init(|| tempfile::tempdir().expect("a temporary folder")).path()));
}
