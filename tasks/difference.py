"""What is between two releases: how each was made, from what, how well it does, and how far its weights are apart.

All but the weights is read from records and small files, which stay when the weights of an old release go. Weights are
compared tensor by tensor with NumPy, two in memory at a time.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from everfresh.tasks.catalogue import REMOVED, Named
from everfresh.tasks.ledger import champion_moves, find
from everfresh.tasks.pull import recorded
from everfresh.tasks.records import Comparison, Evaluation, Release, RemovedRelease, Window
from everfresh.tasks.store import Store

WEIGHTS = "model.safetensors"
ELSEWHERE = ("view", "replay", "reference_view", "bank", "parent", "evaluation", "cost")
"""What of the lineage is told as data or release, or differs each time."""
Pairs = dict[str, list[Any]]
"""By name what the one and the other have; null where one has nothing of that name."""


def difference(store: Store, one: Named, other: Named, *, weights: bool = True) -> dict[str, Any]:
    """All that differs between two releases, as plain values; what is equal is left out.

    Args:
        store: of the pipeline.
        one: the release to start from.
        other: the release to look at.
        weights: also compare the weights, which are read and verified for that.

    Returns:
        ``lineage`` and ``config``: pairs by path; ``data``: windows that only one of them learnt from, and training samples
        by class; ``metrics``: of each on the hold-out of its own window; ``gain``: of `other` over `one` on the same samples,
        where they met in an evaluation; ``weights``: see `weights_apart`, null where they were removed or not asked for.

    Raises:
        ReleaseError: one of them is not in the store.
        StoreError: a file is missing or not as recorded.
    """
    pair = [_record(store, goal) for goal in (one, other)]
    lineage, config, metrics = (
        [_file(store, r, name) for r in pair] for name in ("lineage.json", "config.json", "metrics.json")
    )
    files = [r.files.get(WEIGHTS) for r in pair]
    compared = [store.local(part) for part in files if part is not None] if weights else []
    return {
        "releases": [_facts(goal, release) for goal, release in zip((one, other), pair, strict=True)],
        "lineage": _unequal(*({k: v for k, v in made.items() if k not in ELSEWHERE} for made in lineage)),
        "config": _unequal(*config),
        "data": _data(store, *lineage),
        "metrics": _unequal(*(_own(m) for m in metrics)),
        "gain": _gain(store, *pair),
        "weights": weights_apart(*compared) if len(compared) == 2 else None,
    }


def weights_apart(one: Path, other: Path) -> dict[str, Any]:
    """How far two files of weights are apart.

    Args:
        one: safetensors to start from.
        other: safetensors to look at.

    Returns:
        ``layers``: by layer the norm of the change over the norm of the weights before, most changed first, null where those
        were all zero; ``overall``: of all weights together; ``only_in_one``, ``only_in_other`` and ``other_shape``: names of
        tensors that cannot be compared.
    """
    import numpy as np
    from safetensors import safe_open

    before, change = defaultdict[str, float](float), defaultdict[str, float](float)
    with safe_open(one, framework="numpy") as first, safe_open(other, framework="numpy") as second:
        names, theirs = set(first.keys()), set(second.keys())
        unlike = []
        for name in sorted(names & theirs):
            a, b = (np.asarray(file.get_tensor(name), dtype=np.float64) for file in (first, second))
            if a.shape != b.shape:
                unlike.append(name)
                continue
            layer = name.rpartition(".")[0] or name
            before[layer] += float((a**2).sum())
            change[layer] += float(((b - a) ** 2).sum())
    layers = {layer: _relative(change[layer], before[layer]) for layer in before}
    return {
        "overall": _relative(sum(change.values()), sum(before.values())),
        "layers": dict(sorted(layers.items(), key=lambda item: -(math.inf if item[1] is None else item[1]))),
        "only_in_one": sorted(names - theirs),
        "only_in_other": sorted(theirs - names),
        "other_shape": unlike,
    }


def _relative(change: float, before: float) -> float | None:
    return math.sqrt(change / before) if before else (0.0 if not change else None)


def _record(store: Store, goal: Named) -> Release:
    """The record of a release, also of one whose weights were removed."""
    gone = find(store, f"releases/{goal.release}/{REMOVED}", RemovedRelease)
    standing = find(store, f"releases/{goal.release}/release.json", Release)
    return gone.release if gone is not None and standing is None else recorded(store, goal)


def _facts(goal: Named, release: Release) -> dict[str, Any]:
    made = {"name": goal.label, "id": release.id, "made": release.created_at.isoformat(), "rung": release.rung}
    return made | {"window": release.seq, "parent": release.parent, "accuracy": release.accuracy}


def _file(store: Store, release: Release, name: str) -> dict[str, Any]:
    part = release.files.get(name)
    found: dict[str, Any] = json.loads(store.read(part)) if part else {}
    return found


def _own(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """A model's own scores, without those of each class."""
    mine = {where: scores for where, scores in metrics.items() if where.startswith("this model on ")}
    return {
        where.removeprefix("this model on "): {k: v for k, v in scores.items() if k not in {"per_class", "confusion"}}
        for where, scores in mine.items()
    }


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of a nested mapping under their paths."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _flat(inner, f"{path}.{name}" if path else str(name))
    elif path:
        yield path, value


def _unequal(one: Mapping[str, Any], other: Mapping[str, Any]) -> Pairs:
    first, second = dict(_flat(one)), dict(_flat(other))
    names = dict.fromkeys((*first, *second))
    return {n: [first.get(n), second.get(n)] for n in names if first.get(n) != second.get(n)}


def _data(store: Store, one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Windows that only one release learnt from, and training samples by class."""
    views = [_views(lineage) for lineage in (one, other)]
    counts = [_classes(store, theirs) for theirs in views]
    classes = {name: [c[name] for c in counts] for name in sorted(counts[0] | counts[1])}
    return {
        "windows": [len(theirs) for theirs in views],
        "only_in_one": [view for view in views[0] if view not in views[1]],
        "only_in_other": [view for view in views[1] if view not in views[0]],
        "classes": {name: pair for name, pair in classes.items() if pair[0] != pair[1]},
    }


def _views(lineage: Mapping[str, Any]) -> list[str]:
    return [*(lineage.get("replay") or ()), *([lineage["view"]] if lineage.get("view") else ())]


def _classes(store: Store, views: list[str]) -> Counter[str]:
    windows = (find(store, f"windows/{view}/window.json", Window) for view in views)
    return sum((Counter(w.train_classes) for w in windows if w is not None), Counter[str]())


def _gain(store: Store, one: Release, other: Release) -> dict[str, list[float]] | None:
    """Accuracy gained on the same samples, with its 95 % interval, if one was proven against the other."""
    for challenger, champion, sign in ((other, one, 1), (one, other, -1)):
        for proof in _proofs(store, challenger):
            if proof.champion == champion.id:
                met: dict[str, Comparison | None] = {"window": proof.window, "bank": proof.bank}
                gains = {where: found.gain for where, found in met.items() if found is not None and found.gain is not None}
                return {where: sorted((sign * g.low, sign * g.value, sign * g.high)) for where, g in gains.items()}
    return None


def _proofs(store: Store, release: Release) -> Iterator[Evaluation]:
    """Of a release: what it went live by, then what its own record tells, which is older where the champion moved meanwhile."""
    moved = (move.evaluation for move in champion_moves(store) if move.release == release.id)
    for key in dict.fromkeys((*moved, release.evaluation)):
        proof = find(store, f"evaluations/{key}/record.json", Evaluation) if key else None
        if proof is not None:
            yield proof
