"""The drift page: anybody can open it, print it and read it, and it stays small."""

from __future__ import annotations

import datetime as dt
import io
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from support.drifted import DOMAIN, HOSTILE, KNOCKOUT, NOISE, PROPERTIES, QUIET, column, part, report, share

from everfresh.tasks.drift import explain, pictures
from everfresh.tasks.drift.curves import class_shares, timeline
from everfresh.tasks.drift.words import sentence
from everfresh.tasks.pages import raster, thumbnail
from everfresh.tasks.records import DriftPoint, DriftReport, Interval

DIGITS = load_digits()


def png(number: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray((DIGITS.images[number] * 15).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def points(count: int, **last: Any) -> list[DriftPoint]:
    return [
        DriftPoint(
            seq=n,
            drift="k" if n == count else f"k{n}",
            release="v1" if n < 4 else "v2",
            exceeds=n >= 12,
            alarm=n >= 12,
            p_value=0.5,
            reference_accuracy=0.93,
            estimated_accuracy=Interval(value=0.9 - 0.1 * (n >= 12), low=0.8 - 0.1 * (n >= 12), high=0.95),
            measured_accuracy=0.9 if n % 3 else None,
            at=dt.datetime(2026, 1, 1, tzinfo=dt.UTC) + dt.timedelta(hours=n),
        )
        for n in range(1, count + 1)
    ]


class Tags(HTMLParser):
    """All tags with their attributes, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


VALUES = {name: (np.linspace(0, 1, 40), np.linspace(0.2, 1, 30)) for name in (*PROPERTIES, "P(dog)")}
SAMPLES = [(png(n), f"{n}\n→ 3 41%") for n in range(12)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("page") / "new"
    return explain.page(DOMAIN, points(13), VALUES, SAMPLES, SAMPLES, folder, pipeline="pacs", beside=["evidently.html"])


class TestPage:
    def test_the_page_says_it_all_and_fetches_nothing(self, whole: dict[str, Any]) -> None:
        html = whole["drift.html"].read_text()
        page = Tags(html)
        assert sentence(DOMAIN, 13) in page.text
        assert "Everfresh · pacs · window 13 · 2026-01-01 13:00 UTC" in page.text
        assert "Drift alarm" in page.text
        assert "0.22 (0.17–0.27)" in page.text
        assert {tag for tag, _ in page.tags} & {"script", "link", "iframe"} == set()
        assert not re.search(r'(src|href)="(http|//)', html)
        assert [at["href"] for tag, at in page.tags if tag == "a"] == ["evidently.html"]
        images = [at for tag, at in page.tags if tag == "img"]
        assert len(images) == 2 + 3 + 8 + 8
        assert all(at["alt"] and at["src"].startswith("data:image/") for at in images)

    def test_the_picture_is_the_page_and_small(self, whole: dict[str, Any]) -> None:
        assert whole["drift.png"].stat().st_size < 400_000
        with Image.open(whole["drift.png"]) as image:
            image.load()
            assert image.width == 900
            assert 900 < image.height < 1500
            colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 20)}
        assert any(abs(r - 0xB2) + abs(g - 0x3A) + abs(b) < 12 for r, g, b in colours)  # the badge

    def test_equal_reports_give_equal_bytes(self, whole: dict[str, Any], tmp_path: Any) -> None:
        again = explain.page(DOMAIN, points(13), VALUES, SAMPLES, SAMPLES, tmp_path, pipeline="pacs", beside=["evidently.html"])
        assert {name: path.read_bytes() for name, path in again.items()} == {n: p.read_bytes() for n, p in whole.items()}

    def test_hostile_names_are_text(self, tmp_path: Any) -> None:
        hostile = report(
            column(HOSTILE, 1.0, 0.001),
            column("b", 0.3, 0.001, 0.3, kind="categorical", new_categories=(HOSTILE,)),
            classes=(share(HOSTILE, 0.1, 0.5),),
            slices=(part(HOSTILE, 0.9, 0.1, HOSTILE),),
            nearest=HOSTILE,
        )
        values = {HOSTILE: (np.arange(9.0), np.arange(5.0)), "b": (np.array([HOSTILE, "x"]), np.array(["", "犬 $a_$"]))}
        samples = [(b"no picture", HOSTILE), (png(1), "")]
        files = explain.page(hostile, points(2), values, samples, [], tmp_path, pipeline=HOSTILE, beside=["<a>.html"])
        page = Tags(files["drift.html"].read_text())
        assert "script" not in {tag for tag, _ in page.tags}
        assert "<script>" in page.text
        assert "unreadable" in page.text

    @pytest.mark.parametrize("found", [QUIET, QUIET.model_copy(update={"tested": False}), KNOCKOUT, NOISE])
    def test_little_to_show_is_a_page_too(self, found: DriftReport, tmp_path: Any) -> None:
        files = explain.page(found, [], {}, [], [], tmp_path)
        assert sentence(found) in Tags(files["drift.html"].read_text()).text
        assert files["drift.png"].stat().st_size < 400_000

    def test_words_of_the_record_head_the_page(self, tmp_path: Any) -> None:
        files = explain.page(QUIET.model_copy(update={"words": "All is well."}), [], {}, [], [], tmp_path)
        assert "<h1>All is well.</h1>" in files["drift.html"].read_text()

    def test_photographs_stay_small(self, tmp_path: Any) -> None:
        samples = []
        for pixels in np.random.default_rng(0).integers(0, 256, (8, 200, 150, 3), dtype=np.uint8):
            out = io.BytesIO()
            Image.fromarray(pixels).resize((600, 800)).save(out, "JPEG")
            samples.append((out.getvalue(), "elephant\n→ giraffe 41%"))
        files = explain.page(DOMAIN, points(3), VALUES, samples, samples, tmp_path)
        assert files["drift.png"].stat().st_size < 400_000

    def test_columns_that_people_read_come_first_and_three_are_shown_though_none_moved(self) -> None:
        found = report(
            column("embedding 1", 2, 0.001),
            column("P(dog)", 2, 0.001),
            column("aspect", 0, 1.0),
            column("brightness", -1, 0.01),
        )
        values = {c.name: (np.arange(9.0), np.arange(5.0)) for c in found.columns} | {"aspect": (np.ones(9), np.ones(5))}
        assert [c.name for c in explain.shown_columns(found, values)] == ["brightness", "P(dog)", "embedding 1"]
        still = report(*(column(name) for name in PROPERTIES))
        assert len(explain.shown_columns(still, {c.name: (np.arange(9.0), np.arange(5.0)) for c in still.columns})) == 3


class TestParts:
    @pytest.mark.parametrize("count", [1, 2, 5, 13, 40])
    def test_a_timeline_of_any_length(self, count: int) -> None:
        assert raster(timeline(points(count), 12 if count > 12 else None, 590), 1).size == (590, 236)

    def test_many_classes_are_cut(self) -> None:
        classes = [share(f"class {n} of a long name", 0.02, 0.03) for n in range(50)]
        assert raster(class_shares(classes, 310), 1).size == (310, 236)

    @pytest.mark.parametrize(
        ("ours", "theirs"),
        [
            (np.ones(5), np.ones(3)),
            (np.full(4, np.nan), np.array([np.inf, 1.0])),
            (np.full(4, np.nan), np.full(4, np.nan)),
            (np.full(3, 1e300), np.zeros(3)),
        ],
    )
    def test_degenerate_numbers(self, ours: Any, theirs: Any) -> None:
        drawn = pictures.column_panel(column("contrast", float("inf"), 0.001, 1.0), ours, theirs)
        assert raster(drawn, 1).size == pictures.PANEL

    @pytest.mark.parametrize(
        ("effect", "p_value", "words"),
        [
            (2.0, 0.0004, "much higher (+2.0 SD), p < 0.001"),
            (-0.4, 0.02, "slightly lower (−0.4 SD), p = 0.02"),
            (-0.7, 0.02, "lower (−0.7 SD), p = 0.02"),
            (0.05, 0.01, "other spread (+0.1 SD), p = 0.01"),
            (0.3, 0.4, "no clear change (+0.3 SD), p = 0.4"),
        ],
    )
    def test_a_panel_says_it_in_words(self, effect: float, p_value: float, words: str) -> None:
        assert pictures.moved(column("brightness", effect, p_value)) == words

    def test_a_panel_tells_missing_values(self) -> None:
        gone = column("air_time", 0.1, 0.004, missing=(0.01, 0.2))
        assert pictures.moved(gone).replace("\u00a0", " ") == "missing 1 % → 20 %, p = 0.004"

    def test_tiny_pictures_show_their_pixels(self) -> None:
        tile = thumbnail(png(3), 96)
        assert tile is not None
        assert np.median(np.abs(np.diff(np.asarray(tile.convert("L"), dtype=float), axis=1))) == 0  # blocks, not blur
