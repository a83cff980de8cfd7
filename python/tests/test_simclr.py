"""The interface against the program at SIMCLR_PROGRAM, or that of the installed wheel."""

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import warnings
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np
import PIL.Image

import simclr
from simclr import SimclrError, _program

SIDE = 16
SETTINGS = {"train.knn_every": 0, "augment.crop_scale": [0.3, 1.0], "augment.blur": 0.0}
FLAGS = {"epochs": 1, "batch": 16, "encoder": "conv-c3", "image_size": SIDE, "device": "cpu"}


def stripes(count, dtype=np.uint8, channels=3):
    """Two classes: horizontal and vertical stripes of random period, phase and colour."""
    random = np.random.default_rng(1)
    images = []
    for index in range(count):
        wave = np.sin(np.arange(SIDE) * random.uniform(0.5, 2) + random.uniform(0, 6))[:, None, None]
        image = np.broadcast_to(wave if index % 2 else wave.swapaxes(0, 1), (SIDE, SIDE, channels))
        largest = np.iinfo(dtype).max if np.dtype(dtype).kind != "f" else 1
        images.append((largest * (0.5 + 0.4 * image * random.uniform(0.3, 1, channels))).astype(dtype))
    return np.stack(images)


class Simclr(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)
        cls.root = Path(cls.folder.name)
        cls.images = stripes(64)
        cls.set = cls.root / "set"
        cls.set.mkdir()
        for index, image in enumerate(cls.images):
            PIL.Image.fromarray(image).save(cls.set / f"{index:03}.png")
        cls.log = io.StringIO()
        with redirect_stderr(cls.log):
            cls.encoder = simclr.pretrain(cls.set, cls.root / "run", settings=SETTINGS, **FLAGS)
        cls.h, cls.paths = cls.encoder.embed(cls.set, paths=True)

    def pixels(self, images):
        """What the encoder of the run sees, [n, C * H * W]."""
        with tempfile.TemporaryDirectory() as folder:
            files = simclr._images.write(images, Path(folder))
            out = Path(folder, "pixels.npy")
            _program.run(["embed", str(self.encoder.run), "--pixels", "--data", folder, "--out", str(out)], progress=False)
            pixels = np.load(out)
        self.assertEqual(len(pixels), len(files))
        return pixels

    def test_a_run_reports_its_progress_and_keeps_its_settings(self):
        self.assertIn("step 4/4", self.log.getvalue())
        config = json.loads((self.root / "run" / "plan.json").read_text())["config"]
        self.assertEqual((config["augment"]["blur"], config["train"]["batch"]), (0.0, 16))
        np.testing.assert_allclose(config["augment"]["crop_scale"], [0.3, 1.0], rtol=1e-6)

    def test_a_set_gives_a_row_and_a_path_an_image(self):
        self.assertEqual((self.h.shape, self.h.dtype), ((64, 128), np.float32))
        self.assertEqual(self.paths, [f"{index:03}.png" for index in range(64)])
        self.assertGreater(np.ptp(self.h, axis=0).max(), 0)

    def test_images_of_all_kinds_give_the_same_rows_in_the_order_given(self):
        order = [5, 3, 60, 3]
        files = [self.set / f"{index:03}.png" for index in order]
        opened = [PIL.Image.open(file) for file in files]
        for images in (files, [str(file) for file in files], opened, [self.images[i] for i in order], self.images[order]):
            np.testing.assert_array_equal(simclr.embed(self.encoder.run, images), self.h[order])
        _, paths = self.encoder.embed(files, paths=True)
        self.assertEqual(paths, [str(file) for file in files])
        _, paths = simclr.embed(self.encoder.run, self.images[order], paths=True, batch=2, threads=1)
        self.assertEqual(paths, ["0", "1", "2", "3"])
        self.assertEqual(self.encoder.embed(opened[0]).shape, (1, 128))

    def test_values_arrive_exactly(self):
        expected = self.images[:3].transpose(0, 3, 1, 2).reshape(3, -1) / np.float32(255)
        np.testing.assert_allclose(self.pixels(self.images[:3]), expected, atol=1e-7)
        gray = self.images[:3, :, :, 0]
        planes = np.repeat(gray.reshape(3, 1, -1), 3, axis=1).reshape(3, -1) / np.float32(255)
        np.testing.assert_allclose(self.pixels(gray), planes, atol=1e-7)
        np.testing.assert_allclose(self.pixels([PIL.Image.fromarray(image) for image in gray]), planes, atol=1e-7)

    def test_arrays_of_sensors_train_with_their_values(self):
        for name, dtype, channels in (("u16", np.uint16, 5), ("i16", np.int16, 2), ("f32", np.float32, 4)):
            with self.subTest(name):
                images = stripes(32, dtype, channels)
                run = self.root / name
                encoder = simclr.pretrain(images, run, settings=SETTINGS, progress=False, **FLAGS)
                self.assertEqual(encoder.embed(images[:7]).shape, (7, 128))
                self.assertEqual(json.loads((run / "plan.json").read_text())["channels"], channels)

    def test_labels_of_images_in_memory_are_evaluated(self):
        labels = ["horizontal" if index % 2 else "vertical" for index in range(64)]
        results = self.encoder.evaluate(self.images, labels, settings={"eval.draws": 1, "eval.label_fractions": [1.0]})
        self.assertEqual(results["data"]["classes"], 2)
        with self.assertRaisesRegex(SimclrError, "63 labels of 64 images"):
            self.encoder.evaluate(self.images, labels[1:])

    def test_a_classifier_of_images_in_memory_predicts_them(self):
        labels = ["horizontal" if index % 2 else 'vertical, "1"' for index in range(64)]
        out = self.root / "stripes.safetensors"
        classifier = simclr.classify(self.encoder.run, self.images, labels, out=out, only="linear", progress=False)
        self.assertEqual(classifier.report["chosen"], "linear")
        found = simclr.Classifier(out, batch=5, threads=1).predict(self.images[10:20])
        self.assertEqual((found.classes, found.probabilities.shape), (sorted(set(labels)), (10, 2)))
        self.assertEqual(found.probabilities.dtype, np.float32)
        np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, atol=1e-6)
        best = [found.classes[column] for column in found.probabilities.argmax(axis=1)]
        self.assertEqual((found.predicted, found.paths), (best, [str(index) for index in range(10)]))
        right = sum(map(str.__eq__, found.predicted, labels[10:20]))
        self.assertGreaterEqual(right, 9, found.predicted)
        of_set = classifier.predict(self.set)
        self.assertEqual(of_set.paths, self.paths)
        np.testing.assert_allclose(of_set.probabilities[10:20], found.probabilities, atol=1e-6)
        with self.assertRaisesRegex(SimclrError, "1 labels of 64 images"):
            simclr.classify(self.encoder.run, self.images, ["a"], progress=False)

    def test_a_run_of_images_in_memory_resumes_with_the_same_images_only(self):
        run = self.root / "resumed"
        simclr.pretrain(self.images, run, settings=SETTINGS, progress=False, **FLAGS)
        weights = (run / "checkpoints").stat()
        self.assertEqual(len(os.listdir(f"{run}.images")), 64)
        simclr.pretrain(self.images, run, settings=SETTINGS, progress=False, resume=True, **FLAGS)
        self.assertEqual((run / "checkpoints").stat().st_mtime_ns, weights.st_mtime_ns)
        for others in (self.images[1:], self.images[::-1]):
            with self.assertRaisesRegex(SimclrError, "holds other images"):
                simclr.pretrain(others, run, settings=SETTINGS, progress=False, resume=True, **FLAGS)

    def test_errors_carry_message_hint_and_exit_code(self):
        with self.assertRaisesRegex(SimclrError, "no such folder") as caught:
            simclr.embed(self.root / "none", self.images)
        self.assertEqual(caught.exception.exit_code, 2)
        self.assertTrue(caught.exception.hint)
        with self.assertRaisesRegex(SimclrError, "bacth"):
            simclr.pretrain(self.set, self.root / "typo", settings={"train.bacth": 1}, progress=False)
        self.assertFalse((self.root / "typo").exists())

    def test_images_that_cannot_be_decoded_are_errors_under_their_names(self):
        cut = self.root / "cut.png"
        whole = (self.set / "000.png").read_bytes()
        cut.write_bytes(whole[: len(whole) // 2])
        with self.assertRaisesRegex(SimclrError, f"image {cut}"):
            self.encoder.embed([self.set / "000.png", cut])
        whole = [self.set / f"{index % 64:03}.png" for index in range(200)]
        with self.assertRaisesRegex(SimclrError, f"1 of 201 images cannot be decoded\n.*image {cut}"):
            self.encoder.embed([*whole, cut])
        mixed = self.root / "mixed"
        mixed.mkdir()
        for index, file in enumerate([*whole, cut]):
            (mixed / f"{index:03}.png").symlink_to(file)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            h, paths = self.encoder.embed(mixed, paths=True)
        self.assertEqual((len(h), len(paths)), (200, 200))
        self.assertEqual(len(caught), 1)
        self.assertIn("200.png", str(caught[0].message))

    def test_images_that_are_none_are_refused(self):
        for images, message in (
            ([], "no images"),
            (self.images[0, 0], "shape"),
            (np.zeros((2, 3, 32, 32), np.uint8), "channels are the last axis"),
            (self.images.astype(np.int64), "int64"),
            (self.images.astype(bool), "bool"),
            ([self.root / "absent.png"], "not a file"),
            ([PIL.Image.new("CMYK", (4, 4))], "mode CMYK"),
            ([3], "type int"),
        ):
            with self.subTest(message), self.assertRaisesRegex(SimclrError, message):
                self.encoder.embed(images)

    def endless(self, name):
        """A Python that trains, after its first step; and the run."""
        run = self.root / name
        flags = FLAGS | {"epochs": 100000}
        code = (
            "import signal, simclr; signal.signal(signal.SIGINT, signal.default_int_handler); "
            f"simclr.pretrain({str(self.set)!r}, {str(run)!r}, settings={SETTINGS!r}, **{flags!r})"
        )
        child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
        self.addCleanup(child.stderr.close)
        next(line for line in child.stderr if line.startswith("step "))
        return child, run

    def test_an_interrupt_leaves_a_checkpoint(self):
        child, run = self.endless("interrupted")
        child.send_signal(signal.SIGINT)
        _, rest = child.communicate(timeout=60)
        self.assertIn("KeyboardInterrupt", rest)
        self.assertTrue(list((run / "checkpoints").iterdir()), rest)

    def test_a_run_does_not_outlive_a_killed_python(self):
        child, run = self.endless("orphan")
        child.kill()
        child.wait()
        until = time.monotonic() + 60
        while not list((run / "checkpoints").iterdir()):
            self.assertLess(time.monotonic(), until, "no checkpoint")
            time.sleep(0.05)

    def test_the_command_is_that_of_the_program(self):
        shown = subprocess.run([sys.executable, "-m", "simclr", "--version"], capture_output=True, text=True, check=True)
        self.assertRegex(shown.stdout, r"^simclr \d+\.\d+\.\d+")
        failed = subprocess.run([sys.executable, "-m", "simclr", "embed"], capture_output=True, text=True)
        self.assertEqual(failed.returncode, 2)


if __name__ == "__main__":
    unittest.main()
