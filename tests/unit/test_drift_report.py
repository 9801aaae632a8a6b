import base64
import gzip
import json
import os
import re
import socket

import numpy as np
import pytest
from sklearn.datasets import load_digits

from everfresh.tasks.drift import report
from everfresh.tasks.drift.frame import Frame
from everfresh.tasks.records import ColumnDrift

DIGITS = load_digits()
CLASSES = tuple(str(n) for n in range(10))


def frame(rows, *, invert=False, slices=("scanner",)):
    """A frame of some digits, as a plain nearest-mean classifier would see them."""
    pixels = DIGITS.data[rows] / 16
    if invert:
        pixels = 1 - pixels
    means = np.stack([DIGITS.data[DIGITS.target == n].mean(axis=0) / 16 for n in range(10)])
    scores = -((pixels[:, None, :] - means) ** 2).sum(axis=2)
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    return Frame(
        numerical={
            "brightness": pixels.mean(axis=1),
            "contrast": pixels.std(axis=1),
            "aspect": np.ones(len(pixels)),
            "confidence": probabilities.max(axis=1),
        },
        categorical={
            "prediction": np.array(CLASSES)[probabilities.argmax(axis=1)],
            **{name: np.array([f"{name} {row % 3}" for row in rows], dtype=np.str_) for name in slices},
        },
        probabilities=probabilities,
        embeddings=pixels,
        classes=CLASSES,
        labels=DIGITS.target[rows].astype(np.int64),
        places=(),
    )


def columns_of(path):
    """Evidently's score by column."""
    found = {}
    for metric in json.loads(path.read_text())["metrics"]:
        if "column" in metric["config"]:
            found[metric["config"]["column"]] = metric["value"]
    return found


def drifted(path):
    return next(m for m in json.loads(path.read_text())["metrics"] if "DriftedColumnsCount" in m["metric_name"])["value"][
        "count"
    ]


def unpacked(path):
    packed = re.search(r'<script id="packed"[^>]*>([^<]+)</script>', path.read_text())[1]
    return gzip.decompress(base64.b64decode(packed)).decode()


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
    """Inverted digits against upright ones."""
    folder = tmp_path_factory.mktemp("moved") / "new"
    return report.write_report(frame(np.arange(300)), frame(np.arange(300, 400), invert=True), folder)


class TestReport:
    def test_json_has_the_columns_that_people_read(self, moved):
        expected = {"brightness", "contrast", "confidence", "prediction", "scanner"}
        assert set(columns_of(moved["evidently.json"])) == expected | {f"embedding {n}" for n in (1, 2, 3, 4)}

    def test_a_column_that_never_varies_is_left_out(self, moved):
        assert "aspect" not in columns_of(moved["evidently.json"])

    def test_what_moved_is_found(self, moved):
        scores = columns_of(moved["evidently.json"])
        assert scores["brightness"] < 1e-6
        assert scores["scanner"] > 0.5

    def test_the_page_holds_the_report_and_fetches_nothing(self, moved):
        page = moved["evidently.html"]
        assert page.stat().st_size < 2_000_000
        assert not re.search(r'(src|href)="http', page.read_text())
        html = unpacked(page)
        assert "Dataset Drift is detected" in html
        assert "brightness" in html
        assert not re.search(r'<(script|link)[^>]+(src|href)="', html)

    def test_a_quiet_window_has_no_drifted_column(self, tmp_path):
        order = np.random.default_rng(3).permutation(900)
        files = report.write_report(frame(order[:300]), frame(order[300:400]), tmp_path)
        assert drifted(files["evidently.json"]) == 0
        assert "Dataset Drift is NOT detected" in unpacked(files["evidently.html"])

    def test_nothing_is_sent(self, tmp_path, monkeypatch):
        def refuse(*args, **kwargs):
            raise ConnectionRefusedError("the report reached for the network")

        monkeypatch.delenv("DO_NOT_TRACK", raising=False)
        monkeypatch.setattr(socket.socket, "connect", refuse)
        assert report.write_report(frame(np.arange(60)), frame(np.arange(60, 90)), tmp_path)
        assert os.environ["DO_NOT_TRACK"] == "1"

    @pytest.mark.parametrize("samples", [1, 2, 3])
    def test_a_few_samples_do(self, samples, tmp_path):
        files = report.write_report(frame(np.arange(samples)), frame(np.arange(50, 50 + samples)), tmp_path)
        assert "brightness" in columns_of(files["evidently.json"])

    def test_values_that_are_not_numbers_do_not_break_it(self, tmp_path):
        reference, current = frame(np.arange(40)), frame(np.arange(40, 60))
        reference.numerical["contrast"][:5] = np.nan
        current.numerical["confidence"][0] = np.inf
        current.numerical["brightness"][:] = np.nan
        scores = columns_of(report.write_report(reference, current, tmp_path)["evidently.json"])
        assert {"contrast", "confidence"} <= set(scores)
        assert "brightness" not in scores

    def test_one_class_against_another_is_drift(self, tmp_path):
        reference, current = frame(np.arange(40)), frame(np.arange(40, 80))
        reference.categorical["prediction"][:] = "1"
        current.categorical["prediction"][:] = "7"
        assert columns_of(report.write_report(reference, current, tmp_path)["evidently.json"])["prediction"] < 1e-6

    def test_slices_may_be_many_missing_or_named_like_a_column(self, tmp_path):
        reference, current = frame(np.arange(80), slices=()), frame(np.arange(80, 120))
        for sample in (reference, current):
            sample.categorical["photo id"] = np.array([f"id {n}" for n in range(len(sample))])
            sample.categorical["confidence"] = np.array(["high", "low"] * (len(sample) // 2))
            sample.categorical["target"] = np.array(["a", "b"] * (len(sample) // 2))
        files = report.write_report(reference, current, tmp_path)
        assert {"scanner", "photo id", "confidence", "confidence (slice)", "target"} <= set(columns_of(files["evidently.json"]))
        assert files["evidently.html"].stat().st_size < 2_500_000

    def test_nothing_to_compare_gives_no_report(self, tmp_path):
        sample = frame(np.zeros(5, dtype=int))
        assert report.write_report(sample, sample, tmp_path) == {}
        assert report.write_report(frame(np.arange(5)), frame(np.arange(0)), tmp_path) == {}

    def test_names_and_categories_of_others_are_no_script(self, tmp_path):
        evil = "</script><script>alert(1)</script>"
        reference, current = frame(np.arange(60)), frame(np.arange(60, 90))
        for sample in (reference, current):
            sample.categorical[evil] = np.array([evil, "b"] * (len(sample) // 2))
        files = report.write_report(reference, current, tmp_path, columns=[numerical("brightness")])
        assert evil not in unpacked(files["evidently.html"])

    def test_its_tests_stand_in_the_json(self, moved):
        tests = {t["name"]: t["status"] for t in json.loads(moved["evidently.json"].read_text())["tests"]}
        assert tests["Value Drift for column brightness"] == "FAIL"
        assert tests["Value Drift for column scanner"] == "SUCCESS"

    def test_large_frames_are_tested_too(self, tmp_path):
        files = report.write_report(frame(np.arange(1200)), frame(np.arange(1200, 1300)), tmp_path)
        assert columns_of(files["evidently.json"])["scanner"] > 0.05  # a p-value still, not a distance
        methods = {
            m["config"]["method"] for m in json.loads(files["evidently.json"].read_text())["metrics"] if "column" in m["config"]
        }
        assert methods == {"ks", "chisquare"}

    def test_larger_frames_are_cut_to_the_same_sample(self, tmp_path, monkeypatch):
        monkeypatch.setattr(report, "MAX_ROWS", 200)
        reference, current = frame(np.arange(300)), frame(np.arange(300, 350))
        first, second = (
            report.write_report(reference, current, tmp_path / name, columns=[numerical("brightness")])[name_of_file]
            for name, name_of_file in (("a", "differences.json"), ("b", "differences.json"))
        )
        assert first.read_text() == second.read_text()
        assert json.loads(first.read_text())["rows"] == [200, 50]


def numerical(name, effect=1.0, p_value=0.001):
    return ColumnDrift(name=name, kind="numerical", statistic=0.4, effect=effect, p_value=p_value)
