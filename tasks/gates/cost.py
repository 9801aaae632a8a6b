"""Gates on what a model costs those who run it: time of a forward pass, and size of the weights.

Times are of this machine, so they are compared on it: both models in every round, one right after the other and in turns, so
that what else the machine does hits both. A median counts, and it counts once a sign test says on which side of its limit it
lies; rounds are added until it does, and the level is shared among the looks taken on the way. Where it never does, because the
machine is noisy or the two are near the limit, the verdict is undecided.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from scipy.stats import binom

from everfresh.tasks.config import LatencyGate, SizeGate
from everfresh.tasks.embeddings import Embedder
from everfresh.tasks.gates.evidence import Floats, p_above
from everfresh.tasks.gates.judged import Trial, undecided
from everfresh.tasks.inputs import noise
from everfresh.tasks.records import Verdict

FIRST_LOOK = 10
"""Rounds."""
WARM_UP = 3
LEAST_SECONDS = 0.005
"""That are timed at once: a shorter pass is repeated."""

Side = Literal["within", "beyond", "unclear"]


@dataclass(frozen=True)
class Limit:
    """A median that must not exceed something."""

    values: Floats
    """(R,) one a round."""
    maximum: float

    def side(self, level: float) -> Side:
        """On which side of the limit the median lies, by a sign test each way at a level."""
        count, over = len(self.values), int((self.values > self.maximum).sum())
        if p_above(over, count, 0.5) <= level:
            return "beyond"
        return "within" if p_above(count - over, count, 0.5) <= level else "unclear"

    def interval(self, level: float) -> tuple[float, float]:
        """The median's, of the values in order: as exact as the sign test."""
        out = max(int(binom.ppf(level, len(self.values), 0.5)) - 1, 0)
        ordered = np.sort(self.values)
        return float(ordered[out]), float(ordered[-1 - out])


def latency(gate: LatencyGate, trial: Trial) -> Verdict:
    """Whether a forward pass takes longer than the champion's, or than a limit."""
    if trial.challenger is None:
        raise ValueError("the challenger must be there to be timed")
    theirs = trial.champion.embedder if trial.champion is not None else None
    if theirs is None and gate.max_ms is None:
        return Verdict(gate="latency", passed=True, numbers={}, words="latency: there is no champion to compare with")
    looks = [*_looks(gate.rounds)]
    level = (1 - gate.confidence) / len(looks)
    models = [m for m in (trial.challenger.embedder, theirs) if m is not None]
    rounds = timed([_pass(m, gate.batch_size) for m in models])
    taken: list[Sequence[float]] = []
    limits, sides = dict[str, Limit](), list[Side]()
    for look in looks:
        taken += [next(rounds) for _ in range(look - len(taken))]
        limits = _limits(gate, np.array(taken))
        sides = [limit.side(level) for limit in limits.values()]
        if "beyond" in sides or "unclear" not in sides:
            break
    return _verdict(gate, np.array(taken), limits, sides, level)


def _verdict(gate: LatencyGate, taken: Floats, limits: dict[str, Limit], sides: Sequence[Side], level: float) -> Verdict:
    medians = np.median(taken, axis=0) * 1000
    numbers = {"ms": float(medians[0]), "rounds": float(len(taken)), "batch_size": float(gate.batch_size)}
    said, resolves = [], []
    against = f" against the champion's {medians[1]:.3g} ms" if len(medians) > 1 else ""
    for name, limit in limits.items():
        value, (low, high) = float(np.median(limit.values)), limit.interval(level)
        numbers |= {name: value, f"{name}_low": low, f"{name}_high": high, f"max_{name}": limit.maximum}
        unit = " times the champion's" if name == "ratio" else " ms"
        said.append(f"{value:.3g}{unit} [{low:.3g}, {high:.3g}], may be {limit.maximum:g}")
        resolves.append(f"{'ratios' if name == 'ratio' else 'milliseconds'} to {(high - low) / 2:.2g}")
    if len(medians) > 1:
        numbers["champion_ms"] = float(medians[1])
    words = f"{medians[0]:.3g} ms{against} for a batch of {gate.batch_size}, median of {len(taken)} rounds; {'; '.join(said)}"
    if "unclear" in sides and "beyond" not in sides:
        found = undecided("latency", gate.too_few, f"{words}; the rounds do not make it clear", **numbers)
        return found.model_copy(update={"resolves": ", ".join(resolves)})
    return Verdict(
        gate="latency",
        passed="beyond" not in sides,
        numbers=numbers,
        words=f"latency: {words}",
        resolves=", ".join(resolves),
    )


def _limits(gate: LatencyGate, taken: Floats) -> dict[str, Limit]:
    """What is limited, of seconds a pass (R, models)."""
    limits = {}
    if gate.max_ratio is not None and taken.shape[1] > 1:
        limits["ratio"] = Limit(taken[:, 0] / taken[:, 1], gate.max_ratio)
    if gate.max_ms is not None:
        limits["time"] = Limit(taken[:, 0] * 1000, gate.max_ms)
    return limits


def _looks(rounds: int) -> Iterator[int]:
    """After how many rounds the medians are looked at: 10, 20, 40 …, and at the end."""
    look = FIRST_LOOK
    while look < rounds:
        yield look
        look *= 2
    yield rounds


def _pass(model: Embedder, batch_size: int) -> Callable[[], Any]:
    inputs, module = noise(model.spec, batch_size), model.module.eval()
    return lambda: module(inputs)


@torch.inference_mode()
def timed(passes: Sequence[Callable[[], Any]]) -> Iterator[list[float]]:
    """Rounds without end: seconds that each pass takes, first to last and last to first in turns."""
    seconds = [min(_seconds(run, 1) for _ in range(WARM_UP)) for run in passes]
    repeats = max(
        1, math.ceil(LEAST_SECONDS / max(*seconds, 1e-7) if len(seconds) > 1 else LEAST_SECONDS / max(seconds[0], 1e-7))
    )
    forward = True
    while True:
        found = [0.0] * len(passes)
        order = range(len(passes)) if forward else reversed(range(len(passes)))
        for number in order:
            found[number] = _seconds(passes[number], repeats)
        yield found
        forward = not forward


def _seconds(run: Callable[[], Any], repeats: int) -> float:
    began = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - began) / repeats


def size(gate: SizeGate, trial: Trial) -> Verdict:
    """Whether the weights are larger than the champion's, or than a limit."""
    if trial.challenger is None:
        raise ValueError("the challenger must be there to be weighed")
    mine = trial.challenger.weights.size
    theirs = trial.champion.weights.size if trial.champion is not None else None
    numbers, said, passed = {"bytes": float(mine)}, [f"{mine:,} bytes"], True
    if gate.max_megabytes is not None:
        passed = mine <= gate.max_megabytes * 1e6
        numbers["max_bytes"] = gate.max_megabytes * 1e6
        said.append(f"may be {gate.max_megabytes * 1e6:,.0f}")
    if gate.max_ratio is not None and theirs is not None:
        passed = passed and mine <= gate.max_ratio * theirs
        numbers |= {"champion_bytes": float(theirs), "ratio": mine / theirs, "max_ratio": gate.max_ratio}
        said.append(f"{mine / theirs:.3f} times the champion's {theirs:,}, may be {gate.max_ratio:g} times")
    if len(said) == 1:
        said.append("there is no champion to compare with")
    return Verdict(gate="size", passed=passed, numbers=numbers, words=f"size: {'; '.join(said)}")
