"""How often each gate refuses a challenger that is just within its limits, and one with a planted fault.

Two models on synthetic hold-outs whose truth is known, over many seeds; the gates are those of the pipeline file with their
defaults but for what is named. Prints two tables: gates against harm on 300 samples, and those that ask for good on 30, 100 and
300: `python benchmarks/gates.py [--seeds 400]`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
from scipy.stats import binomtest

from everfresh.tasks.config import BetterGate, CalibrationGate, FloorGate, Gate, NegativeFlipsGate, NoWorseGate, SlicesGate
from everfresh.tasks.gates import Judged, Trial, compare, judge
from everfresh.tasks.targets import Targets

SAMPLES = 300
SITES = np.repeat(["a", "b", "c", "d", "e"], [20, 40, 60, 80, 100])
Draw = Callable[[np.random.Generator], Judged]


def judged(
    now: np.ndarray, before: np.ndarray, sure: np.ndarray | None = None, sure_before: np.ndarray | None = None
) -> Judged:
    """Two models that are right or wrong (N,) with a confidence (N,), on samples of class 0."""

    def scores(right: np.ndarray, confidence: np.ndarray | None) -> torch.Tensor:
        confidence = np.full(len(right), 0.9) if confidence is None else confidence
        odds = np.log(confidence / (1 - confidence)) * np.where(right, 1, -1)
        return torch.from_numpy(np.stack([odds / 2, -odds / 2], 1))

    labels, everywhere = np.zeros(len(now), dtype=np.int64), np.ones(len(now), dtype=bool)
    both = scores(now, sure), scores(before, sure_before)
    return Judged(labels, *both, everywhere, Targets(("right", "wrong")), columns={"site": SITES[: len(now)]})


def paired(lose: float | np.ndarray, win: float | np.ndarray, samples: int = SAMPLES) -> Draw:
    """Samples that are lost and won with these probabilities, of all or of each (N,)."""

    def draw(rng: np.random.Generator) -> Judged:
        chance = rng.random(samples)
        lost, won = chance < lose, (chance >= lose) & (chance < lose + win)
        return judged(~lost, ~won)

    return draw


def unsure(off: float, off_before: float) -> Draw:
    """Two models whose confidences are too high by so much."""

    def draw(rng: np.random.Generator) -> Judged:
        sure, before = rng.uniform(0.6, 0.98, (2, SAMPLES))
        return judged(rng.random(SAMPLES) < sure - off, rng.random(SAMPLES) < before - off_before, sure, before)

    return draw


def at(site: str, value: float, elsewhere: float) -> np.ndarray:
    """A probability for each sample that is another one at a site."""
    return np.where(site == SITES, value, elsewhere)


CASES: list[tuple[str, Gate, str, Draw, str, Draw]] = [
    ("slices, drop", SlicesGate(), "every slice drops by 5 points", paired(0.1, 0.05),
     "a slice of 60 drops by 35", paired(at("c", 0.4, 0.1), 0.05)),
    ("slices, floor 0.8", SlicesGate(minimum=0.8), "every slice at 0.8", paired(0.2, 0.0),
     "a slice of 60 at 0.55", paired(at("c", 0.45, 0.2), 0.0)),
    ("slices, gap 0", SlicesGate(max_gap=0.0), "all slices at 0.8", paired(0.2, 0.0),
     "a slice of 60 at 0.5", paired(at("c", 0.5, 0.2), 0.0)),
    ("negative_flips", NegativeFlipsGate(), "5 % flip", paired(0.05, 0.1), "12 % flip, 17 % are won", paired(0.12, 0.17)),
    ("calibration, 0.05", CalibrationGate(maximum=0.05), "too sure by 5 points", unsure(0.05, 0.0),
     "too sure by 20", unsure(0.2, 0.0)),
    ("calibration, increase", CalibrationGate(max_increase=0.0), "calibrated as well", unsure(0.0, 0.0),
     "too sure by 15", unsure(0.15, 0.0)),
]  # fmt: skip

GOOD: list[tuple[str, Gate, str, float, float]] = [
    ("floor 0.8", FloorGate(minimum=0.8), "right in 85 %", 0.15, 0.0),
    ("floor 0.8", FloorGate(minimum=0.8), "right in 75 %", 0.25, 0.0),
    ("better", BetterGate(), "8 points better", 0.02, 0.1),
    ("better", BetterGate(), "equally good, a tenth differs", 0.05, 0.05),
    ("better", BetterGate(), "8 points worse", 0.1, 0.02),
    ("no_worse, 0.02", NoWorseGate(), "equally good, a tenth differs", 0.05, 0.05),
    ("no_worse, 0.02", NoWorseGate(), "8 points worse", 0.1, 0.02),
    ("no_worse, min_samples 101", NoWorseGate(min_samples=101), "equally good, a tenth differs", 0.05, 0.05),
    ("no_worse, min_samples 101", NoWorseGate(min_samples=101), "8 points worse", 0.1, 0.02),
]
"""With the shares of samples that the challenger loses and wins."""
SIZES = (30, 100, 300)


def refused(gate: Gate, draw: Draw, seeds: int) -> str:
    """Share of seeds in which the gate refuses, with its 95 % interval."""
    hits = 0
    for seed in range(seeds):
        window = draw(np.random.default_rng(seed))
        here = compare(window, str(seed))
        hits += not judge(gate, Trial(window, here, window, here, seed=str(seed))).passed
    found = binomtest(hits, seeds).proportion_ci(method="wilson")
    return f"{hits / seeds:.1%} ({found.low:.1%} … {found.high:.1%})"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=400)
    seeds = parser.parse_args().seeds
    print("| gate | just within its limit | refused | planted fault | refused |\n|---|---|---|---|---|")
    for name, gate, within, fair, fault, planted in CASES:
        row = (name, within, refused(gate, fair, seeds), fault, refused(gate, planted, seeds))
        print(f"| {' | '.join(row)} |", flush=True)
    print(f"\n| gate | challenger | {' | '.join(f'refused at {n}' for n in SIZES)} |\n|---|---|{'---|' * len(SIZES)}")
    for name, gate, what, lose, win in GOOD:
        rates = [refused(gate, paired(lose, win, samples), seeds) for samples in SIZES]
        print(f"| {' | '.join([name, what, *rates])} |", flush=True)


if __name__ == "__main__":
    main()
