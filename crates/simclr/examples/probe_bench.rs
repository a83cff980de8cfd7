//! kNN and linear classifier on features in `.npy` files, seconds and accuracy: the lines of the peer's `probe.py`.
//!
//! usage: `probe_bench FOLDER L2` (FOLDER: train.npy, train_labels.npy, test.npy, test_labels.npy)
#![allow(clippy::print_stdout, reason = "a benchmark prints")]

use std::{error::Error, path::Path, time::Instant};

use simclr::{
    eval::{options::Lbfgs, probes::linear::fit_with},
    knn::{accuracy, knn_predict},
};
use tch::{Kind, Tensor};

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<_> = std::env::args().collect();
    let [_, folder, l2] = &words[..] else { return Err("usage: probe_bench FOLDER L2".into()) };
    let read = |name: &str| Tensor::read_npy(Path::new(folder).join(name));
    let (train, test) = (read("train.npy")?.to_kind(Kind::Float), read("test.npy")?.to_kind(Kind::Float));
    let (y, t) = (read("train_labels.npy")?, read("test_labels.npy")?);
    let classes = y.max().int64_value(&[]) + 1;
    let start = Instant::now();
    let found = accuracy(&knn_predict(&train, &y, &test, classes, 20, Some(0.1)), &t);
    print("knn", start, found);
    let start = Instant::now();
    let linear = fit_with(&train, &y, classes, l2.parse()?, &Lbfgs::default());
    print("linear", start, linear.classifier.accuracy(&test, &t));
    Ok(())
}

fn print(what: &str, start: Instant, accuracy: f64) {
    let seconds = start.elapsed().as_secs_f64();
    println!("{}", serde_json::json!({ "what": what, "seconds": seconds, "accuracy": accuracy }));
}
