//! Outputs that would replace inputs, or files of other commands.

use fs_err as fs;
use std::{
    path::{Path, PathBuf},
    process::Command,
};

use super::{
    STEPS, contents,
    support::{execute, image_folder, newest_checkpoint, pretrain, simclr},
};

/// The command must be refused with a hint to --out, and must not change any file in `place`.
#[track_caller]
fn refused_and_unchanged(place: &Path, command: &mut Command, words: &str) {
    let before = contents(place);
    let refused = execute(command);
    refused.refuses(&[words]);
    refused.hints("--out");
    assert!(contents(place) == before, "files have changed");
}

#[test]
fn outputs_never_replace_images_or_join_the_set() {
    let temp = tempfile::tempdir().unwrap();
    let place = temp.path();
    let (data, run) = (image_folder(&place.join("images"), 40), place.join("run"));
    execute(&mut pretrain(&data, &run, &STEPS)).succeeds();
    let image = data.join("class-0/0000.png");
    std::os::unix::fs::symlink(&image, place.join("link.png")).unwrap();
    std::os::unix::fs::symlink(&data, place.join("linked")).unwrap();
    fs::hard_link(&image, place.join("hard.png")).unwrap();
    let by = |command: &str, out: &Path| {
        let mut built = simclr(&[command, "--data", data.to_str().unwrap(), "--out", out.to_str().unwrap()]);
        match command {
            "embed" => drop(built.arg(&run)),
            "views" => drop(built.args(["--image-size", "16"])),
            _ => {}
        }
        built
    };
    let inside = "would become part of the data set";
    for command in ["pack", "views"] {
        for out in
            [&image, &place.join("linked/class-0/0000.png"), &data.join("../images/./class-0/0000.png")]
        {
            refused_and_unchanged(place, &mut by(command, out), inside);
        }
        refused_and_unchanged(place, &mut by(command, &data.join("class-0/new.png")), inside);
        for out in ["link.png", "hard.png"] {
            refused_and_unchanged(place, &mut by(command, &place.join(out)), "exists and is not");
        }
    }
    refused_and_unchanged(place, &mut by("pack", &data.join("shard.tar")), inside);
    refused_and_unchanged(place, &mut by("embed", &data.join("h.parquet")), inside);
    // The default of `views` in the folder of the images.
    refused_and_unchanged(place, simclr(&["views", "--data", "."]).current_dir(&data), inside);
}

#[test]
fn outputs_never_replace_shards() {
    let temp = tempfile::tempdir().unwrap();
    let place = temp.path();
    let data = image_folder(&place.join("images"), 40);
    let shards = place.join("shards");
    fs::create_dir(&shards).unwrap();
    let shard = shards.join("train-0.tar");
    let tar = Command::new("tar").arg("-cf").arg(&shard).arg("-C").arg(&data).arg(".").status().unwrap();
    assert!(tar.success());
    for set in [&shard, &shards] {
        let mut command =
            simclr(&["pack", "--data", set.to_str().unwrap(), "--out", shard.to_str().unwrap()]);
        let before = contents(place);
        execute(&mut command).refuses(&["train-0.tar"]);
        assert!(contents(place) == before, "files have changed");
    }
    // A packed set by another of its names.
    let packed = place.join("set.pack");
    execute(simclr(&["pack", "--data", data.to_str().unwrap(), "--out"]).arg(&packed)).succeeds();
    fs::hard_link(&packed, place.join("hard.pack")).unwrap();
    let before = contents(place);
    let mut itself = simclr(&["pack", "--data", packed.to_str().unwrap(), "--out"]);
    execute(itself.arg(place.join("hard.pack"))).refuses(&["the data set itself"]);
    assert!(contents(place) == before, "files have changed");
}

#[test]
fn outputs_never_replace_files_of_a_run() {
    let temp = tempfile::tempdir().unwrap();
    let place = temp.path();
    let (data, run) = (image_folder(&place.join("images"), 40), place.join("run"));
    execute(&mut pretrain(&data, &run, &STEPS)).succeeds();
    execute(simclr(&["evaluate", "--set", "eval.draws=1"]).arg(&run)).succeeds();
    let checkpoint = newest_checkpoint(&run).unwrap();
    let (link, link_to_run) = (place.join("link.safetensors"), place.join("linked"));
    std::os::unix::fs::symlink(&checkpoint, &link).unwrap();
    std::os::unix::fs::symlink(&run, &link_to_run).unwrap();
    let name = checkpoint.file_name().unwrap();
    let own = "is kept for the run in";
    let outs: Vec<(PathBuf, &str)> = vec![
        (checkpoint.clone(), own),
        (link_to_run.join("checkpoints").join(name), own),
        (run.join("../run/./checkpoints").join(name), own),
        (run.join("checkpoints/step-000000099.safetensors"), own),
        (run.join("config.toml"), own),
        (run.join("metrics.jsonl"), own),
        (run.join("results.json"), own),
        (run.join("evaluation/new.safetensors"), own),
        (link, "exists and is not an exported encoder"),
    ];
    for (out, words) in outs {
        refused_and_unchanged(place, simclr(&["export"]).arg(&run).arg("--out").arg(&out), words);
        if words == own {
            let mut compare = simclr(&["compare"]);
            refused_and_unchanged(place, compare.arg(&run).arg("--out").arg(&out), words);
            let mut views = simclr(&["views", "--image-size", "16", "--data"]);
            refused_and_unchanged(place, views.arg(&data).arg("--out").arg(&out), words);
            let mut pack = simclr(&["pack", "--data"]);
            refused_and_unchanged(place, pack.arg(&data).arg("--out").arg(&out), words);
        }
    }
    for out in ["checkpoints/h.npy", "evaluation/h.parquet"] {
        let mut embed = simclr(&["embed", "--data"]);
        refused_and_unchanged(place, embed.arg(&data).arg(&run).arg("--out").arg(run.join(out)), own);
    }
    execute(simclr(&["pretrain", "--resume", "--run"]).arg(&run)).succeeds();
}

#[test]
fn outputs_replace_only_earlier_ones_of_the_same_command() {
    let temp = tempfile::tempdir().unwrap();
    let (data, run) = (image_folder(&temp.path().join("images"), 40), temp.path().join("run"));
    execute(&mut pretrain(&data, &run, &STEPS)).succeeds();
    execute(simclr(&["evaluate", "--set", "eval.draws=1"]).arg(&run)).succeeds();
    let (data, run) = (data.to_str().unwrap(), run.to_str().unwrap());
    let commands: [(&str, Vec<&str>); 6] = [
        ("e.safetensors", vec!["export", run]),
        ("h.npy", vec!["embed", run, "--data", data]),
        ("h.parquet", vec!["embed", run, "--data", data]),
        ("sheet.png", vec!["views", "--image-size", "16", "--data", data]),
        ("plot.svg", vec!["compare", run]),
        ("set.pack", vec!["pack", "--data", data]),
    ];
    let out = |name: &str| temp.path().join("out").join(name);
    fs::create_dir(temp.path().join("out")).unwrap();
    let by = |arguments: &[&str], out: &Path| {
        let mut command = simclr(arguments);
        command.arg("--out").arg(out);
        command
    };
    for (name, arguments) in &commands {
        execute(&mut by(arguments, &out(name))).succeeds();
        let first = fs::read(out(name)).unwrap();
        execute(&mut by(arguments, &out(name))).succeeds();
        assert!(fs::read(out(name)).unwrap() == first, "{name}");
    }
    for (name, arguments) in &commands {
        for (other, _) in commands.iter().filter(|(other, _)| other != name) {
            // With the expected name, but without the list of paths that belongs to an array.
            let place = tempfile::tempdir().unwrap();
            let foreign = place.path().join(name);
            fs::copy(out(other), &foreign).unwrap();
            refused_and_unchanged(place.path(), &mut by(arguments, &foreign), "exists and is not");
        }
    }
    // An array next to a list of paths of another origin.
    let place = tempfile::tempdir().unwrap();
    let array = place.path().join("h.npy");
    fs::write(place.path().join("h.npy.paths.txt"), "a list of mine\n").unwrap();
    let embed = &commands[1].1;
    refused_and_unchanged(place.path(), &mut by(embed, &array), "h.npy.paths.txt");
    fs::copy(out("h.npy"), &array).unwrap();
    refused_and_unchanged(place.path(), &mut by(embed, &array), "exists and is not");
}
