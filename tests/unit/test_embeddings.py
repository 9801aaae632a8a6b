"""Embeddings are computed once, kept, and never believed when they are damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.loop import arrive, open_tick, pipeline

from everfresh.tasks import models
from everfresh.tasks.embeddings import Embedder
from everfresh.tasks.store import FolderStore
from everfresh.tasks.views import View


@pytest.fixture
def view(tmp_path: Path) -> View:
    config = pipeline(tmp_path)
    arrive(config, 12)
    store = FolderStore(tmp_path / "store")
    return View(store, open_tick(store, config).view)


def embedder(view: View, tmp_path: Path, *, seed: int = 0, precision: str = "fp32") -> Embedder:
    module, spec = models.start(pipeline(tmp_path).model, seed)
    module.eval()
    return Embedder(view.store, module, spec, models.encoder_digest(module, spec, precision), precision)


def rows(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


def test_they_are_those_of_the_network(view: View, tmp_path: Path) -> None:
    found = embedder(view, tmp_path)
    expected, scores = models.embed(found.module, found.spec, view.read(range(12)))
    torch.testing.assert_close(found.embeddings(view, np.arange(12)), expected)
    torch.testing.assert_close(found.scores(view, np.arange(12))[1], scores)


def test_each_picture_goes_through_the_network_once(view: View, tmp_path: Path) -> None:
    one = embedder(view, tmp_path)
    made = one.embeddings(view, rows(0, 3, 5))
    assert one.computed == 3
    one.embeddings(view, rows(5, 7))
    assert one.computed == 4
    later = embedder(view, tmp_path)
    assert torch.equal(later.embeddings(view, rows(5, 0, 3)), made[[2, 0, 1]])
    later.embeddings(view, rows(7, 7))
    assert later.computed == 0


@pytest.mark.parametrize("change", [{"seed": 1}, {"precision": "bf16"}])
def test_another_encoder_has_its_own(view: View, tmp_path: Path, change: dict[str, object]) -> None:
    embedder(view, tmp_path).embeddings(view, rows(0))
    other = embedder(view, tmp_path, **change)  # type: ignore[arg-type]
    other.embeddings(view, rows(0))
    assert other.computed == 1


def test_no_rows_give_none(view: View, tmp_path: Path) -> None:
    found = embedder(view, tmp_path)
    assert found.embeddings(view, rows()).shape == (0, 96)
    assert [t.shape for t in found.scores(view, rows())] == [(0, 96), (0, 3)]
    assert not list(view.store.list("embeddings"))


@pytest.mark.parametrize("damage", ["truncated", "one byte", "empty"])
def test_damaged_ones_are_computed_again(view: View, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    whole = embedder(view, tmp_path).embeddings(view, np.arange(12))
    (item,) = view.store.list("embeddings")
    data = view.store.get(item.key)
    place = len(data) // 3  # amid the numbers
    broken = {"truncated": data[:place], "empty": b"", "one byte": data[:place] + bytes([data[place] ^ 64]) + data[place + 1 :]}
    view.store.put(item.key, broken[damage])
    again = embedder(view, tmp_path)
    assert torch.equal(again.embeddings(view, np.arange(12)), whole)
    assert again.computed == 12
    assert "are computed again" in caplog.text
    assert embedder(view, tmp_path).embeddings(view, np.arange(12)).equal(whole)
    later = embedder(view, tmp_path)
    later.embeddings(view, np.arange(12))
    assert later.computed == 0


def test_only_the_wanted_rows_are_held_in_memory(view: View, tmp_path: Path) -> None:
    embedder(view, tmp_path).embeddings(view, np.arange(12))
    later = embedder(view, tmp_path)
    later.embeddings(view, rows(3))
    assert list(later._known[view.window.view]) == [3]
    later.embeddings(view, rows(3, 4))
    assert later.computed == 0
