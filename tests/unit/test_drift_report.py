import base64
import gzip
import io
import json
import os
import re
import socket
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from everfresh.tasks.drift import pictures, report
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


def png(number, *, invert=False):
    pixels = DIGITS.images[number] / 16
    out = io.BytesIO()
    Image.fromarray(((1 - pixels if invert else pixels) * 255).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def size_of(path):
    """Width and height of a whole, small PNG."""
    assert path.stat().st_size < 200_000
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        return image.size


def numerical(name, effect=1.0, p_value=0.001):
    return ColumnDrift(name=name, kind="numerical", statistic=0.4, effect=effect, p_value=p_value)


def categorical(name, effect=0.4):
    return ColumnDrift(name=name, kind="categorical", statistic=effect, effect=effect, p_value=0.001)


class TestColumnsPicture:
    def test_shows_what_moved(self, tmp_path):
        reference, current = frame(np.arange(300)), frame(np.arange(300, 400), invert=True)
        values = {name: (reference.numerical[name], current.numerical[name]) for name in reference.numerical}
        values["P(3)"] = (reference.probabilities[:, 3], current.probabilities[:, 3])
        values["prediction"] = (reference.categorical["prediction"], current.categorical["prediction"])
        drifts = [numerical("brightness", 3.0), categorical("prediction"), numerical("P(3)"), numerical("contrast", 0.1, 0.7)]
        path = pictures.columns_picture(drifts, values, tmp_path / "new" / "columns.png")
        assert size_of(path)[0] == 900
        with Image.open(path) as image:
            colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 20)}
        assert {(0, 114, 178), (213, 94, 0)} <= colours  # both samples are there

    @pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 6, 9])
    def test_any_number_of_columns(self, count, tmp_path):
        values = {f"embedding {n}": (np.arange(20.0), np.arange(7.0) * n) for n in range(count)}
        width, height = size_of(pictures.columns_picture([numerical(name) for name in values], values, tmp_path / "c.png"))
        assert width == 900
        assert height < 900

    @pytest.mark.parametrize(
        ("ours", "theirs"),
        [
            (np.ones(5), np.ones(3)),
            (np.ones(1), np.zeros(1)),
            (np.full(4, np.nan), np.array([np.inf, 1.0])),
            (np.full(4, np.nan), np.full(4, np.nan)),
            (np.full(3, 1e300), np.zeros(3)),
        ],
    )
    def test_degenerate_numbers(self, ours, theirs, tmp_path):
        drifts = [numerical("contrast", effect=float("inf"))]
        assert size_of(pictures.columns_picture(drifts, {"contrast": (ours, theirs)}, tmp_path / "c.png"))

    def test_names_of_people_are_no_formulas_and_may_be_long_or_foreign(self, tmp_path):
        values = {"price $a_$b^": (np.array([f"{n} $x_$ 犬 {'long ' * 9}{n}" for n in range(30)]), np.array(["", "b"]))}
        assert size_of(pictures.columns_picture([categorical(name) for name in values], values, tmp_path / "c.png"))

    def test_columns_without_values_are_left_out(self, tmp_path):
        values = {"b": (np.array([]), np.ones(3))}
        assert size_of(pictures.columns_picture([numerical("a"), numerical("b")], values, tmp_path / "c.png"))

    @pytest.mark.parametrize(
        ("effect", "p_value", "words"),
        [
            (2.0, 0.0004, "much higher (+2.0 SD), p < 0.001"),
            (-0.4, 0.02, "slightly lower (−0.4 SD), p = 0.02"),
            (-0.7, 0.02, "lower (−0.7 SD), p = 0.02"),
            (0.05, 0.01, "same level, other spread (+0.1 SD), p = 0.01"),
            (0.3, 0.4, "no clear change (+0.3 SD), p = 0.4"),
        ],
    )
    def test_says_it_in_words(self, effect, p_value, words):
        assert pictures._words(numerical("brightness", effect, p_value)) == words

    def test_threads_draw_the_same(self, tmp_path):
        values = {"brightness": (np.arange(50.0), np.arange(30.0))}

        def draw(number):
            return pictures.columns_picture([numerical("brightness")], values, tmp_path / f"{number}.png").read_bytes()

        with ThreadPoolExecutor(4) as pool:
            assert len(set(pool.map(draw, range(8)))) == 1


class TestContactSheet:
    def test_tiny_pictures_show_their_pixels(self, tmp_path):
        unusual = [(png(n, invert=True), f"{DIGITS.target[n]}\n→ 3 41%") for n in range(12)]
        typical = [(png(n), f"{DIGITS.target[n]}\n→ {DIGITS.target[n]} 98%") for n in range(20, 32)]
        path = pictures.contact_sheet(unusual, typical, tmp_path / "sheet.png")
        assert size_of(path) == (900, 496)
        with Image.open(path) as image:
            tile = np.asarray(image.convert("L"), dtype=float)[50:142, 466:558]  # the first typical digit, inside its border
        assert np.median(np.abs(np.diff(tile, axis=1))) == 0  # blocks, not blur

    def test_photographs_stay_small(self, tmp_path):
        noise = np.random.default_rng(0).integers(0, 256, (12, 200, 150, 3), dtype=np.uint8)
        samples = []
        for pixels in noise:
            out = io.BytesIO()
            Image.fromarray(pixels).resize((600, 800)).save(out, "JPEG")
            samples.append((out.getvalue(), "elephant\n→ giraffe 41%"))
        assert size_of(pictures.contact_sheet(samples, samples, tmp_path / "sheet.png"))

    def test_few_none_broken_and_long(self, tmp_path):
        out = io.BytesIO()
        Image.new("RGB", (400, 1)).save(out, "PNG")
        samples = [
            (b"no picture", "no label"),
            (out.getvalue(), "$ a very long caption that nobody asked for " * 3),
            (png(1), ""),
        ]
        assert size_of(pictures.contact_sheet(samples, [], tmp_path / "a.png"))
        assert size_of(pictures.contact_sheet([], [], tmp_path / "b.png"))

    def test_more_than_twelve_are_cut(self, tmp_path):
        samples = [(png(n), str(n)) for n in range(30)]
        assert size_of(pictures.contact_sheet(samples, samples[:1], tmp_path / "a.png")) == (900, 496)
