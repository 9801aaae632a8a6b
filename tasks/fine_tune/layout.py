"""How a training computes: precision, memory format, eager or compiled; the fastest on this machine, found by trying.

No setting is best for all: on processors with bf16 units a ResNet-50 gains twofold from bf16 in channels-last, a
MobileNet loses by either. So a few steps are measured on a copy, the settings in turn, and the least time of each counts,
which others on the machine move least. What was measured is kept per machine and model in the cache's folder.
"""

from __future__ import annotations

import copy
import json
import logging
import platform
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from everfresh.tasks.config import FineTuneConfig
from everfresh.tasks.fine_tune.input import cores
from everfresh.tasks.records import Layout, digest_of
from everfresh.tasks.store import cache_folder

log = logging.getLogger(__name__)

ROUNDS = 4
"""Timed steps of each setting, after one that counts for nothing."""
HOPELESS = 1.25
"""A setting that takes this many times the best one's time is not tried again."""
MARGIN = 0.97
"""Another setting must take less than this share of the default's time; closer ones would change with the weather."""
WORTH = {"cpu": 1e12, "cuda": 2e14}
"""Operations (FLOP) of a whole training below which measuring costs more than it can win: seconds on that device."""
FEWEST = 20
"""Steps of a training below which nothing is measured: trying takes about half as many, once a machine and model."""
COMPILE_GAIN = 0.2
"""Share of the time that compiling may be hoped to save, before it was tried."""
COMPILE_SECONDS = 120.0
"""What compiling may take, before it was tried."""
BACKEND = "inductor"

Step = Callable[[], None]
Precision = Literal["fp32", "bf16"]
MemoryFormat = Literal["contiguous", "channels_last"]


@dataclass
class Measured:
    """Seconds by name of a setting."""

    step: dict[str, float] = field(default_factory=dict)
    """Least time of one step; infinite where it does not run here."""
    compiling: dict[str, float] = field(default_factory=dict)
    """Time of the first step of a compiled one, of which nearly all is compilation."""

    def total(self, layout: Layout, steps: int) -> float:
        """Seconds that so many steps take."""
        return self.compiling.get(layout.name, 0.0) + steps * self.step.get(layout.name, float("inf"))


def default_of(precision: str) -> Layout:
    """The setting that goes with ``model.precision``: fp32 as it comes, bf16 in channels-last."""
    return Layout(precision="bf16", memory_format="channels_last") if precision == "bf16" else Layout()


def choose(config: FineTuneConfig, default: Layout, module: nn.Module, batch: Tensor, model: str, steps: int) -> Layout:
    """The setting of a training, pinned or measured.

    Neither weights nor statistics of `module` change, nor does what is drawn at random later.

    Args:
        config: what is pinned in `precision`, `memory_format` and `compile`.
        default: what is taken unless another is clearly faster.
        module: on its device.
        batch: an input as a step has it, normalised, on the same device.
        model: names the architecture in the cache.
        steps: of the whole training.
    """
    eager, compiled = _allowed(config, default, batch)
    if not compiled and len(eager) == 1:
        return eager[0].model_copy(update={"why": "pinned" if eager[0] != default else "default"})
    fallback = _nearest(default, eager or compiled)
    small = steps < FEWEST
    if small and not fallback.compiled:
        return fallback.model_copy(update={"why": "too small a training to measure"})
    with undisturbed(batch.device):
        trial = Trial(module, batch)
        if not trial.copies:
            return fallback.eager.model_copy(update={"why": "the network cannot be copied, so nothing was measured"})
        if not eager and len(compiled) == 1:
            return trial.if_it_runs(compiled[0].model_copy(update={"why": "pinned"}))
        if small or steps * trial.operations() < WORTH.get(batch.device.type, 0.0):
            return trial.if_it_runs(fallback.model_copy(update={"why": "too small a training to measure"}))
        place = _place(module, batch, model)
        known = _read(place)
        before = dict(known.step)
        trial.measure([a for a in eager if a.name not in known.step], known)
        best = min(eager, key=lambda a: known.total(a, steps)) if eager else None
        for layout in compiled:
            if layout.name in known.step:
                continue
            if best is not None and (
                known.step[best.name] == float("inf")
                or known.total(best, steps) * COMPILE_GAIN < COMPILE_SECONDS
                or known.step[layout.eager.name] > HOPELESS * known.step[best.name]
            ):
                continue
            trial.measure([layout], known)
            if known.step[layout.name] == float("inf"):
                break  # what failed once fails again, after as many minutes
        found = _fastest([*eager, *compiled], fallback, known, steps)
        if found.compiled and found.name in before:
            found = trial.if_it_runs(found)  # it was measured elsewhere, or the compiler has gone since
    if known.step != before:
        _write(place, known)
    table = {name: round(seconds * 1e3, 3) for name, seconds in sorted(known.step.items()) if seconds < float("inf")}
    log.info("training computes in %s; measured, ms a step: %s", found.name, table)
    why = found.why or ("measured" if known.step != before else "measured before")
    return found.model_copy(update={"why": why, "measured": table})


def _fastest(layouts: Sequence[Layout], fallback: Layout, known: Measured, steps: int) -> Layout:
    best = min(layouts, key=lambda a: known.total(a, steps))
    if known.total(best, steps) == float("inf"):
        return fallback.eager
    return best if known.total(best, steps) < MARGIN * known.total(fallback, steps) else fallback


def _allowed(config: FineTuneConfig, default: Layout, batch: Tensor) -> tuple[list[Layout], list[Layout]]:
    """Settings that the configuration leaves and this input and device can have: eager ones, compiled ones."""
    precisions: tuple[Precision, ...] = ("fp32", "bf16") if config.precision == "auto" else (config.precision,)
    formats: tuple[MemoryFormat, ...] = ("contiguous", "channels_last")
    if config.memory_format != "auto":
        formats = (config.memory_format,)
    if batch.ndim != 4:
        formats = ("contiguous",)
    if config.precision == "auto" and batch.is_cuda and not torch.cuda.is_bf16_supported():
        precisions = ("fp32",)
    if config.precision == "auto" and batch.device.type not in WORTH:
        precisions = (default.precision,)
    eager = [Layout(precision=p, memory_format=f) for p in precisions for f in formats]
    compiled = [a.model_copy(update={"compiled": True}) for a in eager]
    return ([] if config.compile is True else eager), ([] if config.compile is False else compiled)


def _nearest(default: Layout, layouts: Sequence[Layout]) -> Layout:
    """The default, or what is left of it."""
    return max(layouts, key=lambda a: (a.precision == default.precision, a.memory_format == default.memory_format))


def if_it_compiles(layout: Layout, module: nn.Module, batch: Tensor) -> Layout:
    """A compiled setting that a checkpoint was made in; the same without compilation where that does not work here."""
    with undisturbed(batch.device):
        return Trial(module, batch).if_it_runs(layout)


class Trial:
    """Steps on copies of a module, with a batch of its own; one copy for each memory format."""

    def __init__(self, module: nn.Module, batch: Tensor) -> None:
        self.batch = batch
        self.copies: dict[str, tuple[nn.Module, Tensor]] = {}
        """By memory format; none if the module cannot be copied."""
        try:
            first = copy.deepcopy(module)
        except Exception as error:  # of somebody else's code: a measurement ends no training
            log.info("%s cannot be copied: %s", type(module).__name__, error)
            return
        self.copies["contiguous"] = first.train().to(memory_format=torch.contiguous_format), batch.contiguous()

    def operations(self) -> float:
        """FLOP of one training step, forward and twice as many backward, as torch counts them."""
        from torch.utils.flop_counter import FlopCounterMode

        module, few = self.copies["contiguous"][0], self.batch[:2]
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            module.eval()(few)
        module.train()
        return 3.0 * len(self.batch) / len(few) * float(counter.get_total_flops())

    def measure(self, layouts: Sequence[Layout], into: Measured) -> None:
        """Time the settings in turn, so that what others do to the machine meets all of them."""
        steps: dict[str, Step] = {}
        for layout in layouts:
            into.step[layout.name] = float("inf")
            step, begun = self._prepared(layout), time.perf_counter()
            if self._try(step, layout):
                steps[layout.name] = step
                if layout.compiled:
                    into.compiling[layout.name] = time.perf_counter() - begun
        for _ in range(ROUNDS):
            for name, step in steps.items():
                begun = time.perf_counter()
                step()
                into.step[name] = min(into.step[name], time.perf_counter() - begun)
            best = min((into.step[name] for name in steps), default=0.0)
            steps = {name: step for name, step in steps.items() if into.step[name] <= HOPELESS * best}
            if len(steps) == 1 and len(layouts) > 1:
                break

    def if_it_runs(self, layout: Layout) -> Layout:
        """The setting, or the same without compilation if that does not work here."""
        if not layout.compiled:
            return layout
        if self.copies and self._try(self._prepared(layout), layout):
            return layout
        return layout.eager.model_copy(update={"why": "compiling does not work here"})

    def _try(self, step: Step, layout: Layout) -> bool:
        try:
            step()
        except torch.OutOfMemoryError:
            return False
        except Exception as error:  # a compiler may be missing, or fail in any of its own ways
            if not layout.compiled:
                raise
            words = str(error).strip().partition("\n")[0][:200]
            log.warning(
                "fine_tune.compile: %s cannot be compiled here (%s: %s); going on without. A C++ compiler (g++) is needed; "
                "fine_tune.compile: false does not try.",
                type(self.copies["contiguous"][0]).__name__, type(error).__name__, words,
            )  # fmt: skip
            torch.compiler.reset()
            return False
        return True

    def _prepared(self, layout: Layout) -> Step:
        if layout.memory_format not in self.copies:
            module = copy.deepcopy(self.copies["contiguous"][0]).to(memory_format=memory_format(layout))
            self.copies[layout.memory_format] = module, self.batch.to(memory_format=memory_format(layout))
        module, batch = self.copies[layout.memory_format]
        network = compiled(module) if layout.compiled else module
        device = batch.device.type

        def step() -> None:
            module.zero_grad(set_to_none=True)
            with arithmetic(layout, device):
                scores = network(batch)
            scores.float().square().mean().backward()
            if batch.is_cuda:
                torch.cuda.synchronize(batch.device)

        return step


def memory_format(layout: Layout) -> torch.memory_format:
    """What tensors of pictures and filters are turned into."""
    return torch.channels_last if layout.memory_format == "channels_last" else torch.contiguous_format


def arithmetic(layout: Layout, device: str) -> torch.autocast:
    """A context in which a forward pass has the layout's precision; weights stay fp32."""
    return torch.autocast(device, torch.bfloat16, enabled=layout.precision == "bf16")


def compiled(module: nn.Module) -> Callable[..., Any]:
    """The module's forward pass, compiled at its first call for inputs of just that shape; it shares the weights."""
    made: Callable[..., Any] = torch.compile(module, dynamic=False, backend=BACKEND)
    return made


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Whatever is drawn within, later draws are those of a run that measured nothing."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


# --- what was measured before ----------------------------------------------------------------------------------------


def _place(module: nn.Module, batch: Tensor, model: str) -> Path:
    """The file of this machine and model: processor, device, threads, torch; architecture, what is trained, input."""
    parts = [(name, list(p.shape), p.requires_grad) for name, p in module.named_parameters()]
    device = torch.cuda.get_device_name(batch.device) if batch.is_cuda else batch.device.type
    machine = [_processor(), device, cores(), torch.get_num_threads(), torch.__version__]
    return cache_folder() / "layouts" / f"{digest_of(machine, model, digest_of(parts), list(batch.shape))}.json"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    told = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in lines}
    return " ".join([platform.machine(), *(told.get(name, "") for name in ("model name", "cpu family", "model", "flags"))])


def _read(place: Path) -> Measured:
    try:
        raw = json.loads(place.read_text())
        step, compiling = ({str(k): float(v) for k, v in raw[part].items()} for part in ("step", "compiling"))
        return Measured({k: v for k, v in step.items() if v < float("inf")}, compiling)  # what did not run may another time
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or damaged: it is measured again
        return Measured()


def _write(place: Path, known: Measured) -> None:
    partial = place.with_suffix(f".{uuid.uuid4().hex}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps({"step": known.step, "compiling": known.compiling}, sort_keys=True))
        partial.replace(place)
    except OSError as error:
        log.warning("what was measured cannot be kept in %s (%s); the next run measures again", place.parent, error.strerror)
