"""The whole circle on a real S3 server: predicted, logged, labelled, ingested, retrained, reloaded, better."""

from __future__ import annotations

import io
import random
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.loop import NothingNew, Outcome, run_window
from support.stream import AGED, CLEAN, SEED, make_pipeline

from everfresh.flows.digits import Arrival, Scanner, arrive, truth
from everfresh.tasks.config import PipelineConfig, load_config
from everfresh.tasks.serving import Champion, PredictionLog, load_champion
from everfresh.tasks.store import S3Store
from everfresh.tasks.views import View


def pages(folder: Path, scanner: Scanner, numbers: Iterable[int]) -> list[tuple[bytes, str]]:
    """The digits of some windows of the demo as the scanner sees them, and what they are."""
    for number in numbers:
        arrive(folder, Arrival(number, "scans", "", 90, scanner), SEED)
    return [(path.read_bytes(), path.parent.name) for path in sorted(folder.rglob("*.png"))]


def _png(page: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(page).save(sink, "PNG")
    return sink.getvalue()


def accuracy(champion: Champion, scanner: Scanner) -> float:
    """On the digits that nobody trained on."""
    images, labels = truth(SEED, scanner)
    said = champion.predict([_png(page) for page in images]).labels
    return float(np.mean([int(a) == int(b) for a, b in zip(said, labels, strict=True)]))


class Circle:
    """A service with its log, and the pipeline that reads it."""

    def __init__(self, store: S3Store, folder: Path) -> None:
        made = make_pipeline(folder, "circle", policy={"ladder": ["head", "full"]})
        made.arrives(1, samples=400)
        config = load_config(made.file).model_copy(update={"store": store.url("store")})
        self.store, self.place = store.sub("store/circle"), store.url("log")
        assert run_window(self.store, config).move is not None
        self.config = _reading(config, self.place)
        self.champion = load_champion(self.store.url(""), min_interval=0)
        self.log = PredictionLog(self.place, flush_every=0.2)

    def answer(self, seen: list[tuple[bytes, str]]) -> list[tuple[str, str]]:
        """Requests of four pictures each; ids with what is right."""
        found = []
        for start in range(0, len(seen), 4):
            asked, labels = zip(*seen[start : start + 4], strict=True)
            ids = self.log.log(asked, self.champion.predict(asked), slices={"site": "berlin"})
            found += [(identity or "", label) for identity, label in zip(ids, labels, strict=True)]
        assert self.log.flush()
        return found

    def label(self, truths: list[tuple[str, str]]) -> None:
        """Labels come from another process's log, out of order, some wrong at first, some twice."""
        order = random.Random(0).sample(truths, len(truths))
        with PredictionLog(self.place) as log:
            for identity, _ in order[:20]:
                log.label(identity, "0")
            log.flush()
            for identity, label in order + order[:30]:
                log.label(identity, label)

    def tick(self) -> Outcome:
        return run_window(self.store, self.config)


def _reading(config: PipelineConfig, place: str) -> PipelineConfig:
    raw = config.model_dump(mode="json")
    raw["source"] = {"kind": "predictions", "path": place, "slice_columns": ["site"]}
    return PipelineConfig.model_validate(raw)


def test_what_a_service_sees_makes_it_better(s3_store: S3Store, tmp_path: Path) -> None:
    circle = Circle(s3_store, tmp_path)
    circle.label(circle.answer(pages(tmp_path / "clean", CLEAN, [2])))
    quiet = circle.tick()
    assert quiet.drift is not None
    assert not quiet.drift.alarm
    assert quiet.move is None

    before = accuracy(circle.champion, AGED)
    truths = circle.answer(pages(tmp_path / "aged", AGED, [5, 6, 7]))
    with pytest.raises(NothingNew):
        circle.tick()
    circle.label(truths)
    aged = circle.tick()
    assert aged.drift is not None
    assert aged.drift.alarm
    assert aged.move is not None
    samples = View(circle.store, aged.tick.view).samples
    assert sorted(s.label or "" for s in samples) == sorted(label for _, label in truths)
    assert {s.slices for s in samples} == {'{"site": "berlin"}'}

    assert circle.champion.refresh()
    assert circle.champion.version == 2
    assert accuracy(circle.champion, AGED) > before + 0.2
    circle.log.close()
    with pytest.raises(NothingNew):
        circle.tick()
