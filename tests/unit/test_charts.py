"""The confusion matrices and the timeline: whole, readable, and unbroken by what people feed them."""

import base64
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix
from sklearn.model_selection import train_test_split

from everfresh.tasks.charts import TimelinePoint, classes_picture, confusion_picture, data_uri, timeline_picture, values_picture
from everfresh.tasks.targets import Targets

GREEN, BLUE, RED, AMBER = (0, 158, 115), (0, 114, 178), (213, 94, 0), (184, 119, 0)


def size_of(path):
    """Width and height of a whole, small PNG."""
    assert path.stat().st_size < 200_000
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        return image.size


def colours_of(path):
    with Image.open(path) as image:
        return {colour for _, colour in image.convert("RGB").getcolors(1 << 20)}


def counts(matrix):
    return tuple(tuple(int(n) for n in row) for row in matrix)


@pytest.fixture(scope="module")
def digits():
    """Confusion matrices of a poor and a good classifier on the same digits."""
    data = load_digits()
    train, test, learnt, true = train_test_split(data.data, data.target, test_size=0.4, random_state=0)
    poor = LogisticRegression(max_iter=2000).fit(train[:60], learnt[:60])
    good = LogisticRegression(max_iter=2000).fit(train / 16, learnt)
    labels = list(range(10))
    return (
        counts(confusion_matrix(true, poor.predict(test), labels=labels)),
        counts(confusion_matrix(true, good.predict(test / 16), labels=labels)),
    )


def points(count, **changes):
    """A stream that gets worse for the version that is left alone."""
    return [
        TimelinePoint(
            **{
                "window": n + 1,
                "name": f"aged {n}",
                "phase": "clean" if n < 3 else "aged",
                "frozen": max(0.1, 0.95 - 0.08 * n),
                "champion": 0.93,
                "alarm": n == 3,
                "release": "v2" if n == 3 else None,
                "rejected": n == 5,
                **changes,
            }
        )
        for n in range(count)
    ]


class TestConfusion:
    def test_side_by_side(self, digits, tmp_path):
        path = confusion_picture(*digits, [f"digit {n}" for n in range(10)], tmp_path / "new" / "confusion.png")
        width, height = size_of(path)
        assert width == 900
        assert 350 < height < 650

    def test_the_first_model_stands_alone(self, digits, tmp_path):
        assert size_of(confusion_picture(None, digits[1], [str(n) for n in range(10)], tmp_path / "c.png"))[0] < 900

    @pytest.mark.parametrize("classes", [1, 2, 3, 25, 120])
    def test_any_number_of_classes(self, classes, tmp_path):
        matrix = counts(np.eye(classes, dtype=int) * 9 + 1)
        assert size_of(confusion_picture(matrix, matrix, [f"class {n}" for n in range(classes)], tmp_path / "c.png"))[0] == 900

    def test_classes_without_samples(self, tmp_path):
        assert size_of(confusion_picture(((0, 0), (0, 0)), ((5, 0), (0, 0)), ["cat", "dog"], tmp_path / "c.png"))

    def test_names_are_no_formulas_and_may_be_long_or_foreign(self, tmp_path):
        names = ["$a_b$", "犬", "a name much longer than there is room for"]
        matrix = counts(np.eye(3, dtype=int))
        assert size_of(confusion_picture(matrix, matrix, names, tmp_path / "c.png"))


class TestTimeline:
    def test_shows_both_lines_and_all_events(self, tmp_path):
        path = timeline_picture(points(8), tmp_path / "new" / "timeline.png", "Version 1 left alone")
        assert size_of(path) == (900, 520)
        assert {BLUE, GREEN, RED, AMBER, (138, 138, 138)} <= colours_of(path)

    def test_what_did_not_happen_is_not_drawn(self, tmp_path):
        path = timeline_picture(points(8, alarm=False, release=None, rejected=False), tmp_path / "t.png", "quiet")
        assert not {GREEN, RED, AMBER} & colours_of(path)

    @pytest.mark.parametrize("count", [0, 1, 2, 30, 200])
    def test_any_number_of_windows(self, count, tmp_path):
        assert size_of(timeline_picture(points(count), tmp_path / "t.png", "many")) == (900, 520)

    def test_unknown_accuracy_leaves_a_gap(self, tmp_path):
        assert size_of(timeline_picture(points(5, champion=float("nan"), release="v2"), tmp_path / "t.png", "gaps"))
        assert size_of(timeline_picture(points(5, champion=float("nan"), frozen=float("nan")), tmp_path / "t.png", "nothing"))

    def test_names_are_no_formulas(self, tmp_path):
        rows = points(4, name="$x_$", phase="phase $^$ of a very long and winding name", release="v$_$1")
        assert size_of(timeline_picture(rows, tmp_path / "t.png", "costs $5 or $6_"))

    def test_threads_draw_the_same(self, tmp_path):
        def draw(number):
            return timeline_picture(points(8), tmp_path / f"{number}.png", "threads").read_bytes()

        with ThreadPoolExecutor(4) as pool:
            assert len(set(pool.map(draw, range(8)))) == 1


def test_a_data_uri_holds_the_picture(digits, tmp_path):
    path = confusion_picture(None, digits[0], [str(n) for n in range(10)], tmp_path / "c.png")
    kind, encoded = data_uri(path).split(",")
    assert kind == "data:image/png;base64"
    assert Image.open(io.BytesIO(base64.b64decode(encoded))).format == "PNG"


@pytest.mark.parametrize("names", [("slant",), ("slant $x$", "width")])
def test_values_are_drawn_against_the_labels(tmp_path: Path, names: tuple[str, ...]) -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(30, len(names)))
    targets = Targets(names, "regression", 0.5)
    for count, champion in ((30, truth + 1), (30, None), (0, None)):
        path = values_picture(champion, truth[:count] + 0.1, truth[:count], targets, tmp_path / "values.png")
        width, height = size_of(path)
        assert width == (900 if champion is not None else 450)
        assert height == 450 * len(names)


@pytest.mark.parametrize("classes", [0, 1, 3, 60])
def test_classes_of_sets_are_drawn_as_bars(tmp_path: Path, classes: int) -> None:
    scores = {f"class {n}": {"f1": n / 60, "samples": float(n)} for n in range(classes)}
    for champion in (scores, {}, None):
        width, height = size_of(classes_picture(champion, scores, tmp_path / "classes.png"))
        assert width == 900
        assert height < 1_600
