"""What the benchmarks of training share: PACS from shards, models by name, steps of a bare torch loop, paired ratios."""

from __future__ import annotations

import os
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from everfresh.tasks import ingest, models
from everfresh.tasks.config import PipelineConfig, parse_config
from everfresh.tasks.fine_tune.input import Batches
from everfresh.tasks.fine_tune.layout import arithmetic, memory_format
from everfresh.tasks.fine_tune.objective import Objective
from everfresh.tasks.fine_tune.pool import Pool
from everfresh.tasks.fine_tune.recipe import groups
from everfresh.tasks.fine_tune.trainer import Trainer
from everfresh.tasks.inputs import prepare
from everfresh.tasks.records import Layout, ModelSpec
from everfresh.tasks.store import FolderStore
from everfresh.tasks.targets import Targets
from everfresh.tasks.views import View

CLASSES = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
PAYS = 1.8


def pipeline(folder: Path, architecture: str, size: int, tar: str = "pacs-art_painting.tar", **training: Any) -> PipelineConfig:
    """A pipeline over one domain of PACS, with what is to be measured pinned."""
    weights = os.environ.get("SQUEEZENET") if architecture == "squeezenet1_1" else None
    return parse_config({
        "name": "bench", "store": str(folder / "store"),
        "source": {"kind": "shards", "paths": [f"{os.environ.get('PACS_DATA', str(folder))}/{tar}"]},
        "window": {"max_samples": 1200, "order": "shuffled", "holdout_fraction": 0.25, "tune_fraction": 0.05},
        "model": {"architecture": architecture, "weights": weights, "classes": CLASSES, "image_size": size},
        "fine_tune": {"checkpoint_every": 1_000_000, "compile": False} | training,
    })  # fmt: skip


def view_of(config: PipelineConfig) -> View:
    """The domain as a window in shards."""
    store = FolderStore(Path(config.store)).sub(config.name)
    entry = ingest.ingest(store, config)
    assert entry is not None
    return View(store, entry.view)


def pool_of(view: View, split: Any) -> Pool:
    targets = Targets(CLASSES)
    return Pool(((view, view.rows(split, targets)),), targets)


def trainer_of(config: PipelineConfig, folder: Path, module: nn.Module | None = None) -> tuple[Trainer, ModelSpec]:
    """Our training loop over a fresh model."""
    made, spec = models.start(config.model, 0)
    spec = models.with_linear_head(made, spec, 0)
    store = FolderStore(folder / "store")
    attempt = f"candidates/k/attempts/{random.random()}"
    objective = Objective(Targets(CLASSES), config.fine_tune, torch.arange(len(CLASSES)))
    return Trainer(store, module or made, spec, config, "pretrained", f"{attempt}/none", attempt, objective), spec


def bare(module: nn.Module, layout: Layout, device: str = "cpu") -> Callable[[Tensor, Tensor], None]:
    """A step of the plainest loop: the same model, precision, memory format and optimizer, on inputs that are ready."""
    module = module.to(device).train().to(memory_format=memory_format(layout))
    optimizer = torch.optim.AdamW(groups(module, 0.01), lr=1e-5)
    network = torch.compile(module, dynamic=False) if layout.compiled else module

    def step(inputs: Tensor, labels: Tensor) -> None:
        optimizer.zero_grad()
        with arithmetic(layout, device):
            loss = nn.functional.cross_entropy(network(inputs), labels)
        loss.backward()
        optimizer.step()
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    return step


def inputs_of(pixels: Tensor, spec: ModelSpec, layout: Layout) -> Tensor:
    return prepare(pixels, spec, memory_format(layout))


class Memory:
    """Batches that lie in memory, in place of the trainer's feed; `between` runs after each of its steps."""

    def __init__(self, batches: Batches, pixels: Tensor, labels: Tensor, between: Callable[[], None]) -> None:
        self.batches, self.pixels, self.labels, self.between = batches, pixels, labels, between

    def __call__(self, done: int) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(done, self.batches.steps):
            yield self.pixels, self.labels
            self.between()


def bounds(values: Sequence[float], draws: int = 4_000) -> tuple[float, float, float]:
    """Median, and the bounds of its 95 % interval by bootstrap over the pairs."""
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(draws))
    return statistics.median(values), medians[int(0.025 * draws)], medians[int(0.975 * draws)]


def told(name: str, ratios: Sequence[float]) -> str:
    middle, low, high = bounds(ratios)
    return f"{name}: {middle:.3f} (95 % {low:.3f} … {high:.3f}, {len(ratios)} pairs)"


def promise(words: str, value: float, *, most: float | None = None, least: float | None = None) -> bool:
    kept = (most is None or value <= most) and (least is None or value >= least)
    limit = f"at most {most:g}" if most is not None else f"at least {least:g}"
    print(f"{'kept  ' if kept else 'BROKEN'} {words}: {value:.3f}, {limit}", flush=True)
    return kept
