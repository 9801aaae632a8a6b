"""Tables as a source: every row lands in exactly one window, or in quarantine with the reason."""

from __future__ import annotations

import json
import os
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from support.tables import pipeline, table, write
from support.windows import quarantined, taken

from everfresh.flows.check import check
from everfresh.tasks import rows as tables
from everfresh.tasks.config import PipelineConfig, json_schema, parse_config
from everfresh.tasks.errors import ConfigError, SourceError
from everfresh.tasks.ingest import freeze, ingest
from everfresh.tasks.ledger import stream
from everfresh.tasks.store import FolderStore, S3Store, Store
from everfresh.tasks.vectors import values_of
from everfresh.tasks.views import View


def windows(store: Store, config: PipelineConfig) -> list[list[str]]:
    """Keys of all windows that can be made."""
    found = []
    while (entry := ingest(store, config)) is not None:
        found.append(taken(store, entry))
        assert len(found) < 50
    return found


def csv(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# --- what a row becomes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_row_keeps_its_features_label_time_and_slices(store: Store, tmp_path: Path, suffix: str) -> None:
    rows = table(5)
    write(tmp_path / f"inbox/a.{suffix}", rows)
    entry = ingest(store, pipeline(tmp_path))
    assert entry is not None
    view = View(store, entry.view)
    assert taken(store, entry) == [f"a.{suffix}#{n}" for n in range(5)]
    for sample, data, row in zip(view.samples, view.read(range(5)), rows.to_pylist(), strict=True):
        assert values_of(data) == {name: row[name] for name in ("load", "heat", "site")}
        assert (sample.label, sample.timestamp) == (row["broken"], row["time"])
        assert json.loads(sample.slices) == {"line": row["line"]}
    assert view.window.classes == {name: rows["broken"].to_pylist().count(name) for name in ("no", "yes")}


def test_parquet_and_csv_of_the_same_rows_are_the_same_bytes(folder_store: FolderStore, tmp_path: Path) -> None:
    rows = table(20, load=np.arange(20, dtype=np.int16), heat=np.float32(0.1) * np.arange(20, dtype=np.float32))
    found = []
    for suffix in ("parquet", "csv"):
        write(tmp_path / f"{suffix}/inbox/a.{suffix}", rows.set_column(1, "heat", rows["heat"].cast(pa.float64())))
        view = View(folder_store, freeze(folder_store, pipeline(tmp_path / suffix), str(tmp_path / suffix / "inbox")).view)
        found.append(list(view.read(range(20))))
    assert found[0] == found[1]


def test_an_empty_label_is_none_and_a_whole_number_has_no_point(folder_store: FolderStore, tmp_path: Path) -> None:
    write(tmp_path / "inbox/a.parquet", table(3, broken=pa.array([1.0, None, 0.0])))
    config = pipeline(tmp_path, model={"classes": ["0", "1"]})
    entry = ingest(folder_store, config)
    assert entry is not None
    assert [s.label for s in View(folder_store, entry.view).samples] == ["1", None, "0"]


def test_without_a_label_column_rows_are_only_watched(folder_store: FolderStore, tmp_path: Path) -> None:
    write(tmp_path / "inbox/a.parquet", table(3).drop(["broken"]))
    config = pipeline(tmp_path, source={"label_column": None}, policy={"triggers": []})
    entry = ingest(folder_store, config)
    assert entry is not None
    assert View(folder_store, entry.view).window.labelled == 0


def test_rows_of_one_group_and_rows_written_twice_share_a_split(folder_store: FolderStore, tmp_path: Path) -> None:
    rows = table(60, who=pa.array([n % 20 for n in range(60)]))
    write(tmp_path / "inbox/a.parquet", rows)
    write(tmp_path / "inbox/b.parquet", rows)
    for name, source in (("once", {}), ("who", {"group_columns": ["who"]})):
        store = folder_store.sub(name)
        entry = ingest(store, pipeline(tmp_path, source=source))
        assert entry is not None
        samples = View(store, entry.view).samples
        assert len(samples) == 120
        assert [s.split for s in samples[:60]] == [s.split for s in samples[60:]]
        assert len({s.group for s in samples}) == (60 if name == "once" else 20)
        assert {s.split for s in samples} == {"train", "tune", "holdout"}


def test_equal_rows_with_different_labels_are_what_a_table_is_about(folder_store: FolderStore, tmp_path: Path) -> None:
    same = table(4, load=[1.0] * 4, heat=[2.0] * 4, site=["north"] * 4, broken=["yes", "no", "yes", "no"])
    write(tmp_path / "inbox/a.parquet", same)
    entry = ingest(folder_store, pipeline(tmp_path))
    assert entry is not None
    window = View(folder_store, entry.view).window
    assert (window.classes, window.quarantined) == ({"no": 2, "yes": 2}, 0)


# --- what cannot be used ---------------------------------------------------------------------------------


def test_rows_that_cannot_be_used_are_set_aside_with_the_reason(store: Store, tmp_path: Path) -> None:
    csv(
        tmp_path / "inbox/a.csv",
        "load,heat,site,broken,time,line\n"
        "1,2,north,yes,2026-01-01T00:00:00Z,a\n"
        "many,2,north,yes,2026-01-01T00:00:00Z,a\n"
        "inf,2,north,yes,2026-01-01T00:00:00Z,a\n"
        ",2,north,yes,2026-01-01T00:00:00Z,a\n"
        "1,nan,north,yes,2026-01-01T00:00:00Z,a\n"
        "1,2,,yes,2026-01-01T00:00:00Z,a\n"
        "1,2,north,yes,yesterday,a\n"
        "1,2,north,yes,2026-01-01T00:00:00,a\n",
    )
    entry = ingest(store, pipeline(tmp_path))
    assert taken(store, entry) == ["a.csv#0"]
    lacks = "has no value in {}; source.missing: impute takes such rows"
    assert quarantined(store, entry) == {
        "a.csv#1": "has 'many' in load, which is not a number",
        "a.csv#2": "has an infinite number in load",
        "a.csv#3": lacks.format("load"),
        "a.csv#4": lacks.format("heat"),
        "a.csv#5": lacks.format("site"),
        "a.csv#6": "has the time 'yesterday', which is not ISO 8601",
        "a.csv#7": "has the time 2026-01-01T00:00:00 without a zone, and source.timezone is not set",
    }


def test_missing_values_are_taken_where_the_source_says_so(folder_store: FolderStore, tmp_path: Path) -> None:
    write(tmp_path / "inbox/a.parquet", table(3, load=[None, np.nan, 3], site=["north", None, "north"]))
    entry = ingest(folder_store, pipeline(tmp_path, source={"missing": "impute"}))
    assert entry is not None
    view = View(folder_store, entry.view)
    kept = [(row["load"], row["site"]) for row in map(values_of, view.read(range(3)))]
    assert kept == [(None, "north"), (None, None), (3, "north")]


def test_values_that_are_no_declared_category_are_counted(
    folder_store: FolderStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "inbox/a.parquet", table(4, site=["east", "east", "north", "west"]))
    entry = ingest(folder_store, pipeline(tmp_path))
    assert len(taken(folder_store, entry)) == 4
    assert "3 values are none of the categories that model.features declares: site 'east' (2), site 'west' (1)" in caplog.text


BROKEN: dict[str, tuple[Any, str]] = {
    "a column is missing": (lambda: table(3).drop(["heat", "time"]), r"a\.parquet must have .*; heat, time missing"),
    "text for numbers": (lambda: table(3, load=["a", "b", "c"]), r"a\.parquet must hold numbers in load, .* got string"),
    "times for numbers": (lambda: table(3, heat=table(3)["time"]), r"a\.parquet must hold numbers in heat.* got timestamp"),
}  # fmt: skip


@pytest.mark.parametrize("trouble", BROKEN)
def test_a_table_whose_columns_do_not_fit_stops_the_tick(folder_store: FolderStore, tmp_path: Path, trouble: str) -> None:
    made, words = BROKEN[trouble]
    write(tmp_path / "inbox/a.parquet", made())
    with pytest.raises(SourceError, match=words):
        ingest(folder_store, pipeline(tmp_path))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.parquet", b"PAR1 not at all"),
        ("a.parquet", b""),
        ("a.csv", b""),
        ("a.csv", b"load,heat,site,broken,time,line\n1,2\n"),
        ("a.csv", b"load,load,heat,site,broken,time,line\n1,1,2,north,yes,,a\n"),
        ("a.csv", "load,heat,site,broken,time,line\n1,2,nörth,yes,,a\n".encode("utf-16")),
    ],
)
def test_a_table_that_cannot_be_read_stops_with_its_name(
    folder_store: FolderStore, tmp_path: Path, name: str, data: bytes
) -> None:
    (tmp_path / "inbox").mkdir()
    (tmp_path / "inbox" / name).write_bytes(data)
    with pytest.raises(SourceError, match=rf"source: {name} cannot be read as a (Parquet|CSV) table .*Write it again"):
        ingest(folder_store, pipeline(tmp_path))


def test_a_table_that_changed_after_it_was_taken_in_stops_the_tick(folder_store: FolderStore, tmp_path: Path) -> None:
    file = write(tmp_path / "inbox/a.parquet", table(4))
    config = pipeline(tmp_path)
    assert len(taken(folder_store, ingest(folder_store, config))) == 4
    write(file, table(6))
    os.utime(file, (1, 1))
    with pytest.raises(SourceError, match=r"a\.parquet must not change once .* to a file of another name"):
        ingest(folder_store, config)


# --- windows ---------------------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    most=st.integers(1, 12),
    orders=st.lists(st.sampled_from(["key", "shuffled", "time", "modified"]), min_size=1, max_size=4),
    kinds=st.lists(st.sampled_from(["csv", "parquet"]), min_size=4, max_size=4),
)
def test_every_row_is_in_one_window_however_they_are_cut(
    sizes: list[int], most: int, orders: list[str], kinds: list[str]
) -> None:
    """Also where the order is changed between two windows, and where files come in between."""
    with tempfile.TemporaryDirectory() as folder:
        here, found = Path(folder), []
        store = FolderStore(here / "store")
        for number, size in enumerate(sizes):
            rows = table(size, number).take(np.random.default_rng(size).permutation(size))
            write(here / f"inbox/{number}#.{kinds[number]}", rows, **({} if kinds[number] == "csv" else {"row_group_size": 3}))
            window = {"max_samples": most, "order": orders[number % len(orders)]}
            entry = ingest(store, pipeline(here, window=window))
            found += taken(store, entry) if entry else []
        found += [key for keys in windows(store, pipeline(here, window={"max_samples": most})) for key in keys]
        assert sorted(found) == sorted(f"{n}#.{kinds[n]}#{row}" for n, size in enumerate(sizes) for row in range(size))


def test_one_large_table_is_cut_in_order_of_time_across_files(store: Store, tmp_path: Path) -> None:
    mixed = np.random.default_rng(0).permutation(30)
    write(tmp_path / "inbox/b.parquet", table(30).take(mixed), row_group_size=7)
    write(tmp_path / "inbox/a.csv", table(10, start=10))
    made = windows(store, pipeline(tmp_path, window={"max_samples": 16, "order": "time"}))
    hours = {f"b.parquet#{place}": int(hour) for place, hour in enumerate(mixed)} | {f"a.csv#{n}": 10 + n for n in range(10)}
    assert [len(keys) for keys in made] == [16, 16, 8]
    for earlier, later in pairwise(made):
        assert max(hours[k] for k in earlier) <= min(hours[k] for k in later)


def test_a_window_waits_for_enough_rows(folder_store: FolderStore, tmp_path: Path) -> None:
    write(tmp_path / "inbox/a.parquet", table(5))
    config = pipeline(tmp_path, window={"min_samples": 8})
    assert ingest(folder_store, config) is None
    write(tmp_path / "inbox/b.parquet", table(5, 1))
    assert len(taken(folder_store, ingest(folder_store, config))) == 10


def test_of_a_table_only_what_a_window_needs_is_read(
    folder_store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "inbox/a.parquet", table(1_000), row_group_size=100)
    config = pipeline(tmp_path, window={"max_samples": 150})
    read: list[int] = []
    original = pq.ParquetFile.iter_batches
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *a, **o: read.extend(o["row_groups"]) or original(*a, **o))
    for _ in range(2):
        ingest(folder_store, config)
    assert read == [0, 1, 1, 2]


def test_a_table_of_which_all_was_taken_is_not_opened_again(
    folder_store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "inbox/a.parquet", table(3))
    ingest(folder_store, pipeline(tmp_path))
    write(tmp_path / "inbox/b.parquet", table(3, 1))
    counted: list[str] = []
    original = tables.TableFile.count
    monkeypatch.setattr(tables.TableFile, "count", lambda file: counted.append(file.key) or original(file))
    assert taken(folder_store, ingest(folder_store, pipeline(tmp_path))) == ["b.parquet#0", "b.parquet#1", "b.parquet#2"]
    assert set(counted) == {"b.parquet"}


def test_tables_are_read_from_s3(s3_store: S3Store, tmp_path: Path) -> None:
    s3_store.put_file("in/a.parquet", write(tmp_path / "a.parquet", table(4)))
    s3_store.put_file("in/b.csv", write(tmp_path / "b.csv", table(4)))
    for number, path in enumerate(["in", "in/a.parquet"]):
        config = pipeline(tmp_path, source={"paths": [s3_store.url(path)]})
        store = s3_store.sub(f"store-{number}")
        assert [key[:2] for key in taken(store, ingest(store, config))] == (["a."] * 4 + ["b."] * 4)[: 8 - 4 * number]


@pytest.mark.parametrize("where", ["ViewWriter.commit", "_cursor", "seen_after"])
def test_a_crash_before_the_stream_entry_loses_and_repeats_no_row(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    write(tmp_path / "inbox/a.parquet", table(7))
    config = pipeline(tmp_path, window={"max_samples": 4})
    ingest(store, config)

    def crash(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"everfresh.tasks.{'rows' if where == 'seen_after' else 'ingest'}.{where}", crash)
        with pytest.raises(KeyboardInterrupt):
            ingest(store, config)
    assert stream(store).last_seq() == 1
    assert taken(store, ingest(store, config)) == ["a.parquet#4", "a.parquet#5", "a.parquet#6"]
    assert ingest(store, config) is None


# --- config and check ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": {"features": []}}, "model.features must name columns if and only if source.kind is rows, got 0 with rows"),
        ({"model": {"features": ["load", "load"]}}, "must not repeat a name, got load more than once"),
        ({"model": {"features": ["confidence"]}}, "must not be confidence or prediction, which are the model's own"),
        ({"model": {"features": [{"name": "a", "categories": ["x"], "mean": 1}]}}, "must be a number or have categories"),
        ({"model": {"architecture": "resnet18"}}, "must be your own package.module:callable where there are features"),
        ({"source": {"timestamp_column": None}, "window": {"order": "time"}}, "window.order must not be time while"),
        ({"source": {"kind": "folder", "path": "x", "labels": {}}}, "source"),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_told(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        pipeline(tmp_path, **changes)


def test_check_tells_what_the_tables_hold(tmp_path: Path) -> None:
    write(tmp_path / "inbox/a.parquet", table(30, load=[None, *range(29)], site=["east", *["north"] * 29]))
    lines = {line.name: line for line in check(pipeline(tmp_path)) if line.name in {"source", "classes", "weights"}}
    assert all(line.passed for line in lines.values())
    assert lines["source"].words == (
        "1 files, 30 rows; of 30 looked at 1 would go into quarantine: a.parquet#0 has no value in load; "
        "source.missing: impute takes such rows"
    )
    assert lines["classes"].words == "2 of 2 classes"
    assert lines["weights"].words == "support.tables:mlp: 114 weights, embedding of 16"


def test_check_tells_labels_that_no_class_has(tmp_path: Path) -> None:
    write(tmp_path / "inbox/a.csv", table(5, broken=["maybe"] * 5))
    (line,) = [line for line in check(pipeline(tmp_path)) if line.name == "classes"]
    assert not line.passed
    assert "labels must be among model.classes, got none that is (0 of 2 classes; not in model.classes" in line.words


def test_the_schema_takes_bare_names_and_categories_as_the_file_does() -> None:
    features = {"features": ["load", {"name": "site", "categories": ["north"]}], "architecture": "a.b:c", "classes": ["x", "y"]}
    schema = json.loads(json_schema())
    raw = {"name": "p", "store": "s", "source": {"kind": "rows", "paths": ["in"], "label_column": "y"}, "model": features}
    Draft202012Validator(schema).validate(raw)
    assert [f.name for f in parse_config({**raw, "policy": {"bootstrap": "pretrained"}}).model.features] == ["load", "site"]
