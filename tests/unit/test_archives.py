"""Archives of torch.export: what torch would run of one is found before it does."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.loop import pipeline

from everfresh.tasks import archives, models
from everfresh.tasks.errors import ModelError
from everfresh.tasks.exports import export, opened

GRAPH = "model/models/model.json"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    module, spec = models.start(pipeline(folder, model={"architecture": "support.networks:plain", "image_size": 8}).model, 0)
    (path,) = export(module, spec, ("pt2",), folder)
    return path


def changed(path: Path, folder: Path, change: Callable[[Any], None]) -> Path:
    """The archive with another graph."""
    target = folder / "model.pt2"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as sink:
        for name in source.namelist():
            data = source.read(name)
            if name == GRAPH:
                told = json.loads(data)
                change(told)
                data = json.dumps(told).encode()
            sink.writestr(name, data)
    return target


def call(code: str) -> str:
    return f"__import__('pathlib').Path({code!r}).touch()"


def in_an_expression(told: Any, trace: str) -> None:
    size = told["graph_module"]["graph"]["tensor_values"]["samples"]["sizes"][0]
    size["as_expr"]["expr_str"] = call(trace)


def in_text_within_an_expression(told: Any, trace: str) -> None:
    size = told["graph_module"]["graph"]["tensor_values"]["samples"]["sizes"][0]
    size["as_expr"]["expr_str"] = f"Max({call(trace)!r}, Integer(2))"


def in_a_guard(told: Any, trace: str) -> None:
    told["guards_code"] = [call(trace)]


def as_a_function_of_torch(told: Any, trace: str) -> None:
    node = told["graph_module"]["graph"]["nodes"][0]
    node["target"] = "torch.os.system"
    node["inputs"] = [{"name": "", "arg": {"as_string": f"touch {trace}"}, "kind": 1}]
    node["outputs"] = []


def as_a_function_of_operator(told: Any, trace: str) -> None:
    told["graph_module"]["graph"]["nodes"][0]["target"] = "_operator.methodcaller"


def in_a_name(told: Any, trace: str) -> None:
    text = json.dumps(told).replace('"samples"', json.dumps(f"samples={call(trace)}"))
    told.clear()
    told.update(json.loads(text))


def in_a_class_to_import(told: Any, trace: str) -> None:
    signature = told["graph_module"]["module_call_graph"][0]["signature"]
    signature["in_spec"] = signature["in_spec"].replace("builtins.dict", "collections.defaultdict")


def as_an_operator_that_writes_files(told: Any, trace: str) -> None:
    node = told["graph_module"]["graph"]["nodes"][0]
    node["target"] = "torch.ops.aten.from_file.default"


@pytest.mark.parametrize(
    "change",
    [
        in_an_expression,
        in_text_within_an_expression,
        in_a_guard,
        as_a_function_of_torch,
        as_a_function_of_operator,
        in_a_name,
        in_a_class_to_import,
        as_an_operator_that_writes_files,
    ],
)
def test_code_in_the_graph_is_refused_and_never_run(written: Path, tmp_path: Path, change: Callable[[Any, str], None]) -> None:
    trace = tmp_path / "ran"
    path = changed(written, tmp_path, lambda told: change(told, str(trace)))
    with pytest.raises(ModelError, match=r"must hold tensors and JSON alone, got .*torch\.export\.load would unpickle or run"):
        opened(path, "pt2")
    assert not trace.exists()


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", [GRAPH, GRAPH.replace("model.json", "MODEL.json"), "model/models/other.json"])
def test_a_second_graph_is_refused(written: Path, tmp_path: Path, name: str) -> None:
    """Readers of zip differ in which of two entries of one name they take, and in whether case matters."""
    path = tmp_path / "model.pt2"
    shutil.copy(written, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, archive.read(GRAPH))
    with pytest.raises(ModelError, match=r"got .*(twice|models/)"):
        opened(path, "pt2")


def test_a_second_folder_is_refused(written: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    shutil.copy(written, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("other/models/model.json", archive.read(GRAPH))
    with pytest.raises(ModelError, match="must "):
        opened(path, "pt2")


def test_an_older_format_behind_a_broken_one_is_not_tried(written: Path, tmp_path: Path) -> None:
    """torch.export.load falls back to an archive that unpickles; it is never asked."""
    path = changed(written, tmp_path, lambda told: told.update(schema_version={"major": 1, "minor": 0}))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("version", "8.1")
    with pytest.raises(ModelError):
        opened(path, "pt2")


@given(st.integers(1, 9), st.sampled_from(["Add", "Mul", "Max"]), st.integers(-5, 5))
def test_expressions_as_torch_writes_them_are_taken(number: int, function: str, other: int) -> None:
    assert archives._is_expression(f"{function}(Symbol('s{number}', positive=True, integer=True), Integer({other}))")


@given(st.text(max_size=40))
def test_any_text_is_judged_without_an_error(text: str) -> None:
    assert archives._is_expression(text) in {True, False}


@pytest.mark.parametrize(
    "text", ["Max.mro()", "Symbol('x').name", "Integer(2) if x else y", "[1]", "lambda: 1", "f(1)", "", "9**9"]
)
def test_other_expressions_are_not(text: str) -> None:
    assert not archives._is_expression(text)


def test_networks_with_sizes_and_blocks_without_gradients_are_read(tmp_path: Path) -> None:
    class Network(torch.nn.Module):
        def forward(self, samples: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                doubled = torch.cat([samples, samples]) * 2
            return torch.nn.functional.pad(doubled, (0, 1), mode="constant").view(2 * samples.shape[0], 4).sum(1)

    batch = torch.export.Dim("batch", min=1)
    traced = torch.export.export(Network(), (torch.zeros(4, 3),), dynamic_shapes={"samples": {0: batch}})
    for inner in (traced.graph_module, *traced.graph_module.children()):
        for node in inner.graph.nodes:  # type: ignore[union-attr,operator]
            node.meta = {"val": node.meta["val"]} if "val" in node.meta else {}
    traced._example_inputs = None
    torch.export.save(traced, tmp_path / "model.pt2")
    assert archives.load(tmp_path / "model.pt2").module()(torch.ones(4, 3)).shape == (8,)
