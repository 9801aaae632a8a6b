"""The release as files that need no code of the network: ``model.pt2`` (torch.export) and ``model.onnx``.

Both take what a consumer has and answer with scores; what stands between, scaling and standardising, is inside:

- pictures as (N, 3, S, S) uint8, their shorter side resized to S, the centre cut out;
- rows as (N, D) float64, the numbers of the table as they are, NaN where one is missing, categories as zeros and a one.

N is any number from 1 on. Every file is run with several N before it counts. Neither holds a pickle, nor a path of the
machine that wrote it, and equal weights give equal bytes.
"""

from __future__ import annotations

import io
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from everfresh.tasks import archives, inputs
from everfresh.tasks.config import Export
from everfresh.tasks.errors import ExportError, passing
from everfresh.tasks.records import ModelSpec
from everfresh.tasks.vectors import values_of

FILES: dict[Export, str] = {"pt2": "model.pt2", "onnx": "model.onnx"}
"""Name of the file of each format."""
OPSET = 20
"""Version of the ONNX operators that ``model.onnx`` is written in."""
INPUT, OUTPUT = "samples", "scores"
"""Names of the one input and the one output."""
BATCHES = (1, 2, 5)
"""Numbers of samples that every file is run with."""
CLOSE = 1e-3
"""A score may be so far off the network's own, as a share of the largest one (at least 1), or of what a value ranges over."""
ONE_FILE = 1_900_000_000
"""Bytes of weights up to which ``model.onnx`` is one file; protobuf ends at 2 GiB."""
NEEDED = ("val", "tensor_meta", "unbacked_bindings")
"""What is told of a node that its readers need."""
NOISY = ("torch.fx.experimental.symbolic_shapes", "torch.export", "torch.onnx", "onnxscript")


class Served(nn.Module):
    """A network behind what makes its input of samples as a consumer has them."""

    mean: Tensor
    std: Tensor

    def __init__(self, module: nn.Module, spec: ModelSpec) -> None:
        super().__init__()
        self.module, self.rows = module, bool(spec.features)
        mean, std = _scales(spec)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, samples: Tensor) -> Tensor:
        """Scores (N, C) of samples, see the module."""
        if self.rows:
            values = (
                samples - self.mean
            ) / self.std  # in float64, as `to_vector` does: a time stamp has more digits than float32
            return cast(Tensor, self.module(torch.where(torch.isnan(values), 0.0, values).float()))
        return cast(Tensor, self.module((samples.float() / 255 - self.mean) / self.std))


def export(module: nn.Module, spec: ModelSpec, formats: Sequence[Export], folder: Path) -> list[Path]:
    """Write a network in some formats, and run each file.

    Args:
        module: the network; it is put into eval mode.
        spec: how it is fed.
        formats: which.
        folder: where the files go.

    Returns:
        The files; ``model.onnx.data`` is one of them where the weights are too large for ``model.onnx``.

    Raises:
        ExportError: the network cannot be written in one of them, or the file does not do as it does.
    """
    if not formats:
        return []
    served = Served(module, spec).eval()
    with _quiet():
        traced = _attempt(formats[0], lambda: _traced(served, spec))
        for name in formats:
            _attempt(name, lambda name=name: _written(traced, name, served, folder))  # type: ignore[misc]
            run = _attempt(name, lambda name=name: opened(folder / FILES[name], name))  # type: ignore[misc]
            _check(name, run, served, spec)
    return sorted(path for path in folder.iterdir() if path.name.startswith(tuple(FILES[name] for name in formats)))


def opened(path: Path, name: Export) -> Callable[[NDArray[Any]], NDArray[np.float32]]:
    """What makes scores (N, C) of samples by a file of that format; its bytes must have been verified."""
    if name == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda samples: cast(NDArray[np.float32], session.run([OUTPUT], {INPUT: samples})[0])
    program = archives.load(path).module()

    def run(samples: NDArray[Any]) -> NDArray[np.float32]:
        with torch.no_grad():
            return cast(NDArray[np.float32], program(torch.from_numpy(samples)).numpy())

    return run


def signature(spec: ModelSpec, name: Export) -> dict[str, Any]:
    """What a consumer must know of a file: its input and its output, N any number from 1 on."""
    if spec.features:
        columns = [f"{f.name} = {c}" for f in spec.features for c in f.categories or ("",)]
        given = {"shape": ["N", spec.inputs], "dtype": "float64", "columns": [c.removesuffix(" = ") for c in columns]}
    else:
        given = {"shape": ["N", *inputs.shape(spec)], "dtype": "uint8"}
    told = {"input": {"name": INPUT, **given}, "output": {"name": OUTPUT, "shape": ["N", len(spec.classes)]}}
    return told | ({"opset": OPSET} if name == "onnx" else {})


def sample(data: bytes, spec: ModelSpec) -> NDArray[Any]:
    """One sample as a consumer hands it over: a picture (3, S, S) uint8, or a row (D,) float64 of the table's numbers.

    Raises:
        DataError: the bytes are no such sample.
    """
    if not spec.features:
        return inputs.decode(data, spec).numpy()
    values, row = values_of(data), []
    for feature in spec.features:
        value = values.get(feature.name)
        if feature.categories:
            row += [float(value == category) for category in feature.categories]
        else:
            row.append(math.nan if value is None else float(value))
    return np.array(row)


def samples_of(spec: ModelSpec, count: int) -> NDArray[Any]:
    """Some samples that show nothing, as a consumer would hand them over; of rows every third value is missing."""
    rng = np.random.default_rng(count)
    if not spec.features:
        return rng.integers(0, 256, (count, *inputs.shape(spec)), dtype=np.uint8)
    mean, std = _scales(spec)
    rows = mean.numpy() + std.numpy() * rng.standard_normal((count, spec.inputs))
    rows.ravel()[::3] = np.nan
    return rows


def _scales(spec: ModelSpec) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation: of the channels (1, 3, 1, 1) float32, or of a row's places (D,) float64."""
    if not spec.features:
        return torch.tensor(spec.mean).view(1, 3, 1, 1), torch.tensor(spec.std).view(1, 3, 1, 1)
    places = [(0.0, 1.0) if f.categories else (f.mean, f.std) for f in spec.features for _ in range(f.width)]
    mean, std = torch.tensor(places, dtype=torch.float64).unbind(1)
    return mean, std


def _traced(served: Served, spec: ModelSpec) -> torch.export.ExportedProgram:
    """The network as a graph, without where in the source each node came from, which nobody needs to run it."""
    batch = torch.export.Dim("batch", min=1)
    traced = torch.export.export(served, (torch.from_numpy(samples_of(spec, 2)),), dynamic_shapes={INPUT: {0: batch}})
    for part in traced.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            node.meta = {name: value for name, value in node.meta.items() if name in NEEDED}
    return traced


def _written(traced: torch.export.ExportedProgram, name: Export, served: Served, folder: Path) -> None:
    if name == "pt2":
        example, traced._example_inputs = traced._example_inputs, None  # or they would be pickled into the archive
        try:
            torch.export.save(traced, folder / FILES[name])
        finally:
            traced._example_inputs = example
        return
    program = torch.onnx.export(
        traced, dynamo=True, opset_version=OPSET, input_names=[INPUT], output_names=[OUTPUT], verbose=False
    )
    if program is None:
        raise RuntimeError("torch.onnx.export made nothing")
    for node in program.model.graph:
        node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)
    size = sum(math.prod(t.shape) * t.element_size() for t in served.state_dict().values())
    program.save(folder / FILES[name], external_data=size > ONE_FILE)


def _check(name: Export, run: Callable[[NDArray[Any]], NDArray[np.float32]], served: Served, spec: ModelSpec) -> None:
    """Raise unless a file does for every number of samples what the network does.

    Raises:
        ExportError: it does not.
    """
    batches = [samples_of(spec, count) for count in BATCHES]
    with torch.no_grad():
        wanted = [served(torch.from_numpy(samples)).numpy() for samples in batches]
    found = [_attempt(name, lambda samples=samples: run(samples)) for samples in batches]  # type: ignore[misc]
    off, everything = np.inf, np.concatenate(wanted)
    if [one.shape for one in found] == [one.shape for one in wanted]:
        scale = spans(everything) if spec.task == "regression" else max(1.0, float(abs(everything).max()))
        off = float((abs(np.concatenate(found) - everything) / scale).max())
    if not off <= CLOSE:
        of = "their range" if spec.task == "regression" else "the largest"
        raise _failed(name, f"its scores are off by {off:.2g} of {of}, more than {CLOSE:g}")


def spans(values: NDArray[Any]) -> NDArray[Any]:
    """What each value (N, T) ranges over (T,): the unit in which a difference counts, whatever its own unit.

    At least a tenth of its size, for float32 tells no more of a large number that hardly moves; 1 where all are 0.
    """
    found = np.maximum(np.ptp(values, axis=0), abs(values).max(axis=0) / 10)
    return np.where(found > 0, found, 1.0)


def _attempt(name: Export, work: Callable[[], Any]) -> Any:
    try:
        return work()
    except ExportError:
        raise
    except Exception as error:  # torch's exporters raise many kinds, as does somebody else's code
        if passing(error):
            raise
        raise _failed(name, _sentence(error)) from error


def _failed(name: Export, reason: str) -> ExportError:
    return ExportError(
        f"release.formats: {FILES[name]} must do what the network does, got none that does: {reason}. "
        f"Correct the network, or leave {name} out of release.formats."
    )


def _sentence(error: Exception) -> str:
    """Kind and first sentence of an error whose text goes on for pages."""
    cause = error.__cause__ if error.__cause__ is not None and "torch.onnx" in type(error).__module__ else error
    words = next((" ".join(line.split()) for line in str(cause).splitlines() if line.strip()), "")
    return f"{type(cause).__name__}: {words[:200].rstrip('.:')}" if words else type(cause).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters log, warn and print, graphs of pages among it: that is for who writes exporters."""
    loud = [logging.getLogger(name) for name in NOISY]
    levels = [log.level for log in loud]
    try:
        for log in loud:
            log.setLevel(logging.ERROR)
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(loud, levels, strict=True):
            log.setLevel(level)
