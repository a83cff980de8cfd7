//! All results of a run, one file per data set, checkpoint and configuration: `results/NAME-FINGERPRINT-DIGEST.json`.
//! `results.json` is a copy of the newest.

use std::{
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde_json::json;

use super::results::Results;
use crate::{CheckpointError, EvalError, checkpoint::write_atomically, train::RunFolder};

/// Writes `results` as the newest of `run`; replaces only results of the same weights, images and configuration.
pub(crate) fn write(run: &RunFolder, results: &Results) -> Result<(), EvalError> {
    keep_earlier(run)?;
    let json =
        serde_json::to_vec_pretty(results).map_err(|error| EvalError::encoding("results.json", error))?;
    put(run, &file_name(results), &json)?;
    Ok(write_atomically(&run.results_file(), &json)?)
}

/// Adds a `results.json` of an earlier version to the history.
fn keep_earlier(run: &RunFolder) -> Result<(), EvalError> {
    let newest = run.results_file();
    if !newest.exists() {
        return Ok(());
    }
    let bytes = fs_err::read(&newest)?;
    let name = match serde_json::from_slice::<Results>(&bytes) {
        Ok(results) => file_name(&results),
        Err(_) => format!("earlier-{}.json", short(&bytes)),
    };
    if run.results_history().join(&name).exists() { Ok(()) } else { put(run, &name, &bytes) }
}

fn put(run: &RunFolder, name: &str, json: &[u8]) -> Result<(), EvalError> {
    fs_err::create_dir_all(run.results_history())?;
    Ok(write_atomically(&run.results_history().join(name), json)?)
}

/// The name of the data set, the fingerprint of its training part and a digest of all other dependencies.
fn file_name(results: &Results) -> String {
    let data = &results.data;
    let plain = |c: char| if c.is_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let set: String = data_name(results).chars().map(plain).take(64).collect();
    let rest = json!([
        data.test_fingerprint,
        data.train_content,
        data.test_content,
        results.run.weights,
        results.run.checkpoint,
        results.protocol,
        results.options,
    ]);
    format!("{set}-{}-{}.json", data.train_fingerprint, short(rest.to_string().as_bytes()))
}

/// Last component of the path of the images.
pub(crate) fn data_name(results: &Results) -> String {
    let name = Path::new(&results.data.path).file_name();
    name.map_or("data".into(), |name| name.to_string_lossy().into_owned())
}

fn short(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex()[..16].to_owned()
}

/// All results of `run`, the newest first.
///
/// # Errors
/// A run without results, or with results of another layout.
pub(crate) fn read(run: &RunFolder) -> Result<Vec<Results>, EvalError> {
    let newest = run.results_file();
    if !newest.exists() {
        return Err(EvalError::NotEvaluated { run: run.path().to_owned() });
    }
    let mut all = vec![parsed(&newest)?];
    for file in newest_first(run)? {
        // Files of earlier versions stay, unread.
        let Ok(results) = parsed(&file) else { continue };
        if results != all[0] {
            all.push(results);
        }
    }
    Ok(all)
}

fn parsed(file: &Path) -> Result<Results, EvalError> {
    Ok(serde_json::from_slice(&fs_err::read(file)?).map_err(|error| CheckpointError::Damaged {
        path: file.to_owned(),
        reason: format!("not results of this version: {error}; evaluate the run again"),
    })?)
}

fn newest_first(run: &RunFolder) -> Result<Vec<PathBuf>, EvalError> {
    let folder = run.results_history();
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let mut files: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in fs_err::read_dir(folder)? {
        let entry = entry?;
        if entry.path().extension().is_some_and(|extension| extension == "json") {
            files.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    files.sort();
    Ok(files.into_iter().rev().map(|(_, path)| path).collect())
}
