//! `pretrain --init` through the binary.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::path::Path;

use support::{execute, image_folder, pretrain, simclr, stack};

/// Images of `bands` pages each, which are channels.
fn bands(folder: &Path, bands: usize) -> std::path::PathBuf {
    fs_err::create_dir_all(folder).unwrap();
    for index in 0..20u8 {
        let levels: Vec<u8> = (0..bands).map(|band| index.wrapping_mul(11) + 7 * band as u8).collect();
        fs_err::write(folder.join(format!("{index:02}.tif")), stack(&levels)).unwrap();
    }
    folder.to_owned()
}

fn init(weights: &Path, data: &Path, run: &Path, more: &[&str]) -> support::Finished {
    let mut command = simclr(&["pretrain", "--epochs", "1", "--batch", "8", "--init"]);
    command.arg(weights).arg("--data").arg(data).arg("--run").arg(run);
    execute(command.args(["--set", "train.threads=1", "--set", "augment.gray=0"]).args(more))
}

#[test]
fn runs_start_from_an_export_with_any_number_of_channels() {
    let temp = tempfile::tempdir().unwrap();
    let (data, run) = (image_folder(&temp.path().join("images"), 40), temp.path().join("run"));
    execute(&mut pretrain(&data, &run, &[])).succeeds();
    execute(simclr(&["export"]).arg(&run)).succeeds();
    let weights = run.join("encoder.safetensors");
    for (channels, how) in
        [(13, "conv1.weight repeated from 3 to 13"), (1, "conv1.weight summed from 3 to 1")]
    {
        let set = bands(&temp.path().join(format!("{channels}")), channels);
        let more = ["--set", &format!("data.channels={channels}")];
        let started = init(&weights, &set, &temp.path().join(format!("run-{channels}")), &more);
        let err = &started.succeeds().err;
        assert!(!err.contains("very slow without a GPU"), "what is taken over is not chosen: {err}");
        assert!(err.contains(how) && err.contains("15 tensors from the file"), "{err}");
        assert!(
            err.contains("encoder.name = \"conv-c3\"") && err.contains(&format!("{channels} channels")),
            "{err}"
        );
    }
    let started = init(&run, &data, &temp.path().join("again"), &[]);
    assert!(started.succeeds().err.contains("0 fresh"), "{}", started.err);
    init(&weights, &data, &temp.path().join("other"), &["--encoder", "resnet50"]).refuses(&[
        "encoder.safetensors",
        "of the encoder (resnet50",
        "expected at least half",
    ]);
    assert!(!temp.path().join("other").exists());
}

#[test]
fn files_that_hold_no_weights_are_refused() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(&temp.path().join("images"), 40);
    let file = temp.path().join("weights.pth");
    for (bytes, what) in [
        (&b"PK\x03\x04 no archive"[..], "weights.pth"),
        (b"\x80\x02ccollections\nCounter\n.", "not a file of torch.save"),
        (b"text", "not a safetensors file"),
    ] {
        fs_err::write(&file, bytes).unwrap();
        let refused = init(&file, &data, &temp.path().join("run"), &[]);
        refused.refuses(&["weights `", what]);
        refused.hints("state dict");
    }
    init(&temp.path().join("missing.pth"), &data, &temp.path().join("run"), &[]).refuses(&["missing.pth"]);
    init(&data, &data, &temp.path().join("run"), &[]).refuses(&["neither a run folder"]);
}
