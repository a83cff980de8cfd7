//! `simclr views` with another augmentation of the second view, and with operators of the broader augmentation.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use fs_err as fs;
use support::{execute, image_folder, simclr};

#[test]
fn views_show_the_policy_of_each_view() {
    let temp = tempfile::tempdir().unwrap();
    let (data, out) = (image_folder(&temp.path().join("images"), 4), temp.path().join("views.png"));
    let settings = [
        "augment.policy=autoaugment-cifar10",
        "augment.motion_blur=1",
        "augment.equalize=1",
        "augment.second_view.policy=none",
        "augment.second_view.vertical_flip=1",
    ];
    let mut command = simclr(&["views", "--image-size", "32", "--images", "4", "--data"]);
    command.arg(&data).arg("--out").arg(&out).args(settings.iter().flat_map(|text| ["--set", text]));
    let shown = execute(&mut command);
    let note = "note: as in a run, augment.color = 0.5, augment.blur = 0";
    assert!(shown.succeeds().out.contains(note), "{}", shown.out);
    let text = fs::read_to_string(temp.path().join("views.png.json")).unwrap();
    let parameters: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(parameters["augment"]["second_view"]["vertical_flip"], 1.0);
    let rows = parameters["rows"].as_array().unwrap().iter();
    let views: Vec<_> = rows.filter(|row| row["params"].is_object()).collect();
    assert_eq!(views.len(), 4 * 8);
    for row in &views {
        let (params, second) = (&row["params"], row["view"].as_u64().unwrap() % 2 == 1);
        assert!(params["motion_blur"]["length"].as_f64().unwrap() >= 3.0 && params["equalize"] == true);
        assert_eq!(params.get("vertical_flip").is_some(), second, "{row}");
        assert!(!second || params.get("policy").is_none(), "{row}");
    }
    assert!(views.iter().any(|row| row["params"]["policy"].is_array()));
    let mut command = simclr(&["views", "--set", "augment.second_view.blurr=1", "--data"]);
    execute(command.arg(&data).arg("--out").arg(&out))
        .refuses(&["augment.second_view.blurr", "augment.second_view.blur"]);
}
