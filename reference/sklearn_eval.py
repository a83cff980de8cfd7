"""Is an evaluation what scikit-learn makes of the same features? A run that `simclr evaluate` has judged, once more.

Run by hand with Python 3, numpy, scikit-learn 1.x and safetensors, from the root of the repository:
    target/release/simclr evaluate RUN --data DATA
    target/release/simclr embed RUN --data DATA --out h.npy
    target/release/simclr embed RUN --data DATA --out pixels.npy --pixels
    python reference/sklearn_eval.py RUN h.npy [--pixels pixels.npy] [--draws N]
DATA must be a folder with the parts train and test and a folder for each class. The labelled images of each draw, the
neighbours, the temperature and the regularisation are those that the evaluation names in RUN; its answers are compared
image by image. With --pixels the raw-pixel row too.
"""

import argparse
import json
import pathlib

import numpy as np
from safetensors.numpy import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier


def split_of(paths, features, part):
    """Features and class names of a part, in the order of the table."""
    rows = [i for i, path in enumerate(paths) if path.split("/")[0] == part]
    return [paths[i] for i in rows], features[rows], np.array([paths[i].split("/")[1] for i in rows])


def answers(run, cell, at):
    stored = load_file(run / cell["predictions"][at])
    return stored["predicted"].astype(np.int64), stored["truth"].astype(np.int64)


def report(what, cell, at, ours, theirs, truth):
    ours_acc, theirs_acc = 100 * (ours == truth).mean(), 100 * (theirs == truth).mean()
    print(f"{what:<42} ours {ours_acc:6.2f}  scikit-learn {theirs_acc:6.2f}  difference {ours_acc - theirs_acc:+.2f}"
          f"  other answers {(ours != theirs).sum()} of {len(truth)}", flush=True)
    assert abs(ours_acc - 100 * cell["accuracies"][at]) < 1e-6, "results.json and the answers agree"
    return abs(ours_acc - theirs_acc)


def unclear(bank, labels, query, k, temperature, classes):
    """Whether rounding decides: a neighbour on the edge of the k, or two classes with equal votes."""
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    similarity = unit(bank) @ unit(query)
    order = np.argsort(-similarity, kind="stable")[: k + 1]
    edge = similarity[order[k - 1]] - similarity[order[k]] < 1e-6
    weights = np.exp(similarity[order[:k]] / temperature) if temperature else np.ones(k)
    votes = np.sort(np.bincount(labels[order[:k]], weights, classes))
    return edge or votes[-1] - votes[-2] < 1e-5 * votes[-1]


def knn(run, results, row, bank, y, test):
    k, temperature, classes = results["protocol"]["knn_k"], results["protocol"]["knn_temperature"], results["data"]["classes"]
    weighted = lambda d: np.exp((1 - d) / temperature)
    for column, weights, t in [("knn", weighted, temperature), ("knn_plain", "uniform", None)]:
        ours, truth = answers(run, row[column], 0)
        model = KNeighborsClassifier(n_neighbors=k, metric="cosine", weights=weights, algorithm="brute")
        theirs = model.fit(bank.astype(np.float64), y).predict(test.astype(np.float64))
        report(f"{row['name']}, {column}, k = {k}", row[column], 0, ours, theirs, truth)
        wrong = [i for i in np.flatnonzero(ours != theirs)
                 if not unclear(bank.astype(np.float64), y, test[i].astype(np.float64), k, t, classes)]
        print(f"{'':<42} of these not ties: {len(wrong)}", flush=True)
        assert not wrong, "kNN must equal scikit-learn's, ties aside"


def linear(run, row, names, bank, y, test, draws):
    worst = 0.0
    position = {name: i for i, name in enumerate(names)}
    for cell in row["by_labels"]:
        for at, lam in list(enumerate(cell["lambdas"]))[:draws]:
            rows = np.arange(len(names))
            if cell["share"] < 1:
                listed = (run / "evaluation/labels" / f"{100 * cell['share']:g}pct-{at}.txt").read_text().split("\n")
                rows = np.array([position[name] for name in listed if name])
            x = bank[rows].astype(np.float64)
            mean, std = x.mean(0), x.std(0)
            scale = np.where(std > np.abs(mean) * 1e-9 + 1e-12, 1 / np.where(std > 0, std, 1), 0)
            model = LogisticRegression(C=1 / (len(rows) * lam), solver="lbfgs", tol=1e-6, max_iter=20_000)
            model.fit((x - mean) * scale, y[rows])
            ours, truth = answers(run, cell, at)
            theirs = model.predict((test - mean) * scale)
            what = f"{row['name']}, {100 * cell['share']:g} % of labels, {at}, lambda {lam:.0e}"
            worst = max(worst, report(what, cell, at, ours, theirs, truth))
    return worst


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=pathlib.Path)
    parser.add_argument("features", type=pathlib.Path)
    parser.add_argument("--pixels", type=pathlib.Path)
    parser.add_argument("--draws", type=int, default=5)
    arguments = parser.parse_args()
    run = arguments.run
    results = json.loads((run / "results.json").read_text())
    rows = {row["name"]: row for row in results["rows"]}
    paths = pathlib.Path(f"{arguments.features}.paths.txt").read_text().splitlines()
    h = np.load(arguments.features)
    names, bank, classes = split_of(paths, h, "train")
    _, test, _ = split_of(paths, h, "test")
    y = np.unique(classes, return_inverse=True)[1]
    assert len(names) == results["data"]["train_images"] and len(test) == results["data"]["test_images"]
    knn(run, results, rows["trained h"], bank, y, test)
    worst = linear(run, rows["trained h"], names, bank, y, test, arguments.draws)
    if arguments.pixels:
        raw = np.load(arguments.pixels)
        bank, test = split_of(paths, raw, "train")[1], split_of(paths, raw, "test")[1]
        knn(run, results, rows["raw pixels"], bank, y, test)
        worst = max(worst, linear(run, rows["raw pixels"], names, bank, y, test, arguments.draws))
    print(f"largest difference of the linear classifiers: {worst:.2f} points (bar: 0.2)")
    assert worst <= 0.2


if __name__ == "__main__":
    main()
