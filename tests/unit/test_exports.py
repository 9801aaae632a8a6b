"""Exports: files that need no code of the network do what it does, whatever the batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from support.loop import pipeline
from support.pickles import is_pickle
from support.tables import pipeline as tables

from everfresh.tasks import exports, models, serves
from everfresh.tasks.config import Export
from everfresh.tasks.errors import ExportError, ModelError
from everfresh.tasks.exports import BATCHES, FILES, OPSET, Served, export, opened, samples_of
from everfresh.tasks.records import Feature, ModelSpec
from everfresh.tasks.store import file_digest
from everfresh.tasks.vectors import encode, to_vector

BOTH: tuple[Export, ...] = ("pt2", "onnx")


def network(folder: Path, architecture: str, side: int = 32, **model: Any) -> tuple[torch.nn.Module, ModelSpec]:
    """The configured start of a pipeline; a batch norm has seen something."""
    module, spec = models.start(pipeline(folder, model={"architecture": architecture, "image_size": side, **model}).model, 0)
    return module.eval(), spec


@pytest.mark.parametrize(
    ("architecture", "side"),
    [
        ("everfresh.tasks.models:small_cnn", 16),
        ("support.networks:plain", 8),
        ("squeezenet1_1", 32),
        ("timm/test_vit", 160),
    ],
)
def test_both_formats_make_the_scores_of_the_network(tmp_path: Path, architecture: str, side: int) -> None:
    module, spec = network(tmp_path, architecture, side)
    files = export(module, spec, BOTH, tmp_path)
    assert {path.name for path in files} == {"model.pt2", "model.onnx"}
    for name in BOTH:
        run = opened(tmp_path / FILES[name], name)
        for count in (*BATCHES, 3):
            samples = samples_of(spec, count)
            assert samples.dtype == np.uint8
            with torch.no_grad():
                wanted = Served(module, spec)(torch.from_numpy(samples)).numpy()
            np.testing.assert_allclose(run(samples), wanted, atol=1e-4)


@pytest.mark.parametrize("model", [
    {"task": "regression", "classes": (), "targets": ["slant", "width"], "tolerance": 1.0},
    {"task": "multi_label", "classes": ("a", "b", "c")},
])  # fmt: skip
def test_the_other_tasks_are_exported_too(tmp_path: Path, model: dict[str, Any]) -> None:
    module, spec = network(tmp_path, "support.networks:plain", 8, **model)
    export(module, spec, BOTH, tmp_path)
    for name in BOTH:
        assert opened(tmp_path / FILES[name], name)(samples_of(spec, 4)).shape == (4, len(spec.classes))


def test_rows_go_in_as_the_table_has_them(tmp_path: Path) -> None:
    module, spec = models.start(tables(tmp_path).model, 0)
    since = 1.7e9  # seconds; as float32 it could be told to two minutes
    spec = spec.model_copy(update={"features": (
        Feature(name="load", mean=since, std=30.0), Feature(name="heat", mean=2.0, std=0.5), spec.features[2],
    )})  # fmt: skip
    rows = [
        {"load": since + 12.0, "heat": 2.5, "site": "south"},
        {"load": None, "heat": 1.0, "site": "north"},
        {"load": since - 3.0, "heat": None, "site": "elsewhere"},
    ]
    with torch.no_grad():
        wanted = module.eval()(torch.stack([to_vector(encode(row), spec.features) for row in rows])).numpy()
    nan = float("nan")
    numbers = [[since + 12.0, 2.5, 0, 1], [nan, 1.0, 1, 0], [since - 3.0, nan, 0, 0]]
    export(module, spec, BOTH, tmp_path)
    for name in BOTH:
        np.testing.assert_allclose(opened(tmp_path / FILES[name], name)(np.array(numbers)), wanted, atol=1e-5)


def test_equal_weights_give_equal_bytes_that_tell_nothing_of_the_machine(tmp_path: Path) -> None:
    module, spec = network(tmp_path, "everfresh.tasks.models:small_cnn", 16)
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    one, two = (export(module, spec, BOTH, tmp_path / folder) for folder in ("one", "two"))
    assert list(map(file_digest, one)) == list(map(file_digest, two))
    for path in one:
        data = path.read_bytes()
        assert not is_pickle(data)
        assert str(Path(models.__file__).parents[1]).encode() not in data
        assert b"site-packages" not in data


def test_the_onnx_file_is_valid_names_its_operators_and_has_a_free_batch(tmp_path: Path) -> None:
    module, spec = network(tmp_path, "support.networks:plain", 8)
    (path,) = export(module, spec, ("onnx",), tmp_path)
    made = onnx.load(path)
    onnx.checker.check_model(made, full_check=True)
    assert {(o.domain, o.version) for o in made.opset_import} == {("", OPSET)}
    (given,) = made.graph.input
    assert given.name == "samples"
    assert given.type.tensor_type.shape.dim[0].dim_param
    assert [out.name for out in made.graph.output] == ["scores"]


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize(("architecture", "reason"), [("choosy", r"\w+: .+"), ("of_two", r".+")])
def test_what_cannot_be_exported_is_refused_in_one_sentence(
    tmp_path: Path, name: Export, architecture: str, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    module, spec = network(tmp_path, f"support.networks:{architecture}", 8)
    said = rf"release\.formats: {FILES[name]} must do what the network does, got none that does: {reason}\. .*leave {name} out"
    with pytest.raises(ExportError, match=said) as caught:
        export(module, spec, (name,), tmp_path)
    assert len(str(caught.value)) < 450
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(28, "No space left on device"),
        ImportError("onnxruntime"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_a_machine_that_fails_says_nothing_of_the_network(error: Exception) -> None:
    """It is neither an ExportError, which would be recorded for good, nor what the fresh process found of a file."""

    def work() -> Any:
        try:
            raise error
        except type(error) as cause:
            raise ModelError("no archive") from cause

    spec = ModelSpec.model_construct(task="single_label")
    for fails in (lambda: exports._attempt("onnx", work), lambda: serves._tried(work, spec, [])):
        with pytest.raises(ModelError):
            fails()
    with pytest.raises(ExportError):
        exports._attempt("onnx", lambda: 1 / 0)


def test_weights_beyond_protobuf_go_into_a_file_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("everfresh.tasks.exports.ONE_FILE", 10)
    module, spec = network(tmp_path, "everfresh.tasks.models:small_cnn", 16)
    assert [path.name for path in export(module, spec, ("onnx",), tmp_path)] == ["model.onnx", "model.onnx.data"]


def test_no_format_costs_nothing(tmp_path: Path) -> None:
    module, spec = network(tmp_path, "support.networks:plain", 8)
    assert export(module, spec, (), tmp_path) == []
    assert json.dumps([p.name for p in tmp_path.iterdir()]) == "[]"
