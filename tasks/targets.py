"""What a model is asked for: one of several classes, a set of them, or numbers. The one place that knows the difference.

A label is text in every manifest and table; here it becomes what a loss and a gate compare with, and a model's scores
become text again. The rest of the house asks one question of every task, whether a sample's prediction is *right*:

- ``single_label``: the class is the label's.
- ``multi_label``: at most `tolerance` of the classes are wrongly said to be there or not (0: subset accuracy).
- ``regression``: every value is at most `tolerance` away from the label's, in the target's own units.

So "accuracy" means the share that is right, and whatever rests on it (gates, drift, trust) holds for all three.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everfresh.tasks.config import ModelConfig, Task
from everfresh.tasks.errors import DataError
from everfresh.tasks.records import ModelSpec

Floats = NDArray[np.float64]

JOIN, NONE_OF_THEM = "|", "|"
"""Between the classes of a set, and the set without any; a class name holds no such character."""
SEVERAL = ";"
"""Between the values of several targets."""
MAX_LABEL = 4_000
"""Characters of the text of a set or of several values."""
MOST_GROUPS = 64
"""Different labels that a window's record counts one by one."""
LARGEST = float(np.finfo(np.float32).max)
"""A value beyond it does not fit into a tensor."""
MOST_PAIRED = 1_000
"""Samples of which all pairs are compared."""
_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


@dataclass(frozen=True)
class Targets:
    """What is asked for, and when an answer is right."""

    names: tuple[str, ...]
    """Of the model's outputs, in their order: classes, or values."""
    task: Task = "single_label"
    tolerance: float = 0.0
    """Wrong classes, or distance in the target's units, up to which a prediction is right."""

    @classmethod
    def of(cls, spec: ModelSpec) -> Targets:
        """What a model answers."""
        return cls(spec.classes, spec.task, spec.tolerance)

    @classmethod
    def wanted(cls, config: ModelConfig) -> Targets:
        """What the pipeline file asks for."""
        return cls(config.outputs, config.task, config.tolerance or 0.0)

    @cached_property
    def _number(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.names)}

    # --- labels ----------------------------------------------------------------------------------------------------

    def canonical(self, label: str) -> str:
        """The one text of a label: a set's names sorted and joined by ``|``, values as decimals joined by ``;``.

        A set may come as such a text or as a JSON list; ``|`` and ``[]`` are the set without any class, which differs from
        no label. Several values come likewise.

        Raises:
            DataError: it is no such text: says what is wrong, for the file's place in quarantine.
        """
        match self.task:
            case "single_label":
                return label
            case "multi_label":
                return _text(_set_in(label))
            case "regression":
                return SEVERAL.join(map(repr, self._values_in(label)))

    def __contains__(self, label: object) -> bool:
        """Whether it is a label that this model can be trained on; others wait as pending."""
        if not isinstance(label, str):
            return False
        match self.task:
            case "single_label":
                return label in self._number
            case "multi_label":
                return all(name in self._number for name in _split(label))
            case "regression":
                try:
                    return bool(self._values_in(label))
                except DataError:  # of a view from before the task was changed
                    return False

    def encode(self, labels: Sequence[str | None]) -> NDArray[Any]:
        """Labels as a loss takes them; a row without a known label is -1, or NaN.

        Returns:
            Class numbers (N,) int64, 1 for each class that is there (N, C) float32, or values (N, T) float32.
        """
        if self.task == "single_label":
            return np.array([self._number.get(label, -1) if label is not None else -1 for label in labels], dtype=np.int64)
        rows = np.full((len(labels), len(self.names)), np.nan, dtype=np.float32)
        for row, label in zip(rows, labels, strict=True):
            if label is None or label not in self:
                continue
            if self.task == "multi_label":
                row[:] = 0
                row[[self._number[name] for name in _split(label)]] = 1
            else:
                row[:] = self._values_in(label)
        return rows

    def known(self, truth: NDArray[Any]) -> NDArray[np.bool_]:
        """(N,) whether a row of encoded labels is a label."""
        return truth >= 0 if truth.ndim == 1 else np.isfinite(truth).all(axis=1)

    def _values_in(self, label: str) -> list[float]:
        parts = [str(p) for p in _listed(label)] if label.startswith("[") else label.split(SEVERAL)
        if len(parts) != len(self.names):
            raise DataError(f"must have {len(self.names)} values ({', '.join(self.names)}) as its label, got {_cut(label)}")
        return [_value(part.strip(), label) for part in parts]

    # --- predictions -----------------------------------------------------------------------------------------------

    def right(self, scores: Any, truth: Any) -> Any:
        """(N,) whether each prediction is right; never where there is no label.

        Args:
            scores: of the model (N, K): of classes before softmax or sigmoid, or values; an array or a tensor.
            truth: encoded labels, likewise.
        """
        match self.task:
            case "single_label":
                return scores.argmax(1) == truth
            case "multi_label":
                return ((scores > 0) != (truth > 0.5)).sum(1) + (truth != truth).sum(1) * len(self.names) <= self.tolerance
            case "regression":
                return (abs(scores - truth) <= self.tolerance).all(1)

    def texts(self, scores: NDArray[Any]) -> list[str]:
        """(N,) predictions as labels are written; values in six digits."""
        match self.task:
            case "single_label":
                return [self.names[int(i)] for i in scores.argmax(1)]
            case "multi_label":
                return [_text([self.names[int(i)] for i in np.flatnonzero(row > 0)]) for row in scores]
            case "regression":
                return [SEVERAL.join(f"{value:.6g}" for value in row) for row in scores]

    def probabilities(self, scores: Any) -> Floats:
        """(N, C) what the scores (N, C) of classes, a tensor, say of each: softmax, of sets of classes sigmoid."""
        of_classes = scores.double()
        return np.asarray((of_classes.softmax(dim=1) if self.task == "single_label" else of_classes.sigmoid()).numpy())

    def confidence(self, probabilities: Floats) -> Floats:
        """(N,) how probably each prediction is right, by the model's own probabilities (N, C).

        Of a set: that at most `tolerance` of its classes are wrong, were they wrong independently (Poisson binomial).
        """
        if self.task == "single_label":
            return np.asarray(probabilities.max(axis=1))
        most = int(self.tolerance)
        wrong = np.minimum(probabilities, 1 - probabilities)  # (N, C)
        so_far = np.zeros((len(wrong), most + 1))  # (N, most + 1): probability of so many wrong ones among those before
        so_far[:, 0] = 1
        for q in wrong.T[:, :, None]:
            so_far = so_far * (1 - q) + np.pad(so_far, ((0, 0), (1, 0)))[:, :-1] * q
        return np.asarray(so_far.sum(axis=1))

    # --- windows ---------------------------------------------------------------------------------------------------

    def chance(self, truth: NDArray[Any]) -> float:
        """How often one label of these (N, …) would be right for another one drawn from them; 1 for none."""
        if not len(truth):
            return 1.0
        if self.task == "single_label":
            shares = np.bincount(truth) / len(truth)
            return float((shares**2).sum())
        some = truth[np.linspace(0, len(truth) - 1, min(len(truth), MOST_PAIRED)).astype(np.int64)]
        said = some - 0.5 if self.task == "multi_label" else some
        return float(np.mean([self.right(np.broadcast_to(row, some.shape), some).mean() for row in said]))

    def counts(self, labels: Iterable[str]) -> dict[str, int]:
        """How many samples have which label: a class, one of the most frequent sets, or a half of a value's range.

        At most `MOST_GROUPS` names however many labels differ; at least two wherever two labels do.
        """
        found = Counter(labels)
        if self.task == "single_label":
            return dict(sorted(found.items()))
        if self.task == "multi_label":
            return bounded(found)
        rows = [(self._values_in(label), n) for label, n in found.items()]
        columns = [sorted({values[i] for values, _ in rows}) for i in range(len(self.names))]
        place = next((i for i, column in enumerate(columns) if len(column) > 1), 0)
        name, each = self.names[place], columns[place]
        if len(each) < 2:
            return {f"{name} = {value:.6g}": found.total() for value in each}
        cut = each[(len(each) - 1) // 2]
        low = sum(n for values, n in rows if values[place] <= cut)
        return {f"{name} ≤ {cut:.6g}": low, f"{name} > {cut:.6g}": found.total() - low}

    def changed(self, before: Targets) -> str:
        """What differs from an earlier model's so that none of its outputs can be kept; empty if some can."""
        if before.task != self.task:
            return f"model.task {before.task}"
        if self.task == "regression" and before.names != self.names:
            return f"model.targets {', '.join(before.names)}"
        return ""


def bounded(found: Counter[str]) -> dict[str, int]:
    """Counts by name, sorted; of more than `MOST_GROUPS` names the rarer ones are one."""
    if len(found) <= MOST_GROUPS:
        return dict(sorted(found.items()))
    often = sorted(found, key=lambda name: (-found[name], name))[: MOST_GROUPS - 1]
    rest = found.total() - sum(found[name] for name in often)
    return {**{name: found[name] for name in sorted(often)}, "(others)": rest}


def _text(names: Iterable[str]) -> str:
    return JOIN.join(sorted(names)) or NONE_OF_THEM


def _split(text: str) -> list[str]:
    return [name for name in text.split(JOIN) if name]


def _set_in(label: str) -> set[str]:
    if label.lstrip().startswith("["):
        names = _listed(label)
        if bad := [n for n in names if not isinstance(n, str) or not n.strip() or JOIN in n]:
            raise DataError(f"must have names of classes in its list of labels, got {_cut(str(bad[0]))}")
    else:
        names = label.split(JOIN)
    found = {" ".join(name.split()) for name in names} - {""}
    if odd := sorted(name for name in found if name.startswith("[")):  # the text of the set would read as a list
        raise DataError(f"must have names of classes that do not begin with [, got {_cut(odd[0])}")
    return found


def _listed(label: str) -> list[Any]:
    try:
        found = json.loads(label, parse_constant=_constant)
    except (ValueError, RecursionError):
        raise DataError(f"has a label that begins a list and is none in JSON, {_cut(label)}") from None
    return found if isinstance(found, list) else [found]


def _constant(name: str) -> str:
    return name  # NaN and Infinity, which JSON does not have: told as no number


def _value(text: str, label: str) -> float:
    if not _DECIMAL.fullmatch(text) or not math.isfinite(value := float(text)) or abs(value) > LARGEST:
        raise DataError(f"must have a finite decimal number such as -1.5 as its label, got {_cut(label)}")
    return value + 0.0  # no negative zero


def _cut(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}…")
