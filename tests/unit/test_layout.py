"""How a training computes: pinned, measured, remembered, taken from a checkpoint; measuring leaves no trace."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.loop import arrive, open_tick, pipeline
from torch import nn

from everfresh.tasks.config import FineTuneConfig, PipelineConfig
from everfresh.tasks.fine_tune import fine_tune, layout
from everfresh.tasks.fine_tune.layout import Measured, Trial, choose, default_of
from everfresh.tasks.fine_tune.trainer import Trainer
from everfresh.tasks.records import Candidate, Layout, Tick
from everfresh.tasks.store import FolderStore, cache_folder

FP32, BF16 = Layout(), default_of("bf16")
BATCH = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """All that measuring could leave a trace in: statistics, and draws at random."""

    def __init__(self, pause: Any = None) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(1))
        self.head = nn.Linear(8 * 14 * 14, 3)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.body(pixels))
        return scores


@pytest.fixture
def module() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def worth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any training is worth measuring."""
    monkeypatch.setattr(layout, "WORTH", {"cpu": 0.0})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Steps take the milliseconds that stand here by name, by this clock; the real machine's are not repeatable."""
    takes = {"fp32 contiguous": 100.0, "fp32 channels_last": 90.0, "bf16 contiguous": 70.0, "bf16 channels_last": 40.0}
    now = [0.0]
    prepared = Trial._prepared

    def slowed(self: Trial, chosen: Layout) -> Any:
        step = prepared(self, chosen)

        def takes_its_time() -> None:
            step()
            now[0] += takes[chosen.name] / 1e3

        return takes_its_time

    monkeypatch.setattr(Trial, "_prepared", slowed)
    monkeypatch.setattr(layout.time, "perf_counter", lambda: now[0])
    return takes


def chosen(module: nn.Module, default: Layout = FP32, steps: int = 100, batch: torch.Tensor = BATCH, **config: Any) -> Layout:
    return choose(FineTuneConfig(**{"compile": False} | config), default, module, batch, "net", steps)


def kept() -> list[Path]:
    return sorted((cache_folder() / "layouts").glob("*"))


# --- which one -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fastest", ["fp32 contiguous", "fp32 channels_last", "bf16 contiguous", "bf16 channels_last"])
def test_the_fastest_is_taken(module: Net, worth: None, clock: dict[str, float], fastest: str) -> None:
    clock[fastest] = 20.0
    made = chosen(module)
    assert (made.name, made.why) == (fastest, "measured")
    assert made.measured == {name: pytest.approx(ms) for name, ms in clock.items()}


@pytest.mark.parametrize(("share", "taken"), [(0.98, "bf16 channels_last"), (0.9, "fp32 contiguous")])
def test_the_default_stays_unless_another_is_clearly_faster(
    module: Net, worth: None, clock: dict[str, float], share: float, taken: str
) -> None:
    clock["fp32 contiguous"] = 40.0 * share
    assert chosen(module, default=BF16).name == taken


def test_steps_really_run_and_are_timed(module: Net, worth: None) -> None:
    made = chosen(module)
    assert set(made.measured) == {f"{p} {f}" for p in ("fp32", "bf16") for f in ("contiguous", "channels_last")}
    assert all(0 < ms < 10_000 for ms in made.measured.values())
    best = min(made.measured, key=lambda name: made.measured[name])
    assert made.measured[made.name] <= made.measured[best] / layout.MARGIN + 0.001


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_small_training_takes_the_default_unmeasured(module: Net, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trial, "measure", None)
    assert chosen(module, default_of(precision), steps=10_000).name == default_of(precision).name
    monkeypatch.setattr(layout, "WORTH", {"cpu": 0.0})
    made = chosen(module, default_of(precision), steps=layout.FEWEST - 1)
    assert (made.eager.name, made.measured) == (default_of(precision).name, {})
    assert kept() == []


def test_operations_are_counted_by_torch(module: Net) -> None:
    convolution, linear = 2 * 14 * 14 * 8 * 27, 2 * 3 * 8 * 14 * 14
    assert Trial(module, BATCH).operations() == 3 * 4 * (convolution + linear)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("form", ["contiguous", "channels_last"])
def test_what_is_pinned_is_taken(module: Net, precision: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trial, "measure", None)
    made = chosen(module, precision=precision, memory_format=form)
    assert made.name == f"{precision} {form}"


def test_what_is_left_open_is_measured(module: Net, worth: None, clock: dict[str, float]) -> None:
    assert chosen(module, precision="fp32").name == "fp32 channels_last"
    assert chosen(module, memory_format="contiguous").name == "bf16 contiguous"


def test_rows_of_a_table_have_no_channels(worth: None) -> None:
    made = chosen(nn.Linear(7, 3), batch=torch.randn(4, 7))
    assert set(made.measured) == {"fp32 contiguous", "bf16 contiguous"}


# --- no trace --------------------------------------------------------------------------------------------------------


def test_measuring_leaves_no_trace(module: Net, worth: None) -> None:
    module.train()
    before, state = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    assert chosen(module).measured
    assert torch.equal(torch.get_rng_state(), state)
    assert module.training
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert tensor.stride() == before[name].stride()
    assert all(p.grad is None for p in module.parameters())


# --- remembered ------------------------------------------------------------------------------------------------------


def test_what_was_measured_is_remembered(module: Net, worth: None, clock: dict[str, float]) -> None:
    first = chosen(module)
    clock["fp32 contiguous"] = 1.0  # nobody looks again
    again = chosen(module)
    assert (again.name, again.measured, again.why) == (first.name, first.measured, "measured before")
    assert len(kept()) == 1


@pytest.mark.parametrize("what", ["batch", "model", "frozen", "threads"])
def test_another_model_batch_or_machine_is_measured_anew(
    module: Net, worth: None, clock: dict[str, float], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen(module)
    batch = BATCH[:3] if what == "batch" else BATCH
    if what == "model":
        module.body[0] = nn.Conv2d(3, 8, 3, bias=False)
    if what == "frozen":
        module.body.requires_grad_(False)
    if what == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert chosen(module, batch=batch).why == "measured"
    assert len(kept()) == 2


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"step": {"fp32 contiguous": "x"}, "compiling": {}}', '{"step": 3}'])
def test_a_damaged_memory_is_measured_again(module: Net, worth: None, clock: dict[str, float], damage: str) -> None:
    chosen(module)
    (place,) = kept()
    place.write_text(damage)
    assert chosen(module).why == "measured"
    assert set(json.loads(place.read_text())) == {"step", "compiling"}


def test_where_nothing_can_be_kept_a_warning_says_so(
    module: Net, worth: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("EVERFRESH_CACHE", "/proc/nowhere")
    assert chosen(module).why == "measured"
    assert "the next run measures again" in caplog.text


def no_compiler(*_: Any) -> Any:
    """A backend for where there is none."""
    raise RuntimeError("no C++ compiler")


# --- compiling -------------------------------------------------------------------------------------------------------


@given(
    st.dictionaries(st.sampled_from(["fp32 contiguous", "fp32 contiguous compiled"]), st.floats(1e-3, 10), min_size=1),
    st.floats(0, 1e4),
    st.integers(1, 10**6),
)
def test_compiling_is_taken_where_it_pays_back(step: dict[str, float], compiling: float, steps: int) -> None:
    eager, made = FP32, FP32.model_copy(update={"compiled": True})
    known = Measured(step, {made.name: compiling})
    taken = layout._fastest([eager, made], eager, known, steps)
    inf = float("inf")
    pays = compiling + steps * step.get(made.name, inf) < layout.MARGIN * steps * step.get(eager.name, inf)
    assert taken.compiled == pays


def test_compiling_is_tried_only_where_it_can_pay_back(
    module: Net, worth: None, clock: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []
    measure = Trial.measure

    def noted(self: Trial, layouts: Any, into: Any) -> None:
        tried.extend(a.name for a in layouts)
        measure(self, layouts, into)

    monkeypatch.setattr(Trial, "measure", noted)
    monkeypatch.setattr(layout, "BACKEND", "eager")  # the tracer alone: no minutes of a compiler's work
    clock["bf16 channels_last compiled"] = 20.0
    assert chosen(module, compile="auto", steps=1_000).name == "bf16 channels_last"
    assert not [name for name in tried if "compiled" in name]
    made = chosen(module, compile="auto", steps=1_000_000)
    assert [name for name in tried if "compiled" in name] == ["bf16 channels_last compiled"]
    assert (made.name, made.compiled) == ("bf16 channels_last compiled", True)


def test_what_did_not_run_is_tried_again_another_time(
    module: Net, worth: None, clock: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock["bf16 channels_last compiled"] = 20.0
    monkeypatch.setattr(layout, "BACKEND", no_compiler)
    assert not chosen(module, compile="auto", steps=1_000_000).compiled
    monkeypatch.setattr(layout, "BACKEND", "eager")
    assert chosen(module, compile="auto", steps=1_000_000).compiled
    monkeypatch.setattr(layout, "BACKEND", no_compiler)  # the same cache where there is no compiler
    made = chosen(module, compile="auto", steps=1_000_000)
    assert (made.name, made.why) == ("bf16 channels_last", "compiling does not work here")


def test_a_small_training_that_is_to_be_compiled_goes_on_without_where_that_does_not_work(
    module: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "BACKEND", no_compiler)
    assert not chosen(module, compile=True, steps=layout.FEWEST - 1).compiled


def test_a_network_that_cannot_be_copied_is_not_measured(worth: None) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(1), nn.Linear(8 * 14 * 14, 3))
    net.register_buffer("derived", net[0].weight * 2)  # not a leaf, as weight_norm leaves one
    with pytest.raises(RuntimeError):
        copy.deepcopy(net)
    for compiling in (False, True, "auto"):
        made = chosen(net, compile=compiling)
        assert (made.name, made.measured) == ("fp32 contiguous", {})


def test_where_there_is_no_compiler_one_warning_says_so_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(layout, "BACKEND", "inductor")
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setenv("CXX", "/nonexistent/g++")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("/nonexistent/g++",))
    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)
    with caplog.at_level(logging.WARNING, "everfresh"):
        made = choose(FineTuneConfig(compile=True, precision="fp32", memory_format="contiguous"), FP32, nn.Linear(7, 3),
                      torch.randn(4, 7), "net", 100)  # fmt: skip
    assert (made.compiled, made.why) == (False, "compiling does not work here")
    assert len([r for r in caplog.records if "cannot be compiled here" in r.message]) == 1


# --- in a training ---------------------------------------------------------------------------------------------------


def first(folder: Path, **training: Any) -> tuple[FolderStore, PipelineConfig, Tick]:
    options = {"epochs": 2, "batch_size": 5, "checkpoint_every": 2} | training
    config = pipeline(folder, fine_tune=options)
    arrive(config, 24)
    store = FolderStore(folder / "store")
    return store, config, open_tick(store, config)


def interrupted(place: tuple[FolderStore, PipelineConfig, Tick], after: int) -> None:
    step = Trainer._step

    def dies(self: Trainer, pixels: Any, labels: Any, number: int, steps: int) -> None:
        if number == after:
            raise MemoryError
        step(self, pixels, labels, number, steps)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_step", dies)
        with pytest.raises(MemoryError):
            fine_tune(*place, "pretrained")


@pytest.mark.parametrize(("precision", "form"), [("bf16", "channels_last"), ("bf16", "contiguous"), ("fp32", "channels_last")])
def test_a_candidate_tells_its_layout_and_a_resumed_one_ends_in_the_same_bytes(
    tmp_path: Path, precision: str, form: str
) -> None:
    pinned = {"precision": precision, "memory_format": form, "compile": False}
    whole = fine_tune(*first(tmp_path / "whole", **pinned), "pretrained")
    assert whole.layout is not None
    assert (whole.layout.name, whole.layout.why) == (f"{precision} {form}", "pinned")
    place = first(tmp_path / "killed", **pinned)
    interrupted(place, 3)
    assert fine_tune(*place, "pretrained").weights.sha256 == whole.weights.sha256


def test_a_resumed_run_keeps_the_layout_of_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Candidate] = []
    for name, killed in (("whole", False), ("killed", True)):
        with monkeypatch.context() as patch:
            patch.setattr("everfresh.tasks.fine_tune.trainer.choose", lambda *_: BF16.model_copy(update={"why": "measured"}))
            place = first(tmp_path / name)
            if killed:
                interrupted(place, 3)
            else:
                made.append(fine_tune(*place, "pretrained"))
    monkeypatch.setattr("everfresh.tasks.fine_tune.trainer.choose", lambda *_: FP32)  # another machine would choose otherwise
    made.append(fine_tune(*place, "pretrained"))
    assert [m.layout.name for m in made if m.layout] == [BF16.name] * 2
    assert made[0].weights.sha256 == made[1].weights.sha256


def test_a_compiled_training_learns_as_an_eager_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "BACKEND", "aot_eager")
    pinned = {"precision": "fp32", "memory_format": "contiguous"}
    eager = fine_tune(*first(tmp_path / "eager", **pinned, compile=False), "pretrained")
    place = first(tmp_path / "compiled", **pinned, compile=True)
    interrupted(place, 3)
    made = fine_tune(*place, "pretrained")
    assert made.layout is not None
    assert made.layout.name == "fp32 contiguous compiled"
    assert made.tune_accuracy == pytest.approx(eager.tune_accuracy, abs=0.3)


def test_the_head_rung_and_older_records_have_none(tmp_path: Path) -> None:
    made = fine_tune(*first(tmp_path), "head")
    assert made.layout is None
    older = {k: v for k, v in json.loads(made.to_bytes()).items() if k != "layout"}
    assert Candidate.model_validate(older).layout is None
