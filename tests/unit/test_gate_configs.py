"""Gates that cannot judge, or could fail nothing, are refused when the pipeline file is read, in one sentence."""

from __future__ import annotations

from typing import Any

import pytest

from everfresh.tasks.config import PipelineConfig, parse_config
from everfresh.tasks.errors import ConfigError

SIDECAR = {"kind": "folder", "path": "in", "labels": {"kind": "sidecar", "path": "l.csv", "slice_columns": ["site", "device"]}}
ROWS = {"kind": "rows", "paths": ["in"], "label_column": "label"}
FEATURES = {"architecture": "a:b", "weights": None, "features": [{"name": "age"}]}


def read(*gates: dict[str, Any], **sections: Any) -> PipelineConfig:
    raw: dict[str, Any] = {"name": "p", "store": "s", "source": {"kind": "folder", "path": "in"}}
    raw["model"] = {"classes": ["cat", "dog"], **sections.pop("model", {})}
    return parse_config({**raw, **sections, "gates": list(gates)})


SENTENCES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"kind": "slices"}, {},
     "gates.0.columns must be among label, window while the source names no slice_columns, got null. Name some."),
    ({"kind": "slices", "columns": ["site", "camera"]}, {"source": SIDECAR},
     "gates.0.columns must be among site, device, label, window, got camera. Correct it, or add it to the slice_columns."),
    ({"kind": "slices", "columns": ["label"]}, {"model": {"task": "multi_label"}},
     "gates.0.columns must be among window, got label. Correct it, or add it to the slice_columns."),
    ({"kind": "slices", "max_drop": None}, {"source": SIDECAR},
     "gates.0.slices: minimum, max_gap or max_drop must be given, got null for all: nothing could fail. Give one."),
    ({"kind": "negative_flips", "maximum": None}, {},
     "gates.0.negative_flips: maximum or relative must be given, got null for both: nothing could fail. Give one."),
    ({"kind": "calibration", "max_increase": None}, {},
     "gates.0.calibration: maximum or max_increase must be given, got null for both: nothing could fail. Give one."),
    ({"kind": "calibration"}, {"model": {"task": "regression", "classes": [], "targets": ["age"], "tolerance": 1}},
     "gates.0.kind must not be calibration while model.task is regression, got calibration: values have none. Remove it."),
    ({"kind": "robustness"}, {"source": ROWS, "model": FEATURES, "policy": {"bootstrap": "pretrained"}},
     "gates.0.kind must not be robustness while model.features is given, got robustness: it corrupts pictures. Remove it."),
    ({"kind": "robustness", "max_drop": None}, {},
     "gates.0.robustness: minimum or max_drop must be given, got null for both: nothing could fail. Give one."),
    ({"kind": "robustness", "max_samples": 10}, {},
     "gates.0.robustness: min_samples must not exceed max_samples, got 20 > 10. Raise max_samples."),
    ({"kind": "robustness", "corruptions": ["blur", "blur"]}, {},
     "gates.0.corruptions: must not repeat a name, got blur more than once. Name each once."),
    ({"kind": "robustness", "severities": [3, 1, 3]}, {},
     "gates.0.severities: must not repeat a number, got 3 more than once. Name each once."),
    ({"kind": "robustness", "severities": [6]}, {}, "gates.0.severities.0: must be at most 5, got 6. Lower it."),
    ({"kind": "robustness", "corruptions": []}, {}, "gates.0.corruptions: must hold at least 1, got nothing in it. Add some."),
    ({"kind": "latency", "max_ratio": None}, {},
     "gates.0.latency: max_ratio or max_ms must be given, got null for both: nothing could fail. Give one."),
    ({"kind": "latency", "rounds": 9}, {}, "gates.0.rounds: must be at least 10, got 9. Raise it."),
    ({"kind": "size", "max_ratio": None}, {},
     "gates.0.size: max_ratio or max_megabytes must be given, got null for both: nothing could fail. Give one."),
    ({"kind": "better", "test": "t"}, {}, "gates.0.test: must be one of mcnemar or bootstrap, got 't'. Choose one."),
    ({"kind": "serves", "formats": ["tflite"]}, {},
     "gates.0.formats.0: must be one of safetensors, pt2 or onnx, got 'tflite'. Choose one."),
    ({"kind": "floor", "too_few": "skip"}, {}, "gates.0.too_few: must be one of pass or fail, got 'skip'. Choose one."),
]  # fmt: skip


@pytest.mark.parametrize(("gate", "sections", "sentence"), SENTENCES)
def test_a_gate_that_does_not_fit_says_field_rule_value_and_remedy(
    gate: dict[str, Any], sections: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(gate, **sections)
    assert [line.strip() for line in str(caught.value).splitlines()[1:]] == [sentence]


@pytest.mark.parametrize(
    ("kind", "usual"),
    [
        ("slices", {"max_drop": 0.05}),
        ("negative_flips", {"maximum": 0.05}),
        ("calibration", {"max_increase": 0.05}),
        ("robustness", {"max_drop": 0.05}),
        ("latency", {"max_ratio": 1.25}),
        ("size", {"max_ratio": 1.1}),
    ],
)
def test_a_limit_that_is_written_brings_no_other_with_it(kind: str, usual: dict[str, float]) -> None:
    """Also once the file has been read, written out and read again."""
    [plain] = read({"kind": kind}, source=SIDECAR).gates
    limits = type(plain).LIMITS
    assert {name: value for name in limits if (value := getattr(plain, name)) is not None} == usual
    for name in limits:
        [gate] = read({"kind": kind, name: 0.5}, source=SIDECAR).gates
        assert {n: value for n in limits if (value := getattr(gate, n)) is not None} == {name: 0.5}
        assert read(gate.model_dump(mode="json"), source=SIDECAR).gates == (gate,)
    [both] = read({"kind": kind, **dict.fromkeys(limits, 0.5)}, source=SIDECAR).gates
    assert all(getattr(both, name) == 0.5 for name in limits)


def test_gates_of_all_kinds_stand_in_one_file_and_twice_the_same() -> None:
    kinds = [
        "floor",
        "better",
        "no_worse",
        "slices",
        "negative_flips",
        "calibration",
        "robustness",
        "latency",
        "size",
        "serves",
    ]
    gates = [{"kind": kind} for kind in kinds] + [{"kind": "floor", "metric": "f1", "scope": "bank"}]
    assert [gate.kind for gate in read(*gates, source=SIDECAR).gates] == [*kinds, "floor"]


@pytest.mark.parametrize("kind", ["slices", "negative_flips", "calibration", "robustness", "latency"])
def test_gates_that_need_more_than_small_windows_have_do_not_block_the_loop(kind: str) -> None:
    [gate] = read({"kind": kind}, source=SIDECAR).gates
    assert gate.too_few == "pass"  # type: ignore[union-attr]


def test_gates_of_sets_and_values_judge_by_right_or_wrong() -> None:
    values = {"task": "regression", "classes": [], "targets": ["age"], "tolerance": 1}
    for model in ({"task": "multi_label"}, values):
        gates = [{"kind": k} for k in ("slices", "negative_flips", "robustness", "latency", "size", "better", "no_worse")]
        assert len(read(*gates, source=SIDECAR, model=model).gates) == 7
    assert read({"kind": "calibration"}, model={"task": "multi_label"}).gates[0].kind == "calibration"
