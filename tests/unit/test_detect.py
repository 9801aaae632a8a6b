"""Detect: quiet on clean digits, alarmed by aged ones, and measured once."""

from __future__ import annotations

import importlib
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.loop import arrive, open_tick, pipeline, run_window, second_window

from everfresh.tasks import drift, journal
from everfresh.tasks.config import DriftConfig, parse_config
from everfresh.tasks.errors import ObjectMissing
from everfresh.tasks.ledger import stream
from everfresh.tasks.records import DriftPoint, DriftReport, Interval
from everfresh.tasks.store import FolderStore
from everfresh.tasks.views import View

NOW = datetime(2026, 1, 2, tzinfo=UTC)
stage = importlib.import_module("everfresh.tasks.drift.detect")  # the package hands on the function of that name


def clean(folder: Path, count: int = 60, **changes: Any) -> Any:
    """The pipeline with a champion, in whose inbox clean digits wait in place of the aged ones."""
    store, config = second_window(folder, **changes)
    shutil.rmtree(folder / "inbox" / "aged")
    if count:
        arrive(config, count, start=300)
    return store, config


def measure(place: Any) -> DriftReport:
    store, config = place
    return drift.detect(store, config, open_tick(store, config))


def test_a_quiet_window_is_quiet_and_an_aged_one_alarms(tmp_path: Path) -> None:
    quiet, aged = measure(clean(tmp_path / "quiet")), measure(second_window(tmp_path / "aged"))
    assert (quiet.alarm, aged.alarm) == (False, True)
    assert quiet.p_value > 0.01 >= aged.p_value == 1 / 200
    assert quiet.nearest == aged.nearest == "window 1"
    assert aged.score > quiet.score
    assert quiet.labels is not None
    assert aged.labels is not None
    assert quiet.labels.champion.value > 0.8 > aged.labels.champion.value
    assert quiet.current_samples == 60
    assert quiet.labels.samples == 40  # the hold-out's labels are for the gates alone
    assert aged.severity == pytest.approx(aged.reference_accuracy - aged.accuracy.value)
    assert quiet.reference_accuracy == aged.reference_accuracy


def test_a_second_call_adopts_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = clean(tmp_path)
    report = measure(place)
    monkeypatch.setattr(stage, "compare_all", None)
    monkeypatch.setattr("everfresh.tasks.embeddings.Embedder.open", None)
    store, config = place
    assert drift.detect(store, config, journal.begin(store, journal.outlook(store, stream(store).last()))) == report


def test_reports_and_pictures_are_kept_whole(tmp_path: Path) -> None:
    store, config = second_window(tmp_path, drift={"report": True, "permutations": 199, "components": 4})
    report = measure((store, config))
    assert {"drift.html", "drift.png"} < set(report.files)
    assert report.words.startswith("In window 2, pictures are brighter")
    for name, part in report.files.items():
        assert store.read(part)[:4] == b"\x89PNG" if name.endswith(".png") else store.read(part)


@pytest.mark.parametrize("side", ["reference", "window"])
def test_a_slice_that_came_later_does_not_stop_the_report(tmp_path: Path, side: str) -> None:
    """A column `site` that only one side knows is left out."""
    from everfresh.tasks.drift.frame import Frame

    sample = _frame(tmp_path)
    with_site = Frame(**{**vars(sample), "categorical": sample.categorical | {"site": sample.categorical["prediction"]}})
    reference, current = (with_site, sample) if side == "reference" else (sample, with_site)
    (shift,) = stage.compare_all({"r": reference}, current, pipeline(tmp_path).drift, seed=0)
    config, store = pipeline(tmp_path), FolderStore(tmp_path / "store")
    report = stage.judge(shift, current, config.drift, 0, labelled=np.arange(60)).model_copy(update={"key": "k"})
    tick = journal.outlook(store, stream(store).last())
    files = stage._explain(store, config, tick, report, [], shift, current)
    assert "drift.png" in files


def points(*exceeds: bool, release: str = "r", alarms: tuple[int, ...] = ()) -> list[DriftPoint]:
    """A timeline of windows 1, 2, … of one champion."""
    whole = Interval(value=0.9, low=0.8, high=1.0)
    return [
        DriftPoint(
            seq=i, drift=f"d{i}", release=release, exceeds=yes, alarm=i in alarms, p_value=0.5, reference_accuracy=0.9,
            estimated_accuracy=whole, at=NOW,
        )
        for i, yes in enumerate(exceeds, 1)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("past", "exceeds", "rules", "alarm", "since"),
    [
        ((), True, {}, True, 1),
        ((), False, {}, False, None),
        ((False, False), True, {}, True, 3),
        ((False, True), True, {"alarm_after": 2, "within": 3}, True, 2),
        ((True, False), True, {"alarm_after": 2, "within": 3}, True, 3),
        ((True, False), True, {"alarm_after": 2, "within": 2}, False, 3),
        ((True, True), True, {"alarm_after": 3, "within": 3}, True, 1),
        ((False, True), True, {"alarm_after": 3, "within": 3}, False, 2),
        ((True, True), False, {"alarm_after": 2, "within": 3}, False, None),
    ],
)
def test_an_alarm_waits_for_as_many_windows_as_it_was_told(
    past: tuple[bool, ...], exceeds: bool, rules: dict[str, int], alarm: bool, since: int | None
) -> None:
    found = stage.alarm(exceeds, len(past) + 1, points(*past), "r", DriftConfig(**rules))
    assert found == {"alarm": alarm, "since": since}


def test_windows_of_an_earlier_champion_do_not_count_towards_an_alarm() -> None:
    rules = DriftConfig(alarm_after=2, within=3)
    assert stage.alarm(True, 3, points(True, True, release="old"), "new", rules) == {"alarm": False, "since": 1}


@pytest.mark.parametrize(("windows", "alarm"), [(0, True), (1, True), (2, False), (3, False)])
def test_after_an_alarm_it_is_silent_for_a_while(windows: int, alarm: bool) -> None:
    """The alarm was at window 2, this is window 4."""
    past = points(False, True, True, alarms=(2,))
    assert stage.alarm(True, 4, past, "r", DriftConfig(cooldown_windows=windows))["alarm"] is alarm


def test_the_timeline_remembers_each_window_and_a_rerun_adds_nothing(tmp_path: Path) -> None:
    store, config = second_window(tmp_path)
    first = run_window(store, config)
    arrive(config, 60, start=200, aged=True)
    second = run_window(store, config)
    assert first.drift is not None
    assert second.drift is not None
    past = stage.timeline(store, 4)
    assert [(p.seq, p.drift, p.alarm) for p in past] == [
        (2, first.drift.key, True),
        (3, second.drift.key, second.drift.alarm),
    ]
    before = [i.key for i in store.list()]
    assert drift.detect(store, config, second.tick) == second.drift
    assert [i.key for i in store.list()] == before
    assert stage.timeline(store, 3) == past[:1]


def _frame(folder: Path) -> Any:
    from everfresh.tasks.drift.frame import build
    from everfresh.tasks.embeddings import Embedder
    from everfresh.tasks.ledger import champion_moves, find
    from everfresh.tasks.records import Release

    store, config = clean(folder)
    tick = open_tick(store, config)
    release = find(store, f"releases/{champion_moves(store).last().release}/release.json", Release)  # type: ignore[union-attr]
    assert release is not None
    view = View(store, tick.view)
    return build(Embedder.open(store, release.spec, release.files["model.safetensors"]), [(view, view.rows())])


def test_a_frame_has_one_row_a_sample_and_finds_its_pictures(tmp_path: Path) -> None:
    frame = _frame(tmp_path)
    view = frame.places[0][0]
    assert len(frame) == len(frame.confidence) == len(frame.embeddings) == 60
    assert set(frame.numerical) == {"brightness", "contrast", "sharpness", "colourfulness", "aspect", "pixels", "confidence"}
    assert frame.numerical["brightness"].tolist() == [s.brightness for s in view.samples]
    assert frame.probabilities.sum(axis=1) == pytest.approx(1)
    assert frame.picture(7) == next(view.read([7]))
    again = frame.take([3, 3])
    assert again.places == (frame.places[3],) * 2
    assert again.labels.tolist() == [frame.labels[3]] * 2


def test_too_few_samples_alarm_nobody(tmp_path: Path) -> None:
    store, config = clean(tmp_path, 0)
    arrive(config, stage.MIN_SAMPLES - 1, start=500, aged=True)
    report = measure((store, config))
    assert (report.alarm, report.p_value, report.columns, report.files, report.labels) == (False, 1.0, (), {}, None)


def test_a_window_of_which_nothing_is_usable_alarms_nobody(tmp_path: Path) -> None:
    store, config = clean(tmp_path, 0)
    (tmp_path / "inbox" / "zero" / "torn.png").write_bytes(b"no picture")
    report = measure((store, config))
    assert (report.alarm, report.current_samples, report.severity) == (False, 0, 0)


def test_without_labels_agreement_is_unknown(tmp_path: Path) -> None:
    store, config = clean(tmp_path)
    raw = config.model_dump()
    raw["source"]["labels"], raw["policy"]["triggers"] = {"kind": "none"}, ()
    report = measure((store, parse_config(raw)))
    assert report.labels is None
    assert report.current_samples == 60


def test_looking_is_bounded(tmp_path: Path) -> None:
    report = measure(clean(tmp_path, drift={"max_samples": 20, "permutations": 99, "report": False}))
    assert (report.current_samples, report.reference_samples) == (20, 20)


def test_without_a_champion_there_is_nothing_to_compare_with(tmp_path: Path) -> None:
    config = pipeline(tmp_path)
    arrive(config, 6)
    with pytest.raises(ObjectMissing, match=r"release None and its reference must be in the store"):
        measure((FolderStore(tmp_path / "store"), config))


def test_drift_is_measured_against_the_champion_of_the_tick(tmp_path: Path) -> None:
    """A later champion has another reference, so the same window has another report; the earlier tick keeps its own."""
    store, config = second_window(tmp_path)
    ran = run_window(store, config)
    assert ran.drift is not None
    assert ran.entry.version == 2
    later = drift.detect(store, config, journal.outlook(store, stream(store).last(), request="again"))
    assert (later.view, later.reference == ran.drift.reference) == (ran.drift.view, False)
    assert (ran.drift.alarm, later.alarm) == (True, False)
    assert drift.detect(store, config, ran.tick) == ran.drift


@pytest.mark.parametrize("aged", [False, True])
def test_a_window_too_small_to_test_says_so_and_joins_the_regime_it_looks_like(tmp_path: Path, *, aged: bool) -> None:
    store, config = second_window(tmp_path)  # a clean regime and, once this window is through, an aged one
    assert run_window(store, config).entry.version == 2
    arrive(config, 8, start=130, aged=aged)
    report = measure((store, config))
    assert (report.tested, report.alarm, report.p_value) == (False, False, 1.0)
    assert report.regime == ("window 2" if aged else "window 1")
