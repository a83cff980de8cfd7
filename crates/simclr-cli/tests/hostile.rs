//! Inputs that are wrong, broken or meant to harm: each gives one clear message, exit code 2, and loses nothing.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use fs_err as fs;
use std::{path::Path, path::PathBuf};

use support::{image_folder, pretrain, said, simclr, stripes};

struct Place {
    temp: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { temp: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    /// 40 good images.
    fn images(&self) -> PathBuf {
        image_folder(&self.path("images"), 40)
    }

    /// 40 good images and one more file; the run must name it, skip it and succeed.
    #[track_caller]
    fn is_skipped(&self, name: &str, bytes: &[u8], reason: &str) {
        let data = self.images();
        let file = data.join("class-0").join(name);
        fs::write(&file, bytes).unwrap();
        let run = pretrain(
            &data,
            &self.path("run"),
            &["--set", "data.max_bad_share=0.1", "--batch", "41", "--epochs", "1"],
        );
        let mut run = run;
        let said = said(&mut run);
        said.succeeds();
        let skipped: Vec<_> = said.err.lines().filter(|line| line.starts_with("skipped: ")).collect();
        assert_eq!(skipped.len(), 1, "{}", said.err);
        assert!(skipped[0].contains(name) && skipped[0].contains(reason), "{}", skipped[0]);
        let list = fs::read_to_string(self.path("run/bad_files.txt")).unwrap();
        assert!(list.starts_with(&format!("class-0/{name}\t")), "{list}");
        assert_eq!(fs::read(&file).unwrap(), bytes, "the file itself is untouched");
    }
}

fn jpeg() -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    stripes(1, 1).write_to(&mut bytes, image::ImageFormat::Jpeg).unwrap();
    bytes.into_inner()
}

fn png() -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    stripes(1, 1).write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

// Images.

#[test]
fn empty_file() {
    Place::new().is_skipped("empty.jpg", b"", "the file is empty");
}

#[test]
fn text_that_calls_itself_an_image() {
    Place::new().is_skipped(
        "notes.png",
        b"these are notes, not pixels",
        "not a JPEG, PNG, WebP, BMP, TIFF, GIF, PPM or PGM image",
    );
}

#[test]
fn truncated_jpeg() {
    let whole = jpeg();
    Place::new().is_skipped("cut.jpg", &whole[..whole.len() * 2 / 3], "cut short");
}

#[test]
fn truncated_png() {
    let whole = png();
    Place::new().is_skipped("cut.png", &whole[..whole.len() * 2 / 3], "cut.png");
}

/// A PNG header that promises 60,000 x 60,000 pixels: refused before anything is allocated.
#[test]
fn decompression_bomb() {
    let mut bomb = png();
    bomb[16..20].copy_from_slice(&60_000u32.to_be_bytes());
    bomb[20..24].copy_from_slice(&60_000u32.to_be_bytes());
    let crc = crc32(&bomb[12..29]);
    bomb[29..33].copy_from_slice(&crc.to_be_bytes());
    Place::new().is_skipped("bomb.png", &bomb, "60000x60000");
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(
            crc ^ u32::from(byte),
            |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 },
        )
    })
}

/// 16-bit CMYK, uncompressed: a quarter of each ink is (1 - 1/4)^2 of white.
#[test]
fn sixteen_bit_cmyk_tiff() {
    let entry = |tag: u16, kind: u16, count: u32, value: u32| {
        [&tag.to_le_bytes()[..], &kind.to_le_bytes(), &count.to_le_bytes(), &value.to_le_bytes()].concat()
    };
    let mut tiff = b"II*\0\x08\0\0\0".to_vec();
    let entries = [
        entry(256, 3, 1, 2),
        entry(257, 3, 1, 2),
        entry(258, 3, 4, 122),
        entry(259, 3, 1, 1),
        entry(262, 3, 1, 5),
        entry(273, 4, 1, 130),
        entry(277, 3, 1, 4),
        entry(278, 3, 1, 2),
        entry(279, 4, 1, 32),
    ];
    tiff.extend((entries.len() as u16).to_le_bytes());
    tiff.extend(entries.concat());
    tiff.extend([0; 4]);
    assert_eq!(tiff.len(), 122);
    tiff.extend([16u16; 4].iter().flat_map(|bits| bits.to_le_bytes()));
    tiff.extend([0x40; 32]);
    let read = simclr::data::decode::decode("print.tif", &tiff, 3).unwrap();
    assert_eq!((read.width, read.height), (2, 2));
    let expected = 255.0 * 0.75 * 0.75;
    assert!(read.data.iter().all(|&value| (f64::from(value) - expected).abs() < 2.0), "{:?}", read.data);
}

#[test]
fn one_pixel_images_and_wrong_extensions_are_read() {
    let place = Place::new();
    let data = place.images();
    image::RgbImage::from_pixel(1, 1, image::Rgb([9, 9, 9])).save(data.join("class-0/dot.png")).unwrap();
    fs::write(data.join("class-0/really-a-png.jpg"), png()).unwrap();
    let said = said(&mut simclr(&["inspect", "--data", data.to_str().unwrap()]));
    said.succeeds();
    assert!(said.out.contains("42 images"), "{}", said.out);
}

#[test]
fn more_bad_images_than_allowed() {
    let place = Place::new();
    let data = place.images();
    for index in 0..10 {
        fs::write(data.join(format!("class-1/bad-{index}.jpg")), b"no").unwrap();
    }
    let output = said(&mut pretrain(&data, &place.path("run"), &["--batch", "50"]));
    output.refuses(&["10 of 50 images could not be decoded", "more than the 5 ", "0.01"]);
    output.hints("bad_files.txt");
}

#[test]
fn all_images_bad() {
    let place = Place::new();
    let data = place.path("images");
    fs::create_dir(&data).unwrap();
    (0..20).for_each(|index| fs::write(data.join(format!("{index}.jpg")), b"no").unwrap());
    said(&mut pretrain(&data, &place.path("run"), &[])).refuses(&["fewer than two images"]);
}

#[cfg(unix)]
#[test]
fn a_name_that_is_not_utf8_and_a_link_to_nowhere() {
    use std::os::unix::ffi::OsStrExt;
    let place = Place::new();
    let data = place.images();
    let name = std::ffi::OsStr::from_bytes(b"caf\xe9.png");
    fs::write(data.join("class-0").join(name), png()).unwrap();
    std::os::unix::fs::symlink("nowhere.png", data.join("class-0/link.png")).unwrap();
    let said = said(&mut simclr(&["inspect", "--data", data.to_str().unwrap()]));
    said.refuses(&["1 images cannot be decoded"]);
    assert!(
        said.out.contains("42 images") && said.out.contains("link.png") && said.out.contains("nowhere"),
        "{}",
        said.out
    );
}

// Data sets.

#[test]
fn no_such_folder_and_no_images() {
    let place = Place::new();
    said(&mut pretrain(&place.path("gone"), &place.path("run"), &[])).refuses(&["gone", "no such file"]);
    fs::create_dir(place.path("void")).unwrap();
    let said = said(&mut pretrain(&place.path("void"), &place.path("run"), &[]));
    said.refuses(&["void", "no images found"]);
    said.hints("folder of images");
    assert!(!place.path("run").exists(), "a run that could not start leaves no folder");
}

#[test]
fn batch_larger_than_the_set() {
    let place = Place::new();
    let said = said(&mut pretrain(&place.images(), &place.path("run"), &["--batch", "41"]));
    said.refuses(&["train.batch = 41", "40 images"]);
}

#[test]
fn tar_cut_in_the_middle() {
    let place = Place::new();
    let mut tar = tar_of(&[("a/1.png", &png()), ("a/2.png", &[7; 5000])]);
    tar.truncate(3000);
    fs::write(place.path("set.tar"), tar).unwrap();
    said(&mut pretrain(&place.path("set.tar"), &place.path("run"), &[])).refuses(&["set.tar", "damaged tar"]);
}

fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
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
fn idx_header_that_lies_about_the_length() {
    let place = Place::new();
    fs::create_dir(place.path("set")).unwrap();
    let mut idx = vec![0, 0, 8, 3];
    [1000u32, 28, 28].iter().for_each(|size| idx.extend(size.to_be_bytes()));
    idx.extend([0; 784]);
    fs::write(place.path("set/train-images-idx3-ubyte"), idx).unwrap();
    said(&mut pretrain(&place.path("set"), &place.path("run"), &[]))
        .refuses(&["promises [1000, 28, 28]", "holds 784"]);
}

#[test]
fn parquet_that_is_none() {
    let place = Place::new();
    fs::write(place.path("x.parquet"), b"PAR1 and then nothing").unwrap();
    said(&mut pretrain(&place.path("x.parquet"), &place.path("run"), &[]))
        .refuses(&["x.parquet", "not a parquet file"]);
}

// Configuration.

#[test]
fn unknown_key_wrong_type_bad_toml_and_values_out_of_range() {
    let place = Place::new();
    let data = place.images();
    let with = |text: &str| {
        fs::write(place.path("c.toml"), text).unwrap();
        let file = place.path("c.toml");
        said(
            simclr(&["pretrain", "--data"])
                .arg(&data)
                .arg("--config")
                .arg(&file)
                .arg("--run")
                .arg(place.path("run")),
        )
    };
    let unknown = with("[loss]\ntemprature = 0.5\n");
    unknown.refuses(&["c.toml", "unknown key `loss.temprature`"]);
    unknown.hints("`loss.temperature`");
    with("[train]\nbatch = \"many\"\n").refuses(&["c.toml", "line 2", "string"]);
    with("[train\n").refuses(&["c.toml", "line 1"]);
    with("[loss]\ntemperature = 0\n").refuses(&["loss.temperature = 0", "above 0"]);
    with("[augment]\ncrop_scale = [0.9, 0.1]\n").refuses(&["augment.crop_scale", "[0.9, 0.1]"]);
    said(&mut pretrain(&data, &place.path("run"), &["--set", "temperature"])).refuses(&["section.key=value"]);
    said(&mut pretrain(&data, &place.path("run"), &["--encoder", "resnet19"]))
        .refuses(&["resnet19", "resnet18"]);
    said(&mut pretrain(&data, &place.path("run"), &["--config", "gone.toml"])).refuses(&["gone.toml"]);
    assert!(!place.path("run").exists());
}

#[test]
fn encoder_file_that_is_no_torchscript() {
    let place = Place::new();
    fs::write(place.path("m.pt"), b"not a module").unwrap();
    let file = place.path("m.pt");
    let more = ["--encoder-file", file.to_str().unwrap()];
    let said = said(&mut pretrain(&place.images(), &place.path("run"), &more));
    said.refuses(&["m.pt", "TorchScript"]);
    said.hints("torch.jit.save");
}

// Runs and checkpoints.

fn checkpoints(run: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> =
        fs::read_dir(run.join("checkpoints")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn a_folder_with_another_run_is_not_overwritten() {
    let place = Place::new();
    let (data, run) = (place.images(), place.path("run"));
    said(&mut pretrain(&data, &run, &[])).succeeds();
    let before = fs::read(&checkpoints(&run)[0]).unwrap();
    let again = said(&mut pretrain(&data, &run, &[]));
    again.refuses(&["run folder", "holds a run already"]);
    again.hints("--resume");
    assert_eq!(fs::read(&checkpoints(&run)[0]).unwrap(), before);
}

#[test]
fn cut_garbage_and_foreign_checkpoints() {
    let place = Place::new();
    let (data, run) = (place.images(), place.path("run"));
    said(&mut pretrain(&data, &run, &[])).succeeds();
    let resume = |more: &[&str]| said(simclr(&["pretrain", "--resume", "--run"]).arg(&run).args(more));
    let foreign = resume(&["--set", "head.out=32"]);
    foreign.refuses(&["head.out was 16, is 32"]);
    foreign.hints("configuration of the run folder");
    let file = checkpoints(&run)[0].clone();
    let whole = fs::read(&file).unwrap();
    let mut flipped = whole.clone();
    let last = flipped.len() - 1;
    flipped[last] ^= 1;
    for (bytes, reason) in
        [(&whole[..whole.len() / 2], "not a whole"), (b"garbage", "not a whole"), (&flipped, "checksum")]
    {
        fs::write(&file, bytes).unwrap();
        resume(&[]).refuses(&["step-", reason]);
        said(simclr(&["evaluate"]).arg(&run)).refuses(&["step-", reason]);
        assert_eq!(fs::read(&file).unwrap(), bytes, "even a damaged checkpoint is kept");
    }
    fs::write(&file, &whole).unwrap();
    resume(&[]).succeeds();
}

#[test]
fn no_run_no_labels_no_checkpoint_and_an_unknown_table() {
    let place = Place::new();
    let data = place.images();
    said(simclr(&["evaluate"]).arg(&data)).refuses(&["no run folder"]);
    said(simclr(&["export"]).arg(place.path("gone"))).refuses(&["gone", "no such folder"]);
    let run = place.path("run");
    said(&mut pretrain(&data, &run, &[])).succeeds();
    said(simclr(&["embed"]).arg(&run).arg("--data").arg(&data).arg("--out").arg(place.path("h.csv")))
        .refuses(&[".parquet or .npy"]);
    let flat = place.path("flat");
    fs::create_dir(&flat).unwrap();
    (0..20).for_each(|index| stripes(index, 0).save(flat.join(format!("{index}.png"))).unwrap());
    let unlabelled = said(simclr(&["evaluate"]).arg(&run).arg("--data").arg(&flat));
    unlabelled.refuses(&["label"]);
    unlabelled.hints("class folders");
    checkpoints(&run).iter().for_each(|file| fs::remove_file(file).unwrap());
    said(simclr(&["evaluate"]).arg(&run)).refuses(&["no checkpoint in"]);
}

/// Folders and files that the user may not touch. Root may touch everything, so as root the binary runs as nobody.
#[cfg(unix)]
#[test]
fn unreadable_images_and_an_unwritable_run_folder() {
    use std::os::unix::{fs::PermissionsExt, process::CommandExt};
    let place = Place::new();
    let data = place.images();
    let mode =
        |path: &Path, mode: u32| fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    mode(place.temp.path(), 0o755);
    let locked = place.path("locked");
    fs::create_dir(&locked).unwrap();
    mode(&locked, 0o555);
    let nobody = |command: &mut std::process::Command| {
        if fs::metadata("/proc/self").unwrap().permissions().mode() != 0 && is_root() {
            // The binary itself may lie below a folder that only root can enter.
            let copy = place.path("simclr");
            if !copy.exists() {
                fs::copy(env!("CARGO_BIN_EXE_simclr"), &copy).unwrap();
            }
            let mut as_nobody = std::process::Command::new(&copy);
            as_nobody.args(command.get_args()).uid(65_534).gid(65_534);
            let folder = library_folder(command);
            as_nobody.env("LD_LIBRARY_PATH", folder);
            return said(&mut as_nobody);
        }
        said(command)
    };
    nobody(&mut pretrain(&data, &locked.join("run"), &[])).refuses(&["locked"]);
    let secret = data.join("class-2/0002.png");
    mode(&secret, 0o000);
    let inspected = nobody(&mut simclr(&["inspect", "--data", data.to_str().unwrap()]));
    inspected.refuses(&["1 images cannot be decoded"]);
    assert!(
        inspected.out.contains("0002.png") && inspected.out.contains("no permission"),
        "{}",
        inspected.out
    );
    mode(&locked, 0o755);
}

#[cfg(unix)]
fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0)
}

/// A copy of libtorch's libraries that everyone may read, made of links where the originals can be reached.
#[cfg(unix)]
fn library_folder(_command: &std::process::Command) -> PathBuf {
    let environment = std::env::var_os("LIBTORCH").map(PathBuf::from);
    let libtorch =
        environment.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../libtorch"));
    libtorch.canonicalize().unwrap().join("lib")
}

#[test]
fn cut_and_foreign_packed_sets() {
    let place = Place::new();
    let (data, file) = (place.images(), place.path("images.pack"));
    let packed = |out: &Path| said(simclr(&["pack", "--data"]).arg(&data).arg("--out").arg(out));
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
        said(&mut pretrain(&place.path("wrong.pack"), &run, &[])).refuses(&["wrong.pack", reason]);
        assert!(!run.exists(), "nothing is left behind");
    }
    let itself = said(simclr(&["pack", "--data"]).arg(&file).arg("--out").arg(&file));
    itself.refuses(&["images.pack", "the data set itself"]);
    packed(&place.path("no/folder.pack")).refuses(&["cannot write", "folder.pack"]);
    said(simclr(&["pack", "--data", "gone", "--out"]).arg(&file)).refuses(&["gone"]);
    assert_eq!(fs::read(&file).unwrap(), whole);
}

/// A disk that is full while a set is packed: the old file stays, and nothing else.
#[cfg(unix)]
#[test]
fn full_disk_keeps_the_old_packed_set() {
    let place = Place::new();
    let (data, file) = (place.images(), place.path("images.pack"));
    let inner = || simclr(&["pack", "--data", data.to_str().unwrap(), "--out", file.to_str().unwrap()]);
    said(&mut inner()).succeeds();
    let old = fs::read(&file).unwrap();
    stripes(40, 0).save(data.join("class-0/one-more.png")).unwrap();
    let inner = inner();
    let mut command = std::process::Command::new("sh");
    command
        .args(["-c", "ulimit -f 20; trap '' XFSZ; exec \"$@\"", "sh"])
        .arg(inner.get_program())
        .args(inner.get_args())
        .env("GOMP_SPINCOUNT", "2000");
    said(&mut command).refuses(&["cannot write", "images.pack"]);
    assert!(fs::read(&file).unwrap() == old);
    assert_eq!(fs::read_dir(place.temp.path()).unwrap().count(), 2, "no temporary file is left");
}

/// A disk that is full: files may not grow beyond 20 kB, which is below a checkpoint's size.
#[cfg(unix)]
#[test]
fn full_disk_keeps_the_last_checkpoint() {
    let place = Place::new();
    let (data, run) = (place.images(), place.path("run"));
    said(&mut pretrain(&data, &run, &["--epochs", "1"])).succeeds();
    let before = checkpoints(&run);
    let bytes = fs::read(&before[0]).unwrap();
    assert!(bytes.len() > 20_480, "{}", bytes.len());
    // A fresh run on the full disk: its first checkpoint cannot be written.
    let mut command = std::process::Command::new("sh");
    let limited = "ulimit -f 40; trap '' XFSZ; exec \"$@\"";
    let full = place.path("full");
    let inner = pretrain(&data, &full, &["--epochs", "1"]);
    command
        .args(["-c", limited, "sh"])
        .arg(inner.get_program())
        .args(inner.get_args())
        .env("GOMP_SPINCOUNT", "2000");
    let refused = said(&mut command);
    refused.refuses(&["cannot write", "step-"]);
    refused.hints("free some disk space");
    assert_eq!(checkpoints(&full).len(), 0, "no half file stays");
    // And the run that was there is still whole.
    assert_eq!(fs::read(&before[0]).unwrap(), bytes);
    said(simclr(&["export"]).arg(&run)).succeeds();
}
