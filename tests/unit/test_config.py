"""The pipeline file: what is accepted, and what each refusal says."""

from __future__ import annotations

import json
import traceback
from pathlib import Path
from typing import Any

import pytest
import yaml

from everfresh.tasks.config import PipelineConfig, is_path, json_schema, load_config, parse_config
from everfresh.tasks.errors import ConfigError

MINIMAL: dict[str, Any] = {
    "name": "digits",
    "store": "store",
    "source": {"kind": "folder"},
    "model": {"architecture": "squeezenet1_1", "weights": None, "classes": ["cat", "dog"]},
}


def pipeline(**changes: Any) -> dict[str, Any]:
    """The minimal pipeline with values changed by dotted path, written with `__` for the dot."""
    raw: dict[str, Any] = json.loads(json.dumps(MINIMAL))
    for path, value in changes.items():
        *parents, last = path.split("__")
        node = raw
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = value
    return raw


def write(folder: Path, raw: Any) -> Path:
    path = folder / "pipeline.yaml"
    path.write_text(raw if isinstance(raw, str) else yaml.safe_dump(raw))
    return path


def test_a_minimal_pipeline_loads_and_has_defaults() -> None:
    config = parse_config(pipeline())
    assert config.name == "digits"
    assert config.model.classes == ("cat", "dog")
    assert config.source.labels.kind == "parent_folder"
    assert [gate.kind for gate in config.gates] == ["floor", "better", "no_worse"]
    assert config.policy.ladder == ("recalibrate", "head", "full")


def test_a_config_is_frozen_hashes_its_values_and_survives_json() -> None:
    config = parse_config(pipeline())
    with pytest.raises(ValueError, match="frozen"):
        config.name = "other"  # type: ignore[misc]
    assert PipelineConfig.model_validate_json(config.model_dump_json()) == config


# --- unknown keys and wrong types ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "wndow", "source__pth", "source__labels", "window__maxsamples", "model__architeture", "drift__alpha",
        "policy__trigger", "fine_tune__lr", "schedule__cron", "alerts__mail",
    ],
)  # fmt: skip
def test_an_unknown_key_is_refused_by_name(path: str) -> None:
    value: Any = {"kind": "parent_folder", "colour": 1} if path == "source__labels" else 1
    wrong = "colour" if path == "source__labels" else path.split("__")[-1]
    with pytest.raises(ConfigError, match=rf"{wrong}: unknown key"):
        parse_config(pipeline(**{path: value}))


@pytest.mark.parametrize(("section", "entry"), [("policy__triggers", "drift"), ("gates", "floor")])
def test_an_unknown_key_in_a_trigger_or_gate_is_refused(section: str, entry: str) -> None:
    with pytest.raises(ConfigError, match=rf"{section.replace('__', '.')}\.0\.sensitivity: unknown key"):
        parse_config(pipeline(**{section: [{"kind": entry, "sensitivity": 1}]}))


@pytest.mark.parametrize("key", ["name", "store", "source", "model"])
def test_a_missing_section_is_named(key: str) -> None:
    raw = pipeline()
    del raw[key]
    with pytest.raises(ConfigError, match=rf"{key}: is required"):
        parse_config(raw)


def test_missing_classes_are_named() -> None:
    with pytest.raises(ConfigError, match=r"model\.classes: is required"):
        parse_config(pipeline(model={"weights": None}))


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("window__max_samples", "many", "'many'"),
        ("window__max_samples", 1.5, "1.5"),
        ("window__order", "random", "'random'"),
        ("source__ordered", "perhaps", "'perhaps'"),
        ("source__path", 7, "7"),
        ("model__precision", "fp8", "'fp8'"),
        ("model__mean", [0.5, 0.5], r"is required"),
        ("model__image_size", None, "None"),
        ("model__classes", "cat", "'cat'"),
        ("model__classes", ["cat", 3], "3"),
        ("drift__report", "sometimes", "'sometimes'"),
        ("evaluation__report", "sometimes", "'sometimes'"),
        ("policy__bootstrap", "everything", "'everything'"),
        ("policy__ladder", ["head", "cloud"], "'cloud'"),
        ("fine_tune__augment", "mixup", "'mixup'"),
        ("alerts__events", ["drift.gone"], r"'drift\.gone'"),
        ("window", 5, "5"),
        ("name", 5, "5"),
    ],
)
def test_a_wrong_type_or_choice_is_refused_with_the_value(path: str, value: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"(?s){path.replace('__', '.*')}.*({said})"):
        parse_config(pipeline(**{path: value}))


@pytest.mark.parametrize("path", ["source__kind", "source__labels__kind"])
def test_an_unknown_kind_lists_the_known_ones(path: str) -> None:
    with pytest.raises(ConfigError, match=r"kind: must be one of (folder|parent_folder), .*got 'kafka'"):
        parse_config(pipeline(**{path: "kafka"}))


@pytest.mark.parametrize(("section", "known"), [("policy__triggers", "new_samples"), ("gates", "no_worse")])
def test_an_unknown_trigger_or_gate_lists_the_known_ones(section: str, known: str) -> None:
    with pytest.raises(ConfigError, match=rf"0\.kind: must be one of .*{known}.*got 'moon'"):
        parse_config(pipeline(**{section: [{"kind": "moon"}]}))


def test_a_misspelt_key_is_recognised_and_a_wrong_name_is_explained() -> None:
    with pytest.raises(ConfigError, match=r"window.min_sample: unknown key. Did you mean min_samples\? Remove it"):
        parse_config(pipeline(window__min_sample=3))
    with pytest.raises(ConfigError, match=r"name: must be lower case letters, digits and dashes, got 'My Digits'"):
        parse_config(pipeline(name="My Digits"))


def test_all_wrong_fields_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(pipeline(fine_tune__epochs=0, drift__permutations=1, colour="red"))
    for field in ("fine_tune.epochs", "drift.permutations", "colour"):
        assert field in str(caught.value)


CREDENTIAL = (
    "must not hold a credential. Remove it and let boto3 find the credentials: environment (AWS_ACCESS_KEY_ID, …), "
    "a profile (AWS_PROFILE) or the machine's role."
)
WORDS: list[tuple[dict[str, Any], str]] = [
    ({"window__maxsamples": 1}, "window.maxsamples: unknown key. Did you mean max_samples? Remove it or correct its spelling; "
        "`everfresh init` lists all keys."),
    (
        {"release": {"formats": ["onnx"]}, "gates": [{"kind": "serves", "formats": ["pt2"]}]},
        "gates.0.formats must be safetensors or among release.formats, got pt2. Add it to release.formats, or remove it.",
    ),
    (
        {"release": {"formats": ["onnx", "onnx"]}},
        "release.formats: must not repeat a name, got onnx more than once. Name each once.",
    ),
    ({"hue": "red"}, "hue: unknown key. Remove it or correct its spelling; `everfresh init` lists all keys."),
    ({"window__max_samples": "many"}, "window.max_samples: must be a whole number, got 'many'. Write one without a point."),
    ({"window__max_samples": 1.5}, "window.max_samples: must be a whole number, got 1.5. Write one without a point."),
    ({"fine_tune__learning_rate": "fast"}, "fine_tune.learning_rate: must be a number, got 'fast'. Write one such as 0.05."),
    ({"source__ordered": "perhaps"}, "source.ordered: must be true or false, got 'perhaps'. Write one of the two."),
    ({"name": 5}, "name: must be text, got 5. Put it into quotes."),
    ({"window": 5}, "window: must be a section, got 5. Write its keys below it, each in a line of its own and indented."),
    ({"model__classes": "cat"}, "model.classes: must be a list, got 'cat'. Write it as [a, b]."),
    ({"model__precision": "fp8"}, "model.precision: must be one of fp32 or bf16, got 'fp8'. Choose one."),
    ({"source__kind": "kafka"}, "source.kind: must be one of folder, shards, rows, predictions, got 'kafka'. Choose one."),
    ({"fine_tune__learning_rate": None}, "fine_tune.learning_rate: must be a number, got None. Write one such as 0.05."),
    ({"fine_tune__schedule__thaw": "gradually"}, "fine_tune.schedule: thaw must be at_once while freeze is 0, got gradually: "
        "nothing is frozen. Set freeze, or remove thaw."),
    ({"fine_tune__keep__interpolate": [0.5, 0.25]}, "fine_tune.keep.interpolate: must be numbers from 0 to 1 that rise, got "
        "[0.5, 0.25]. Write such as [0.25, 0.5, 0.75]."),
    ({"model__weights": None, "fine_tune__keep__pull_back": 0.5}, "fine_tune.keep.pull_back must be 0 while model.weights is "
        "null, got 0.5: it pulls towards them. Give weights, or remove it."),
    ({"fine_tune__epochs": 0}, "fine_tune.epochs: must be at least 1, got 0. Raise it."),
    ({"drift__false_alarm_rate": 0.9}, "drift.false_alarm_rate: must be at most 0.5, got 0.9. Lower it."),
    ({"drift__false_alarm_rate": 0}, "drift.false_alarm_rate: must be more than 0, got 0. Raise it."),
    ({"window__holdout_fraction": 1}, "window.holdout_fraction: must be less than 1, got 1. Lower it."),
    ({"gates": [{"kind": "floor", "minimum": 2}]}, "gates.0.minimum: must be at most 1, got 2. Lower it."),
    ({"model__architecture": "ResNet 50"}, "model.architecture: must be a torchvision model such as resnet18, "
        "timm/<name> or package.module:callable, got 'ResNet 50'. Correct it."),
    ({"fine_tune__device": "gpu"}, "fine_tune.device: must be auto, cpu, cuda, cuda:N or mps, got 'gpu'. Choose one."),
    ({"s3__region": "EU West"}, "s3.region: must be a region such as eu-west-1, got 'EU West'. Correct it."),
    ({"gates": []}, "gates: must hold at least 1, got nothing in it. Add some."),
    ({"name": "x" * 1_000_000}, "name: must be lower case letters, digits and dashes, got '" + "x" * 79
        + "… (1,000,002 characters). It names folders and runs."),
    ({"window__min_samples": 10, "window__max_samples": 9},
        "window: min_samples must not exceed max_samples, got 10 > 9. Raise max_samples."),
    ({"source__labels": {"kind": "none"}}, "policy.triggers must be empty while source.labels is none, got drift, performance: "
        "nothing can be trained without labels. Write `triggers: []` to watch only, or say where labels are."),
    ({"s3__kms_key": "k"}, "s3: kms_key must come with encryption aws:kms, got encryption None: the key would not be used. "
        "Set encryption, or remove the key."),
    ({"alerts__password": "hunter2"}, f"alerts.password {CREDENTIAL}"),
    ({"store": "https://u:pw@h/b"}, f"store {CREDENTIAL}"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "words"), WORDS, ids=[next(iter(c)) + str(n) for n, (c, _) in enumerate(WORDS)])
def test_an_error_is_one_line_with_field_rule_value_and_remedy(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(pipeline(**changes), label="p.yaml")
    between = " " if words.endswith(CREDENTIAL) else "\n  "
    assert str(caught.value) == f"p.yaml:{between}{words}"


# --- bounds ----------------------------------------------------------------------------------------------

INFINITY, NAN = float("inf"), float("nan")
BOUNDS: list[tuple[str, Any]] = [
    ("window.min_samples", 0), ("window.min_samples", 10_000_001),
    ("window.max_samples", 0), ("window.max_samples", 10_000_001),
    ("window.holdout_fraction", 0), ("window.holdout_fraction", 1), ("window.holdout_fraction", NAN),
    ("window.tune_fraction", 0), ("window.tune_fraction", 1), ("window.tune_fraction", -0.1),
    ("window.bank_max_samples", 0), ("window.bank_max_samples", 1_000_001),
    ("window.seed", -1), ("window.seed", 2**32),
    ("s3.connect_timeout", 0), ("s3.connect_timeout", 601), ("s3.read_timeout", 0), ("s3.read_timeout", 3_601),
    ("s3.max_attempts", 0), ("s3.max_attempts", 21), ("s3.threads", 0), ("s3.threads", 65),
    ("model.image_size", 7), ("model.image_size", 4097),
    ("model.mean", [0.5, 0.5, NAN]), ("model.mean", [0.5, 0.5, INFINITY]),
    ("model.std", [0.2, 0.2, 0.0]), ("model.std", [0.2, -0.2, 0.2]), ("model.std", [0.2, NAN, 0.2]),
    ("drift.false_alarm_rate", 0), ("drift.false_alarm_rate", 0.51),
    ("drift.max_samples", 19), ("drift.max_samples", 1_000_001),
    ("drift.permutations", 98), ("drift.permutations", 100_001),
    ("drift.components", -1), ("drift.components", 513),
    ("drift.min_effect", -0.01), ("drift.min_effect", 1.01),
    ("drift.alarm_after", 0), ("drift.alarm_after", 101), ("drift.within", 0), ("drift.within", 101),
    ("drift.cooldown_windows", -1), ("drift.cooldown_windows", 101),
    ("policy.cooldown_windows", -1), ("policy.cooldown_windows", 10_001),
    ("policy.adequate_drop", -0.01), ("policy.adequate_drop", 1.01),
    ("fine_tune.epochs", 0), ("fine_tune.epochs", 10_001),
    ("fine_tune.batch_size", 1), ("fine_tune.batch_size", 65_537),
    ("fine_tune.learning_rate", 0), ("fine_tune.learning_rate", 10.5), ("fine_tune.learning_rate", NAN),
    ("fine_tune.accumulate", 0), ("fine_tune.accumulate", 1_025),
    ("fine_tune.layer_decay", 0), ("fine_tune.layer_decay", 1.1),
    ("fine_tune.keep.ema", 0), ("fine_tune.keep.ema", 1), ("fine_tune.keep.ema", NAN),
    ("fine_tune.keep.pull_back", -0.1), ("fine_tune.keep.pull_back", 1.1),
    ("fine_tune.keep.l2_sp", -0.1), ("fine_tune.keep.l2_sp", 101),
    ("fine_tune.keep.distill", -0.1), ("fine_tune.keep.distill", 101),
    ("fine_tune.keep.temperature", 0), ("fine_tune.keep.temperature", 101),
    ("fine_tune.keep.interpolate", [0.5, 1.5]), ("fine_tune.keep.interpolate", [0.5, 0.5]),
    ("fine_tune.keep.interpolate", [-0.5]),
    ("fine_tune.schedule.warm_up", -0.1), ("fine_tune.schedule.warm_up", 0.95),
    ("fine_tune.schedule.freeze", -0.1), ("fine_tune.schedule.freeze", 1.1),
    ("fine_tune.schedule.freeze_until", 0), ("fine_tune.schedule.freeze_until", 1.1),
    ("fine_tune.schedule.patience", 0), ("fine_tune.schedule.patience", 10_001),
    ("fine_tune.schedule.device_seconds", 0), ("fine_tune.schedule.device_seconds", 10_000_001),
    ("fine_tune.mix.alpha", 0), ("fine_tune.mix.alpha", 101),
    ("fine_tune.weight_decay", -0.1), ("fine_tune.weight_decay", 1.1),
    ("fine_tune.clip_norm", 0), ("fine_tune.clip_norm", -1),
    ("fine_tune.label_smoothing", -0.1), ("fine_tune.label_smoothing", 1),
    ("fine_tune.balance_beta", -0.1), ("fine_tune.balance_beta", 1),
    ("fine_tune.focal_gamma", -1), ("fine_tune.focal_gamma", 11), ("fine_tune.focal_gamma", NAN),
    ("fine_tune.huber_delta", 0), ("fine_tune.huber_delta", 101), ("model.tolerance", -1),
    ("fine_tune.cache_mib", -1), ("fine_tune.cache_mib", 1_048_577), ("fine_tune.workers", -1), ("fine_tune.workers", 257),
    ("fine_tune.replay_max_samples", -1), ("fine_tune.replay_max_samples", 10_000_001),
    ("fine_tune.checkpoint_every", 0), ("fine_tune.checkpoint_every", 1_000_001),
    ("fine_tune.seed", -1), ("fine_tune.seed", 2**32),
    ("alerts.debounce_minutes", -1), ("alerts.debounce_minutes", 10_081),
    ("approval.hours", 0), ("approval.hours", 8_761),
    ("deploy.gpu_slots", 0), ("deploy.gpu_slots", 10_001),
    ("deploy.heartbeat_seconds", 29), ("deploy.heartbeat_seconds", 86_401),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), BOUNDS, ids=[f"{f}={v}" for f, v in BOUNDS])
def test_a_number_out_of_bounds_is_refused_with_field_and_value(field: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(pipeline(**{field.replace(".", "__"): value}))
    assert field in str(caught.value)
    for number in value if isinstance(value, list) else [value]:
        assert str(number) in str(caught.value) or isinstance(value, list)


NESTED: list[tuple[str, str, str, Any]] = [
    ("policy__triggers", "drift", "min_severity", -0.1), ("policy__triggers", "drift", "min_severity", 1.1),
    ("policy__triggers", "new_samples", "count", 0),
    ("policy__triggers", "age", "days", 0), ("policy__triggers", "age", "days", INFINITY),
    ("policy__triggers", "performance", "max_drop", 0), ("policy__triggers", "performance", "max_drop", 1.1),
    ("gates", "floor", "minimum", -0.1), ("gates", "floor", "minimum", 1.1),
    ("gates", "better", "min_gain", -0.1), ("gates", "better", "min_gain", 1.1),
    ("gates", "better", "confidence", 0.4), ("gates", "better", "confidence", 1),
    ("gates", "no_worse", "margin", -0.1), ("gates", "no_worse", "margin", 1.1),
    ("gates", "no_worse", "confidence", 0.4), ("gates", "no_worse", "confidence", 1), ("gates", "no_worse", "min_samples", 0),
    ("gates", "floor", "min_samples", 0), ("gates", "slices", "minimum", 0), ("gates", "slices", "max_gap", 1),
    ("gates", "slices", "max_drop", -0.1), ("gates", "slices", "min_samples", 4), ("gates", "slices", "confidence", 1),
    ("gates", "negative_flips", "maximum", 1), ("gates", "negative_flips", "relative", 0),
    ("gates", "negative_flips", "confidence", 0.4), ("gates", "negative_flips", "min_samples", 0),
    ("gates", "calibration", "maximum", -0.1), ("gates", "calibration", "max_increase", 1), ("gates", "calibration", "bins", 1),
    ("gates", "calibration", "min_samples", 19), ("gates", "robustness", "minimum", 1), ("gates", "robustness", "max_drop", 1),
    ("gates", "robustness", "max_samples", 0), ("gates", "robustness", "min_samples", 4),
    ("gates", "latency", "max_ratio", 0), ("gates", "latency", "max_ms", 0), ("gates", "latency", "batch_size", 0),
    ("gates", "latency", "rounds", 9), ("gates", "size", "max_ratio", 0), ("gates", "size", "max_megabytes", 0),
    ("gates", "serves", "tolerance", 0),
]  # fmt: skip


@pytest.mark.parametrize(("section", "kind", "name", "value"), NESTED)
def test_a_bound_of_a_trigger_or_gate_is_held(section: str, kind: str, name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"{section.replace('__', '.')}\.0\.{name}: .*got {value}"):
        parse_config(pipeline(**{section: [{"kind": kind, name: value}]}))


WAITS = [("label_wait_hours", -1), ("label_wait_hours", 8_761)]


@pytest.mark.parametrize(("name", "value"), WAITS)
def test_a_bound_of_a_log_of_predictions_is_held(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=rf"source\.{name}: must be at .*got {value}"):
        parse_config(pipeline(source={"kind": "predictions", "path": "log", name: value}))


EDGES: list[tuple[str, Any]] = [
    ("window__holdout_fraction", 0.8), ("model__image_size", 8), ("model__image_size", 4096), ("drift__components", 0),
    ("drift__false_alarm_rate", 0.5), ("fine_tune__batch_size", 2), ("fine_tune__label_smoothing", 0),
    ("fine_tune__replay_max_samples", 0), ("fine_tune__learning_rate", 10), ("policy__adequate_drop", 1),
    ("policy__triggers", []), ("gates", [{"kind": "floor", "minimum": 0}]), ("fine_tune__epochs", "8"),
    ("fine_tune__learning_rate", "auto"), ("fine_tune__keep__interpolate", [0, 1]), ("fine_tune__schedule__warm_up", 0),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value"), EDGES)
def test_a_number_on_its_bound_is_accepted(path: str, value: Any) -> None:
    parse_config(pipeline(**{path: value}))


def _bounded(node: dict[str, Any], definitions: dict[str, Any]) -> set[tuple[str, str]]:
    """(section, field) of all fields with a bound in the JSON schema."""
    words = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
    return {
        (title, name)
        for title, section in definitions.items()
        for name, field in section.get("properties", {}).items()
        if words & set(field)
    }


def test_every_bounded_field_has_a_test_with_a_rejected_value() -> None:
    schema = json.loads(json_schema())
    bounded = {name for _, name in _bounded(schema, schema["$defs"])}
    tested = (
        {field.rpartition(".")[2] for field, _ in BOUNDS} | {name for _, _, name, _ in NESTED} | {name for name, _ in WAITS}
    )
    assert bounded - tested == set()


# --- rules across fields ---------------------------------------------------------------------------------

RULES: list[tuple[dict[str, Any], str]] = [
    ({"window__holdout_fraction": 0.6, "window__tune_fraction": 0.4}, r"holdout_fraction \+ tune.*at most 0\.9, got 1\b"),
    ({"window__min_samples": 10, "window__max_samples": 9}, r"min_samples must not exceed max_samples, got 10 > 9"),
    ({"drift__false_alarm_rate": 0.001, "drift__permutations": 99}, r"permutations must be at least .* = 999, got 99"),
    ({"drift__alarm_after": 3, "drift__within": 2}, r"alarm_after must be at most within = 2, got 3: no window could ever"),
    ({"source__labels": {"kind": "none"}}, r"policy\.triggers must be empty while .* is none, got drift, performance"),
    ({"policy__bootstrap": "head"}, r"policy\.bootstrap must not be head while model\.weights is null"),
    ({"model__classes": ["cat", "dog", "cat"]}, r"model\.classes: must not repeat a name, got cat"),
    ({"model__classes": ["cat"]}, r"model\.classes: .*at least 2"),
    ({"model__targets": ["age"]}, r"model: targets must be empty while task is single_label, got 1 names. Write classes"),
    ({"model__tolerance": 1.0}, r"model: tolerance must be null while task is single_label, got 1\.0"),
    ({"model__task": "regression"}, r"model: classes must be empty while task is regression, got 2 names. Write targets"),
    ({"model__task": "regression", "model__classes": []}, r"model: tolerance must be more than 0, .* got None"),
    ({"model__task": "regression", "model__classes": [], "model__tolerance": 2}, r"model\.targets: is required"),
    ({"model__task": "multi_label", "model__classes": ["a", "b|c"]}, r"model: classes must not hold \| .* got 'b\|c'"),
    ({"model__task": "multi_label", "model__tolerance": 2}, r"tolerance must be a whole number .* fewer .* got 2"),
    ({"model__task": "multi_label", "model__tolerance": 0.5}, r"tolerance must be a whole number .* got 0\.5"),
    ({"model__task": "multi_label", "fine_tune__keep": {"distill": 1}}, r"distill must be 0 while .*multi_label, got 1\.0"),
    ({"model__task": "multi_label", "fine_tune__sampling": "balanced"}, r"sampling must be shuffled while .*, got balanced"),
    ({"model__task": "multi_label", "fine_tune__mix": {"kind": "cutmix"}}, r"mix\.kind must be none while .*, got cutmix"),
    ({"model__architecture": "a:b", "model__features": ["x"], "fine_tune__policy": "rand"}, r"policy .* none .*got rand"),
    ({"fine_tune__schedule": {"thaw": "gradually"}}, r"fine_tune\.schedule: thaw must be at_once .* got gradually"),
    ({"fine_tune__loss": "mse"}, r"fine_tune\.loss must be one of .* while model\.task is single_label, got mse"),
    ({"model__task": "multi_label", "fine_tune__label_smoothing": 0.1}, r"label_smoothing must be 0 .*loss is bce, got 0\.1"),
    ({"fine_tune__loss": "focal", "fine_tune__label_smoothing": 0.1}, r"label_smoothing must be 0 .*loss is focal, got 0\.1"),
    ({"gates": [{"kind": "floor", "metric": "micro_f1"}]}, r"gates\.0\.metric must be one of accuracy, .* got micro_f1"),
    ({"gates": [{"kind": "floor", "metric": "mae"}]}, r"gates\.0.*: maximum must be given while metric is mae, got None"),
    ({"gates": [{"kind": "floor", "maximum": 1}]}, r"gates\.0.*: maximum must be null while metric is accuracy, got 1"),
    ({"model__classes": ["cat", ""]}, r"model\.classes: must .*got ''"),
    ({"model__classes": ["cat", " dog"]}, r"model\.classes: must .*got ' dog'"),
    ({"policy__ladder": ["head", "head"]}, r"policy\.ladder: must not repeat a name, got head"),
    ({"policy__ladder": []}, r"policy\.ladder: .*at least 1"),
    ({"gates": []}, r"gates: .*at least 1"),
    (
        {"source__labels": {"kind": "sidecar", "path": "l.csv", "slice_columns": ["a", "a"]}},
        r"slice_columns: must not repeat a name, got a",
    ),
    ({"source": {"kind": "shards", "paths": []}}, r"paths: .*at least 1"),
    ({"schedule__retrain": "0 3 * *"}, r"schedule\.retrain: must be a cron expression of five fields, got '0 3 \* \*'"),
    ({"schedule__monitor": "@daily"}, r"schedule\.monitor: .*got '@daily'"),
    ({"schedule__sweep": "weekly"}, r"schedule\.sweep: .*got 'weekly'"),
    ({"alerts__notify": ["ops"]}, r"alerts\.notify: must name blocks as type/name, got 'ops'"),
    ({"alerts__events": [], "alerts__retrain": True}, r"alerts: events must hold what retrain listens to, got none of drift"),
    ({"alerts__events": ["gate.rejected"], "alerts__notify_on": ["drift.detected"]}, r"notify_on listens to, got none"),
    ({"alerts__notify": ["slack-webhook/ops"] * 2}, r"alerts\.notify: must not repeat a name, got slack-webhook/ops"),
    ({"schedule__timezone": "Mars/Olympus"}, r"schedule\.timezone: must be an IANA zone.*got 'Mars/Olympus'"),
    ({"source__timezone": "CEST-2"}, r"timezone: must be an IANA zone.*got 'CEST-2'"),
    ({"source": {"kind": "shards", "paths": ["a"], "timezone": "../etc"}}, r"timezone: must be an IANA zone.*got '\.\./etc'"),
    ({"source__ordered": True, "window__order": "shuffled"}, r"window\.order must be key while .*, got shuffled"),
    ({"source__ordered": True, "window__order": "modified"}, r"window\.order must be key while .*, got modified"),
    ({"s3__endpoint": "minio:9000"}, r"s3\.endpoint: must be http\(s\)://host:port, got 'minio:9000'\. Leave"),
    ({"s3__endpoint": "https://host/bucket"}, r"s3\.endpoint: must be http\(s\)://host:port, got 'https://host/bucket'"),
    ({"s3__endpoint": "https://user@host"}, r"s3\.endpoint: must be http\(s\)://host:port, got one with a user in it"),
    ({"s3__endpoint": "http://host:port"}, r"s3\.endpoint: must be http\(s\)://host:port, got 'http://host:port'"),
    ({"s3__endpoint": "http://host:99999"}, r"s3\.endpoint: must be http\(s\)://host:port, got 'http://host:99999'"),
    ({"s3__endpoint": "http://my_minio:9000"}, r"s3\.endpoint: must be http\(s\)://host:port, got 'http://my_minio:9000'"),
    ({"s3__endpoint": "http://[::1"}, r"s3\.endpoint: must be http\(s\)://host:port, got 'http://\[::1'"),
    ({"store": "s3://My Bucket/x"}, r"store: must name a bucket of letters, .*, got 'My Bucket'\. Correct it"),
    ({"s3__region": "EU West"}, r"s3\.region: .*'EU West'"),
    ({"s3__encryption": "rot13"}, r"s3\.encryption: .*got 'rot13'"),
    ({"s3__kms_key": "alias/k"}, r"s3: kms_key must come with encryption aws:kms, got encryption None"),
    ({"s3__verify": "hope"}, r"s3\.verify: .*got 'hope'"),
    ({"name": "Digits"}, r"name: .*'Digits'"),
    ({"name": "a/b"}, r"name: .*'a/b'"),
    ({"name": ""}, r"name: .*''"),
    ({"store": ""}, r"store: .*''"),
    ({"store": "gs://bucket"}, r"store.*'gs://bucket'"),
    ({"model__architecture": "ResNet 50"}, r"model\.architecture: .*'ResNet 50'"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), RULES)
def test_a_rule_across_fields_is_held(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"(?s){message}"):
        parse_config(pipeline(**changes))


def test_watching_without_labels_is_allowed_without_triggers() -> None:
    config = parse_config(pipeline(source__labels={"kind": "none"}, policy__triggers=[]))
    assert config.policy.triggers == ()


@pytest.mark.parametrize("name", ["resnet18", "timm/resnet18.a1_in1k", "my_package.nets:build", "nets:Build2"])
def test_an_architecture_is_a_name_or_a_callable(name: str) -> None:
    assert parse_config(pipeline(model__architecture=name)).model.architecture == name


# --- secrets ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key", ["aws_secret_access_key", "password", "Passwd", "access_key", "accessKey", "api-key", "token", "credentials"]
)
def test_a_key_that_names_a_secret_is_refused_without_its_value(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"alerts\.{key} must not hold a credential") as caught:
        parse_config(pipeline(**{f"alerts__{key}": "hunter2"}))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("store", "s3://hunter2:hunter3@bucket/x"),
        ("store", "s3://hunter2:hun/ter3@bucket"),
        ("source__path", "s3://AKIAABCDEFGHIJKLMNOP/hunter2"),
        ("model__weights", "https://hunter2:hunter3@host/w.safetensors"),
    ],
)
def test_a_value_that_holds_a_secret_is_refused_without_it(path: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"{path.replace('__', '[.]')} must not hold a credential") as caught:
        parse_config(pipeline(**{path: value}))
    assert "hunter" not in str(caught.value)


def test_a_variable_of_a_job_that_names_a_block_is_no_secret_and_a_value_is() -> None:
    block = "{{ prefect.blocks.secret.s3-key }}"
    env = parse_config(pipeline(deploy={"env": {"AWS_SECRET_ACCESS_KEY": block}})).deploy.env
    assert env == {"AWS_SECRET_ACCESS_KEY": block}
    for value in ("hunter2", f"hunter2{block}", "{{ hunter2 }}"):
        with pytest.raises(ConfigError, match=r"deploy\.env\.AWS_SECRET_ACCESS_KEY must not hold a credential") as caught:
            parse_config(pipeline(deploy={"env": {"AWS_SECRET_ACCESS_KEY": value}}))
        assert "hunter2" not in str(caught.value)


def test_a_secret_in_a_list_is_found() -> None:
    with pytest.raises(ConfigError, match=r"source\.paths\.1 must not hold a credential"):
        parse_config(pipeline(source={"kind": "shards", "paths": ["ok", "s3://a:b@c"]}))


def test_a_secret_from_a_variable_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", "s3://user:hunter2@bucket")
    with pytest.raises(ConfigError, match="store must not hold a credential") as caught:
        load_config(write(tmp_path, pipeline(store="${PLACE}")))
    assert "hunter2" not in str(caught.value)


def test_a_secret_that_has_become_part_of_a_key_is_refused_without_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"s3\.aws_secret_access_key must not hold a credential") as caught:
        load_config(write(tmp_path, "s3: {aws_secret_access_key:hunter2}"))
    assert "hunter2" not in str(caught.value)


MALFORMED = [
    ("store: x\naws_secret_access_key: %SECRET", "found character '%' that cannot start any token", 2, 24),
    ("aws_secret_access_key: @SECRET", "found character '@' that cannot start any token", 1, 24),
    ('aws_secret_access_key: "SECRET', "found unexpected end of stream", 1, 31),
    ("s3:\n\taws_secret_access_key: SECRET", r"found character '\t' that cannot start any token", 2, 1),
    ("aws_secret_access_key: SECRET: x", "mapping values are not allowed here", 1, 30),
    ("aws_secret_access_key: *SECRET", "found undefined alias", 1, 24),
    ("aws_secret_access_key: !SECRET x", "could not determine a constructor for the tag", 1, 24),
    ("aws_secret_access_key: !SECRET!x y", "found undefined tag handle", 1, 24),
    ("aws_secret_access_key: {SECRET", "expected ',' or '}', but got '<stream end>'", 1, 31),
    ("aws_secret_access_key: !!binary \u00e4SECRET", "failed to convert base64 data into ascii", 1, 24),
    ("aws_secret_access_key: !!int SECRET", "found a number or date that is none", 1, 24),
    ("aws_secret_access_key: !!bool SECRET", "found a number or date that is none", 1, 24),
    ("aws_secret_access_key: !!timestamp SECRET", "found a number or date that is none", 1, 24),
    ("a: 1\naws_secret_access_key: SECRET\x07", "found a character that YAML does not allow, #x0007", 2, 30),
]
"""Lines that no YAML reader takes, what is said of them, and where."""


@pytest.mark.parametrize(("text", "problem", "line", "column"), MALFORMED)
def test_a_malformed_line_is_told_by_its_place_and_never_repeated(
    tmp_path: Path, text: str, problem: str, line: int, column: int
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, text))
    words = f"{tmp_path}/pipeline.yaml: must be valid YAML, got line {line}, column {column}: {problem}. Mend that line."
    assert str(caught.value) == words
    shown = "".join(traceback.format_exception(caught.value))
    assert "SECRET" not in shown
    assert "aws_secret" not in shown


@pytest.mark.parametrize("value", ["s3://bucket/a:b/c", "s3://bucket/user@host", "file:///a@b"])
def test_an_address_without_a_secret_is_accepted(value: str) -> None:
    assert parse_config(pipeline(store=value)).store == value


# --- the file --------------------------------------------------------------------------------------------


def test_variables_are_expanded_in_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUCKET", "live")
    monkeypatch.setenv("EPOCHS", "3")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("MISSING", raising=False)
    raw = pipeline(store="s3://${BUCKET}/${MISSING:-trial}${EMPTY:-}", fine_tune__epochs="${EPOCHS}")
    raw["model"]["classes"] = ["${BUCKET}", "b"]
    config = load_config(write(tmp_path, raw))
    assert config.store == "s3://live/trial"
    assert config.fine_tune.epochs == 3
    assert config.model.classes == ("live", "b")


def test_an_undefined_variable_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOWHERE", raising=False)
    with pytest.raises(ConfigError, match=r"variable \$\{NOWHERE\} must be set"):
        load_config(write(tmp_path, pipeline(store="${NOWHERE}/x")))


def test_a_missing_file_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml: no such pipeline file.*everfresh init"):
        load_config(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [1, 2", "must be valid YAML, got line 1, column 12: .*Mend that line"),
        ("name: a\n\tb: 1", "must be valid YAML"),
        ("- a\n- b\n", "must be a mapping of sections, got list"),
        ("", "must be a mapping of sections, got NoneType"),
        ("just words", "must be a mapping of sections, got str"),
        ("name: !!python/object/apply:os.system ['true']", "must be valid YAML"),
    ],
)
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"pipeline\.yaml: {message}"):
        load_config(write(tmp_path, text))


@pytest.mark.parametrize("text", ["a: 1\nx: 2020-13-45", "a: 1\nx: 2020-01-01T00:00:00+99:99", "a: 1\nx: !!int ''"])
def test_a_date_or_number_that_is_none_is_told_by_its_place(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"must be valid YAML, got line 2, column 4: found a number or date that is none"):
        load_config(write(tmp_path, text))


@pytest.mark.parametrize("text", ["&a {x: *a}", "store: &a [*a]", "a: " + "[" * 5_000])
def test_what_has_no_end_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(
        ConfigError, match=r"yaml: must be sections of plain values, got one within itself, or too deep\. Write"
    ):
        load_config(write(tmp_path, text))


def test_trouble_without_a_place_is_told_too(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"yaml: must be valid YAML, got what it does not allow\. Mend that line") as caught:
        load_config(write(tmp_path, r'password: "hunter2\UFFFFFFFF"'))
    assert "hunter" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"store": "~nosuchuser/x"}, "store"),
        ({"source__path": "~nosuchuser/x"}, "source.path"),
        ({"source": {"kind": "shards", "paths": ["a.tar", "~nosuchuser/x"]}}, "source.paths"),
        ({"model__weights": "~nosuchuser/x"}, "model.weights"),
    ],
)
def test_the_home_of_a_user_that_is_none_is_refused_by_field(tmp_path: Path, changes: dict[str, Any], field: str) -> None:
    words = rf"pipeline\.yaml: {field} must be a path, got '~nosuchuser/x' \(there is no home .*\)\. Write it from / on"
    with pytest.raises(ConfigError, match=words):
        load_config(write(tmp_path, pipeline(**changes)))


def test_a_path_with_a_nul_in_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"store must be a path, got 'a\\x00b' \(embedded null byte\)"):
        load_config(write(tmp_path, pipeline(store="a\0b")))


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pipeline.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(ConfigError, match=r"cannot be read.*UTF-8"):
        load_config(tmp_path / "pipeline.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)


def test_the_file_is_named_in_a_broken_rule(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)pipeline\.yaml:.*fine_tune\.epochs: .*got 0"):
        load_config(write(tmp_path, pipeline(fine_tune__epochs=0)))


def test_relative_paths_start_at_the_files_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    config = load_config(
        write(tmp_path, pipeline(store="run/store", source__path="inbox", model__weights="w/start.safetensors"))
    )
    assert config.store == str(tmp_path / "run/store")
    assert config.source.path == str(tmp_path / "inbox")
    assert config.model.weights == str(tmp_path / "w/start.safetensors")


def test_a_relative_workspace_starts_at_the_files_folder(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, pipeline(drift__workspace="evidently")))
    assert config.drift.workspace == str(tmp_path / "evidently")
    assert load_config(write(tmp_path, pipeline())).drift.workspace is None


def test_relative_archives_start_at_the_files_folder(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, pipeline(source={"kind": "shards", "paths": ["a.tar", "/b.tar", "s3://b/c"]})))
    assert config.source.paths == (str(tmp_path / "a.tar"), "/b.tar", "s3://b/c")


@pytest.mark.parametrize("address", ["/absolute/store", "s3://bucket/prefix", "file:///absolute/store"])
def test_addresses_that_are_not_relative_stay(tmp_path: Path, address: str) -> None:
    config = load_config(write(tmp_path, pipeline(store=address, source__path=f"{address}-in")))
    assert (config.store, config.source.path) == (address, f"{address}-in")


@pytest.mark.parametrize(
    ("weights", "path"),
    [
        ("DEFAULT", False),
        ("IMAGENET1K_V1", False),
        ("start.pt", True),
        ("a/b", True),
        ("s3://b/w", True),
        ("x.safetensors", True),
    ],
)
def test_weights_are_a_torchvision_name_or_a_path(tmp_path: Path, weights: str, path: bool) -> None:
    assert is_path(weights) is path
    loaded = load_config(write(tmp_path, pipeline(model__weights=weights))).model.weights
    assert loaded == (str(tmp_path / weights) if path and "://" not in weights else weights)


# --- the schema ------------------------------------------------------------------------------------------


def test_the_schema_is_json_and_describes_every_field() -> None:
    schema = json.loads(json_schema())
    sections = {"PipelineConfig": schema, **schema["$defs"]}
    undescribed = [
        f"{title}.{name}"
        for title, section in sections.items()
        for name, field in section.get("properties", {}).items()
        if not field.get("description") and "const" not in field
    ]
    assert undescribed == []
    assert all(section.get("additionalProperties") is False for section in sections.values() if "properties" in section)


def test_the_least_p_that_permutations_can_show_is_written_as_a_bound() -> None:
    drift = parse_config(pipeline(drift__permutations=999)).drift
    assert [drift.p_words(p) for p in (0.001, 0.002, 1.0)] == ["≤ 0.001", "= 0.002", "= 1"]


@pytest.mark.parametrize(
    ("store", "source"),
    [
        ("store", "."),
        ("/data/in/store", "/data/in"),
        ("s3://bucket/everfresh", "s3://bucket"),
        ("s3://bucket", "s3://bucket/digits"),  # the pipeline's own folder
        ("file:///data/store", "/data"),
    ],
)
def test_a_store_within_the_source_is_refused(tmp_path: Path, store: str, source: str) -> None:
    with pytest.raises(ConfigError, match=r"store must stand outside the source, got .* within .*Move one of them"):
        load_config(write(tmp_path, pipeline(name="digits", store=store, source__path=source)))


@pytest.mark.parametrize(("store", "source"), [("store", "inbox"), ("/data/in-store", "/data/in"), ("s3://b/out", "s3://b/in")])
def test_a_store_beside_the_source_is_fine(tmp_path: Path, store: str, source: str) -> None:
    load_config(write(tmp_path, pipeline(store=store, source__path=source)))
