"""What two models said of the same held-out samples, and all else that a gate may look at."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from everfresh.tasks.config import TooFew
from everfresh.tasks.embeddings import Embedder
from everfresh.tasks.metrics import paired_gain, score
from everfresh.tasks.records import Comparison, Part, Verdict
from everfresh.tasks.slices import columns_of
from everfresh.tasks.targets import Targets
from everfresh.tasks.views import Sample, View, seeded_choice

Scope = Literal["window", "bank"]


@dataclass(frozen=True)
class Judged:
    """What two models said of the same samples."""

    labels: NDArray[Any]
    """(N, …) as `Targets.encode` makes them."""
    challenger: Tensor
    """(N, K) scores."""
    champion: Tensor | None
    """(N, K), in the order of the challenger's classes."""
    shared: NDArray[np.bool_]
    """(N,) whether both models know the label's classes."""
    targets: Targets
    """What the challenger is asked for; the champion is judged by it too."""
    views: tuple[View, ...] = ()
    """That the samples are of."""
    places: tuple[tuple[int, int], ...] = ()
    """(N,) number of each sample's view, and its row there."""
    columns: Mapping[str, NDArray[np.str_]] = field(default_factory=dict)
    """Value of each sample (N,) by slice column, see :func:`everfresh.tasks.slices.columns_of`."""

    def right(self) -> NDArray[np.bool_]:
        """(N,) whether the challenger is right."""
        return np.asarray(self.targets.right(self.challenger.numpy(), self.labels), dtype=bool)

    def right_before(self) -> NDArray[np.bool_]:
        """(N,) whether the champion is right."""
        if self.champion is None:
            raise ValueError("there is no champion to pair with")
        return np.asarray(self.targets.right(self.champion.numpy(), self.labels), dtype=bool)

    def pairs(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Of the shared samples: 1 where the challenger is right, 1 where the champion is."""
        ours, theirs = self.right(), self.right_before()
        return ours[self.shared].astype(np.float64), theirs[self.shared].astype(np.float64)

    def read(self, numbers: Iterable[int]) -> Iterator[bytes]:
        """Bytes of some of the samples; numbers that go up open each shard once."""
        for view, mine in groupby((self.places[int(number)] for number in numbers), key=lambda place: place[0]):
            yield from self.views[view].read(row for _, row in mine)

    def samples(self) -> list[Sample]:
        """(N,) rows of the manifests."""
        return [self.views[view].samples[row] for view, row in self.places]


@dataclass(frozen=True)
class Contender:
    """One of the two models, ready to be run."""

    embedder: Embedder
    weights: Part


@dataclass(frozen=True)
class Trial:
    """All that a gate may look at."""

    window: Judged
    """This window's hold-out."""
    here: Comparison
    bank: Judged
    """The earlier hold-outs, pooled."""
    there: Comparison | None
    """None if there is none."""
    seed: str = ""
    """Of whatever is drawn."""
    challenger: Contender | None = None
    champion: Contender | None = None
    """None if there is none."""

    def on(self, scope: Scope) -> Judged:
        """The samples that a gate asks for."""
        return self.window if scope == "window" else self.bank


def look(
    ours: Embedder, theirs: Embedder | None, views: Sequence[View], most: int, names: Sequence[str] | None = None
) -> Judged:
    """Both models on the hold-outs of some views, at most `most` samples in all, drawn by a seed.

    Args:
        ours: the challenger.
        theirs: the champion; None if there is none.
        views: whose hold-outs are looked at.
        most: samples.
        names: of the windows, one a view, for the slice column `window`.
    """
    targets = Targets.of(ours.spec)
    picks = [(number, int(row)) for number, view in enumerate(views) for row in view.rows("holdout", targets)]
    chosen = seeded_choice(len(picks), most, "bank", [v.window.view for v in views])
    places = tuple(picks[int(index)] for index in chosen)
    none = torch.zeros(0, len(targets.names))
    labels, challenger, champion = [targets.encode([])], [none], [none]
    for number, view in enumerate(views):
        wanted = np.array([row for of, row in places if of == number], dtype=np.int64)
        labels.append(targets.encode([view.samples[int(r)].label for r in wanted]))
        challenger.append(ours.scores(view, wanted)[1])
        if theirs is not None:
            champion.append(in_order(theirs.scores(view, wanted)[1], theirs.spec.classes, targets.names))
    called = names or [view.window.view[:8] for view in views]
    truth = np.concatenate(labels)
    shared = np.ones(len(truth), dtype=bool)
    if theirs is not None:
        known = np.array([name in theirs.spec.classes for name in targets.names])
        shared = np.asarray(known[truth] if truth.ndim == 1 else ~(truth[:, ~known] > 0).any(axis=1))
    return Judged(
        labels=truth,
        challenger=torch.cat(challenger),
        champion=None if theirs is None else torch.cat(champion),
        shared=shared,
        targets=targets,
        views=tuple(views),
        places=places,
        columns=columns_of(
            [views[number].samples[row] for number, row in places],
            [called[number] for number, _ in places],
            labels=targets.task == "single_label",
        ),
    )


def in_order(scores: Tensor, have: Sequence[str], want: Sequence[str]) -> Tensor:
    """Scores (N, C) of a model with other classes, in the order wanted; classes it does not know score lowest."""
    if tuple(have) == tuple(want):
        return scores
    floor = scores.min(dim=1, keepdim=True).values - 20.0
    columns = [scores[:, [have.index(name)]] if name in have else floor for name in want]
    return torch.cat(columns, dim=1)


def compare(judged: Judged, seed: str) -> Comparison:
    """Scores of both models, and the paired difference of accuracy with its 95 % bootstrap interval."""
    challenger = score(judged.challenger, judged.labels, judged.targets)
    if judged.champion is None:
        return Comparison(challenger=challenger, champion=None, gain=None)
    return Comparison(
        challenger=challenger,
        champion=score(judged.champion, judged.labels, judged.targets),
        gain=paired_gain(*judged.pairs(), 0.95, seed),
    )


def undecided(gate: str, too_few: TooFew, words: str, **numbers: float) -> Verdict:
    """The verdict that there is too little to look at for one."""
    return Verdict(
        gate=gate,
        passed=too_few == "pass",
        outcome="undecided",
        numbers=numbers,
        words=f"{gate}: {words}, so it is undecided and counts as {too_few}ed",
    )


def unshared(limit: str, known: int, needed: int) -> str:
    """Why a limit on what is lost could not be tested."""
    return f"{limit} could not be tested: both models know {known} of the samples, and it needs {needed}"


def but_for(untested: Sequence[str], found: Verdict, too_few: TooFew) -> Verdict:
    """A verdict where some limits could not be tested: what fails by the others has failed, what passes them is undecided.

    Args:
        untested: a sentence for each.
        found: by the limits that could.
        too_few: what undecided counts as.
    """
    if not untested:
        return found
    words = "; ".join([found.words, *untested])
    if not found.passed:
        return found.model_copy(update={"words": words})
    unsure = undecided(found.gate, too_few, words.removeprefix(f"{found.gate}: "), **found.numbers)
    return unsure.model_copy(update={"resolves": found.resolves})
