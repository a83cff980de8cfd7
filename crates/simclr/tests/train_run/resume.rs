//! Resumed runs: bit-identical results, damaged checkpoints, changed configuration or images.

use std::sync::atomic::AtomicBool;

use simclr::{
    CheckpointError, TrainError,
    train::{Outcome, RunFolder},
};

use crate::{bitmap, config, finish, image_folder, newest, run, same_tensors};

#[test]
fn resumed_run_equals_uninterrupted_run_bit_for_bit() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(temp.path(), 70, true);
    let config = config(&[]);
    let whole = RunFolder::create(&temp.path().join("whole")).unwrap();
    let reports = finish(&config, &data, &whole);
    assert_eq!(reports.len(), 12, "3 epochs of 70 / 16 = 4 steps");

    let resumed = RunFolder::create(&temp.path().join("resumed")).unwrap();
    let stop = AtomicBool::new(false);
    assert_eq!(run(&config, &data, &resumed, Some(4), &stop).0.unwrap(), Outcome::Stopped);
    let rest = finish(&config, &data, &resumed);
    assert_eq!(rest[0].step, 5);
    same_tensors(&newest(&whole), &newest(&resumed));
    for (a, b) in reports[5..].iter().zip(&rest) {
        assert_eq!((a.loss, a.lr, a.accuracy), (b.loss, b.lr, b.accuracy));
    }
    let steps = |folder: &RunFolder| {
        let text = fs_err::read_to_string(folder.metrics_file()).unwrap();
        let value = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap();
        text.lines()
            .map(value)
            .filter_map(|v| Some((v["step"].as_u64()?, v["loss"].as_f64()?)))
            .collect::<Vec<_>>()
    };
    assert_eq!(steps(&whole), steps(&resumed), "the metrics have every step once");
}

#[test]
fn damaged_newest_checkpoint_is_skipped_and_all_damaged_is_an_error() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(temp.path(), 40, false);
    let config = config(&["train.checkpoint_minutes=0", "train.epochs=2"]);
    let folder = RunFolder::create(&temp.path().join("run")).unwrap();
    finish(&config, &data, &folder);
    let files = folder.checkpoint_files().unwrap();
    assert_eq!(files.len(), 2, "keep_checkpoints");
    let expected = newest(&folder);
    let bytes = fs_err::read(&files[1]).unwrap();
    fs_err::write(&files[1], &bytes[..bytes.len() / 2]).unwrap();
    let stop = AtomicBool::new(false);
    let (outcome, recorder) = run(&config, &data, &folder, None, &stop);
    assert_eq!(outcome.unwrap(), Outcome::Finished);
    assert!(recorder.messages.iter().any(|text| text.starts_with("passed over")), "{:?}", recorder.messages);
    same_tensors(&expected, &newest(&folder));
    for file in folder.checkpoint_files().unwrap() {
        fs_err::write(file, b"garbage").unwrap();
    }
    let error = run(&config, &data, &folder, None, &stop).0.unwrap_err();
    assert!(matches!(error, TrainError::Checkpoint(CheckpointError::Damaged { .. })), "{error}");
}

#[test]
fn resume_with_another_configuration_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(temp.path(), 40, false);
    let folder = RunFolder::create(&temp.path().join("run")).unwrap();
    finish(&config(&["train.epochs=1"]), &data, &folder);
    let stop = AtomicBool::new(false);
    let error = run(&config(&["train.epochs=1", "head.out=32", "train.seed=9"]), &data, &folder, None, &stop)
        .0
        .unwrap_err();
    assert!(error.to_string().contains("head.out was 16, is 32; train.seed was 0, is 9"), "{error}");
}

#[test]
fn pruning_keeps_the_newest_intact_checkpoint() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(temp.path(), 40, false);
    let config = config(&["train.checkpoint_minutes=0", "train.epochs=4", "train.keep_checkpoints=1"]);
    let folder = RunFolder::create(&temp.path().join("run")).unwrap();
    let stop = AtomicBool::new(false);
    assert_eq!(run(&config, &data, &folder, Some(2), &stop).0.unwrap(), Outcome::Stopped);
    let partial = folder.checkpoints().join(".partial-abc");
    for path in [&folder.checkpoint_file(7), &partial] {
        fs_err::write(path, b"cut").unwrap();
    }
    let stop = AtomicBool::new(false);
    assert_eq!(run(&config, &data, &folder, Some(4), &stop).0.unwrap(), Outcome::Stopped);
    assert_eq!(newest(&folder).sections["state"]["step"], 5);
    assert!(!partial.exists(), "partial files of a killed process are removed");
    finish(&config, &data, &folder);
    assert_eq!(folder.checkpoint_files().unwrap(), [folder.checkpoint_file(8)]);
}

#[test]
fn resume_on_other_images_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(temp.path(), 40, false);
    let config = config(&["train.epochs=2"]);
    let folder = RunFolder::create(&temp.path().join("run")).unwrap();
    let stop = AtomicBool::new(false);
    run(&config, &data, &folder, Some(1), &stop).0.unwrap();
    fs_err::write(data.join("0040.bmp"), bitmap(40, 0)).unwrap();
    let before = fs_err::read(folder.checkpoint_file(2)).unwrap();
    let stop = AtomicBool::new(false);
    let error = run(&config, &data, &folder, None, &stop).0.unwrap_err();
    assert!(matches!(error, TrainError::Checkpoint(CheckpointError::Mismatch { .. })), "{error}");
    assert!(error.to_string().contains("40 images") && error.to_string().contains("41 images"), "{error}");
    assert!(before == fs_err::read(folder.checkpoint_file(2)).unwrap());
    // The same images in another folder are accepted.
    let moved = temp.path().join("moved");
    fs_err::remove_file(data.join("0040.bmp")).unwrap();
    fs_err::rename(&data, &moved).unwrap();
    finish(&config, &moved, &folder);
}

#[test]
fn resume_warns_that_a_thread_count_changes_rounding() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(temp.path(), 40, false);
    let folder = RunFolder::create(&temp.path().join("run")).unwrap();
    let stop = AtomicBool::new(false);
    run(&config(&[]), &data, &folder, Some(1), &stop).0.unwrap();
    let stop = AtomicBool::new(false);
    let (outcome, recorder) = run(&config(&["train.threads=2"]), &data, &folder, None, &stop);
    outcome.unwrap();
    assert!(
        recorder.messages.iter().any(|text| text.contains("threads changed from 1 to 2")),
        "{:?}",
        recorder.messages
    );
}

/// LARS in bf16 on a set with an undecodable image, stopped within an epoch and at the end of one.
#[test]
fn resume_is_exact_in_bf16_with_lars_and_bad_images() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(temp.path(), 70, true);
    fs_err::write(data.join("class-1/0001.bmp"), b"BM, but no bitmap").unwrap();
    let config = config(&[
        "optim.kind=lars",
        "optim.lr=0.3",
        "optim.warmup_epochs=1",
        "train.precision=bf16",
        "data.max_bad_share=0.1",
    ]);
    let whole = RunFolder::create(&temp.path().join("whole")).unwrap();
    finish(&config, &data, &whole);
    let resumed = RunFolder::create(&temp.path().join("resumed")).unwrap();
    for last in [1, 3, 8] {
        let stop = AtomicBool::new(false);
        assert_eq!(run(&config, &data, &resumed, Some(last), &stop).0.unwrap(), Outcome::Stopped);
    }
    finish(&config, &data, &resumed);
    same_tensors(&newest(&whole), &newest(&resumed));
    assert_eq!(
        fs_err::read_to_string(resumed.bad_files()).unwrap().lines().count(),
        1,
        "listed once over four starts"
    );
    let events = fs_err::read_dir(resumed.path())
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().contains("tfevents"));
    assert_eq!(events.count(), 4, "one event file per start");
}

#[test]
fn resume_on_changed_images_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let data = image_folder(root.path(), 40, true);
    let folder = RunFolder::create(&root.path().join("run")).unwrap();
    let config = config(&[]);
    let stop = AtomicBool::new(false);
    finish(&config, &data, &folder);
    let image = data.join("class-1/0005.bmp");
    // Same content with a new time stamp.
    fs_err::write(&image, bitmap(5, 1)).unwrap();
    finish(&config, &data, &folder);
    let mut changed = bitmap(5, 1);
    *changed.last_mut().unwrap() ^= 1;
    fs_err::write(&image, &changed).unwrap();
    let before = fs_err::read(folder.images_file()).unwrap();
    let error = run(&config, &data, &folder, None, &stop).0.unwrap_err();
    assert!(matches!(error, TrainError::Checkpoint(CheckpointError::Images { .. })), "{error}");
    let (text, hint) = (error.to_string(), error.hint().unwrap());
    assert!(text.contains("1 of 40 images (`class-1/0005.bmp`)"), "{text}");
    assert!(hint.contains("put the images back"), "{hint}");
    assert!(before == fs_err::read(folder.images_file()).unwrap(), "the record of the run's images is kept");
    fs_err::write(&image, bitmap(5, 1)).unwrap();
    finish(&config, &data, &folder);
}

#[test]
fn resume_without_a_record_of_images_adds_a_note() {
    let root = tempfile::tempdir().unwrap();
    let data = image_folder(root.path(), 40, true);
    let folder = RunFolder::create(&root.path().join("run")).unwrap();
    let config = config(&[]);
    let stop = AtomicBool::new(false);
    finish(&config, &data, &folder);
    fs_err::remove_file(folder.images_file()).unwrap();
    let (outcome, recorder) = run(&config, &data, &folder, None, &stop);
    assert_eq!(outcome.unwrap(), Outcome::Finished);
    assert!(recorder.messages.iter().any(|text| text.starts_with("not checked")), "{:?}", recorder.messages);
}
