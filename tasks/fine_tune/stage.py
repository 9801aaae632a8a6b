"""Fine-tune: a window and the champion become a challenger, by the rung that was asked for.

``recalibrate`` trains nothing: it cools the champion's scores and moves them to the class shares of now, folded into its head.
``head`` refits the last layer on embeddings that drift detection has paid for already: multinomial logistic
regression, its strength of regularisation chosen by log loss on *tune*. ``full`` goes on from there through the whole network
(linear probing, then fine-tuning: Kumar et al., ICLR 2022). ``pretrained`` starts again from the configured weights.
All of them replay earlier trusted windows; without replay forgetting is drastic.

Everything is seeded, so a run that was killed goes on from its last checkpoint and, on the CPU, ends in the same bytes.
"""

from __future__ import annotations

import importlib.metadata
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from everfresh.tasks import models
from everfresh.tasks.architectures import TIMM, source_digest
from everfresh.tasks.config import PipelineConfig, Rung, is_path
from everfresh.tasks.embeddings import Embedder
from everfresh.tasks.errors import DataError, ModelError, RungUnfit, TrainingError
from everfresh.tasks.fine_tune.head import refit_head
from everfresh.tasks.fine_tune.keep import Start, copied, pull_back
from everfresh.tasks.fine_tune.objective import Objective
from everfresh.tasks.fine_tune.pool import Pool, hits_of, labels_of, pool_of, pooled
from everfresh.tasks.fine_tune.recalibrate import recalibrate
from everfresh.tasks.fine_tune.trainer import Trainer
from everfresh.tasks.ledger import attempt_folder, find, settle
from everfresh.tasks.records import (
    Candidate,
    Cost,
    Feature,
    Layout,
    ModelSpec,
    Part,
    Release,
    Tick,
    Training,
    digest_of,
)
from everfresh.tasks.releases import find_release
from everfresh.tasks.store import Store, file_digest, scratch
from everfresh.tasks.targets import Targets
from everfresh.tasks.vectors import fitted
from everfresh.tasks.views import View

CODE = (
    *sorted(f"fine_tune/{path.name}" for path in Path(__file__).parent.glob("*.py")),
    *(f"{name}.py" for name in ("architectures", "models", "inputs", "images", "vectors", "views", "embeddings", "targets")),
)
"""What a candidate's weights depend on, beside its inputs."""


def fine_tune(store: Store, config: PipelineConfig, tick: Tick, rung: Rung, start: Candidate | None = None) -> Candidate:
    """Train one challenger and record it.

    Args:
        store: of the pipeline.
        config: of the pipeline.
        tick: names the window, the champion and the bank whose training samples are replayed.
        rung: ``recalibrate``, ``head``, ``full`` or ``pretrained``.
        start: for ``full``: a candidate whose weights to go on from, instead of the champion's.

    Raises:
        DataError: the window has no labelled training sample.
        ModelError: the champion is of another task.
        RungUnfit: the rung has no answer here.
        TrainingError: the loss is not finite; the champion is of other features, or of pictures in another form, which is a
            RungUnfit where the ladder has a rung that starts afresh.
    """
    begun = time.monotonic()
    release = find_release(store, tick.champion) if tick.champion else None
    plan = _planned(config, tick, rung, release, start)
    config, key, origin = plan.config, plan.key, plan.origin
    if (known := find(store, f"candidates/{key}/record.json", Candidate)) is not None:
        return known
    targets = Targets.wanted(config.model)
    if release:
        same_task(targets, release.spec)
    if rung == "recalibrate":
        _recalibrable(release, targets)
    module, spec, headed = _start(store, config, origin)
    train, tune, kept = _pools(store, config, tick, rung, targets)
    if origin is None:
        spec = spec.model_copy(update={"features": _standardised(config, spec, train)})
    folder = f"candidates/{key}"
    attempt = attempt_folder(folder)
    champion_tune, champion_kept = (_champion_on(store, config, release, pool) for pool in (tune, kept))
    torch.manual_seed(config.fine_tune.seed)
    if rung in {"recalibrate", "head"}:
        embedder = _embedder(store, config, module, spec)
        if rung == "head":
            spec = refit_head(embedder, train, tune, kept, config.fine_tune.seed)
        else:
            spec = recalibrate(embedder, train, tune, kept, _usual(store, release))
        made = _Made(embedder.module, spec, tune=_hits(embedder, tune), kept=_hits(embedder, kept), trained=len(train))
    else:
        made = _trained(store, plan, (module, spec, headed), (train, tune, kept), attempt)
        if rung == "full" and config.fine_tune.full_replay is not None and len(torch.unique(train.labels, dim=0)) > 1:
            made = _reheaded(store, config, made, *_pools(store, config, tick, "head", targets))
    seconds = time.monotonic() - begun
    with scratch() as temporary:
        path = temporary / "model.safetensors"
        models.save(made.module, path)
        weights = store.keep_file(f"{attempt}/model.safetensors", path)
    candidate = Candidate(
        key=key,
        rung=rung,
        view=tick.view,
        replay=plan.replay,
        champion=tick.champion,
        start=(origin.key if isinstance(origin, Candidate) else origin.id) if origin else None,
        request=tick.request,
        spec=made.spec,
        encoder=models.encoder_digest(made.module, made.spec, config.model.precision),
        weights=weights,
        trained_on=len(train),
        tune_accuracy=made.tune or 0.0,
        tune_samples=len(tune),
        kept_accuracy=made.kept,
        champion_accuracy=champion_tune if len(tune) else champion_kept,
        champion_kept_accuracy=champion_kept,
        training=made.training,
        recipe=config.fine_tune.model_dump(mode="json") if made.training else {},
        cost=made.spent + Cost(seconds=seconds, device_seconds=seconds, samples=made.trained),
        device=made.device,
        layout=made.layout,
        files=made.files,
        seed=config.fine_tune.seed,
        code=_code(),
        versions=_versions(config.model.architecture),
    )
    return settle(store, f"{folder}/record.json", candidate)


@dataclass(frozen=True)
class _Plan:
    """What a challenger is made from, before anything is read."""

    config: PipelineConfig
    """With the seed and the epochs of this very training."""
    rung: Rung
    replay: tuple[str, ...]
    origin: Candidate | Release | None
    """Whose weights it goes on from; None for the configured start."""
    after: Rung | None
    """The rung of a candidate that it goes on from."""
    pulled: float
    """How far it is pulled back to the configured weights, 0…1."""
    key: str


@dataclass(frozen=True)
class _Made:
    """What came out of a rung."""

    module: nn.Module
    spec: ModelSpec
    tune: float | None
    """Accuracy on *tune* of the window; None without such samples."""
    kept: float | None
    """The same of the earlier windows."""
    trained: int
    """Samples that were trained on, in all passes."""
    device: str = "cpu"
    spent: Cost = field(default_factory=Cost)
    """By earlier runs of the same training."""
    files: dict[str, Part] = field(default_factory=dict)
    layout: Layout | None = None
    training: Training | None = None


def _planned(config: PipelineConfig, tick: Tick, rung: Rung, release: Release | None, start: Candidate | None) -> _Plan:
    if tick.request:  # another draw: a person who forces wants another model, not the same one under a new name
        seed = int(digest_of(config.fine_tune.seed, tick.request)[:7], 16)
        config = config.model_copy(update={"fine_tune": config.fine_tune.model_copy(update={"seed": seed})})
    replay = tuple(b.view for b in tick.replayed)
    start = start if rung == "full" else None
    origin = start or (release if rung != "pretrained" else None)
    if rung == "full" and origin and config.fine_tune.full_epochs is not None:
        fewer = config.fine_tune.model_copy(update={"epochs": config.fine_tune.full_epochs})
        config = config.model_copy(update={"fine_tune": fewer})
    pulled = config.fine_tune.keep.pull_back if rung == "full" and origin and config.model.weights is not None else 0.0
    from_champion = release is not None and rung != "pretrained"
    key = digest_of(
        "candidate",
        [tick.view, replay, tick.champion, rung, start.key if start else None, tick.request],
        config.fine_tune,
        config.window.bank_max_samples,
        config.model.model_dump(exclude={"weights"}),
        None if from_champion and not pulled else _weights_identity(config.model.weights),
        _code(),
        source_digest(config.model.architecture),
        _versions(config.model.architecture),
    )
    return _Plan(config, rung, replay, origin, start.rung if start else None, pulled, key)


def _recalibrable(release: Release | None, targets: Targets) -> None:
    """Raise unless the champion's scores can be moved to other class shares."""
    if release is None or release.spec.classes != targets.names:
        raise RungUnfit("model.classes has changed since the champion was made" if release else "there is no champion yet")
    if targets.task != "single_label":
        raise RungUnfit(f"a temperature and class shares are of one of several classes, and model.task is {targets.task}")


def _pools(store: Store, config: PipelineConfig, tick: Tick, rung: Rung, targets: Targets) -> tuple[Pool, Pool, Pool]:
    """What the rung trains on, *tune* of the window, and *tune* of the earlier ones."""
    window, earlier = View(store, tick.view), [View(store, b.view) for b in tick.bank if b.view != tick.view]
    # A group that is hold-out anywhere is learnt from nowhere, also where an adopted model's validation pictures come in again.
    withheld = frozenset(s.group for view in earlier for s in view.samples if s.split == "holdout")
    replayed = [View(store, b.view) for b in tick.replayed]
    train = pool_of(window, replayed, "train", targets, _most_replayed(config, rung, window), withheld)
    if not len(train.parts[0][1]):
        raise DataError(
            f"fine_tune: window {tick.seq} must have labelled training samples of model.classes, got none. "
            "Add labels, or extend model.classes."
        )
    tune = pool_of(window, [], "tune", targets, 0, withheld)
    return train, tune, pool_of(None, earlier, "tune", targets, config.window.bank_max_samples, withheld)


def _trained(
    store: Store, plan: _Plan, start: tuple[nn.Module, ModelSpec, bool], pools: tuple[Pool, Pool, Pool], attempt: str
) -> _Made:
    """The rungs ``full`` and ``pretrained``: the network as a whole, its head probed first where that is asked for."""
    config, origin, pulled = plan.config, plan.origin, plan.pulled
    module, spec, headed = start
    train, tune, kept = pools
    keep = config.fine_tune.keep
    knows = _learnt(store, config, origin) if origin and keep.distill else None
    spec = models.with_linear_head(module, spec, config.fine_tune.seed)
    objective = Objective(train.targets, config.fine_tune, train.labels)
    body = origin is not None or config.model.weights is not None
    mixed = origin is not None and headed
    before = _entered(module, spec, objective) if pulled and mixed and keep.interpolate else None
    if pulled:
        pull_back(module, models.start(config.model, config.fine_tune.seed, config.s3)[0].state_dict(), pulled, spec.head)
    probe = pulled or (config.fine_tune.probe_first and body and plan.after in {None, "recalibrate"})
    if probe and len(torch.unique(train.labels, dim=0)) > 1:
        spec = refit_head(_embedder(store, config, module, spec), train, tune, kept, config.fine_tune.seed)
        headed = True
    objective.enter(models.linear_head(module, spec), drawn=not headed)
    begin = Start(body, headed and (origin is not None or bool(probe)), mixed, knows, pulled, before)
    trainer = Trainer(store, module, spec, config, plan.rung, f"candidates/{plan.key}", attempt, objective, begin)
    files = trainer.run(train, tune, kept)
    objective.leave(models.linear_head(trainer.module, spec))
    return _Made(
        trainer.module,
        spec,
        tune=pooled([trainer.hits(tune)]),
        kept=pooled([trainer.hits(kept)]),
        trained=trainer.trained,
        device=trainer.device,
        spent=trainer.spent,
        files=files,
        layout=trainer.layout,
        training=trainer.record,
    )


def _reheaded(store: Store, config: PipelineConfig, made: _Made, train: Pool, tune: Pool, kept: Pool) -> _Made:
    """With its head refitted on all that may be replayed, of which the network saw a part (Kang et al., ICLR 2020)."""
    embedder = _embedder(store, config, made.module, made.spec)
    spec = refit_head(embedder, train, tune, kept, config.fine_tune.seed)
    return replace(made, module=embedder.module, spec=spec, tune=_hits(embedder, tune), kept=_hits(embedder, kept))


def _entered(module: nn.Module, spec: ModelSpec, objective: Objective) -> dict[str, Tensor]:
    """Its weights as the objective trains them; the module stays as it is."""
    now = copied(module)
    objective.enter(models.linear_head(module, spec), drawn=False)
    found = copied(module)
    module.load_state_dict(now)
    return found


def _embedder(store: Store, config: PipelineConfig, module: nn.Module, spec: ModelSpec) -> Embedder:
    precision = config.model.precision
    return Embedder(store, module, spec, models.encoder_digest(module, spec, precision), precision)


def _hits(embedder: Embedder, pool: Pool) -> float | None:
    """Accuracy on a pool; None of nothing."""
    targets = pool.targets
    return pooled([hits_of(embedder.scores(v, r)[1], labels_of(v, r, targets), targets) for v, r in pool.parts])


def _start(store: Store, config: PipelineConfig, origin: Candidate | Release | None) -> tuple[nn.Module, ModelSpec, bool]:
    """The weights to go on from, with a head for the configured classes, and whether that head has learnt something."""
    if origin is None:
        return models.begin(config.model, config.fine_tune.seed, config.s3)
    module, spec = _learnt(store, config, origin)
    if why := other_form(config, spec):
        raise (RungUnfit if "pretrained" in config.policy.ladder else TrainingError)(why)
    headed = not spec.native_head and spec.classes == config.model.outputs
    if spec.classes != config.model.outputs:
        spec = models.with_classes(module, spec, config.model.outputs, config.fine_tune.seed)
    return module, spec.model_copy(update={"tolerance": config.model.tolerance or 0.0}), headed


def same_task(targets: Targets, spec: ModelSpec) -> None:
    """Raise ModelError unless a champion does what is configured now."""
    if changed := targets.changed(Targets.of(spec)):
        raise ModelError(
            f"model.task and model.targets must stay those of the champion, {changed}, got others. "
            "Give a new task a pipeline of its own."
        )


def other_form(config: PipelineConfig, spec: ModelSpec) -> str:
    """Why a champion cannot be gone on from with samples as they are configured now; empty if it can."""
    over = "for any rung but pretrained"
    remedy = "start over with `everfresh run --force --rung pretrained`."
    mine, theirs = ([(f.name, f.categories) for f in features] for features in (config.model.features, spec.features))
    if mine != theirs:
        return (
            f"model.features must be those of the champion, {', '.join(name for name, _ in theirs) or 'none'}, and their "
            f"categories, {over}, got {', '.join(name for name, _ in mine) or 'none'}. Put them back, or {remedy}"
        )
    for name in () if spec.features else ("image_size", "mean", "std"):
        if (wanted := getattr(config.model, name)) != (its := getattr(spec, name)):
            return f"model.{name} must be that of the champion, {its}, {over}, got {wanted}. Put it back, or {remedy}"
    return ""


def _standardised(config: PipelineConfig, spec: ModelSpec, train: Pool) -> tuple[Feature, ...]:
    """The features with mean and std of the training samples, but for those that the pipeline file gives one of."""
    given = {c.name for c in config.model.features if (c.mean, c.std) != (None, None)}
    free = [f for f in spec.features if f.name not in given]
    made = {
        f.name: f
        for f in fitted(free, (data for view, rows in train.parts for data in view.read(rows.tolist() if free else [])))
    }
    return tuple(made.get(f.name, f) for f in spec.features)


def _most_replayed(config: PipelineConfig, rung: Rung, window: View) -> int:
    most, ratio = config.fine_tune.replay_max_samples, config.fine_tune.full_replay
    return most if rung != "full" or ratio is None else min(most, round(ratio * window.window.splits.get("train", 0)))


def _usual(store: Store, release: Release | None) -> Counter[str]:
    """Labelled samples by class in the windows that a release was made from."""
    views = [View(store, b.view).window for b in release.bank] if release else []
    return sum((Counter(w.classes) for w in views), Counter())


def _champion_on(store: Store, config: PipelineConfig, release: Release | None, pool: Pool) -> float | None:
    """The champion's accuracy on a pool; None without a champion or of nothing."""
    if release is None or not len(pool):
        return None
    weights, precision = release.files["model.safetensors"], config.model.precision
    champion = Embedder.open(store, release.spec, weights, precision, code=config.model.architecture)
    its = replace(Targets.of(release.spec), tolerance=pool.targets.tolerance)
    return pooled([hits_of(champion.scores(v, r)[1], labels_of(v, r, its), its) for v, r in pool.parts])


def _learnt(store: Store, config: PipelineConfig, origin: Candidate | Release) -> tuple[nn.Module, ModelSpec]:
    """The network that is gone on from, as it was recorded."""
    weights = origin.weights if isinstance(origin, Candidate) else origin.files["model.safetensors"]
    return models.load(store, origin.spec, weights, code=config.model.architecture), origin.spec


def _weights_identity(weights: str | None) -> str | None:
    """What stands for the start weights in a key: a local file's digest, else their name or address."""
    return file_digest(Path(weights)) if weights and is_path(weights) and Path(weights).is_file() else weights


def _code() -> str:
    here = Path(__file__).parent.parent
    return digest_of([file_digest(here / name) for name in CODE])


def _versions(architecture: str) -> dict[str, str]:
    used = ("torch", "torchvision", "scikit-learn", "numpy", "pillow", "accelerate")
    return {n: importlib.metadata.version(n) for n in (*used, *(["timm"] if architecture.startswith(TIMM) else []))}
