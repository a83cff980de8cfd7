"""Mean and spread of the arms of bench/convergence.sh: python3 bench/convergence.py FOLDER MINUTES SPLIT"""

import json
import pathlib
import statistics
import sys

folder, minutes, split = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
arms = {}
for file in sorted(folder.glob(f"*-{minutes}-*-{split}.json")):
    arm, seed = file.name.removesuffix(f"-{split}.json").rsplit(f"-{minutes}-", 1)
    row = next(row for row in json.loads(file.read_text())["rows"] if row["name"] == "trained h")
    arms.setdefault(arm, []).append((int(seed), 100 * row["knn"]["mean"], 100 * row["by_labels"][-1]["mean"]))
print(f"{minutes} minutes, evaluated on {split}; kNN k = 200, temperature 0.1; mean +- standard deviation over seeds, in %")
for arm, rows in arms.items():
    figures = []
    for at in (1, 2):
        values = [row[at] for row in rows]
        spread = statistics.stdev(values) if len(values) > 1 else float("nan")
        figures.append(f"{statistics.mean(values):.2f} +- {spread:.2f}")
    print(f"{arm:20} kNN {figures[0]}   linear {figures[1]}   seeds {' '.join(str(row[0]) for row in rows)}")
