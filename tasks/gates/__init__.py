"""The gates: each looks at one way in which a challenger may be worse, and leaves a verdict with its numbers."""

from __future__ import annotations

from everfresh.tasks.config import (
    BetterGate,
    CalibrationGate,
    FloorGate,
    Gate,
    LatencyGate,
    NegativeFlipsGate,
    NoWorseGate,
    RobustnessGate,
    ServesGate,
    SizeGate,
    SlicesGate,
)
from everfresh.tasks.gates import calibration, cost, gain, groups, robustness
from everfresh.tasks.gates.judged import Contender, Judged, Trial, compare, look
from everfresh.tasks.records import Verdict

__all__ = ["Contender", "Judged", "Trial", "compare", "judge", "look"]


def judge(gate: Gate, trial: Trial) -> Verdict:
    """One gate's verdict, with its numbers. `serves` is judged where the files of a release are made."""
    match gate:
        case FloorGate():
            return gain.floor(gate, trial)
        case BetterGate():
            return gain.better(gate, trial)
        case NoWorseGate():
            return gain.no_worse(gate, trial)
        case SlicesGate():
            return groups.slices(gate, trial)
        case NegativeFlipsGate():
            return gain.negative_flips(gate, trial)
        case CalibrationGate():
            return calibration.calibration(gate, trial)
        case RobustnessGate():
            return robustness.robustness(gate, trial)
        case LatencyGate():
            return cost.latency(gate, trial)
        case SizeGate():
            return cost.size(gate, trial)
        case ServesGate():
            raise ValueError("the gate serves is judged on the files of a release")
