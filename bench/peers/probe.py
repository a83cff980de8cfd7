"""kNN and logistic regression of scikit-learn on features in .npy files, seconds and accuracy.

usage: probe.py FOLDER (train.npy, train_labels.npy, test.npy, test_labels.npy) L2   needs: scikit-learn, numpy
J = mean cross entropy + L2 / 2 |W|^2, hence scikit-learn's C = 1 / (n L2).
"""
import json, sys, time

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

folder, l2 = sys.argv[1], float(sys.argv[2])
train, y, test, t = (np.load(f"{folder}/{name}.npy") for name in ("train", "train_labels", "test", "test_labels"))
start = time.perf_counter()
knn = KNeighborsClassifier(20, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.1), n_jobs=-1)
accuracy = knn.fit(train, y).score(test, t)
print(json.dumps({"what": "knn", "seconds": time.perf_counter() - start, "accuracy": accuracy}))
start = time.perf_counter()
mean, std = train.mean(0), train.std(0)
linear = LogisticRegression(C=1 / (len(train) * l2), max_iter=1000, tol=1e-5)
linear.fit((train - mean) / std, y)
accuracy = linear.score((test - mean) / std, t)
print(json.dumps({"what": "linear", "seconds": time.perf_counter() - start, "accuracy": accuracy}))
