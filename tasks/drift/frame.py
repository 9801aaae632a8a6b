"""The monitoring frame: what drift is measured on, one row a sample.

Columns people can read (image properties or features of a row, metadata slices, prediction, confidence), the
champion's class probabilities, and its embedding. Nothing is decoded here: properties were measured at ingest, embeddings are
kept in the store.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from everfresh.tasks.records import Feature
from everfresh.tasks.targets import Targets
from everfresh.tasks.vectors import values_of
from everfresh.tasks.views import Sample, View

if TYPE_CHECKING:
    from everfresh.tasks.embeddings import Embedder

Floats = NDArray[np.float64]

PREDICTION = "prediction"
"""Name of the column of predictions; of values each has its own, ``prediction:<target>``."""


@dataclass(frozen=True)
class Answers:
    """Sets of classes, or values: what the champion said, and what the labels say."""

    targets: Targets
    scores: Floats
    """(N, K) of the champion."""
    truth: Floats
    """(N, K) encoded labels, NaN where there is none."""

    @property
    def right(self) -> NDArray[np.bool_]:
        """(N,) which predictions are right; none without a label."""
        return np.asarray(self.targets.right(self.scores, self.truth))

    def take(self, rows: NDArray[np.int64]) -> Answers:
        """Those of some samples, in that order."""
        return Answers(self.targets, self.scores[rows], self.truth[rows])


@dataclass(frozen=True)
class Frame:
    """A bounded sample of one window or one reference component.

    A table has no probabilities and no embeddings: both then have no columns, and there is no ``confidence``. Nor has a
    regression probabilities or a ``confidence``.
    """

    numerical: dict[str, Floats]
    """(N,) by name: image properties or numbers of a row, and ``confidence``; missing is NaN."""
    categorical: dict[str, NDArray[np.str_]]
    """(N,) by name: ``prediction``, slices and categories of a row; missing is an empty text."""
    probabilities: Floats
    """(N, C) softmax of the champion, of sets of classes its sigmoid."""
    embeddings: Floats
    """(N, D)."""
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    """(N,) class numbers, -1 where no known label is; where there are `answers` 0 for any known label."""
    places: tuple[tuple[View, int], ...] = ()
    """Where each sample's bytes are: view and row; empty where it has none."""
    times: NDArray[np.datetime64] | None = None
    """(N,) UTC, NaT where a sample has none; None where no sample has."""
    answers: Answers | None = None
    """What was asked for and said where it is not one of several classes."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def confidence(self) -> Floats:
        """(N,) highest class probability."""
        return self.numerical["confidence"]

    @property
    def correct(self) -> Floats:
        """(N,) 1 where the prediction is the label, 0 where not, NaN where there is no label."""
        if self.answers is not None:
            hit = self.answers.right.astype(np.float64)
        else:
            hit = (self.probabilities.argmax(axis=1) == self.labels).astype(np.float64)
        return np.where(self.labels >= 0, hit, np.nan)

    def take(self, rows: NDArray[np.int64]) -> Frame:
        """The frame of some of its samples, in that order; rows may repeat."""
        return Frame(
            {name: column[rows] for name, column in self.numerical.items()},
            {name: column[rows] for name, column in self.categorical.items()},
            self.probabilities[rows],
            self.embeddings[rows],
            self.classes,
            self.labels[rows],
            tuple(self.places[int(r)] for r in rows) if self.places else (),
            None if self.times is None else self.times[rows],
            None if self.answers is None else self.answers.take(rows),
        )

    @property
    def judged(self) -> bool:
        """Whether its predictions can be right or wrong; those of a table cannot, it has none."""
        return self.answers is not None or self.probabilities.shape[1] > 0

    def picture(self, row: int) -> bytes:
        """Encoded bytes of one sample's picture."""
        view, index = self.places[row]
        return next(view.read([index]))


def build(embedder: Embedder, picks: Sequence[tuple[View, NDArray[np.int64]]], targets: Targets | None = None) -> Frame:
    """The frame of the given rows of some views, through the embedder's model; `targets` are the model's own if not given."""
    import torch  # a table needs none of it

    targets = targets or Targets.of(embedder.spec)
    samples: list[Sample] = []
    places: list[tuple[View, int]] = []
    embedded, scored = [], []
    for view, rows in picks:
        samples += [view.samples[int(r)] for r in rows]
        places += [(view, int(r)) for r in rows]
        embedding, scores = embedder.scores(view, rows)
        embedded.append(embedding)
        scored.append(scores)
    said = torch.cat(scored).double()
    numerical, categorical = _of_rows(embedder.spec.features, picks) if embedder.spec.features else (_of_pictures(samples), {})
    if targets.task == "regression":
        probabilities = np.zeros((len(samples), 0))
        numerical |= {f"{PREDICTION}:{name}": said[:, i].numpy() for i, name in enumerate(targets.names)}
    else:
        probabilities = targets.probabilities(said)
        numerical["confidence"] = targets.confidence(probabilities)
        categorical[PREDICTION] = np.array(targets.texts(said.numpy()), dtype=np.str_)
    truth = targets.encode([s.label for s in samples])
    several = targets.task != "single_label"
    slices = [json.loads(s.slices) for s in samples]
    for name in sorted({key for row in slices for key in row}):
        categorical[name] = np.array([row.get(name, "") for row in slices], dtype=np.str_)
    return Frame(
        numerical,
        categorical,
        probabilities,
        torch.cat(embedded).double().numpy(),
        targets.names if targets.task != "regression" else (),
        targets.known(truth).astype(np.int64) - 1 if several else truth,
        tuple(places),
        np.array([_utc(s.timestamp) for s in samples], dtype="datetime64[s]"),
        Answers(targets, said.numpy(), truth.astype(np.float64)) if several else None,
    )


def _of_pictures(samples: Sequence[Sample]) -> dict[str, Floats]:
    """Their properties, as they were measured at ingest."""
    numerical = {
        name: np.array([getattr(s, name) for s in samples], dtype=np.float64)
        for name in ("brightness", "contrast", "sharpness", "colourfulness")
    }
    numerical["aspect"] = np.array([s.width / s.height for s in samples], dtype=np.float64)
    numerical["pixels"] = np.array([float(s.width * s.height) for s in samples], dtype=np.float64)
    return numerical


def _of_rows(
    features: Sequence[Feature], picks: Sequence[tuple[View, NDArray[np.int64]]]
) -> tuple[dict[str, Floats], dict[str, NDArray[np.str_]]]:
    """Their features as they stood in the table: numbers, and categories also where the model knows them not."""
    rows = [values_of(data) for view, places in picks for data in view.read(places.tolist())]
    numbers = {f.name: np.array([r.get(f.name) for r in rows], dtype=np.float64) for f in features if not f.categories}
    texts = {f.name: np.array([r.get(f.name) or "" for r in rows], dtype=np.str_) for f in features if f.categories}
    return numbers, texts


def _utc(time: datetime | None) -> datetime | None:
    """As numpy takes it: without a zone."""
    return time.astimezone(UTC).replace(tzinfo=None) if time else None


def concatenate(frames: Sequence[Frame]) -> Frame:
    """One frame of all rows."""
    first = frames[0]
    shared = set.intersection(*(set(f.categorical) for f in frames))
    return Frame(
        {name: np.concatenate([f.numerical[name] for f in frames]) for name in first.numerical},
        {name: np.concatenate([f.categorical[name] for f in frames]) for name in first.categorical if name in shared},
        np.concatenate([f.probabilities for f in frames]),
        np.concatenate([f.embeddings for f in frames]),
        first.classes,
        np.concatenate([f.labels for f in frames]),
        tuple(place for f in frames for place in f.places),
        None if any(f.times is None for f in frames) else np.concatenate([f.times for f in frames if f.times is not None]),
        _joined([f.answers for f in frames if f.answers is not None]),
    )


def _joined(answers: Sequence[Answers]) -> Answers | None:
    if not answers:
        return None
    scores, truth = ([getattr(a, name) for a in answers] for name in ("scores", "truth"))
    return Answers(answers[0].targets, np.concatenate(scores), np.concatenate(truth))
