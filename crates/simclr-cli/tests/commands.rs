//! The commands of the binary.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use fs_err as fs;
use std::path::Path;

use support::{execute, image_folder, pretrain, simclr, stack, stripes};

#[test]
fn help_lists_the_commands() {
    let output = execute(&mut simclr(&["--help"]));
    output.succeeds();
    for command in ["pretrain", "evaluate", "embed", "export", "views", "inspect", "pack"] {
        assert!(output.out.lines().any(|line| line.trim_start().starts_with(command)), "{}", output.out);
    }
}

#[test]
fn wrong_usage_exits_with_2() {
    assert_eq!(execute(&mut simclr(&["pretain"])).code, Some(2));
    assert_eq!(execute(&mut simclr(&["pretrain", "--resume"])).code, Some(2));
    execute(&mut simclr(&["pretrain"])).refuses(&["no images are named"]);
}

/// Processes without a connection would overwrite each other's run.
#[test]
fn unconnected_processes_are_refused() {
    let temp = tempfile::tempdir().unwrap();
    let (data, run) = (image_folder(&temp.path().join("images"), 40), temp.path().join("run"));
    execute(pretrain(&data, &run, &[]).env("SLURM_STEP_NUM_TASKS", "4"))
        .refuses(&["SLURM_PROCID is nothing"]);
    let tasks = [("SLURM_STEP_NUM_TASKS", "4"), ("SLURM_PROCID", "0"), ("SLURM_STEP_NODELIST", "a")];
    execute(simclr(&["inspect", "--data"]).arg(&data).envs(tasks))
        .refuses(&["4 processes were started for a command that runs as one"]);
    #[cfg(not(feature = "mpi"))]
    execute(pretrain(&data, &run, &[]).env("OMPI_COMM_WORLD_SIZE", "2")).refuses(&["built without MPI"]);
    assert!(!run.exists());
}

#[test]
fn progress_as_json() {
    let temp = tempfile::tempdir().unwrap();
    let (data, run) = (image_folder(&temp.path().join("images"), 40), temp.path().join("run"));
    let output = execute(&mut pretrain(&data, &run, &["--log", "json", "--set", "train.health_every=1"]));
    output.succeeds();
    let lines: Vec<serde_json::Value> =
        output.err.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |event: &str| lines.iter().filter(|line| line["event"] == event).collect::<Vec<_>>();
    assert_eq!(of("start")[0]["facts"]["steps"], "4 = 2 epochs of 2");
    assert_eq!(of("step").last().unwrap()["step"], 3);
    assert!(of("health").iter().all(|line| line["verdict"].is_string() && line["health"]["loss"].is_f64()));
    assert!(of("message").iter().any(|line| line["text"].as_str().unwrap().starts_with("checkpoint after")));
    assert!(lines.iter().all(|line| line["time"].as_f64().unwrap() > 1.7e9));
}

/// Of the commands that print facts; `evaluate`, `predict`, `neighbours` and `config` are tested with their content.
#[test]
fn facts_as_json() {
    let temp = tempfile::tempdir().unwrap();
    let (data, run) = (image_folder(&temp.path().join("images"), 40), temp.path().join("run"));
    fs::write(data.join("cut.png"), b"\x89PNG\r\n\x1a\n").unwrap();
    execute(&mut pretrain(&data, &run, &[])).succeeds();
    execute(simclr(&["evaluate"]).arg(&run)).succeeds();
    let at = |name: &str| temp.path().join(name);
    let facts = |command: &mut std::process::Command| -> serde_json::Value {
        let output = execute(command.arg("--json"));
        serde_json::from_str(&output.out).unwrap_or_else(|_| panic!("{} {}", output.out, output.err))
    };
    let inspected = facts(simclr(&["inspect", "--data"]).arg(&data));
    assert_eq!((&inspected["train"]["images"], &inspected["train"]["channels"]), (&41.into(), &3.into()));
    assert_eq!(inspected["train"]["kinds"], serde_json::json!({"uint8": 40}));
    assert!(inspected["train"]["undecodable"][0].as_str().unwrap().contains("cut.png"), "{inspected}");
    let embedded = facts(simclr(&["embed"]).arg(&run).arg("--data").arg(&data).arg("--out").arg(at("h.npy")));
    assert_eq!((&embedded["rows"], &embedded["features"]), (&40.into(), &32.into()));
    assert!(embedded["skipped"][0].as_str().unwrap().contains("cut.png"), "{embedded}");
    let packed = facts(simclr(&["pack", "--data"]).arg(&data).arg("--out").arg(at("set.pack")));
    assert_eq!(
        (&packed["images"]["train"], &packed["undecodable"][0]["image"]),
        (&41.into(), &"cut.png".into())
    );
    let exported = facts(simclr(&["export"]).arg(&run));
    assert!(exported["difference"].as_f64().unwrap() <= 1e-6, "{exported}");
    let compared = facts(simclr(&["compare"]).arg(&run).arg("--out").arg(at("plot.svg")));
    assert!(compared["runs"][0]["results"]["rows"].is_array(), "{compared}");
    let page =
        facts(simclr(&["report"]).arg(&run).arg("--data").arg(&data).arg("--out").arg(at("page.html")));
    assert_eq!((&page["images"], &page["possible_label_errors"].is_u64()), (&40.into(), &true), "{page}");
    let short = ["--finetune-epochs", "1", "--finetune-batch", "20"];
    let tuned =
        facts(simclr(&["finetune"]).args(short).arg(&run).arg("--data").arg(&data).arg("--out").arg(at("c")));
    assert!(tuned["fine-tuned"]["accuracy"].is_f64() && tuned["fine-tuned"]["labels"].is_u64(), "{tuned}");
    let plan = facts(&mut simclr(&["study", "head", "--quick", "--plan"]));
    assert_eq!(plan["jobs"][0]["study"], "head");
    let small = ["--set", "encoder.name=conv-c3", "--batch", "8", "--image-size", "16", "--data"];
    let found = facts(simclr(&["doctor"]).args(small).arg(&data));
    let verdicts: Vec<_> = found.as_array().unwrap().iter().map(|finding| &finding["verdict"]).collect();
    assert!(verdicts.contains(&&"fine".into()) && !verdicts.contains(&&"wrong".into()), "{found}");
}

#[test]
fn pretrain_evaluate_export_embed_and_views() {
    let temp = tempfile::tempdir().unwrap();
    let (data, run) = (image_folder(&temp.path().join("images"), 80), temp.path().join("run"));
    let trained = execute(&mut pretrain(&data, &run, &[]));
    trained.succeeds();
    assert_eq!(trained.out.trim(), run.display().to_string());
    for fact in ["data ", "device", "encoder", "head", "loss", "learning rate", "groups", "step 10/10"] {
        assert!(trained.err.lines().any(|line| line.starts_with(fact)), "no `{fact}` in {}", trained.err);
    }
    assert_eq!(sheet_of_events(&run), (9 * 16, 8 * 16));
    let evaluated = execute(simclr(&["evaluate"]).arg(&run));
    evaluated.succeeds();
    for row in ["trained h", "random-init h", "raw pixels", "chance"] {
        assert!(evaluated.out.lines().any(|line| line.starts_with(row)), "{}", evaluated.out);
    }
    let results: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(run.join("results.json")).unwrap()).unwrap();
    assert!(results["rows"].as_array().is_some_and(|rows| rows.len() == 4), "{results}");
    let exported = execute(simclr(&["export"]).arg(&run));
    exported.succeeds();
    assert!(
        run.join("encoder.safetensors").is_file() && exported.out.contains("read back"),
        "{}",
        exported.out
    );
    for name in ["h.npy", "h.parquet"] {
        let out = temp.path().join(name);
        let embedded = execute(simclr(&["embed"]).arg(&run).arg("--data").arg(&data).arg("--out").arg(&out));
        embedded.succeeds();
        assert!(embedded.out.contains("80 rows of 32 features, 0 images skipped"), "{}", embedded.out);
        assert!(out.is_file());
    }
    let out = temp.path().join("pixels.npy");
    let embedded =
        execute(simclr(&["embed", "--pixels"]).arg(&run).arg("--data").arg(&data).arg("--out").arg(&out));
    assert!(embedded.out.contains("80 rows of 768 features"), "{}", embedded.out);
    let sheet = temp.path().join("views.png");
    let drawn =
        execute(simclr(&["views", "--image-size", "16", "--data"]).arg(&data).arg("--out").arg(&sheet));
    drawn.succeeds();
    let sheet = image::open(sheet).unwrap();
    // Tiles of 96 pixels, a line of titles, and six lines below each row.
    assert_eq!((sheet.width(), sheet.height()), (9 * 100 + 4, 14 + 8 * 160));
    let parameters: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(temp.path().join("views.png.json")).unwrap()).unwrap();
    assert_eq!(parameters["rows"].as_array().unwrap().len(), 8 * 9);
    views_are_written_as_arrays_with_parameters(&data, temp.path());
}

/// Width and height of the picture `views` in the TensorBoard events of a run.
fn sheet_of_events(run: &Path) -> (u32, u32) {
    let mut files = fs::read_dir(run).unwrap().map(|entry| entry.unwrap().path());
    let events = fs::read(files.find(|path| path.to_string_lossy().contains("tfevents")).unwrap()).unwrap();
    let tag = events.windows(5).position(|bytes| bytes == b"views").unwrap();
    let start = tag + events[tag..].windows(3).position(|bytes| bytes == [0xff, 0xd8, 0xff]).unwrap();
    let sheet = image::load_from_memory(&events[start..]).unwrap();
    (sheet.width(), sheet.height())
}

fn views_are_written_as_arrays_with_parameters(data: &Path, folder: &Path) {
    let out = folder.join("views.npy");
    let arguments =
        ["views", "--image-size", "16", "--images", "3", "--views", "2", "--set", "transform.crop=0.5"];
    let written = execute(simclr(&arguments).arg("--data").arg(data).arg("--out").arg(&out));
    written.succeeds();
    assert!(written.out.contains("central square of 50 %"), "{}", written.out);
    // A header of 128 bytes, then three originals with two views each of 3 x 16 x 16 numbers.
    assert_eq!(fs::read(&out).unwrap().len(), 128 + 3 * 3 * 768 * 4);
    let text = fs::read_to_string(folder.join("views.npy.json")).unwrap();
    let made: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(made["shape"], serde_json::json!([3, 3, 3, 16, 16]));
    let rows = made["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 9);
    assert_eq!(rows[0]["transform"]["crop"], 0.5);
    assert!(rows[1]["params"]["crop"]["width"].as_u64().is_some(), "{}", rows[1]);
    let picture = fs::read_to_string(folder.join("views.png.json")).unwrap();
    assert!(picture.len() > text.len(), "the parameters of the picture are kept");
    let tensors = folder.join("views.safetensors");
    for _ in 0..2 {
        execute(simclr(&arguments).arg("--data").arg(data).arg("--out").arg(&tensors)).succeeds();
    }
    assert_eq!(fs::read_to_string(folder.join("views.safetensors.json")).unwrap(), text);
    let stored = tch::Tensor::read_safetensors(&tensors).unwrap();
    let [(name, array)] = &stored[..] else { panic!("expected one tensor, got {}", stored.len()) };
    let npy = tch::Tensor::read_npy(&out).unwrap();
    assert!(name == "views" && array.equal(&npy), "{name} {:?}", array.size());
    fs::copy(folder.join("views.png"), &tensors).unwrap();
    execute(simclr(&arguments).arg("--data").arg(data).arg("--out").arg(&tensors))
        .refuses(&["exists and is not"]);
}

#[test]
fn all_commands_apply_the_page_rule() {
    let temp = tempfile::tempdir().unwrap();
    let (data, run) = (temp.path().join("images"), temp.path().join("run"));
    fs::create_dir(&data).unwrap();
    for file in 0..5u8 {
        let levels: Vec<u8> = (0..4).map(|page| 40 * file + 10 * page).collect();
        fs::write(data.join(format!("{file}.tif")), stack(&levels)).unwrap();
    }
    let inspected = |path: &Path, more: &[&str]| execute(simclr(&["inspect", "--data"]).arg(path).args(more));
    let contains = |text: &str, parts: &[&str]| {
        parts.iter().for_each(|part| assert!(text.contains(part), "expected `{part}` in {text}"));
    };
    let by_default = inspected(&data, &[]);
    contains(
        &by_default.succeeds().out,
        &["5 images, 4 channels", "all images: 5 of 5: 4 pages", "data.pages = auto"],
    );
    let rule = "5 of 5 files have several pages, which are 20 images (data.pages = images)";
    contains(&inspected(&data, &["--pages", "images"]).succeeds().out, &["20 images, 3 channels", rule]);
    execute(&mut pretrain(&data, &run, &["--set", "data.pages=images", "--epochs", "1"])).succeeds();
    contains(&fs::read_to_string(run.join("config.toml")).unwrap(), &["pages = \"images\""]);
    let embedded = execute(
        simclr(&["embed"]).arg(&run).arg("--data").arg(&data).arg("--out").arg(temp.path().join("h.npy")),
    );
    contains(&embedded.succeeds().out, &["20 rows"]);
    contains(&fs::read_to_string(temp.path().join("h.npy.paths.txt")).unwrap(), &["0.tif#0", "4.tif#3"]);
    let views = ["views", "--image-size", "16", "--images", "40", "--set", "data.pages=images", "--data"];
    let drawn = execute(simclr(&views).arg(&data).arg("--out").arg(temp.path().join("views.png")));
    contains(&drawn.succeeds().out, &["20 images"]);
    let set = temp.path().join("set.pack");
    let packed = execute(simclr(&["pack", "--pages", "images", "--data"]).arg(&data).arg("--out").arg(&set));
    contains(&packed.succeeds().out, &["20 training"]);
    contains(&inspected(&set, &[]).succeeds().out, &["20 images, 3 channels"]);
    inspected(&set, &["--pages", "channels"]).refuses(&["written with data.pages = images"]);
}

#[test]
fn foreign_weights_are_evaluated_on_the_measured_range() {
    let temp = tempfile::tempdir().unwrap();
    let (data, run, new) = (temp.path().join("images"), temp.path().join("run"), temp.path().join("new"));
    for index in 0..40 {
        let mut image = image::DynamicImage::from(stripes(index, index % 4)).into_rgb16();
        image.iter_mut().for_each(|value| *value = 300 + *value / 32);
        let folder = data.join(format!("class-{}", index % 4));
        fs::create_dir_all(&folder).unwrap();
        image.save(folder.join(format!("{index}.png"))).unwrap();
    }
    execute(&mut pretrain(&data, &run, &["--epochs", "1"])).succeeds();
    execute(simclr(&["export"]).arg(&run)).succeeds();
    let evaluate = |more: &[&str]| {
        let mut command = simclr(&["evaluate", "--encoder", "conv-c3", "--set", "encoder.width=0.25"]);
        command
            .args(["--image-size", "16", "--set", "eval.draws=1", "--weights"])
            .arg(run.join("encoder.safetensors"));
        execute(command.arg(&new).arg("--data").arg(&data).args(more))
    };
    let first = evaluate(&[]);
    assert!(first.succeeds().err.contains("data.range = [[3"), "{}", first.err);
    let recorded = |run: &Path| {
        let text = fs::read_to_string(run.join("config.toml")).unwrap();
        text.parse::<toml::Table>().unwrap()["data"]["range"].clone()
    };
    assert_eq!(recorded(&new), recorded(&run));
    assert_eq!(evaluate(&[]).succeeds().out, first.out);
    evaluate(&["--set", "data.range=full"]).refuses(&["data.range was [[3"]);
}

#[test]
fn foreign_weights_are_evaluated_in_a_folder_of_their_own() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(&temp.path().join("images"), 40);
    let weights = ["1", "2"].map(|seed| {
        let run = temp.path().join(seed);
        execute(&mut pretrain(&data, &run, &["--seed", seed, "--epochs", "1"])).succeeds();
        execute(simclr(&["export"]).arg(&run)).succeeds();
        run.join("encoder.safetensors")
    });
    let new = temp.path().join("new");
    let evaluate = |run: &Path, weights: &Path, more: &[&str]| {
        let mut command = simclr(&["evaluate", "--encoder", "conv-c3", "--set", "encoder.width=0.25"]);
        command.args(["--image-size", "16", "--set", "eval.draws=1"]).args(more);
        execute(command.arg("--data").arg(&data).arg("--weights").arg(weights).arg(run))
    };
    let first = evaluate(&new, &weights[0], &[]);
    let again = evaluate(&new, &weights[0], &[]);
    assert_eq!(first.succeeds().out, again.succeeds().out);
    let results = fs::read(new.join("results.json")).unwrap();
    for more in [&[][..], &["--fresh"]] {
        let refused = evaluate(&new, &weights[1], more);
        refused.refuses(&["it holds the weights `encoder.safetensors`"]);
        refused.hints("use another folder");
    }
    evaluate(&new, &weights[0], &["--normalize", "none"]).refuses(&["encoder.input_mean was [0.485"]);
    evaluate(&temp.path().join("1"), &weights[1], &[]).refuses(&["it holds a run trained here"]);
    assert_eq!(fs::read(new.join("results.json")).unwrap(), results);
}

#[test]
fn runs_are_deterministic_by_seed() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(&temp.path().join("images"), 40);
    let weights = |name: &str, seed: &str| {
        let run = temp.path().join(name);
        execute(&mut pretrain(&data, &run, &["--seed", seed, "--epochs", "1"])).succeeds();
        execute(simclr(&["export"]).arg(&run)).succeeds();
        fs::read(run.join("encoder.safetensors")).unwrap()
    };
    let first = weights("a", "1");
    assert!(first == weights("b", "1"), "two runs of one seed differ");
    assert!(first != weights("c", "2"), "two seeds give one result");
}

/// Runs on a folder and on its packed set: same fingerprint and weights.
#[test]
fn packed_sets_give_the_same_weights_as_their_folder() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(&temp.path().join("images"), 40);
    fs::write(data.join("class-1/cut.png"), b"\x89PNG\r\n\x1a\n").unwrap();
    let file = temp.path().join("images.pack");
    let packed = execute(simclr(&["pack", "--data"]).arg(&data).arg("--out").arg(&file));
    packed.succeeds();
    assert!(packed.out.contains("41 training and 0 test images, 1 undecodable"), "{}", packed.out);
    assert!(packed.err.contains("cannot decode `class-1/cut.png`"), "{}", packed.err);
    let described = |path: &Path| {
        let output = execute(simclr(&["inspect", "--data"]).arg(path));
        output.refuses(&["1 images cannot be decoded"]);
        output.out.lines().next().unwrap().to_owned()
    };
    assert_eq!(described(&data), described(&file));
    let fingerprint = described(&data).rsplit(' ').next().unwrap().to_owned();
    assert!(packed.out.trim_end().ends_with(&fingerprint), "{}", packed.out);
    let weights = |data: &Path, name: &str| {
        let run = temp.path().join(name);
        execute(&mut pretrain(data, &run, &["--set", "data.max_bad_share=0.1"])).succeeds();
        assert!(fs::read_to_string(run.join("bad_files.txt")).unwrap().starts_with("class-1/cut.png\t"));
        execute(simclr(&["export"]).arg(&run)).succeeds();
        fs::read(run.join("encoder.safetensors")).unwrap()
    };
    assert!(weights(&data, "a") == weights(&file, "b"), "weights differ");
    // Scaled images are another set.
    let small = execute(simclr(&["pack", "--size", "8", "--data"]).arg(&data).arg("--out").arg(&file));
    assert!(!small.succeeds().out.contains(&fingerprint), "{}", small.out);
    assert!(weights(&data, "c") != weights(&file, "d"), "scaled images gave the same weights");
}

#[test]
fn runs_are_fine_tuned_on_transfer_sets() {
    let temp = tempfile::tempdir().unwrap();
    let (data, run) = (image_folder(&temp.path().join("images"), 40), temp.path().join("run"));
    execute(&mut pretrain(&data, &run, &[])).succeeds();
    let other = image_folder(&temp.path().join("other"), 80);
    let evaluate = |more: &[&str]| {
        let mut command = simclr(&["evaluate", "--set", "eval.draws=1", "--protocols", "transfer-finetune"]);
        command.arg(&run).args(more);
        command
    };
    let without = execute(&mut evaluate(&[]));
    without.refuses(&["no set to fine-tune on"]);
    assert!(without.err.contains("--transfer PATH[:METRIC]"), "{}", without.err);
    let set = format!("{}:mean-per-class", other.display());
    let small = ["steps=4", "batch=16", "rates=0.1,0.01", "decays=1e-3"]
        .map(|key| format!("--set=eval.transfer_finetune.{key}"));
    let small: Vec<&str> = small.iter().map(String::as_str).collect();
    let tuned = execute(&mut evaluate(&[&["--transfer", &set], &small[..]].concat()));
    tuned.succeeds();
    assert!(tuned.err.contains("training 6 of 6: transfer to other, fresh weights"), "{}", tuned.err);
    let text = fs::read_to_string(run.join("results.json")).unwrap();
    let results: serde_json::Value = serde_json::from_str(&text).unwrap();
    let row = &results["transfer"][0];
    let steps = |start: &str| (row[start]["steps"].as_u64(), row[start]["batch"].as_u64());
    assert_eq!((steps("finetuned"), steps("fresh")), ((Some(4), Some(16)), (Some(8), Some(16))), "{row}");
    let decay = row["finetuned"]["weight_decay"].as_f64().unwrap();
    let rate = row["finetuned"]["learning_rate"].as_f64().unwrap();
    assert!((decay * rate - 1e-3).abs() < 1e-12, "{row}");
    let compared = execute(simclr(&["compare"]).arg(&run).arg("--out").arg(temp.path().join("plot.svg")));
    for protocol in ["linear", "fine-tuned", "fresh weights"] {
        assert!(compared.out.lines().any(|line| line.contains(protocol)), "{}", compared.out);
    }
}

/// A section [eval] of a file, overridden by --set; both are in the results. Replaced flags name their keys.
#[test]
fn evaluation_options_come_from_a_file_and_replaced_flags_are_refused() {
    let temp = tempfile::tempdir().unwrap();
    let (data, run) = (image_folder(&temp.path().join("images"), 40), temp.path().join("run"));
    execute(&mut pretrain(&data, &run, &["--epochs", "1"])).succeeds();
    let file = temp.path().join("eval.toml");
    fs::write(&file, "[eval]\ndraws = 2\nknn_k = 3\nlabels_per_class = [2]\n").unwrap();
    let evaluate =
        |more: &[&str]| execute(simclr(&["evaluate"]).arg(&run).arg("--config").arg(&file).args(more));
    evaluate(&["--set", "eval.draws=1"]).succeeds();
    let text = fs::read_to_string(run.join("results.json")).unwrap();
    let results: serde_json::Value = serde_json::from_str(&text).unwrap();
    let options = &results["options"];
    assert_eq!((options["draws"].as_u64(), options["knn_k"].as_u64()), (Some(1), Some(3)), "{options}");
    assert_eq!(options["label_fractions"], serde_json::json!([1.0]));
    for (flag, replacement) in [("--k=5", "--set eval.knn_k=VALUE"), ("--with", "replaced by --protocols")] {
        let refused = evaluate(&[flag, "finetune"]);
        refused.refuses(&["unexpected argument"]);
        refused.hints(replacement);
    }
    let unknown = evaluate(&["--set", "eval.drawz=1"]);
    unknown.refuses(&["unknown key `eval.drawz`"]);
    unknown.hints("`eval.draws`");
    evaluate(&["--set", "optim.lr=1"]).hints("--weights only");
    let help = execute(&mut simclr(&["evaluate", "--help"]));
    assert!(help.succeeds().out.contains("eval.draws") && help.out.contains("[default: 5]"), "{}", help.out);
}
