"""Us and the peers on the same work, in turns, on this machine: prints ratios with their spread, writes raw numbers.

usage: PEERS=folder-of-peer-scripts PEER_PYTHON=python bench/bench.py [SECTION ...] [--rounds 5] [--more] [--images FOLDER]
sections: step step-small views decode epoch-small epoch-resnet18 epoch-resnet50 probe   (all of these, where none is named)
on a GPU: gpu-step-resnet18 gpu-step-resnet50 gpu-epoch-resnet18 gpu-epoch-resnet50   (bench/gpu.sh prepares them)

PEER_PYTHON has torch, torchvision, lightly and scikit-learn. PEERS holds `step.py` and `views.py`; the other peers are in
bench/peers. `--images` names a class folder of small JPEGs (CIFAR-10); without it random ones are made, which cost the same.
`--rounds 0` measures nothing and writes the table again. Every figure is one process, so that nothing is carried over; peers and we take turns, so that whatever else the machine does
falls on all alike. A ratio is the median over rounds of (peer time / our time); its spread is that of the rounds.
"""
import argparse, json, os, pathlib, platform, re, shutil, statistics, subprocess, sys, threading, time

ROOT = pathlib.Path(__file__).resolve().parent.parent
HERE, EXAMPLES, WORK = ROOT / "bench", ROOT / "target/release/examples", ROOT / "datasets/bench"
PYTHON, PEERS = os.environ.get("PEER_PYTHON", sys.executable), pathlib.Path(os.environ.get("PEERS", ROOT.parent / "shared/peers"))
CORES = os.cpu_count()


def tree(pid):
    """A process and all below it."""
    children = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            children += map(int, open(f"/proc/{pid}/task/{task}/children").read().split())
    except OSError:
        pass
    return [pid] + [p for child in children for p in tree(child)]


def resident(pids):
    """Bytes of memory of processes together, shared pages counted once (PSS)."""
    total = 0
    for pid in pids:
        try:
            total += int(re.search(r"^Pss:\s+(\d+)", open(f"/proc/{pid}/smaps_rollup").read(), re.M)[1]) * 1024
        except (OSError, TypeError):
            pass
    return total


def run(command, pin=None, env=None):
    """Runs to the end; its standard output and the peak memory of its process tree."""
    full = (["taskset", "-c", pin] if pin else []) + [str(word) for word in command]
    process = subprocess.Popen(full, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, **(env or {})})
    peak, ended = [0], threading.Event()

    def watch():
        while not ended.wait(0.2):
            peak[0] = max(peak[0], resident(tree(process.pid)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    out, err = process.communicate()
    ended.set()
    watcher.join()
    if process.returncode != 0:
        sys.exit(f"error: {' '.join(full)} ended with {process.returncode}:\n{err[-2000:]}")
    return out, peak[0]


def photos(count=64):
    """500x375 JPEGs, photo-like: smooth colours with fine noise."""
    folder = WORK / f"photos-{count}"
    if not folder.exists():
        script = """
import sys, pathlib, numpy as np
from PIL import Image
out, count = pathlib.Path(sys.argv[1]), int(sys.argv[2]); rng = np.random.default_rng(0)
for i in range(count):
    low = Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)).resize((500, 375), Image.BICUBIC)
    image = np.clip(np.asarray(low) + rng.normal(0, 6, (375, 500, 3)), 0, 255).astype(np.uint8)
    d = out / f"class{i % 4}"; d.mkdir(parents=True, exist_ok=True); Image.fromarray(image).save(d / f"{i:04}.jpg", quality=92)
"""
        partial = folder.with_suffix(".partial")
        run([PYTHON, "-c", script, partial, count])
        partial.rename(folder)
    return folder


def small(source, count):
    """`count` JPEGs of 32 x 32 px: the first of every class of `source`, or random ones."""
    folder = WORK / f"small-{count}"
    if folder.exists():
        return folder
    partial = WORK / f"small-{count}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    if source:
        classes = sorted(d for d in pathlib.Path(source).iterdir() if d.is_dir())
        for d in classes:
            (partial / d.name).mkdir(parents=True)
            for file in sorted(d.iterdir())[: count // len(classes)]:
                shutil.copy(file, partial / d.name)
    else:
        script = """
import sys, pathlib, numpy as np
from PIL import Image
out, count = pathlib.Path(sys.argv[1]), int(sys.argv[2]); rng = np.random.default_rng(0)
for i in range(count):
    low = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).resize((32, 32), Image.BICUBIC)
    d = out / f"class{i % 10}"; d.mkdir(parents=True, exist_ok=True); low.save(d / f"{i:05}.jpg", quality=95)
"""
        run([PYTHON, "-c", script, partial, count])
    partial.rename(folder)
    return folder


# One function a section: a list of (label, {who: seconds}, {who: bytes}) per round. "ours" is us.

def steps(label, kinds, views=256, encoder="resnet18-cifar", runs=5):
    seconds, memory, flags = {}, {}, ["--encoder", encoder, "--views", views, "--runs", runs]
    commands = {"ours": [EXAMPLES / "step_bench", "bf16", *flags]}
    peer = HERE / "peers/step_conv_c3.py" if encoder == "conv-c3" else PEERS / "step.py"
    commands |= {kind: [PYTHON, peer, kind, *flags] for kind in kinds}
    for who, command in commands.items():
        out, memory[who] = run(command, env={"OMP_NUM_THREADS": str(CORES)})
        seconds[who] = views / float(re.search(r"([\d.]+) views/s", out)[1])
    return [(label, seconds, memory)]


def step(_):
    return steps("one step, ResNet-18, 32 px, 256 views", ("default", "tuned", "compiled"))


def step_small(_):
    return steps("one step, conv-c3, 32 px, 512 views", ("default", "tuned", "compiled"), 512, "conv-c3", 20)


def gpu_step_resnet18(_):
    return steps("one step on a GPU, ResNet-18, 32 px, 1,024 views", ("tuned", "compiled"), 1024, runs=50)


def gpu_step_resnet50(_):
    return steps("one step on a GPU, ResNet-50, 224 px, 256 views", ("tuned", "compiled"), 256, "resnet50", 20)


def views(_):
    files = sorted(photos().rglob("*.jpg"))[:16]  # the same for both: how a JPEG was written decides how long it takes to read
    ours, _ = run([EXAMPLES / "views_bench", *files], pin="0")
    peer, _ = run([PYTHON, PEERS / "views.py", *files], pin="0")
    rows = []
    for what in ("32 px", "224 px from JPEG"):
        rates = [float(re.search(rf"{what}: (\d+)", text)[1]) for text in (ours, peer)]
        rows.append((f"two views, {what}, one core", {"ours": 1 / rates[0], "lightly": 1 / rates[1]}, {}))
    return rows


def decode(options):
    rows = []
    for what, folder in (("32 px", small(options.images, 2560)), ("500x375", photos())):
        files = sorted(folder.rglob("*.jpg"))[:64]
        ours, _ = run([EXAMPLES / "decode_bench", *files], pin="0")
        peer, _ = run([PYTHON, HERE / "peers/decode.py", *files], pin="0")
        micros, rate = float(re.search(r"zune-jpeg\)\s+([\d.]+) us", ours)[1]), float(re.search(r"(\d+) files/s", peer)[1])
        rows.append((f"decode a JPEG, {what}, one core", {"ours": micros / 1e6, "pillow": 1 / rate}, {}))
    return rows


EPOCHS = 3  # the first warms up (and compiles), the others count


class Busy:
    """The share of time in which the GPU worked, by nvidia-smi; samples with their times."""

    def __enter__(self):
        query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "200"]
        self.process, self.samples = subprocess.Popen(query, stdout=subprocess.PIPE, text=True), []
        self.thread = threading.Thread(target=lambda: [self.samples.append((time.time(), float(line))) for line in self.process.stdout])
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.thread.join()

    def last(self, seconds):
        """Mean over the last `seconds` before the end, less a second for the process to end."""
        end = self.samples[-1][0] - 1
        taken = [share for at, share in self.samples if end - seconds <= at <= end]
        return sum(taken) / len(taken) if taken else float("nan")


def gpu_epoch(folder, encoder, size, batch, label):
    """Whole epochs on the GPU against eager AMP and torch.compile, each with as many loader workers as there are cores."""
    with Busy() as busy:
        watch = lambda who, took: print(f"    {who}: GPU busy {busy.last(took):.0f} %", flush=True)
        waiting = {"ours, each loss waited for": {"train.read_loss": "each-step"}}
        rows = epoch(folder, encoder, size, batch, label, ("amp", "tuned"), watch, waiting)
    return rows


def gpu_epoch_resnet18(options):
    return gpu_epoch(small(options.images, 51200), "resnet18", 32, 512, "an image of an epoch on the GPU, ResNet-18, 32 px JPEG folder")


def gpu_epoch_resnet50(_):
    return gpu_epoch(photos(4096), "resnet50", 224, 256, "an image of an epoch on the GPU, ResNet-50, 224 px JPEG folder")


def epoch(folder, encoder, size, batch, label, kinds=("default", "tuned"), watch=lambda who, took: None, variants={}):
    """`variants`: names and further settings of runs of ours that count as peers."""
    seconds, memory = {}, {}
    run_folder = WORK / "run"
    small_side = size <= 32
    sets = {"encoder.name": encoder, "train.image_size": size, "train.batch": batch, "train.epochs": EPOCHS, "train.knn_every": 0,
            "augment.color": 0.5 if small_side else 1.0, "augment.blur": 0.0 if small_side else 0.5, "loss.temperature": 0.5,
            "optim.kind": "sgd", "optim.lr": 0.06, "optim.scaling": "none", "optim.weight_decay": 5e-4, "optim.warmup_epochs": 0,
            "train.checkpoint_minutes": 1000, "train.health_every": 1000000}
    for who, more in {"ours": {}, **variants}.items():
        shutil.rmtree(run_folder, ignore_errors=True)
        flags = [word for key, value in {**sets, **more}.items() for word in ("--set", f"{key}={value}")]
        _, memory[who] = run([ROOT / "target/release/simclr", "pretrain", "--data", folder, "--run", run_folder, *flags])
        lines = [json.loads(line) for line in open(run_folder / "metrics.jsonl")]
        times = [line["time"] for line in lines if "loss" in line]
        per_epoch = len(times) // EPOCHS
        ends = times[per_epoch - 1 :: per_epoch]
        seconds[who] = statistics.median(b - a for a, b in zip(ends, ends[1:])) / (per_epoch * batch)
        watch(who, ends[-1] - ends[0])
    for kind in kinds:
        out, memory[kind] = run([PYTHON, HERE / "peers/epoch.py", kind, folder, "--encoder", encoder, "--size", size, "--batch", batch, "--epochs", EPOCHS])
        ran = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        seconds[kind] = statistics.median(e["seconds"] / e["images"] for e in ran[1:])
        watch(kind, sum(e["seconds"] for e in ran[1:]))
    return [(label, seconds, memory)]


def epoch_small(options):
    return epoch(small(options.images, 10240), "conv-c3", 32, 256, "an image of an epoch, conv-c3, 32 px JPEG folder")


def epoch_resnet18(options):
    return epoch(small(options.images, 640), "resnet18", 32, 128, "an image of an epoch, ResNet-18, 32 px JPEG folder")


def epoch_resnet50(_):
    return epoch(photos(), "resnet50", 224, 32, "an image of an epoch, ResNet-50, 224 px JPEG folder")


def probe(_):
    folder = WORK / "features"
    if not folder.exists():
        script = """
import sys, pathlib, numpy as np
out = pathlib.Path(sys.argv[1]); out.mkdir(parents=True); rng = np.random.default_rng(0)
centres = rng.normal(0, 0.25, (10, 128))
for name, n in (("train", 10000), ("test", 5000)):
    y = rng.integers(0, 10, n); x = np.maximum(centres[y] + rng.normal(0, 1, (n, 128)) + 0.5, 0)
    np.save(out / f"{name}.npy", x.astype("float32")); np.save(out / f"{name}_labels.npy", y.astype("int64"))
"""
        run([PYTHON, "-c", script, WORK / "features.partial"])
        (WORK / "features.partial").rename(folder)
    found = {}
    for who, command in (("ours", [EXAMPLES / "probe_bench"]), ("scikit-learn", [PYTHON, HERE / "peers/probe.py"])):
        out, _ = run([*command, folder, 1e-3])
        found[who] = {line["what"]: line for line in map(json.loads, out.splitlines())}
    names = {"knn": "kNN, 10,000 x 128 features, 5,000 queries", "linear": "logistic regression, 10,000 x 128 features"}
    for what in names:
        accuracies = {who: f"{100 * lines[what]['accuracy']:.2f}" for who, lines in found.items()}
        print(f"    {what} accuracy: {accuracies}")
    return [(name, {who: lines[what]["seconds"] for who, lines in found.items()}, {}) for what, name in names.items()]


SECTIONS = {"step": step, "step-small": step_small, "views": views, "decode": decode, "epoch-small": epoch_small, "epoch-resnet18": epoch_resnet18,
            "epoch-resnet50": epoch_resnet50, "probe": probe}
ON_GPU = {"gpu-step-resnet18": gpu_step_resnet18, "gpu-step-resnet50": gpu_step_resnet50,
          "gpu-epoch-resnet18": gpu_epoch_resnet18, "gpu-epoch-resnet50": gpu_epoch_resnet50}


def table(results):
    """Markdown: a row per piece of work, ratios as median (lowest to highest round)."""
    lines = ["| work | ours | against | ratio (spread, rounds) | memory, ours / theirs |", "| --- | --- | --- | --- | --- |"]
    for label, rounds in results.items():
        ours = statistics.median(r["seconds"]["ours"] for r in rounds)
        for who in rounds[0]["seconds"]:
            if who == "ours":
                continue
            ratios = [r["seconds"][who] / r["seconds"]["ours"] for r in rounds]
            memory = ""
            if who in rounds[0]["memory"]:
                mine, theirs = (statistics.median(r["memory"][w] for r in rounds) / 2**30 for w in ("ours", who))
                memory = f"{mine:.2f} / {theirs:.2f} GiB"
            unit = f"{ours:.3g} s" if ours >= 1 else f"{1e3 * ours:.3g} ms" if ours >= 1e-3 else f"{1e6 * ours:.3g} us"
            lines.append(f"| {label} | {unit} | {who} | {statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f}, {len(ratios)}) | {memory} |")
    return "\n".join(lines)


def machine():
    model = re.search(r"model name\s*: (.*)", open("/proc/cpuinfo").read())
    gpu = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True) if shutil.which("nvidia-smi") else None
    return {"date": time.strftime("%F %T UTC", time.gmtime()), "cpu": model[1] if model else platform.machine(), "cores": CORES,
            "gpu": gpu.stdout.strip() if gpu else None,
            "commit": subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=ROOT).stdout.strip()}


def readme(text):
    """Puts the table between the marks of README.md."""
    path = ROOT / "README.md"
    old = path.read_text()
    new = re.sub(r"(<!-- bench -->\n).*?(<!-- /bench -->)", lambda m: m[1] + text + "\n" + m[2], old, flags=re.S)
    if new != old:
        path.write_text(new)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("sections", nargs="*", choices=[*SECTIONS, *ON_GPU, []], default=[])
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--images")
    p.add_argument("--more", action="store_true", help="add rounds to those kept, where machine and commit are the same")
    p.add_argument("--out", default=HERE / "results/bench.json", type=pathlib.Path)
    options = p.parse_args()
    sections = options.sections or list(SECTIONS)
    WORK.mkdir(parents=True, exist_ok=True)
    kept = json.loads(options.out.read_text()) if options.out.exists() else {"sections": {}}
    for section in sections:
        before = kept["sections"].get(section, {}) if options.more else {}
        same = before and all(before["machine"][key] == value for key, value in machine().items() if key != "date")
        results, done = (before["results"], before["rounds"]) if same else ({}, 0)
        for number in range(done + 1, done + options.rounds + 1):
            print(f"{section}: round {number} of {done + options.rounds}", flush=True)
            for label, seconds, memory in {**SECTIONS, **ON_GPU}[section](options):
                results.setdefault(label, []).append({"seconds": seconds, "memory": memory})
            kept["sections"][section] = {"machine": machine(), "rounds": number, "results": results}
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(kept, indent=1) + "\n")
        print(table(results), flush=True)
    if options.out.name != "bench.json":
        return  # the README shows this machine's
    every = {label: rounds for section in SECTIONS if section in kept["sections"] for label, rounds in kept["sections"][section]["results"].items()}
    readme(table(every))


main()
