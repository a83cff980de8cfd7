//! NaN or infinite losses, gradients and weights stop a run without damaging its checkpoints.

use std::sync::atomic::AtomicBool;

use simclr::{TrainError, train::RunFolder};

use crate::{config, image_folder, newest, run};

#[test]
fn non_finite_loss_stops_the_run_and_lists_the_images() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(temp.path(), 40, false);
    let folder = RunFolder::create(&temp.path().join("run")).unwrap();
    let stop = AtomicBool::new(false);
    let config = config(&["optim.kind=sgd", "optim.lr=1e38", "optim.schedule=constant", "head.norm=none"]);
    let (outcome, recorder) = run(&config, &data, &folder, None, &stop);
    let TrainError::NonFinite { what, step, dump, .. } = outcome.unwrap_err() else {
        panic!("expected NonFinite")
    };
    assert_eq!(what, "the loss");
    assert_eq!(recorder.reports.len() as u64, step, "only the steps before it were reported");
    let names = fs_err::read_to_string(dump).unwrap();
    assert_eq!(names.lines().count(), 16);
    assert!(names.lines().all(|name| data.join(name).is_file()), "{names}");
    assert_eq!(folder.checkpoint_files().unwrap().len(), 0, "non-finite weights are not saved");
}

#[test]
fn non_finite_gradient_stops_the_run() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(temp.path(), 40, false);
    let folder = RunFolder::create(&temp.path().join("run")).unwrap();
    let stop = AtomicBool::new(false);
    // Logits of 1e30 still have a finite loss; the squares of its gradient overflow. Division by a power of two does
    // not round, so that similarities stay symmetric.
    let (outcome, recorder) =
        run(&config(&["loss.temperature=7.888609052210118e-31"]), &data, &folder, None, &stop);
    let TrainError::NonFinite { what, step, value, .. } = outcome.unwrap_err() else {
        panic!("expected NonFinite")
    };
    assert_eq!((what, step, recorder.reports.len()), ("the gradient's norm", 0, 0), "{value}");
}

/// A huge learning rate makes the weights overflow after a finite loss and gradient; the checkpoint that is due must not replace the
/// previous one.
#[test]
fn non_finite_weights_are_not_saved() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(temp.path(), 40, false);
    let folder = RunFolder::create(&temp.path().join("run")).unwrap();
    let more = ["optim.kind=sgd", "optim.lr=1e300", "train.epochs=3", "train.checkpoint_minutes=0"];
    let config = config(&[&more[..], &["optim.warmup_epochs=1"]].concat());
    let stop = AtomicBool::new(false);
    let (outcome, recorder) = run(&config, &data, &folder, None, &stop);
    let TrainError::NonFinite { what, step, dump, .. } = outcome.unwrap_err() else {
        panic!("expected NonFinite")
    };
    assert_eq!((what, step, recorder.reports.len()), ("a weight", 1, 2), "step 0 has lr 0, step 1 overflows");
    assert_eq!(fs_err::read_to_string(dump).unwrap().lines().count(), 16);
    assert_eq!(folder.checkpoint_files().unwrap(), [folder.checkpoint_file(1)]);
    assert_eq!(newest(&folder).sections["state"]["step"], 1);
}
