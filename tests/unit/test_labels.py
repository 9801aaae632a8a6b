"""Labels, times and slices from a table: read whole or not at all, and never two truths about one picture."""

from __future__ import annotations

import contextlib
import io
import json
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.pictures import noise, table, write_folder, write_tar
from support.windows import pictures, pipeline, quarantined, taken

from everfresh.tasks.config import PipelineConfig
from everfresh.tasks.errors import SourceError
from everfresh.tasks.ingest import ingest
from everfresh.tasks.labels import MAX_NAME
from everfresh.tasks.ledger import stream
from everfresh.tasks.store import FolderStore, Store
from everfresh.tasks.views import View

SIDECAR = {
    "kind": "sidecar", "path": "labels.csv", "key_column": "file", "label_column": "class", "timestamp_column": "when",
    "slice_columns": ["site"],
}  # fmt: skip
ROWS: list[dict[str, object]] = [
    {"file": "a.png", "class": " cat ", "when": "2026-01-01T12:00:00+02:00", "site": "north"},
    {"file": "b.png", "class": "", "when": "2026-01-01T12:00:00", "site": "south"},
    {"file": "never-came.png", "class": "dog", "when": "2026-01-01T12:00:00Z", "site": "south"},
]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_labels_times_and_slices_come_from_a_table(store: Store, tmp_path: Path, kind: str) -> None:
    write_folder(tmp_path / "inbox", {**pictures("a.png", "b.png", "c.png"), f"labels.{kind}": table(ROWS, kind)})
    labels = {**SIDECAR, "path": f"labels.{kind}"}
    source = {"kind": "folder", "path": str(tmp_path / "inbox"), "labels": labels, "timezone": "Europe/Berlin"}
    entry = ingest(store, pipeline(source))
    assert entry is not None
    a, b, c = View(store, entry.view).samples
    assert (a.label, b.label, c.label) == ("cat", None, None)
    assert a.timestamp == datetime(2026, 1, 1, 10, tzinfo=UTC)
    assert b.timestamp == datetime(2026, 1, 1, 11, tzinfo=UTC)
    assert c.timestamp is None
    assert [json.loads(s.slices) for s in (a, b, c)] == [{"site": "north"}, {"site": "south"}, {}]


def test_the_same_moment_is_the_same_view_however_the_table_writes_it(tmp_path: Path) -> None:
    views = set()
    moments: list[object] = ["2026-01-01T12:00:00+02:00", "2026-01-01T10:00:00Z", datetime(2026, 1, 1, 10, tzinfo=UTC)]
    for number, when in enumerate(moments):
        rows: list[dict[str, object]] = [{"key": "a.png", "label": "cat", "when": when}]
        folder = write_folder(tmp_path / str(number), {**pictures("a.png"), "l.parquet": table(rows, "parquet")})
        labels = {"kind": "sidecar", "path": "l.parquet", "timestamp_column": "when"}
        source = {"kind": "folder", "path": str(folder), "labels": labels}
        entry = ingest(FolderStore(tmp_path / f"store-{number}"), pipeline(source))
        assert entry is not None
        views.add(entry.view)
    assert len(views) == 1


def test_times_with_nanoseconds_are_cut_to_microseconds(folder_store: FolderStore, tmp_path: Path) -> None:
    when = pa.array([1_767_261_600_123_456_789], pa.timestamp("ns", "UTC"))
    sink = io.BytesIO()
    pq.write_table(pa.table({"key": ["a.png"], "label": ["cat"], "when": when}), sink)
    write_folder(tmp_path / "inbox", {**pictures("a.png"), "l.parquet": sink.getvalue()})
    labels = {"kind": "sidecar", "path": "l.parquet", "timestamp_column": "when"}
    entry = ingest(folder_store, pipeline({"kind": "folder", "path": str(tmp_path / "inbox"), "labels": labels}))
    assert entry is not None
    assert View(folder_store, entry.view).samples[0].timestamp.microsecond == 123_456


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"when": "yesterday"}, "'yesterday', which is not ISO 8601"),
        ({"when": "2026-01-01T00:00:00"}, "without a zone, and source.timezone is not set"),
        ({"when": "0001-01-01T00:00:00+05:00"}, "0001-01-01"),
    ],
)
def test_a_row_that_cannot_be_used_sets_its_file_aside(
    folder_store: FolderStore, tmp_path: Path, row: dict[str, object], reason: str
) -> None:
    rows: list[dict[str, object]] = [{**ROWS[0], **row}, {**ROWS[0], "file": "b.png"}]
    write_folder(tmp_path / "inbox", {**pictures("a.png", "b.png"), "labels.csv": table(rows, "csv")})
    entry = ingest(folder_store, pipeline({"kind": "folder", "path": str(tmp_path / "inbox"), "labels": SIDECAR}))
    assert taken(folder_store, entry) == ["b.png"]
    assert reason in quarantined(folder_store, entry)["a.png"]


def test_two_rows_that_disagree_set_their_file_aside_and_equal_ones_do_not(folder_store: FolderStore, tmp_path: Path) -> None:
    rows = [ROWS[0], {**ROWS[0], "class": "dog"}, {**ROWS[0], "file": "b.png"}, {**ROWS[0], "file": "b.png"}]
    write_folder(tmp_path / "inbox", {**pictures("a.png", "b.png"), "labels.csv": table(rows, "csv")})
    entry = ingest(folder_store, pipeline({"kind": "folder", "path": str(tmp_path / "inbox"), "labels": SIDECAR}))
    assert taken(folder_store, entry) == ["b.png"]
    assert quarantined(folder_store, entry) == {"a.png": "has two different rows in labels.csv"}


def test_a_line_that_leaves_a_column_out_leaves_it_empty(folder_store: FolderStore, tmp_path: Path) -> None:
    lines = b'{"file":"a.png","class":"cat","when":"2026-01-01T00:00:00Z","site":"n"}\n{"file":"b.png"}\n'
    write_folder(tmp_path / "inbox", {**pictures("a.png", "b.png"), "labels.jsonl": lines})
    source = {"kind": "folder", "path": str(tmp_path / "inbox"), "labels": {**SIDECAR, "path": "labels.jsonl"}}
    entry = ingest(folder_store, pipeline(source))
    assert entry is not None
    assert [(s.label, s.slices) for s in View(folder_store, entry.view).samples] == [("cat", '{"site": "n"}'), (None, "{}")]


def test_without_labels_nothing_is_labelled(folder_store: FolderStore, tmp_path: Path) -> None:
    write_folder(tmp_path / "inbox", pictures("cat/1.png"))
    source = {"kind": "folder", "path": str(tmp_path / "inbox"), "labels": {"kind": "none"}}
    entry = ingest(folder_store, pipeline(source))
    assert entry is not None
    assert View(folder_store, entry.view).window.labelled == 0


@pytest.mark.parametrize(
    ("files", "path", "message"),
    [
        ({}, "labels.csv", r"must be a table in the source, got 'labels\.csv'"),
        ({"labels.csv": b"file,klass\na,b\n"}, "labels.csv", r"must have the columns .*class.*, got .*klass"),
        ({"labels.csv": b"\xff\xfe\x00"}, "labels.csv", r"labels\.csv cannot be read"),
        ({"labels.jsonl": b"{broken"}, "labels.jsonl", r"labels\.jsonl cannot be read"),
        ({"labels.jsonl": b"[1]\n"}, "labels.jsonl", r"labels\.jsonl cannot be read"),
        ({"labels.parquet": b"PAR1 not"}, "labels.parquet", r"labels\.parquet cannot be read"),
        ({"labels.xlsx": b"x"}, "labels.xlsx", r"must end in \.csv, \.jsonl or \.parquet, got 'labels\.xlsx'"),
        ({"labels.csv": b"file,class,when,site\n,cat,,\n"}, "labels.csv", r"row 1 of labels\.csv must name a file"),
    ],
    ids=["missing", "column", "encoding", "json", "no mapping", "parquet", "suffix", "no key"],
)
def test_a_table_that_cannot_be_read_stops_with_the_reason(
    folder_store: FolderStore, tmp_path: Path, files: dict[str, bytes], path: str, message: str
) -> None:
    write_folder(tmp_path / "inbox", {**pictures("a.png"), **files})
    source = {"kind": "folder", "path": str(tmp_path / "inbox"), "labels": {**SIDECAR, "path": path}}
    with pytest.raises(SourceError, match=message):
        ingest(folder_store, pipeline(source))
    assert stream(folder_store).last() is None


def labelled(folder: Path, data: bytes | str, kind: str = "csv", keys: tuple[str, ...] = ("a.png", "b.png")) -> PipelineConfig:
    """A folder of pictures with a table of the columns `key` and `label`."""
    data = data.encode() if isinstance(data, str) else data
    write_folder(folder / "inbox", {**pictures(*keys), f"labels.{kind}": data})
    return pipeline({"kind": "folder", "path": str(folder / "inbox"), "labels": {"kind": "sidecar", "path": f"labels.{kind}"}})


def labels_of(store: Store, config: PipelineConfig) -> dict[str, str | None]:
    """What ingest takes in, with its labels."""
    entry = ingest(store, config)
    assert entry is not None
    return {s.key: s.label for s in View(store, entry.view).samples}


# --- a table that is damaged as a whole ------------------------------------------------------------------

WHOLE = table([{"key": f"{n}.png", "label": "cat"} for n in range(50)], "parquet")
TWO_LABELS = pa.table([["a.png"], ["cat"], ["dog"]], names=["key", "label", "label"])
DAMAGED = {
    "csv semicolons": ("key;label\na.png;cat\n", r"must have the columns key, label, got key;label; .*the delimiter \(comma\)"),
    "csv tabs": ("key\tlabel\na.png\tcat\n", r"got key\tlabel; .*the delimiter \(comma\)"),
    "csv latin-1": ("key,label\na.png,Bär\n".encode("latin-1"), r"can't decode byte 0xe4 .*write it again as UTF-8"),
    "csv utf-16": ("key,label\na.png,cat\n".encode("utf-16"), r"can't decode byte 0xff .*write it again as UTF-8"),
    "csv utf-16 without mark": ("key,label\na.png,cat\n".encode("utf-16-le"), "holds NUL characters, as UTF-16 does"),
    "csv NUL": ("key,label\na.png,c\0t\n", "holds NUL characters"),
    "csv million characters": (f"key,label\na.png,{'x' * 1_000_000}\n", r"line 2: field larger than field limit \(131072\)"),
    "csv too many fields": ("key,label\nb.png,cat\na,1.png,cat\n", "line 3: it must have 2 fields, as the header has"),
    "csv too few fields": ("key,label\na.png,cat\nb.pn", "line 3: it must have 2 fields"),
    "csv open quote": ('key,label\na.png,"cat\nb.png,dog\n', "line 3: unexpected end of data"),
    "csv empty": ("", r"cannot be read \(it is empty\)"),
    "csv blank": ("\n \n", r"cannot be read \(it is empty\)"),
    "csv two labels": ("key,label,label\na.png,cat,dog\n", "more than one column 'label'"),
    "csv header of others": ("file,class\n", "must have the columns key, label, got file, class"),
    "jsonl list": ('{"key": "a.png", "label": "cat"}\n["ab", "cd"]\n', r'line 2 must be an object, got \["ab"'),
    "jsonl broken": ('{"key": "a.png", "label": "cat"}\n{"key": "b.p', r"line 2: Unterminated string"),
    "jsonl array": ('[{"key": "a.png", "label": "cat"}]', "line 1 must be an object"),
    "jsonl deep": ("[" * 100_000, "recursion"),
    "jsonl empty": ("", "it is empty"),
    "parquet cut": (WHOLE[: len(WHOLE) // 2], "cannot be read"),
    "parquet cut in front": (WHOLE[len(WHOLE) // 2 :], "cannot be read"),
    "parquet empty": (b"", "it is empty"),
    "parquet two labels": (TWO_LABELS, "more than one column 'label'"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_table_that_is_damaged_stops_with_the_place_and_the_remedy(
    folder_store: FolderStore, tmp_path: Path, case: str
) -> None:
    data, message = DAMAGED[case]
    if isinstance(data, pa.Table):
        sink = io.BytesIO()
        pq.write_table(data, sink)
        data = sink.getvalue()
    with pytest.raises(SourceError, match=message) as caught:
        ingest(folder_store, labelled(tmp_path, data, case.split()[0]))
    assert len(str(caught.value)) < 500
    assert stream(folder_store).last() is None


@pytest.mark.parametrize("at", range(4, len(WHOLE), len(WHOLE) // 60))
def test_a_parquet_table_with_a_wrong_byte_is_read_or_refused(folder_store: FolderStore, tmp_path: Path, at: int) -> None:
    config = labelled(tmp_path, WHOLE[:at] + bytes([WHOLE[at] ^ 0x55]) + WHOLE[at + 1 :], "parquet")
    with contextlib.suppress(SourceError):
        ingest(folder_store, config)


# --- a table that is fine --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("csv", "\ufeffkey,label\na.png,cat\nb.png,\n"),
        ("csv", 'key,label\r\n"a.png","cat"\r\n\r\nb.png,""\r\n'),
        ("csv", "label,key,remark\ncat,a.png,\ncat,never-came.png,x\n"),
        ("jsonl", '\ufeff{"key": "a.png", "label": "cat"}\r\n\n{"key": "b.png", "label": null}\n'),
        ("jsonl", '{"key": "a.png", "label": "cat", "remark": "one\u2028two"}\n'),
        ("jsonl", '{"key": "a.png", "label": "\\tcat\\n"}'),
    ],
)
def test_marks_line_ends_quotes_and_other_columns_do_not_matter(
    folder_store: FolderStore, tmp_path: Path, kind: str, data: str
) -> None:
    assert labels_of(folder_store, labelled(tmp_path, data, kind)) == {"a.png": "cat", "b.png": None}


def test_a_class_that_is_not_known_waits(folder_store: FolderStore, tmp_path: Path) -> None:
    config = labelled(tmp_path, "key,label\na.png,cat\nb.png,cow\n")
    assert labels_of(folder_store, config) == {"a.png": "cat", "b.png": "cow"}
    entry = stream(folder_store).last()
    assert entry is not None
    assert View(folder_store, entry.view).window.pending == {"cow": 1}


@pytest.mark.parametrize(
    "data",
    ["key,label\n", "key,label\n./a.png,cat\n/abs/a.png,cat\n../a.png,cat\nA.PNG,cat\n", "key,label\ninbox\\a.png,cat\n"],
    ids=["header alone", "other paths", "backslashes"],
)
def test_a_table_that_fits_no_new_file_is_told(
    folder_store: FolderStore, tmp_path: Path, caplog: pytest.LogCaptureFixture, data: str
) -> None:
    assert labels_of(folder_store, labelled(tmp_path, data)) == {"a.png": None, "b.png": None}
    assert "none of 2 new files has a row in labels.csv: 'a.png' has none" in caplog.text


def test_a_key_that_climbs_out_of_the_source_opens_nothing(folder_store: FolderStore, tmp_path: Path) -> None:
    write_folder(tmp_path, {"outside.png": noise(9)})
    rows = f"key,label\n../outside.png,cat\n{tmp_path}/outside.png,cat\na.png,dog\n"
    assert labels_of(folder_store, labelled(tmp_path, rows)) == {"a.png": "dog", "b.png": None}


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("column", ["label", "site"])
def test_a_text_too_long_for_a_name_sets_its_file_aside(
    folder_store: FolderStore, tmp_path: Path, kind: str, column: str
) -> None:
    rows: list[dict[str, object]] = [{"key": "a.png", "label": "cat", "site": "n", column: "x" * 1_000_000}]
    rows += [{"key": "b.png", "label": "c" * MAX_NAME, "site": "n"}]
    config = labelled(tmp_path, table(rows, kind), kind)
    labels = {"kind": "sidecar", "path": f"labels.{kind}", "slice_columns": ["site"]}
    entry = ingest(folder_store, pipeline({"kind": "folder", "path": str(config.source.path), "labels": labels}))  # type: ignore[union-attr]
    assert taken(folder_store, entry) == ["b.png"]
    [reason] = quarantined(folder_store, entry).values()
    assert reason == f"has a label or slice of 1,000,000 characters, more than {MAX_NAME}: {'x' * 40!r}…"


@pytest.mark.parametrize("label", ["\\ud800", "ca\\u0000t", "\\u001b[31mcat", "\\u0085\\u0081"])
def test_a_label_with_control_characters_sets_its_file_aside(folder_store: FolderStore, tmp_path: Path, label: str) -> None:
    entry = ingest(folder_store, labelled(tmp_path, f'{{"key": "a.png", "label": "{label}"}}', "jsonl"))
    assert "has a label or slice with control characters" in quarantined(folder_store, entry)["a.png"]


def test_a_folder_in_an_archive_can_be_too_long_for_a_label(folder_store: FolderStore, tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "a.tar", pictures("x" * 5_000 + "/1.png", "cat/2.png"))
    entry = ingest(folder_store, pipeline({"kind": "shards", "paths": [str(archive)]}))
    assert taken(folder_store, entry) == ["a.tar/cat/2.png"]
    assert ["5,000 characters" in reason for reason in quarantined(folder_store, entry).values()] == [True]


# --- two truths about one picture ------------------------------------------------------------------------


def test_identical_pictures_with_different_labels_are_all_set_aside(store: Store, tmp_path: Path) -> None:
    same, other = noise(1), noise(2)
    files = {"cat/1.png": same, "dog/1.png": same, "cat/2.png": same, "top.png": same, "cat/3.png": other, "cat/4.png": other}
    config = pipeline(write_folder(tmp_path / "inbox", files))
    entry = ingest(store, config)
    assert taken(store, entry) == ["cat/3.png", "cat/4.png", "top.png"]  # without a label nothing is contradicted
    assert quarantined(store, entry) == {
        "cat/1.png": "is labelled 'cat', but 'dog/1.png' has the same bytes and is labelled 'dog'",
        "cat/2.png": "is labelled 'cat', but 'dog/1.png' has the same bytes and is labelled 'dog'",
        "dog/1.png": "is labelled 'dog', but 'cat/1.png' has the same bytes and is labelled 'cat'",
    }
    assert entry is not None
    view = View(store, entry.view)
    assert (view.window.samples, view.window.quarantined, view.window.classes) == (3, 3, {"cat": 2})
    assert list(view.read(view.rows())) == [other, other, same]
    [kept] = {i.key for i in store.list(f"quarantine/{entry.view}") if not i.key.endswith(".jsonl")}
    assert store.get(kept) == same
    assert ingest(store, config) is None


def test_a_table_can_contradict_itself_about_identical_pictures(folder_store: FolderStore, tmp_path: Path) -> None:
    config = labelled(tmp_path, "key,label\na.png,cat\nb.png,cow\n")
    write_folder(tmp_path / "inbox", {"b.png": pictures("a.png")["a.png"]})
    entry = ingest(folder_store, config)
    assert taken(folder_store, entry) == []
    assert set(quarantined(folder_store, entry)) == {"a.png", "b.png"}
