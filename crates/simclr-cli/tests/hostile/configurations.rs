//! Configurations, run folders and checkpoints.

use fs_err as fs;

use super::{
    Place, checkpoints,
    support::{execute, pretrain, simclr, stripes},
};

#[test]
fn unknown_keys_wrong_types_invalid_toml_and_values_out_of_range() {
    let place = Place::new();
    let data = place.images();
    let with = |text: &str| {
        fs::write(place.path("c.toml"), text).unwrap();
        let file = place.path("c.toml");
        execute(
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
    execute(&mut pretrain(&data, &place.path("run"), &["--set", "temperature"]))
        .refuses(&["section.key=value"]);
    execute(&mut pretrain(&data, &place.path("run"), &["--encoder", "resnet19"]))
        .refuses(&["resnet19", "resnet18"]);
    execute(&mut pretrain(&data, &place.path("run"), &["--config", "gone.toml"])).refuses(&["gone.toml"]);
    assert!(!place.path("run").exists());
}

#[test]
fn encoder_files_that_are_not_torchscript() {
    let place = Place::new();
    fs::write(place.path("m.pt"), b"not a module").unwrap();
    let file = place.path("m.pt");
    let more = ["--encoder-file", file.to_str().unwrap()];
    let output = execute(&mut pretrain(&place.images(), &place.path("run"), &more));
    output.refuses(&["m.pt", "TorchScript"]);
    output.hints("torch.jit.save");
}

#[test]
fn existing_runs_are_not_overwritten() {
    let place = Place::new();
    let (data, run) = (place.images(), place.path("run"));
    execute(&mut pretrain(&data, &run, &[])).succeeds();
    let before = fs::read(&checkpoints(&run)[0]).unwrap();
    let again = execute(&mut pretrain(&data, &run, &[]));
    again.refuses(&["run folder", "holds a run already"]);
    again.hints("--resume");
    assert_eq!(fs::read(&checkpoints(&run)[0]).unwrap(), before);
}

#[test]
fn damaged_and_foreign_checkpoints() {
    let place = Place::new();
    let (data, run) = (place.images(), place.path("run"));
    execute(&mut pretrain(&data, &run, &[])).succeeds();
    let resume = |more: &[&str]| execute(simclr(&["pretrain", "--resume", "--run"]).arg(&run).args(more));
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
        execute(simclr(&["evaluate"]).arg(&run)).refuses(&["step-", reason]);
        assert_eq!(fs::read(&file).unwrap(), bytes, "even a damaged checkpoint is kept");
    }
    fs::write(&file, &whole).unwrap();
    resume(&[]).succeeds();
}

#[test]
fn missing_runs_labels_and_checkpoints_and_unknown_table_formats() {
    let place = Place::new();
    let data = place.images();
    execute(simclr(&["evaluate"]).arg(&data)).refuses(&["no run folder"]);
    execute(simclr(&["export"]).arg(place.path("gone"))).refuses(&["gone", "no such folder"]);
    let run = place.path("run");
    execute(&mut pretrain(&data, &run, &[])).succeeds();
    execute(simclr(&["embed"]).arg(&run).arg("--data").arg(&data).arg("--out").arg(place.path("h.csv")))
        .refuses(&[".parquet, .npy or .tsv"]);
    let flat = place.path("flat");
    fs::create_dir(&flat).unwrap();
    (0..20).for_each(|index| stripes(index, 0).save(flat.join(format!("{index}.png"))).unwrap());
    let unlabelled = execute(simclr(&["evaluate"]).arg(&run).arg("--data").arg(&flat));
    unlabelled.refuses(&["label"]);
    unlabelled.hints("class folders");
    checkpoints(&run).iter().for_each(|file| fs::remove_file(file).unwrap());
    execute(simclr(&["evaluate"]).arg(&run)).refuses(&["no checkpoint in"]);
}

/// Values that would overflow, take all memory or never end.
#[test]
fn absurd_sizes_are_refused_before_anything_is_allocated() {
    let place = Place::new();
    let data = place.images();
    for (set, expected) in [
        ("train.checkpoint_minutes=1e18", "at most 43200"),
        ("data.prefetch=9223372036854775807", "at most 1024"),
        ("data.prefetch=100000000000", "at most 1024"),
        ("data.threads=9223372036854775807", "at most 1024"),
        ("data.channels=1000000", "at most 1024"),
        ("head.out=9223372036854775807", "at most 65536"),
        ("head.hidden=4611686018427387904", "at most 65536"),
        ("head.layers=100000000", "at most 64"),
        ("encoder.width=1e300", "at most 64"),
        ("encoder.width=100000", "at most 64"),
        ("train.epochs=1e300", "at most 10000000"),
        ("train.batch=9223372036854775807", "at most 10000000"),
        ("train.image_size=100000", "8 to 2048"),
        ("train.keep_checkpoints=9223372036854775807", "at most 1000000"),
    ] {
        let refused = execute(&mut pretrain(&data, &place.path("run"), &["--set", set]));
        refused.refuses(&[set.split('=').next().unwrap(), expected]);
    }
    // Within the limits of every key, but together more than any memory.
    for set in [
        &["encoder.name=resnet152", "encoder.width=64"][..],
        &["head.hidden=65536", "head.layers=64", "head.out=65536"],
    ] {
        let sets: Vec<&str> = set.iter().flat_map(|set| ["--set", *set]).collect();
        let refused = execute(&mut pretrain(&data, &place.path("run"), &sets));
        refused.refuses(&["memory: a run of", "needs at least", "GiB, which is free"]);
        refused.hints("smaller");
    }
    assert!(!place.path("run").exists());
}
