"""Fine-tune: a window and the champion become a challenger, by the rung that was asked for.

``head`` refits the last layer on embeddings that drift detection has paid for already: multinomial logistic
regression, its strength of regularisation chosen by log loss on *tune*. ``full`` goes on from there through the whole network
(linear probing, then fine-tuning: Kumar et al., ICLR 2022). ``pretrained`` starts again from the configured weights.
All of them replay earlier trusted windows; without replay forgetting is drastic.

Everything is seeded, the order of each epoch by (seed, epoch), so a run that was killed goes on from its last
checkpoint and ends in the same bytes.
"""

from __future__ import annotations

import importlib.metadata
import logging
import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from everfresh.tasks import models
from everfresh.tasks.config import FineTuneConfig, PipelineConfig, Rung, is_path
from everfresh.tasks.embeddings import Embedder
from everfresh.tasks.errors import DataError, DigestMismatch, StoreError, TrainingError
from everfresh.tasks.images import normalise, to_tensor
from everfresh.tasks.ledger import attempt_folder, find, settle
from everfresh.tasks.progress import bar
from everfresh.tasks.records import Candidate, Cost, ModelSpec, Part, Release, Split, Tick, digest_of
from everfresh.tasks.store import Store, file_digest, scratch
from everfresh.tasks.views import View, seeded_choice

log = logging.getLogger(__name__)

HEAD_STRENGTHS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Inverse regularisation C that the head is fitted with; the lowest log loss on *tune* is taken."""
MEMORY = 512 << 20
"""Decoded pictures are kept in memory up to so many bytes."""
CODE = ("fine_tune.py", "models.py", "images.py", "views.py", "embeddings.py")
"""What a candidate's weights depend on, beside its inputs."""


@dataclass(frozen=True)
class Pool:
    """Rows of several views, the new window first."""

    parts: tuple[tuple[View, NDArray[np.int64]], ...]
    classes: tuple[str, ...]

    @property
    def labels(self) -> Tensor:
        """Class numbers (N,)."""
        return models.class_index([v.samples[int(r)].label for v, rows in self.parts for r in rows], self.classes)

    def __len__(self) -> int:
        return sum(len(rows) for _, rows in self.parts)


def fine_tune(store: Store, config: PipelineConfig, tick: Tick, rung: Rung, start: Candidate | None = None) -> Candidate:
    """Train one challenger and record it.

    Args:
        store: of the pipeline.
        config: of the pipeline.
        tick: names the window, the champion and the bank whose training samples are replayed.
        rung: ``head``, ``full`` or ``pretrained``.
        start: for ``full``: a candidate whose weights to go on from, instead of the champion's.

    Raises:
        DataError: the window has no labelled training sample.
        TrainingError: the loss is not finite.
    """
    begun = time.monotonic()
    if tick.request:  # another draw: a person who forces wants another model, not the same one under a new name
        seed = int(digest_of(config.fine_tune.seed, tick.request)[:7], 16)
        config = config.model_copy(update={"fine_tune": config.fine_tune.model_copy(update={"seed": seed})})
    replay = tuple(b.view for b in tick.bank if b.view != tick.view)
    start = start if rung == "full" else None
    release = find(store, f"releases/{tick.champion}/release.json", Release)
    from_champion = release is not None and rung != "pretrained"
    key = digest_of(
        "candidate",
        [tick.view, replay, tick.champion, rung, start.key if start else None, tick.request],
        config.fine_tune,
        config.window.bank_max_samples,
        config.model.model_dump(exclude={"weights"}),
        None if from_champion else _weights_identity(config.model.weights),
        _code(),
        _versions(),
    )
    if (known := find(store, f"candidates/{key}/record.json", Candidate)) is not None:
        return known
    module, spec = _start(store, config, release if from_champion else None, start)
    classes = config.model.classes
    window, earlier = View(store, tick.view), [View(store, v) for v in replay]
    # A group that is hold-out anywhere is learnt from nowhere, also where an adopted model's validation pictures come in again.
    withheld = frozenset(s.group for view in earlier for s in view.samples if s.split == "holdout")
    train = _pool(window, earlier, "train", classes, config.fine_tune.replay_max_samples, withheld)
    if not len(train.parts[0][1]):
        raise DataError(
            f"fine_tune: window {tick.seq} must have labelled training samples of model.classes, got none. "
            "Add labels, or extend model.classes."
        )
    tune = _pool(window, [], "tune", classes, 0, withheld)
    kept = _pool(None, earlier, "tune", classes, config.window.bank_max_samples, withheld)
    folder = f"candidates/{key}"
    attempt = attempt_folder(folder)
    torch.manual_seed(config.fine_tune.seed)
    if rung == "head":
        precision = config.model.precision
        embedder = Embedder(store, module, spec, models.encoder_digest(module, spec, precision), precision)
        spec = _refit_head(embedder, train, tune, kept, config.fine_tune.seed)
        module, files, trained, device = embedder.module, {}, len(train), "cpu"
        tuned = [_accuracy(embedder.scores(v, r)[1], _labels(v, r, classes)) for v, r in tune.parts]
        held = [_hits(embedder.scores(v, r)[1], _labels(v, r, classes)) for v, r in kept.parts]
        tune_accuracy, kept_accuracy = tuned[0], _pooled(held)
    else:
        spec = models.with_linear_head(module, spec, config.fine_tune.seed)
        trainer = _Trainer(store, module, spec, config, rung, folder, attempt)
        files, trained, device = trainer.run(train), len(train) * config.fine_tune.epochs, trainer.device
        tune_accuracy = _pooled([trainer.hits(tune)]) or 0.0
        kept_accuracy = _pooled([trainer.hits(kept)]) if len(kept) else None
        module = trainer.module
    seconds = time.monotonic() - begun
    with scratch() as temporary:
        path = temporary / "model.safetensors"
        models.save(module, path)
        weights = store.keep_file(f"{attempt}/model.safetensors", path)
    candidate = Candidate(
        key=key,
        rung=rung,
        view=tick.view,
        replay=replay,
        champion=tick.champion,
        start=start.key if start else release.id if from_champion and release else None,
        request=tick.request,
        spec=spec,
        encoder=models.encoder_digest(module, spec, config.model.precision),
        weights=weights,
        trained_on=len(train),
        tune_accuracy=tune_accuracy,
        tune_samples=len(tune),
        kept_accuracy=kept_accuracy,
        cost=Cost(seconds=seconds, device_seconds=seconds, samples=trained),
        device=device,
        files=files,
        seed=config.fine_tune.seed,
        code=_code(),
        versions=_versions(),
    )
    return settle(store, f"{folder}/record.json", candidate)


def _start(
    store: Store, config: PipelineConfig, release: Release | None, start: Candidate | None
) -> tuple[nn.Module, ModelSpec]:
    """The weights to go on from, with a head for the configured classes."""
    if release is None and start is None:
        return models.start(config.model, config.fine_tune.seed, config.s3)
    spec, weights = (start.spec, start.weights) if start else (release.spec, release.files["model.safetensors"])  # type: ignore[union-attr]
    module = models.load(store, spec, weights, code=config.model.architecture)
    if spec.classes != config.model.classes:
        spec = models.with_classes(module, spec, config.model.classes, config.fine_tune.seed)
    return module, spec


def _pool(
    window: View | None, earlier: Sequence[View], split: Split, classes: tuple[str, ...], most: int, withheld: frozenset[str]
) -> Pool:
    """Rows of a split: all of the window's, and a seeded, equal share of each earlier view's up to `most` in all."""

    def rows_of(view: View) -> NDArray[np.int64]:
        rows = view.rows(split, classes)
        return rows[[view.samples[int(r)].group not in withheld for r in rows]] if len(rows) else rows

    parts = [] if window is None else [(window, rows_of(window))]
    if most:
        rows = [rows_of(view) for view in earlier]
        share = _equal_share([len(r) for r in rows], most)
        for view, r in zip(earlier, rows, strict=True):
            chosen = r[seeded_choice(len(r), share, "replay", view.window.view)]
            parts.append((view, chosen))
    return Pool(tuple(parts), classes)


def _equal_share(counts: Sequence[int], most: int) -> int:
    """The largest cap on each count with which their sum stays within `most`, at least 1."""
    left = most
    for place, count in enumerate(sorted(counts)):
        share = left // (len(counts) - place)
        if count > share:
            return max(1, share)
        left -= count
    return max(counts, default=1) or 1


def _labels(view: View, rows: NDArray[np.int64], classes: Sequence[str]) -> Tensor:
    return models.class_index([view.samples[int(r)].label for r in rows], classes)


def _hits(scores: Tensor, labels: Tensor) -> tuple[int, int]:
    return int((scores.argmax(dim=1) == labels).sum()), len(labels)


def _accuracy(scores: Tensor, labels: Tensor) -> float:
    return _pooled([_hits(scores, labels)]) or 0.0


def _pooled(hits: Sequence[tuple[int, int]]) -> float | None:
    total = sum(n for _, n in hits)
    return sum(h for h, _ in hits) / total if total else None


def _refit_head(embedder: Embedder, train: Pool, tune: Pool, kept: Pool, seed: int) -> ModelSpec:
    """Fit the head on embeddings, in place. Regularisation is chosen by log loss on new and earlier *tune* alike."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    classes = train.classes
    embedder.spec = models.with_linear_head(embedder.module, embedder.spec, seed)
    features = torch.cat([embedder.embeddings(v, r) for v, r in train.parts]).double().numpy()
    labels = train.labels.numpy()
    if len(np.unique(labels)) < 2:
        raise DataError(
            f"fine_tune: the head needs samples of at least two classes, got only {classes[int(labels[0])]!r}. "
            "Collect more, or raise fine_tune.replay_max_samples."
        )
    head = models.linear_head(embedder.module, embedder.spec)
    biased = head.bias is not None
    centre, scale = features.mean(axis=0) * biased, features.std(axis=0) + 1e-6
    sets = [[(embedder.embeddings(v, r), _labels(v, r, classes)) for v, r in pool.parts if len(r)] for pool in (tune, kept)]
    best: tuple[float, Tensor, Tensor] | None = None
    for strength in HEAD_STRENGTHS:
        # One thread: the same bits on any number of cores, and no threads that spin for each other on busy ones.
        with warnings.catch_warnings(), threadpool_limits(1):
            warnings.simplefilter("ignore", ConvergenceWarning)
            fit = LogisticRegression(C=strength, max_iter=300, fit_intercept=biased).fit((features - centre) / scale, labels)
        weight, bias = _as_linear(fit, centre, scale, len(classes))
        losses = [_log_loss(weight, bias, group) for group in sets if group]
        loss = float(np.mean(losses)) if losses else strength
        if best is None or loss < best[0]:
            best = (loss, weight, bias)
    with torch.no_grad():
        head.weight.copy_(best[1])  # type: ignore[index]
        if biased:
            head.bias.copy_(best[2])  # type: ignore[index]
    return embedder.spec


def _log_loss(weight: Tensor, bias: Tensor, group: Sequence[tuple[Tensor, Tensor]]) -> float:
    scores = torch.cat([x @ weight.T + bias for x, _ in group])
    return float(nn.functional.cross_entropy(scores, torch.cat([y for _, y in group])))


def _as_linear(fit: Any, centre: Any, scale: Any, classes: int) -> tuple[Tensor, Tensor]:
    """Weight (C, D) and bias (C,) of a logistic regression on standardised features.

    Classes unseen are never predicted: they score the mean of the others, less 20 where there is a bias.
    """
    coefficients, intercepts = fit.coef_, fit.intercept_
    if len(fit.classes_) == 2:  # one row for two classes
        coefficients, intercepts = np.vstack([-coefficients, coefficients]) / 2, np.hstack([-intercepts, intercepts]) / 2
    rows = coefficients / scale
    offsets = np.zeros(len(rows)) if not fit.fit_intercept else intercepts - rows @ centre
    weight = np.tile(rows.mean(axis=0), (classes, 1))
    bias = np.full(classes, offsets.mean() - (20.0 if fit.fit_intercept else 0.0))
    weight[fit.classes_], bias[fit.classes_] = rows, offsets
    return torch.from_numpy(weight).float(), torch.from_numpy(bias).float()


class _Pictures(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Decoded pictures (3, S, S) uint8 and class numbers; decoded once if they fit in memory."""

    def __init__(self, pool: Pool, size: int) -> None:
        self.places = [(view, int(r)) for view, rows in pool.parts for r in rows]
        self.labels = pool.labels.tolist()
        self.size = size
        self.kept: dict[int, Tensor] | None = {} if len(pool) * 3 * size * size <= MEMORY else None

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if self.kept is not None and index in self.kept:
            return self.kept[index], self.labels[index]
        view, row = self.places[index]
        picture = to_tensor(next(view.read([row])), self.size)
        if self.kept is not None:
            self.kept[index] = picture
        return picture, self.labels[index]


class _Trainer:
    """One training run over a pool: AdamW, warm-up and cosine, checkpoints of whole epochs."""

    def __init__(
        self, store: Store, module: nn.Module, spec: ModelSpec, config: PipelineConfig, rung: Rung, folder: str, attempt: str
    ) -> None:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)  # each stage chooses its own precision
        self.accelerator = Accelerator(mixed_precision="bf16" if config.model.precision == "bf16" else "no")
        self.device = str(self.accelerator.device)
        self.store, self.spec, self.folder, self.attempt = store, spec, folder, attempt
        self.config: FineTuneConfig = config.fine_tune
        peak = self.config.learning_rate if rung == "pretrained" else self.config.learning_rate / 3
        self.peak = peak
        self.layout = models.layout(config.model.precision)
        module = module.to(memory_format=self.layout)
        optimizer = torch.optim.AdamW(_groups(module, self.config.weight_decay), lr=peak)
        self.module: nn.Module
        self.module, self.optimizer = self.accelerator.prepare(module, optimizer)

    def run(self, pool: Pool) -> dict[str, Part]:
        """Train for the configured epochs, from the newest checkpoint if one is there; returns the event files."""
        from torch.utils.tensorboard import SummaryWriter

        pictures = _Pictures(pool, self.spec.image_size)
        done = self._resume()
        if done:
            log.info("resumed after epoch %d of %d", done, self.config.epochs)
        with scratch() as temporary:
            writer = SummaryWriter(temporary)
            for epoch in bar(range(done, self.config.epochs), "train"):
                loss, accuracy = self._epoch(pictures, epoch)
                writer.add_scalar("train/loss", loss, epoch + 1)
                writer.add_scalar("train/accuracy", accuracy, epoch + 1)
                writer.add_scalar("train/learning_rate", self.optimizer.param_groups[0]["lr"], epoch + 1)
                if (epoch + 1) % self.config.checkpoint_every == 0 and epoch + 1 < self.config.epochs:
                    self._checkpoint(epoch + 1)
            writer.close()
            events = sorted(temporary.iterdir())
            return {f"tensorboard/{p.name}": self.store.keep_file(f"{self.attempt}/tensorboard/{p.name}", p) for p in events}

    def _epoch(self, pictures: _Pictures, epoch: int) -> tuple[float, float]:
        torch.manual_seed(int(digest_of("epoch", self.config.seed, epoch)[:15], 16))
        order = torch.randperm(len(pictures))
        batches = [b for b in torch.split(order, self.config.batch_size) if len(b) > 1] or [order.repeat(2)]
        self.module.train()
        total, right, seen = 0.0, 0, 0
        smooth = self.config.label_smoothing
        for number, batch in enumerate(batches):
            rate = self._rate(epoch * len(batches) + number, self.config.epochs * len(batches))
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            loaded = [pictures[int(i)] for i in batch]
            pixels = torch.stack([self._augment(picture) for picture, _ in loaded]).to(self.device)
            labels = torch.tensor([label for _, label in loaded], device=self.device)
            with self.accelerator.autocast():
                scores = self.module(normalise(pixels, self.spec.mean, self.spec.std).to(memory_format=self.layout))
                loss = nn.functional.cross_entropy(scores, labels, label_smoothing=smooth)
            if not torch.isfinite(loss):
                raise TrainingError(
                    f"fine_tune: the loss must be finite, got {loss.item()} in epoch {epoch + 1}, step {number + 1}. "
                    f"Lower fine_tune.learning_rate (now {self.config.learning_rate:g})."
                )
            self.optimizer.zero_grad()
            self.accelerator.backward(loss)
            self.optimizer.step()
            total += loss.item() * len(batch)
            right += int((scores.argmax(dim=1) == labels).sum())
            seen += len(batch)
        return total / seen, right / seen

    def _rate(self, step: int, steps: int) -> float:
        """Learning rate: linear warm-up over the first tenth, cosine to zero."""
        warm = max(1, steps // 10)
        if step < warm:
            return self.peak * (step + 1) / warm
        return self.peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

    def _augment(self, picture: Tensor) -> Tensor:
        from torchvision.transforms import v2

        if self.config.augment == "none":
            return picture
        crop = v2.RandomResizedCrop(self.spec.image_size, scale=(0.7, 1.0), ratio=(0.85, 1.18), antialias=True)
        picture = crop(picture)
        return (
            v2.functional.horizontal_flip(picture) if self.config.augment == "crop_flip" and torch.rand(()) < 0.5 else picture
        )

    @torch.no_grad()
    def hits(self, pool: Pool) -> tuple[int, int]:
        """Right predictions and samples of a pool."""
        found = [
            _hits(
                models.embed(self.module, self.spec, v.read(int(i) for i in r), device=self.accelerator.device.type)[1],
                _labels(v, r, pool.classes),
            )
            for v, r in pool.parts
        ]
        return sum(h for h, _ in found), sum(n for _, n in found)

    def _checkpoint(self, epoch: int) -> None:
        tensors = {f"model.{name}": t for name, t in self.module.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": t for name, t in state.items()}
        with scratch() as temporary:
            path = temporary / "checkpoint"
            save_file({n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()}, path, {"epoch": str(epoch)})
            self.store.put_file(f"{self.attempt}/checkpoint-{epoch:05d}-{file_digest(path)}.safetensors", path)

    def _resume(self) -> int:
        """Load the newest readable checkpoint of any attempt at this candidate; returns the epochs it has done."""
        found = [i.key for i in self.store.list(f"{self.folder}/attempts") if "/checkpoint-" in i.key]
        for key in sorted(found, key=lambda k: k.rpartition("/")[2], reverse=True):
            with scratch() as temporary:
                path = temporary / "checkpoint"
                try:
                    self.store.fetch(key, path)
                    if f"-{file_digest(path)}." not in key:
                        raise DigestMismatch("its bytes are not those of its name")
                    with safe_open(path, framework="pt") as file:
                        epoch = int((file.metadata() or {})["epoch"])
                        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
                except (StoreError, SafetensorError, KeyError, ValueError) as error:
                    log.warning("checkpoint %s cannot be read (%s); trying an older one", key, error)
                    continue
            self.module.load_state_dict({n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")})
            state = self.optimizer.state_dict()
            for name, tensor in tensors.items():
                if name.startswith("optimizer."):
                    _, index, entry = name.split(".", 2)
                    state["state"].setdefault(int(index), {})[entry] = tensor
            self.optimizer.load_state_dict(state)
            return epoch
        return 0


def _groups(module: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Parameters with weight decay, and those without: norms and biases."""
    matrices = [p for p in module.parameters() if p.ndim > 1]
    vectors = [p for p in module.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]


def _weights_identity(weights: str | None) -> str | None:
    """What stands for the start weights in a key: a local file's digest, else their name or address."""
    return file_digest(Path(weights)) if weights and is_path(weights) and Path(weights).is_file() else weights


def _code() -> str:
    here = Path(__file__).parent
    return digest_of([file_digest(here / name) for name in CODE])


def _versions() -> dict[str, str]:
    return {
        name: importlib.metadata.version(name)
        for name in ("torch", "torchvision", "scikit-learn", "numpy", "pillow", "accelerate")
    }
