"""Goldens of the weights of UMAP's graph, by umap-learn.

Run once with numpy and umap-learn 0.5: python reference/umap_graph.py
Writes crates/simclr/tests/golden/umap_graph.json: smaller row, larger row, weight. The rows follow from a formula that the test repeats.
"""

import json
import pathlib

import numpy
from umap.umap_ import fuzzy_simplicial_set

row, column = numpy.meshgrid(range(40), range(6), indexing="ij")
h = numpy.sin(0.7 * row * (column + 1) + column).astype(numpy.float32).astype(numpy.float64)
unit = h / numpy.linalg.norm(h, axis=1, keepdims=True)
distances = numpy.clip(1 - unit @ unit.T, 0, None)
numpy.fill_diagonal(distances, 0)
graph, _, _ = fuzzy_simplicial_set(distances, 15, numpy.random.RandomState(0), "precomputed")
graph = graph.tocoo()
weights = sorted((int(a), int(b), round(float(w), 6)) for a, b, w in zip(graph.row, graph.col, graph.data) if a < b)
folder = pathlib.Path(__file__).parent.parent / "crates/simclr/tests/golden"
(folder / "umap_graph.json").write_text(json.dumps(weights, separators=(",", ":")) + "\n")
