"""What a gate will be able to tell, before there is a challenger: from the size of the hold-out alone."""

from __future__ import annotations

import numpy as np
from scipy.stats import norm

from everfresh.tasks.config import (
    CalibrationGate,
    FloorGate,
    Gate,
    NegativeFlipsGate,
    NoWorseGate,
    RobustnessGate,
    SlicesGate,
)
from everfresh.tasks.gates.evidence import resolved_above, resolved_below, resolved_drop
from everfresh.tasks.slices import wilson

DIFFER = 0.1
"""Share of the samples that one of the two models alone has right, for want of any model."""


def outlook(gate: Gate, samples: int) -> str:
    """What it will tell on a hold-out of so many samples, in words; empty where nothing can be said before.

    Drops assume that one sample in ten is right under one model only; of slices and corruptions they are those of the
    smallest one that is judged. Power is 80 %.
    """
    least = getattr(gate, "min_samples", 0)
    if samples < least and not isinstance(gate, SlicesGate):
        return f"{gate.kind} is undecided below {least} samples"
    match gate:
        case FloorGate(metric="accuracy"):
            return f"floor sees accuracy to ±{wilson(round(gate.minimum * samples), samples).width / 2:.1%}"
        case NoWorseGate():
            half = float(norm.ppf((1 + gate.confidence) / 2)) * np.sqrt(DIFFER / max(samples, 1))
            return f"no_worse sees differences of {half:.1%} on as many samples of the bank"
        case SlicesGate():
            return _of_slices(gate, samples)
        case NegativeFlipsGate(maximum=float(most)):
            share = resolved_above(samples, most, 1 - gate.confidence)
            return f"negative_flips sees a share of {share:.1%}" if share <= 1 else "negative_flips sees none"
        case CalibrationGate():
            return f"calibration looks at {gate.min_samples} samples or more"
        case RobustnessGate(max_drop=float(most)):
            looked_at, tests = min(samples, gate.max_samples), len(gate.corruptions) * len(gate.severities)
            drop = resolved_drop(looked_at, most, (1 - gate.confidence) / tests, DIFFER)
            return f"robustness sees a drop of {drop:.1%} under one corruption"
        case _:
            return ""


def _of_slices(gate: SlicesGate, samples: int) -> str:
    """As if the samples were in slices of the least size."""
    count = samples // gate.min_samples
    if not count:
        return f"slices is undecided below {gate.min_samples} samples"
    level, parts = (1 - gate.confidence) / count, []
    if gate.minimum is not None and (share := resolved_below(gate.min_samples, gate.minimum, level)) >= 0:
        parts.append(f"an accuracy of {share:.1%}")
    if gate.max_drop is not None:
        parts.append(f"a drop of {resolved_drop(gate.min_samples, gate.max_drop, level, DIFFER):.1%}")
    return f"slices sees {' and '.join(parts)} in one of {count} slices of {gate.min_samples}" if parts else ""
