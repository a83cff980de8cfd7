//! `report` and `neighbours` through the binary.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::path::{Path, PathBuf};

use support::{execute, image_folder, pretrain, simclr, stripes};

/// A run on 80 images in four classes, one of which has a name with markup, and a copy of an image under another name and label.
fn made(temp: &Path) -> (PathBuf, PathBuf) {
    let (data, run) = (image_folder(&temp.join("images"), 80), temp.join("run"));
    fs_err::rename(data.join("class-3"), data.join("<b>&'\"x")).unwrap();
    fs_err::copy(data.join("class-0/0004.png"), data.join("class-1/<i>&.png")).unwrap();
    execute(&mut pretrain(&data, &run, &["--set", "train.health_every=1", "train.knn_every=1"])).succeeds();
    (data, run)
}

fn report(run: &Path, data: &Path, out: &Path, more: &[&str]) -> support::Finished {
    let mut command = simclr(&["report", "--threads", "1", "--data"]);
    execute(command.arg(data).arg("--out").arg(out).args(more).arg(run))
}

/// Every opened element is closed, in order; text between the tags. Scripts and styles are skipped.
#[track_caller]
fn text_of(page: &str) -> String {
    const EMPTY: [&str; 4] = ["!doctype", "meta", "br", "!--"];
    let (mut open, mut text, mut rest) = (Vec::new(), String::new(), page);
    while let Some(at) = rest.find('<') {
        text.push_str(&rest[..at]);
        let end = at + rest[at..].find('>').expect("a tag ends");
        let tag = &rest[at + 1..end];
        rest = &rest[end + 1..];
        let name = tag.trim_start_matches('/').split([' ', '\n', '/']).next().unwrap().to_lowercase();
        match () {
            () if EMPTY.contains(&&name[..]) || tag.ends_with('/') => {}
            () if tag.starts_with('/') => assert_eq!(open.pop().as_ref(), Some(&name), "closed: {tag}"),
            () if name == "script" || name == "style" => {
                let end = format!("</{name}>");
                rest = rest.split_once(&end[..]).expect("it is closed").1;
            }
            () => open.push(name),
        }
    }
    assert!(open.is_empty(), "open at the end: {open:?}");
    text + rest
}

#[test]
fn a_page_shows_a_run_and_needs_nothing_else() {
    let temp = tempfile::tempdir().unwrap();
    let (data, run) = made(temp.path());
    let out = temp.path().join("report.html");
    let found = report(&run, &data, &out, &["--duplicates", "0.99999", "--k", "5"]);
    assert!(found.succeeds().out.contains("81 of 81 images, 81 on the map"), "{}", found.out);
    let page = fs_err::read_to_string(&out).unwrap();
    assert!(page.len() < 2_000_000, "{}", page.len());
    for reference in ["http:", "https:", " src=", "@import", "<link"] {
        assert!(!page.contains(reference), "{reference}");
    }
    assert!(page.match_indices("url(").all(|(at, _)| page[at..].starts_with("url(data:image/jpeg;base64,")));
    assert!(!page.contains("<b>&'") && !page.contains("<i>&"), "names are escaped");
    assert!(page.contains("\\u003ci>&.png"), "also in the script");
    let text = text_of(&page);
    for part in [
        "learning",
        "Gradient norm",
        "Online kNN on held-out training images: ",
        "chance",
        "contrastive accuracy, %",
        "81 of 81 images by the first two principal components",
        "A random image of each of 4 of 4 classes",
        "neighbour number 5",
        "The run has not been evaluated.",
        "simclr evaluate ",
        "1.0000",
        "class-1/&lt;i&gt;&amp;.png",
        "These are candidates",
        "fingerprint",
        "differs from SimCLR",
        "&lt;b&gt;&amp;'&quot;x",
    ] {
        assert!(text.contains(part), "{part}");
    }
    // An earlier page is replaced, another file is not.
    report(&run, &data, &out, &["--points", "7", "--images", "50"]).succeeds();
    let page = fs_err::read_to_string(&out).unwrap();
    assert!(text_of(&page).contains("7 of 81 images by the first"));
    assert_eq!(page.matches(" r=\"3\" fill=").count(), 7, "points of the map");
    let maps = [(); 2].map(|()| {
        report(&run, &data, &out, &["--map", "umap"]).succeeds();
        fs_err::read_to_string(&out).unwrap()
    });
    assert!(text_of(&maps[0]).contains("81 of 81 images by UMAP") && maps[0] == maps[1]);
    report(&run, &data, &out, &["--map", "tsne"]).refuses(&["--map", "pca or umap"]);
    fs_err::write(&out, "mine").unwrap();
    report(&run, &data, &out, &[]).refuses(&["report.html"]);
    report(&run, &data, &temp.path().join("x.html"), &["--duplicates", "2"])
        .refuses(&["--duplicates 2: expected"]);
}

#[test]
fn a_page_without_labels_and_with_results_says_so() {
    let temp = tempfile::tempdir().unwrap();
    let (data, run) = (image_folder(&temp.path().join("images"), 60), temp.path().join("run"));
    execute(&mut pretrain(&data, &run, &[])).succeeds();
    let out = temp.path().join("report.html");
    report(&run, &data, &out, &["--labels-from", "none"]).succeeds();
    let text = text_of(&fs_err::read_to_string(&out).unwrap());
    for part in ["no labels", "12 random images", "nothing to compare with", "has not been evaluated"] {
        assert!(text.contains(part), "{part}");
    }
    let mut evaluate =
        simclr(&["evaluate", "--set", "eval.draws=2", "eval.random_inits=1", "--threads", "1", "--data"]);
    execute(evaluate.arg(&data).arg(&run)).succeeds();
    report(&run, &data, &out, &[]).succeeds();
    let text = text_of(&fs_err::read_to_string(&out).unwrap());
    for part in ["trained h", "random-init h", "raw pixels", "100 % of labels"] {
        assert!(text.contains(part), "{part}");
    }
    assert!(!text.contains("has not been evaluated"));
}

#[test]
fn neighbours_of_members_and_of_other_files() {
    let temp = tempfile::tempdir().unwrap();
    let (data, run) = made(temp.path());
    let outside = temp.path().join("outside.png");
    stripes(8, 0).save(&outside).unwrap();
    let member = data.join("class-0/0004.png");
    let mut command = simclr(&["neighbours", "--json", "--k", "3", "--threads", "1", "--data"]);
    let found = execute(
        command
            .arg(&data)
            .arg("--query")
            .args([&member, &outside, Path::new("class-1/0005.png")])
            .arg("--")
            .arg(&run),
    );
    let found: serde_json::Value = serde_json::from_str(&found.succeeds().out).unwrap();
    let near = |query: usize, at: usize| &found[query]["neighbours"][at];
    assert_eq!(found[0]["member"], "class-0/0004.png");
    assert_eq!(near(0, 0)["name"], "class-1/<i>&.png", "the copy is nearest, not the image itself");
    assert!(near(0, 0)["similarity"].as_f64().unwrap() > 0.9999);
    assert!(found[1]["member"].is_null());
    assert_eq!((&near(1, 0)["name"], &near(1, 0)["class"]), (&"class-0/0008.png".into(), &"class-0".into()));
    assert_eq!(found[2]["member"], "class-1/0005.png");
    let falls = |query: usize| {
        (0..2).all(|at| near(query, at)["similarity"].as_f64() >= near(query, at + 1)["similarity"].as_f64())
    };
    assert!((0..3).all(falls) && found[2]["neighbours"].as_array().unwrap().len() == 3);
    let mut command = simclr(&["neighbours", "--threads", "1", "--data"]);
    let text = execute(command.arg(&data).arg("--query").arg(&member).arg("--").arg(&run));
    assert!(text.succeeds().out.contains("(image `class-0/0004.png` of the set, left out)"), "{}", text.out);
    assert_eq!(text.out.lines().count(), 11);
    let mut command = simclr(&["neighbours", "--data"]);
    let missing = execute(command.arg(&data).args(["--query", "nothing.png", "--"]).arg(&run));
    missing.refuses(&["nothing.png", "no such file, and no image of the set has this name"]);
    let text_file = temp.path().join("notes.txt");
    fs_err::write(&text_file, "no image").unwrap();
    let mut command = simclr(&["neighbours", "--data"]);
    let damaged = execute(command.arg(&data).arg("--query").arg(&text_file).arg("--").arg(&run));
    damaged.refuses(&["cannot decode `", "notes.txt`: not a JPEG"]);
}
