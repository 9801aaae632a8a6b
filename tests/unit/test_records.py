"""Records: what is written can be read, by this version and by every later one."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from everfresh.tasks.errors import StoreError
from everfresh.tasks.records import AliasMove, Cost, Cursor, Part, Record, StreamEntry, Verdict, Window, digest_of

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
PART = Part(key="windows/v/manifest.parquet", sha256="0" * 64, size=3)
WINDOW = Window(
    view="v", samples=3, quarantined=1, labelled=2, splits={"train": 1, "holdout": 1}, classes={"cat": 2},
    pending={"cow": 1}, manifest=PART, shards=(PART,),
)  # fmt: skip
ENTRY = StreamEntry(seq=1, view="v", previous=None, cursor_after=Cursor(index=PART, last_key="k"), committed_at=NOW)
MOVE = AliasMove(seq=2, id="x", kind="publish", release="r", version=2, by="me", reason="better", at=NOW)

# Each record as an older version wrote it; a reader must go on accepting these lines.
WRITTEN_BY_VERSION_1 = {
    Window: """{"schema_version":1,"view":"v","samples":3,"quarantined":1,"labelled":2,"splits":{"train":1,"holdout":1},
        "classes":{"cat":2},"pending":{"cow":1},"manifest":{"key":"windows/v/manifest.parquet","sha256":"%(zeros)s","size":3},
        "shards":[{"key":"windows/v/manifest.parquet","sha256":"%(zeros)s","size":3}],"supersedes":null}""",
    StreamEntry: """{"schema_version":1,"seq":1,"view":"v","previous":null,"cursor_after":{"index":
        {"key":"windows/v/manifest.parquet","sha256":"%(zeros)s","size":3},"last_key":"k","listing":""},
        "committed_at":"2026-01-02T03:04:05Z"}""",
    AliasMove: """{"schema_version":1,"seq":2,"id":"x","kind":"publish","release":"r","version":2,"pinned":false,
        "barred":[],"by":"me","reason":"better","at":"2026-01-02T03:04:05Z"}""",
}


@pytest.mark.parametrize("record", [WINDOW, ENTRY, MOVE], ids=lambda r: type(r).__name__)
def test_a_record_survives_writing_and_is_json_for_people(record: Record) -> None:
    data = record.to_bytes()
    assert type(record).from_bytes(data) == record
    assert type(record).from_bytes(data).to_bytes() == data
    assert data.endswith(b"}\n")
    assert json.loads(data)["schema_version"] == 1


@pytest.mark.parametrize("record", [WINDOW, ENTRY, MOVE], ids=lambda r: type(r).__name__)
def test_a_record_written_by_version_1_is_read(record: Record) -> None:
    text = WRITTEN_BY_VERSION_1[type(record)] % {"zeros": "0" * 64}
    assert type(record).from_bytes(text.encode()) == record


def test_a_field_that_came_later_takes_its_default() -> None:
    raw = json.loads(MOVE.to_bytes())
    del raw["pinned"], raw["barred"]
    assert AliasMove.from_bytes(json.dumps(raw).encode()) == MOVE


def test_a_record_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        MOVE.release = "other"  # type: ignore[misc]


@pytest.mark.parametrize("data", [b"", b"not json", b"{}", b"[1]", b'{"schema_version": 2, "new_field": 1}', b"\xff\xfe"])
def test_a_damaged_or_newer_record_is_a_store_error_that_says_which(data: bytes) -> None:
    with pytest.raises(StoreError, match="AliasMove"):
        AliasMove.from_bytes(data)


@pytest.mark.parametrize(
    "changes",
    [{"at": "2026-01-01T00:00:00"}, {"seq": 0}, {"version": 0}, {"kind": "steal"}],
    ids=lambda c: str(c),
)
def test_a_record_that_makes_no_sense_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(changes))):
        AliasMove.model_validate({**MOVE.model_dump(), **changes})


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(PLAIN)
def test_a_digest_is_32_hex_digits_and_equal_for_equal_values(value: object) -> None:
    digest = digest_of(value)
    assert len(digest) == 32
    assert int(digest, 16) >= 0
    assert digest == digest_of(json.loads(json.dumps(value)))


def test_a_digest_ignores_the_order_of_keys_and_nothing_else() -> None:
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})
    different = [digest_of(1), digest_of("1"), digest_of(1, 2), digest_of([1, 2]), digest_of(12), digest_of(), digest_of(None)]
    assert len(set(different)) == len(different)
    assert digest_of(PART) == digest_of(PART.model_dump())


def test_what_has_no_fixed_text_has_no_digest() -> None:
    with pytest.raises(TypeError, match="cannot digest a object"):
        digest_of(object())


def test_costs_add_up() -> None:
    total = sum((Cost(seconds=1, device_seconds=2, samples=3), Cost(seconds=10, samples=20)), start=Cost())
    assert total == Cost(seconds=11, device_seconds=2, samples=23)
    parts = (
        Cost(seconds=2, samples=100, waiting_seconds=0.5, memory_bytes=7),
        Cost(seconds=2, waiting_seconds=1, memory_bytes=9),
    )
    both = sum(parts, start=Cost())
    assert (both.images_per_second, both.waiting, both.memory_bytes) == (25, 0.375, 9)
    assert (Cost().images_per_second, Cost().waiting) == (0, 0)


def test_a_verdict_of_before_gates_could_be_undecided_is_read() -> None:
    old = {"gate": "floor", "passed": False, "numbers": {}, "words": "floor: no"}
    assert (Verdict.model_validate(old).outcome, Verdict.model_validate(old | {"passed": True}).outcome) == ("failed", "passed")
    undecided = Verdict(gate="slices", passed=True, outcome="undecided", numbers={}, words="slices: too few")
    assert Verdict.model_validate_json(undecided.model_dump_json()) == undecided
