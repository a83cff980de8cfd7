"""Goldens of the evaluation: kNN and logistic regression by scikit-learn.

Run once with Python 3, numpy, scikit-learn 1.x and safetensors, from the root of the repository:
    python reference/eval.py
Writes crates/simclr/tests/golden/eval.safetensors; the versions used are in its metadata.
"""

import numpy as np
import sklearn
from safetensors.numpy import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

OUT = "crates/simclr/tests/golden/eval.safetensors"
CLASSES, WIDTH, BANK, TEST = 5, 12, 400, 300
LAMBDAS = (1.0, 1e-2, 1e-4)


def clusters(rng, n):
    """Overlapping clusters with very unequal scales, and one dimension that never changes."""
    centres = np.random.default_rng(1).normal(size=(CLASSES, WIDTH))
    y = rng.integers(0, CLASSES, n)
    x = centres[y] + 1.3 * rng.normal(size=(n, WIDTH))
    x = x * np.logspace(-1, 1, WIDTH) + np.linspace(-3, 3, WIDTH)
    x[:, 4] = 2.5
    return x.astype(np.float32), y.astype(np.int64)


def knn(train, y, test, k, weights):
    model = KNeighborsClassifier(n_neighbors=k, metric="cosine", weights=weights, algorithm="brute")
    return model.fit(train, y).predict(test).astype(np.int64)


def main():
    rng = np.random.default_rng(0)
    (train, y), (test, test_y) = clusters(rng, BANK), clusters(rng, TEST)
    out = {"train": train, "train_labels": y, "test": test, "test_labels": test_y}
    # Cosine distance is 1 - similarity.
    for k in (1, 7, 20, 400):
        out[f"knn.{k}.uniform"] = knn(train, y, test, k, "uniform")
        out[f"knn.{k}.weighted"] = knn(train, y, test, k, lambda d: np.exp((1 - d) / 0.1))
    mean, std = train.astype(np.float64).mean(0), train.astype(np.float64).std(0)
    scale = np.where(std > 1e-6, 1 / np.where(std > 1e-6, std, 1), 0)
    for lam in LAMBDAS:
        # Newton ends at the minimum itself; the lbfgs solver ends where its function value stops changing.
        model = LogisticRegression(C=1 / (BANK * lam), solver="newton-cg", tol=1e-12, max_iter=100_000)
        model.fit((train - mean) * scale, y)
        decision = model.decision_function((test - mean) * scale)
        # Softmax does not see a constant added to all classes: compare decisions centred over the classes.
        out[f"linear.{lam:g}"] = decision - decision.mean(1, keepdims=True)
    save_file(out, OUT, metadata={"sklearn": sklearn.__version__, "numpy": np.__version__})


if __name__ == "__main__":
    main()
