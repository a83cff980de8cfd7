//! kNN against scikit-learn's `KNeighborsClassifier(metric="cosine")` (`reference/eval.py`), and its own rules.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up must fail")]

use simclr::{
    data::rng::Key,
    knn::{accuracy, default_k, knn_predict},
};
use tch::{Device, Kind, Tensor};

fn golden(name: &str) -> Tensor {
    // Tests run side by side: one thread each.
    tch::set_num_threads(1);
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/eval.safetensors");
    let mut tensors = Tensor::read_safetensors(path).unwrap().into_iter();
    tensors.find(|(found, _)| found == name).unwrap_or_else(|| panic!("no `{name}`")).1
}

#[test]
fn predictions_equal_those_of_scikit_learn() {
    let (bank, labels, queries) = (golden("train"), golden("train_labels"), golden("test"));
    for k in [1, 7, 20, 400] {
        for (kind, temperature) in [("uniform", None), ("weighted", Some(0.1))] {
            let predicted = knn_predict(&bank, &labels, &queries, 5, k, temperature);
            assert_eq!(predicted, golden(&format!("knn.{k}.{kind}")), "k = {k}, {kind}");
        }
    }
}

#[test]
fn length_of_features_does_not_matter() {
    let (bank, labels, queries) = (golden("train"), golden("train_labels"), golden("test"));
    let scale = Tensor::arange(300, (Kind::Float, Device::Cpu)).unsqueeze(1) + 0.5;
    let plain = knn_predict(&bank, &labels, &queries, 5, 7, Some(0.1));
    assert_eq!(plain, knn_predict(&bank, &labels, &(queries * scale), 5, 7, Some(0.1)));
}

#[test]
fn equal_votes_go_to_the_smallest_label() {
    let bank = Tensor::from_slice(&[1.0f32, 0.1, 1.0, -0.1]).view([2, 2]);
    let query = Tensor::from_slice(&[1.0f32, 0.0]).view([1, 2]);
    for labels in [[3i64, 1], [1, 3]] {
        let predicted = knn_predict(&bank, &Tensor::from_slice(&labels), &query, 4, 2, None);
        assert_eq!(i64::try_from(predicted).unwrap(), 1);
    }
}

#[test]
fn small_temperatures_do_not_overflow_and_large_k_means_all() {
    let bank = Tensor::from_slice(&[1.0f32, 0.0, 0.0, 1.0, 0.0, 0.9]).view([3, 2]);
    let labels = Tensor::from_slice(&[2i64, 0, 0]);
    let query = Tensor::from_slice(&[1.0f32, 0.2]).view([1, 2]);
    let sharp = knn_predict(&bank, &labels, &query, 3, 1000, Some(1e-4));
    assert_eq!(i64::try_from(sharp).unwrap(), 2, "the nearest decides");
    let flat = knn_predict(&bank, &labels, &query, 3, 1000, None);
    assert_eq!(i64::try_from(flat).unwrap(), 0, "all three vote");
}

#[test]
fn results_are_independent_of_blocks() {
    // 5,000 bank rows: queries are split into blocks of 2^25 / 5,000 = 6,710 rows.
    let normals =
        |seed, n: usize| Tensor::from_slice(&Key::weights(seed, 0).stream().normals(4 * n)).view([-1, 4]);
    let bank = normals(0, 5000);
    let labels = Tensor::arange(5000, (Kind::Int64, Device::Cpu)).remainder(7);
    let queries = normals(1, 7000);
    let all = knn_predict(&bank, &labels, &queries, 7, 5, Some(0.1));
    let tail = knn_predict(&bank, &labels, &queries.narrow(0, 6600, 400), 7, 5, Some(0.1));
    assert_eq!(all.size(), [7000]);
    assert_eq!(accuracy(&all.narrow(0, 6600, 400), &tail), 1.0);
    assert_eq!(knn_predict(&bank, &labels, &queries.narrow(0, 0, 0), 7, 5, None).size(), [0]);
}

#[test]
fn default_k_depends_on_the_bank() {
    assert_eq!((default_k(49_999), default_k(50_000)), (20, 200));
}
