//! Data sets: missing, empty, truncated, contradictory.

use fs_err as fs;
use std::path::Path;

use super::{
    Place, png,
    support::{execute, pretrain, simclr},
};

#[test]
fn missing_and_empty_folders() {
    let place = Place::new();
    execute(&mut pretrain(&place.path("gone"), &place.path("run"), &[])).refuses(&["gone", "no such file"]);
    fs::create_dir(place.path("void")).unwrap();
    let output = execute(&mut pretrain(&place.path("void"), &place.path("run"), &[]));
    output.refuses(&["void", "no images found"]);
    output.hints("folder of images");
    assert!(!place.path("run").exists(), "a run that could not start leaves no folder");
}

/// A run records its paths as texts. Other commands read and write such paths.
#[cfg(unix)]
#[test]
fn paths_that_are_not_utf_8() {
    use std::os::unix::ffi::OsStrExt;
    let place = Place::new();
    let (data, run) = (place.images(), place.path("run"));
    let odd = place.temp.path().join(std::ffi::OsStr::from_bytes(b"odd-\xff"));
    execute(&mut pretrain(&data, &odd, &[])).refuses(&["odd-", "expected a path in UTF-8"]);
    assert!(!odd.exists(), "nothing is left behind");
    fs::rename(&data, &odd).unwrap();
    let link = place.path("link");
    std::os::unix::fs::symlink(&odd, &link).unwrap();
    for data in [&odd, &link] {
        let refused = execute(&mut pretrain(data, &run, &[]));
        refused.refuses(&["odd-", "expected a path in UTF-8"]);
        refused.hints("rename");
        assert!(!run.exists(), "nothing is left behind");
    }
    let mut packed = odd.clone().into_os_string();
    packed.push(".pack");
    let output = execute(simclr(&["pack", "--json", "--data"]).arg(&odd).arg("--out").arg(&packed));
    output.succeeds();
    assert!(output.out.contains("odd-\u{fffd}.pack"), "{}", output.out);
}

#[test]
fn batches_larger_than_the_set() {
    let place = Place::new();
    let output = execute(&mut pretrain(&place.images(), &place.path("run"), &["--batch", "41"]));
    output.refuses(&["train.batch = 41", "40 images"]);
}

#[test]
fn truncated_tars() {
    let place = Place::new();
    let mut tar = tar_of(&[("a/1.png", &png()), ("a/2.png", &[7; 5000])]);
    tar.truncate(3000);
    fs::write(place.path("set.tar"), tar).unwrap();
    execute(&mut pretrain(&place.path("set.tar"), &place.path("run"), &[]))
        .refuses(&["set.tar", "damaged tar"]);
}

pub fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = Vec::new();
    for (name, bytes) in files {
        let mut header = [0u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..108].copy_from_slice(b"0000644\0");
        header[124..136].copy_from_slice(format!("{:011o}\0", bytes.len()).as_bytes());
        header[148..156].fill(b' ');
        header[156] = b'0';
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        tar.extend(header);
        tar.extend(*bytes);
        tar.resize(tar.len().next_multiple_of(512), 0);
    }
    tar.extend([0; 1024]);
    tar
}

#[test]
fn idx_headers_with_a_wrong_length() {
    let place = Place::new();
    fs::create_dir(place.path("set")).unwrap();
    let mut idx = vec![0, 0, 8, 3];
    [1000u32, 28, 28].iter().for_each(|size| idx.extend(size.to_be_bytes()));
    idx.extend([0; 784]);
    fs::write(place.path("set/train-images-idx3-ubyte"), idx).unwrap();
    execute(&mut pretrain(&place.path("set"), &place.path("run"), &[]))
        .refuses(&["declares [1000, 28, 28]", "holds 784"]);
}

#[test]
fn files_that_are_not_parquet() {
    let place = Place::new();
    fs::write(place.path("x.parquet"), b"PAR1 and then nothing").unwrap();
    execute(&mut pretrain(&place.path("x.parquet"), &place.path("run"), &[]))
        .refuses(&["x.parquet", "not a parquet file"]);
}

#[test]
fn truncated_and_foreign_packed_sets() {
    let place = Place::new();
    let (data, file) = (place.images(), place.path("images.pack"));
    let packed = |out: &Path| execute(simclr(&["pack", "--data"]).arg(&data).arg("--out").arg(out));
    packed(&file).succeeds();
    let whole = fs::read(&file).unwrap();
    for (bytes, reason) in [
        (&whole[..whole.len() / 2], "cut short"),
        (b"simclrpk", "cut short"),
        (b"simclrpk\x07 from the future, with some bytes more", "version"),
        (b"PK\x03\x04 a zip file", "no images found"),
    ] {
        fs::write(place.path("wrong.pack"), bytes).unwrap();
        let run = place.path("run");
        execute(&mut pretrain(&place.path("wrong.pack"), &run, &[])).refuses(&["wrong.pack", reason]);
        assert!(!run.exists(), "nothing is left behind");
    }
    let itself = execute(simclr(&["pack", "--data"]).arg(&file).arg("--out").arg(&file));
    itself.refuses(&["images.pack", "the data set itself"]);
    packed(&place.path("no/folder.pack")).refuses(&["cannot write", "folder.pack"]);
    execute(simclr(&["pack", "--data", "gone", "--out"]).arg(&file)).refuses(&["gone"]);
    assert_eq!(fs::read(&file).unwrap(), whole);
}
