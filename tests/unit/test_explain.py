"""The drift page: one sentence that says what happened, and a page that anybody can open, print and read."""

from __future__ import annotations

import datetime as dt
import io
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from everfresh.tasks.drift import explain, pictures
from everfresh.tasks.drift.curves import class_shares, timeline
from everfresh.tasks.drift.poster import raster
from everfresh.tasks.drift.words import sentence
from everfresh.tasks.records import (
    ClassShift,
    ColumnDrift,
    DriftPoint,
    DriftReport,
    FamilyDrift,
    Interval,
    LabelAgreement,
    SliceDrift,
)

DIGITS = load_digits()
PROPERTIES = ("brightness", "contrast", "sharpness", "colourfulness", "aspect", "pixels", "confidence")
HOSTILE = "<script>alert('$x_$')</script>\n\x00\u202e" + "long " * 30


def column(name: str, effect: float = 0.0, p: float = 1.0, ks: float | None = None, **more: Any) -> ColumnDrift:
    """A column; its distance is about what a shift of so many deviations makes."""
    distance = min(1.0, abs(effect) * 0.38) if ks is None else ks
    return ColumnDrift(**{"name": name, "kind": "numerical", "statistic": distance, "effect": effect, "p_value": p, **more})


def picture_columns(*moved: ColumnDrift) -> tuple[ColumnDrift, ...]:
    return (*moved, *(column(name) for name in PROPERTIES if name not in {c.name for c in moved}))


def share(name: str, reference: float, value: float) -> ClassShift:
    return ClassShift(
        name=name, reference=reference, estimated=Interval(value=value, low=max(0.0, value - 0.03), high=min(1.0, value + 0.03))
    )


def part(value: str, before: float, now: float, of: str = "prediction") -> SliceDrift:
    return SliceDrift(column=of, value=value, samples=20, reference_accuracy=before, estimated_accuracy=now)


def measured(value: float) -> LabelAgreement:
    return LabelAgreement(
        samples=200, champion=Interval(value=value, low=value - 0.05, high=value + 0.05), neighbours=0.9, chance=0.1
    )


def report(*columns: ColumnDrift, now: float = 0.71, **changes: Any) -> DriftReport:
    """A window that exceeds since window 12, unless told otherwise."""
    return DriftReport(
        **{
            "key": "k",
            "view": "v",
            "reference": "r",
            "reference_samples": 400,
            "current_samples": 200,
            "exceeds": True,
            "alarm": True,
            "p_value": 0.001,
            "score": 0.5,
            "nearest": "window 1",
            "columns": columns,
            "reference_accuracy": 0.93,
            "estimated_accuracy": Interval(value=now, low=max(0.0, now - 0.06), high=min(1.0, now + 0.06)),
            "severity": 0.93 - now,
            "labels": None,
            "since": 12,
            "files": {},
            **changes,
        }
    )


def family(name: str, p: float) -> FamilyDrift:
    return FamilyDrift(name=name, p_value=p)


NOISE = report(
    *picture_columns(column("sharpness", 2.4, 0.002, 0.89), column("contrast", 0.6, 0.002, 0.49)),
    auc=1.0,
    families=(family("novelty", 0.002),),
    classes=(share("giraffe", 0.14, 0.9), share("dog", 0.1, 0.01)),  # the champion's mistakes, not the world's classes
    slices=(part("giraffe", 0.9, 0.5),),
)
KNOCKOUT = report(
    *picture_columns(column("P(dog)", -0.4, 0.002, 0.2)),
    now=0.92,
    auc=0.58,
    families=(family("novelty", 0.9), family("classifier", 0.002)),
    classes=(share("dog", 0.1, 0.01), share("house", 0.17, 0.2)),
)
DOMAIN = report(
    *picture_columns(column("brightness", 2.5, 0.002, 0.8), column("confidence", -0.6, 0.002)),
    auc=0.99,
    families=(family("novelty", 0.002),),
    classes=(share("guitar", 0.11, 0.75), share("person", 0.23, 0.04)),
    labels=measured(0.22),
    slices=(part("person", 1.0, 0.27),),
)
QUIET = report(*picture_columns(), exceeds=False, alarm=False, p_value=0.4, since=None, now=0.92)


class TestSentence:
    def test_the_example_of_the_issue(self) -> None:
        dark = report(*picture_columns(column("brightness", -0.8, 0.001)), slices=(part("dog", 0.9, 0.5),))
        assert sentence(dark, 13) == (
            "Since window 12, pictures are darker (−0.8 SD); estimated accuracy 0.93 → 0.71; worst for class dog"
        )

    def test_noise_is_told_as_noise_though_embedding_and_answers_move_too(self) -> None:
        assert sentence(NOISE, 13).startswith("Since window 12, pictures are noisier or sharper (+2.4 SD); estimated accuracy")

    def test_a_knocked_out_class_has_vanished(self) -> None:
        assert sentence(KNOCKOUT, 12) == (
            "In window 12, class dog has almost vanished (10 % → 1 %); estimated accuracy 0.93 → 0.92"
        )

    def test_another_domain_looks_unlike_any_known(self) -> None:
        assert sentence(DOMAIN, 13) == (
            "Since window 12, pictures look unlike any known (a classifier tells them apart with AUC 0.99), also brighter "
            "(+2.5 SD); measured accuracy 0.93 → 0.22; worst for class person"
        )

    def test_quiet_and_close_and_too_few(self) -> None:
        assert sentence(QUIET, 13) == "Window 13 is like what the champion was proven on (p = 0.4)"
        small = QUIET.model_copy(update={"p_value": 0.002})
        assert "no difference that matters (p = 0.002)" in sentence(small)
        few = QUIET.model_copy(update={"tested": False, "current_samples": 7, "p_value": 1.0})
        assert sentence(few) == "This window has too few samples to tell: 7 here, 400 in the reference"

    @pytest.mark.parametrize(
        ("columns", "words"),
        [
            ([column("distance", 0.8, 0.001)], "“distance” is higher (+0.8 SD)"),
            ([column("dep_delay", 0.1, 0.001, missing=(0.02, 0.3))], "“dep_delay” is missing more often (2 % → 30 %)"),
            (
                [column("carrier", 0.2, 0.001, 0.2, kind="categorical", new_categories=("AA", "BB", "CC"))],
                "“carrier” has new values (“AA”, “BB” and 1 more)",
            ),
            ([column("origin", 0.31, 0.001, 0.31, kind="categorical")], "“origin” is mixed differently (31 % moved)"),
            ([column("hour", 0.05, 0.001, 0.2)], "“hour” varies differently"),
            ([column("price", float("nan"), 0.001, 1.0)], "“price”, which never varied, does"),
            ([column("a", -0.5, 0.001), column("b", 0.9, 0.001)], "“b” is higher (+0.9 SD) and “a” is lower (−0.5 SD)"),
            ([column("a", 3.0, 0.04), column("b", 0.4, 0.001)], "“b” is higher (+0.4 SD) and “a” is higher (+3.0 SD)"),
        ],
    )
    def test_tables_of_any_columns(self, columns: list[ColumnDrift], words: str) -> None:
        assert sentence(report(*columns), 13) == f"Since window 12, {words}; estimated accuracy 0.93 → 0.71"

    @pytest.mark.parametrize(
        ("effect", "words"),
        [
            ({"contrast": -1.7, "sharpness": -1.5, "brightness": -1.4}, "darker (−1.4 SD) and flatter (−1.7 SD)"),
            ({"contrast": -2.5, "sharpness": -2.2}, "flatter (−2.5 SD)"),
            ({"sharpness": -1.9, "contrast": -0.6}, "blurrier (−1.9 SD)"),
            ({"colourfulness": -1.0, "pixels": 0.9}, "paler (−1.0 SD) and larger (+0.9 SD)"),
        ],
    )
    def test_causes_come_before_what_follows_from_them(self, effect: dict[str, float], words: str) -> None:
        moved = [column(name, size, 0.002) for name, size in effect.items()]
        assert f"pictures are {words}; " in sentence(report(*picture_columns(*moved)))

    @pytest.mark.parametrize(
        ("reference", "now", "words"),
        [
            (0.1, 0.0, "class dog has vanished (10 % → 0 %)"),
            (0.2, 0.12, "class dog is rarer (20 % → 12 %)"),
            (0.1, 0.16, "class dog is more frequent (10 % → 16 %)"),
            (0.1, 0.4, "class dog is far more frequent (10 % → 40 %)"),
            (0.17, 0.98, "almost all is class dog (17 % → 98 %)"),
            (0.0, 0.1, "class dog has appeared (0 % → 10 %)"),
        ],
    )
    def test_class_shares(self, reference: float, now: float, words: str) -> None:
        assert f", {words}; " in sentence(report(*picture_columns(), classes=(share("dog", reference, now),)))

    def test_a_share_within_its_interval_is_not_told(self) -> None:
        assert "dog" not in sentence(report(*picture_columns(), classes=(share("dog", 0.1, 0.11),)))

    def test_what_shows_in_the_embedding_alone(self) -> None:
        said = sentence(
            report(*picture_columns(column("embedding 1", 2.0, 0.001)), auc=0.9, families=(family("classifier", 0.001),))
        )
        assert "pictures look different from the known ones (a classifier tells them apart with AUC 0.90)" in said

    def test_what_shows_in_the_model_alone(self) -> None:
        assert "the champion is less sure of its answers (−0.8 SD)" in sentence(
            report(*picture_columns(column("confidence", -0.8, 0.001)))
        )
        assert "errs more" in sentence(report(*picture_columns(), families=(family("concept", 0.001),)))

    def test_a_loss_that_is_none_has_no_worst_slice(self) -> None:
        said = sentence(report(*picture_columns(column("brightness", -0.8, 0.001)), now=0.95, slices=(part("dog", 0.9, 0.5),)))
        assert said.endswith("estimated accuracy holds (0.93 → 0.95)")

    def test_names_of_others_are_cut_and_on_one_line(self) -> None:
        said = sentence(report(column(HOSTILE, 1.0, 0.001), slices=(part(HOSTILE, 0.9, 0.1, HOSTILE),)))
        assert said.isprintable()
        assert len(said) < 200


NUMBERS = st.floats(allow_nan=True, allow_infinity=True)
SHARES = st.floats(0, 1)
NAMES = st.one_of(st.text(max_size=60), st.sampled_from([*PROPERTIES, "prediction", "P(dog)", "embedding 1"]))
INTERVALS = st.builds(Interval, value=SHARES, low=SHARES, high=SHARES)
COLUMNS = st.builds(
    ColumnDrift,
    name=NAMES,
    kind=st.sampled_from(["numerical", "categorical"]),
    statistic=SHARES,
    effect=NUMBERS,
    p_value=SHARES,
    missing=st.tuples(SHARES, SHARES),
    new_categories=st.lists(st.text(max_size=30), max_size=5).map(tuple),
)
REPORTS = st.builds(
    DriftReport,
    key=st.just("k"),
    view=st.just("v"),
    reference=st.just("r"),
    reference_samples=st.integers(0, 10**9),
    current_samples=st.integers(0, 10**9),
    exceeds=st.booleans(),
    alarm=st.booleans(),
    tested=st.booleans(),
    p_value=SHARES,
    score=SHARES,
    auc=st.none() | SHARES,
    families=st.lists(
        st.builds(FamilyDrift, name=st.sampled_from(["novelty", "concept", "mmd"]), p_value=SHARES), max_size=3
    ).map(tuple),
    nearest=NAMES,
    columns=st.lists(COLUMNS, max_size=5).map(tuple),
    classes=st.lists(st.builds(ClassShift, name=NAMES, reference=SHARES, estimated=INTERVALS), max_size=3).map(tuple),
    slices=st.lists(
        st.builds(
            SliceDrift,
            column=NAMES,
            value=NAMES,
            samples=st.integers(0, 99),
            reference_accuracy=SHARES,
            estimated_accuracy=SHARES,
        ),
        max_size=3,
    ).map(tuple),
    reference_accuracy=SHARES,
    estimated_accuracy=INTERVALS,
    severity=st.floats(-1, 1),
    labels=st.none()
    | st.builds(LabelAgreement, samples=st.integers(0, 99), champion=INTERVALS, neighbours=SHARES, chance=SHARES),
    since=st.none() | st.integers(1, 10**6),
    words=st.just(""),
    files=st.just({}),
)


@settings(max_examples=300, deadline=None)
@given(REPORTS, st.none() | st.integers(1, 10**6))
def test_any_report_gives_a_sentence_that_fits_its_verdict(found: DriftReport, window: int | None) -> None:
    said = sentence(found, window)
    assert 10 < len(said) <= 300
    assert said.isprintable()
    assert ("too few samples" in said) == (not found.tested)
    if found.tested and not (found.exceeds or found.alarm):
        assert "what the champion was proven on" in said


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
        assert pictures.moved(gone) == "missing 1 % → 20 %, p = 0.004"

    def test_tiny_pictures_show_their_pixels(self) -> None:
        tile = pictures.thumbnail(png(3), 96)
        assert tile is not None
        assert np.median(np.abs(np.diff(np.asarray(tile.convert("L"), dtype=float), axis=1))) == 0  # blocks, not blur
