"""The training loop of the rungs ``full`` and ``pretrained``: AdamW, warm-up and cosine, step by step.

Order and randomness of an epoch follow from (seed, epoch), and a checkpoint holds the state of the generators. So a run
that was killed goes on from its last checkpoint, in the middle of an epoch too; on the CPU it ends in the same bytes.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import chain, repeat
from typing import Any

import torch
from torch import Tensor, nn

from everfresh.tasks import models
from everfresh.tasks.config import FineTuneConfig, PipelineConfig, Rung
from everfresh.tasks.errors import DeviceError, TrainingError
from everfresh.tasks.fine_tune.augment import Mix, policy
from everfresh.tasks.fine_tune.checkpoint import Checkpoints, Progress
from everfresh.tasks.fine_tune.device import trains, use
from everfresh.tasks.fine_tune.input import Batches, Feed, Pictures, seed_of, workers_of
from everfresh.tasks.fine_tune.interrupt import Stop, stoppable
from everfresh.tasks.fine_tune.keep import Anchor, Start
from everfresh.tasks.fine_tune.layout import (
    arithmetic,
    choose,
    compiled,
    default_of,
    if_it_compiles,
    memory_format,
    undisturbed,
)
from everfresh.tasks.fine_tune.objective import Objective
from everfresh.tasks.fine_tune.outcome import Outcome
from everfresh.tasks.fine_tune.pool import Pool, hits_of, labels_of
from everfresh.tasks.fine_tune.recipe import blocks, effective, fitting, frozen, groups, hold, rate, suggested
from everfresh.tasks.inputs import noise, prepare, shape
from everfresh.tasks.progress import bar
from everfresh.tasks.records import Cost, ModelSpec, Part, Training
from everfresh.tasks.store import Store, scratch

log = logging.getLogger(__name__)

LOWER = 0.1
"""Of the learning rate, for the second try after a loss that was not finite."""
SHOWN = 16
"""Pictures in the event file, as the model saw them."""
LOOK_EVERY = 20
"""Steps between two looks at the loss on a device that runs ahead of us. On the CPU each step is looked at, and under a
budget: who looks waits for the device, so the seconds of a step are its own."""
PLANNED_AFTER = 6
"""Steps of a run until its seconds a step are known; the first is not counted, and the plan is looked at again later."""
RANGE = (1e-6, 0.3)
"""Learning rates of the range test, from the lowest to the highest."""
RANGE_STEPS = 40
"""Steps of the range test."""
FALLBACK = 1e-4
"""Learning rate where the range test saw no loss that fell."""


class Trainer:
    """One training run over a pool."""

    def __init__(
        self,
        store: Store,
        module: nn.Module,
        spec: ModelSpec,
        config: PipelineConfig,
        rung: Rung,
        folder: str,
        attempt: str,
        objective: Objective,
        start: Start | None = None,
    ) -> None:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        cpu = use(config.fine_tune.device)
        if not cpu and torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        AcceleratorState._reset_state(reset_partial_state=True)  # each stage chooses its own precision
        self.accelerator = Accelerator(cpu=cpu, mixed_precision="no")  # `layout` says which precision
        self.device = str(self.accelerator.device)
        self.store, self.spec, self.attempt = store, spec, attempt
        self.objective = objective
        self.config: FineTuneConfig = config.fine_tune
        self.layout = default_of(config.model.precision)
        start, keep = start or Start(), self.config.keep
        self.peak = _peak(self.config, rung, start.pulled)
        decay = 0.0 if keep.l2_sp and start.body else self.config.weight_decay
        optimizer = torch.optim.AdamW(groups(module, decay, self.config.layer_decay, spec.head), lr=self.peak)
        self.module: nn.Module
        self.module, self.optimizer = self.accelerator.prepare(module, optimizer)
        self.network: Callable[[Tensor], Tensor] = self.module
        """What full batches go through: the module, or what was compiled of it."""
        self.checkpoints = Checkpoints(store, folder, attempt)
        self.progress = Progress(parts=self.config.accumulate)
        self.parts = [
            replace(b, weights=tuple(w for w in b.weights if w.requires_grad)) for b in blocks(self.module, spec.head)
        ]
        """From the input to the head, with what of each learns."""
        self.anchor = Anchor(self.module, keep.l2_sp, "" if start.head else spec.head) if keep.l2_sp and start.body else None
        self.teacher = start.teacher(spec.classes, keep.distill, keep.temperature) if keep.distill else None
        self.outcome = Outcome(self.module, keep, self.config.schedule.patience, start)
        self.policy = policy(self.config.policy)
        mix = self.config.mix
        self.mix = Mix(mix.kind, mix.alpha, len(spec.classes)) if mix.kind != "none" else None
        self.durations: deque[float] = deque(maxlen=LOOK_EVERY)
        """Seconds of the last steps of this run."""
        self.trained = 0
        """Samples that went through the network, of all runs."""
        self.shown: Tensor | None = None
        """Pictures (B, 3, S, S) of the first step as the model saw them, until they were told."""
        self.before = 0.0
        """Seconds that earlier runs, which did not come to an end, have put into the steps that this one goes on from."""
        self.sums = torch.zeros(3, dtype=torch.float64, device="cpu" if self.device == "mps" else self.device)
        """Loss, right answers and samples of the running epoch so far."""

    def run(self, pool: Pool, tune: Pool, kept: Pool) -> dict[str, Part]:
        """Train for the configured epochs, from the newest checkpoint if one is there; returns the event files.

        Args:
            pool: to train on.
            tune: samples of the window that options choose by.
            kept: the same of earlier windows.

        Raises:
            TrainingError: the loss is not finite, at the lower rate either.
        """
        from torch.utils.tensorboard import SummaryWriter

        pictures = Pictures(pool, self.spec, self.config.cache_mib << 20)
        classes = pool.labels if self.config.sampling == "balanced" else None
        effective_batch = self.config.batch_size * self.config.accumulate
        batches = Batches(len(pictures), effective_batch, self.config.epochs, self.config.seed, classes)
        self.outcome.judge_by(tune, kept, self.spec, self.objective, self.device)
        first = {n: t.detach().cpu().clone() for n, t in self.module.state_dict().items()}
        self._resume()
        batches.steps = self.progress.steps or batches.steps
        self._lay_out(batches)
        workers = workers_of(self.config.workers, self.device)
        feed = Feed(pictures, batches, self.config.augment, workers, pinned=self.device.startswith("cuda"))
        self.before = self.progress.seconds
        if not self.peak:
            self.peak = self.progress.peak = self.progress.peak or self._find_rate(feed, first)
        with scratch() as temporary:
            with closing(SummaryWriter(temporary)) as writer:  # its thread writes into that folder until it is closed
                with stoppable() as stop:
                    try:
                        self._train(feed, writer, stop)
                    except _NotFinite as trouble:
                        log.warning("the %s; going back, at a tenth of the learning rate", trouble)
                        self._go_back(first)
                        self._train(feed, writer, stop)
                self.outcome.settle(self.module)
                self.trained = round(len(pool) * self.progress.step / batches.each)
                for name, weights in self.module.named_parameters():
                    writer.add_histogram(name, weights.detach().float().cpu(), self.config.epochs)
            events = sorted(temporary.iterdir())
            return {f"tensorboard/{p.name}": self.store.keep_file(f"{self.attempt}/tensorboard/{p.name}", p) for p in events}

    def _lay_out(self, batches: Batches) -> None:
        """Compute as the checkpoint was computed, else in the fastest way that is allowed."""
        batch = noise(self.spec, min(self.config.batch_size, max(2, batches.samples))).to(self.device)
        if (kept := self.progress.layout) is None:
            model = f"{self.spec.architecture} {self.spec.native_head}"
            with trains(self.spec, batch):
                self.layout = choose(self.config, self.layout, self.module, batch, model, batches.steps)
        else:
            self.layout = if_it_compiles(kept, self.module, batch) if kept.compiled else kept
        self.progress.layout = self.layout
        self.module.to(memory_format=memory_format(self.layout))
        self.network = compiled(self.module) if self.layout.compiled else self.module
        if self.teacher:
            self.teacher.to(self.device, memory_format(self.layout))

    def _train(self, feed: Feed, writer: Any, stop: Stop) -> None:
        """Steps until the last one, or until somebody says stop: then what was done is kept."""
        budgeted = self.config.schedule.device_seconds is not None
        batches, look = feed.batches, 1 if self.device == "cpu" or budgeted else LOOK_EVERY
        planned = batches.steps
        start, ended = replace(self.progress), time.monotonic()
        if self.outcome.over:
            return
        start.restore()
        with closing(self._ready(feed, start.step)) as fed:
            for step, (pixels, labels) in bar(enumerate(fed, start.step), "train", total=planned - start.step):
                if step % batches.each == 0:
                    torch.manual_seed(seed_of("epoch", self.config.seed, step // batches.each))
                self._step(pixels, labels, step, batches.steps)
                self.outcome.after(self.module, step)
                done = step + 1
                stopped, due = stop.asked is not None, done % self.config.checkpoint_every == 0
                shorter = (due or done == start.step + PLANNED_AFTER) and self._plan(batches, done)
                last = done == batches.steps
                keep = stopped or ((due or shorter) and not last)
                judged = last or done % batches.each == 0
                if keep or judged or done % look == 0:
                    self._look(step, batches.each, weights=keep or judged)
                begun, ended = ended, time.monotonic()
                self.progress.step, self.progress.seconds = done, self.progress.seconds + ended - begun
                if step > start.step:  # the first one warms up
                    self.durations.append(ended - begun)
                if judged:
                    self._tell(writer, -(-done // batches.each))
                    self.outcome.judge(self.module, -(-done // batches.each))
                if keep:
                    self._save()
                if stopped:
                    log.warning(
                        "told to stop: %d of %d steps are done and kept; the next run goes on from there", done, batches.steps
                    )
                    return
                if self.outcome.over or done == batches.steps < planned:  # of what was made ahead, nothing is taken any more
                    break
        if stop.asked is not None:  # after the last step
            self._save()

    def _save(self) -> None:
        self.checkpoints.save(self.module, self.optimizer, self.sums, self.progress, self.outcome.state())

    def _plan(self, batches: Batches, done: int) -> bool:
        """Lower the number of steps if the training would exceed its budget of seconds; whether it was lowered."""
        budget = self.config.schedule.device_seconds
        if budget is None or not self.durations:
            return False
        steps = fitting(done, batches.steps, self.durations, budget - self.progress.seconds)
        shorter = steps < batches.steps
        if shorter:
            log.warning("%d steps instead of %d fit into fine_tune.schedule.device_seconds = %g", steps, batches.steps, budget)
            batches.steps = self.progress.steps = steps
        return shorter

    def _find_rate(self, feed: Feed, first: dict[str, Tensor]) -> float:
        """A range test: the rate rises from step to step, and the weights are put back after it (Smith, WACV 2017)."""
        begun, count = time.monotonic(), RANGE_STEPS - 1
        rates = [RANGE[0] * (RANGE[1] / RANGE[0]) ** (number / count) for number in range(RANGE_STEPS)]
        losses: list[float] = []
        again = chain.from_iterable(self._ready(feed, done) for done in repeat(0))
        with undisturbed(self.accelerator.device):
            for number, (pixels, labels) in zip(range(RANGE_STEPS), again, strict=False):
                self._hold(0, feed.batches.steps)
                self._learn(*self._fed(pixels, labels, number), rates[number])
                loss, _, samples = self.sums.tolist()
                self.sums.zero_()
                losses.append(loss / samples)
                if not math.isfinite(losses[-1]) or losses[-1] > 4 * min(losses):
                    losses.pop()
                    break
        self._put_back(first)
        self.shown = None
        self.progress.seconds += time.monotonic() - begun
        found = suggested(rates, losses)
        if found is None:
            log.warning("the loss hardly fell at any learning rate from %g to %g; %g is taken", *RANGE, FALLBACK)
        else:
            log.info("learning rate %.2g, by a range test of %d steps", found, len(losses))
        return found or FALLBACK

    def _hold(self, step: int, steps: int) -> None:
        """Training mode, and what is frozen in a step."""
        self.module.train()
        how = self.config.schedule
        if how.freeze:
            count = frozen(step, steps, len(self.parts) - 1, how.freeze, how.freeze_until, gradually=how.thaw == "gradually")
            hold(self.parts, count)

    def _step(self, pixels: Tensor, labels: Tensor, step: int, steps: int) -> None:
        self._hold(step, steps)
        peak = self.progress.scale * self.peak
        self._learn(*self._fed(pixels, labels, step), rate(peak, step, steps, self.config.schedule.warm_up))

    def _ready(self, feed: Feed, done: int) -> Generator[tuple[Tensor, Tensor]]:
        """Batches after the first `done` and their class numbers; the time until one is there counts as waiting."""
        begun = time.monotonic()
        for batch in feed(done):
            self.progress.waiting += time.monotonic() - begun
            yield batch
            begun = time.monotonic()

    def _fed(self, pixels: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels (B, 3, S, S), class numbers (B,) and targets, (B,) or (B, C), of a step, on the device."""
        if self.policy:
            begun = time.monotonic()
            with self._drawn("policy", step):
                pixels = torch.stack([self.policy(picture) for picture in pixels])
            self.progress.waiting += time.monotonic() - begun
        pixels, labels = (t.to(self.device, non_blocking=True) for t in (pixels, labels))
        targets = labels
        if self.mix:
            with self._drawn("mix", step):
                pixels, targets = self.mix(pixels, labels)
        if self.shown is None:
            self.shown = pixels[:SHOWN].to("cpu", torch.uint8)
        return pixels, labels, targets

    @contextmanager
    def _drawn(self, what: str, step: int) -> Iterator[None]:
        """Within it torch draws what follows from (seed, step) alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(what, self.config.seed, step))
            yield

    def _learn(self, pixels: Tensor, labels: Tensor, targets: Tensor, lr: float) -> None:
        """One step of the optimizer."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["share"] * lr
        with trains(self.spec, pixels):
            while (found := self._gradients(pixels, labels, targets)) is None:
                self._halve(len(labels))
        if self.anchor:
            self.anchor.pull(self.module)
        if self.config.clip_norm is not None:
            self.accelerator.clip_grad_norm_(self.module.parameters(), self.config.clip_norm)
        self.optimizer.step()
        self.sums += found

    def _gradients(self, pixels: Tensor, labels: Tensor, targets: Tensor) -> Tensor | None:
        """Gradients of the mean loss over a batch, in as many parts as fit; sums (3,) as in `sums`, None if memory ran out."""
        found, parts = torch.zeros_like(self.sums), self._parts_of(len(labels))
        self.optimizer.zero_grad()
        try:
            for part, truth, target in zip(*(t.tensor_split(parts) for t in (pixels, labels, targets)), strict=True):
                ready = prepare(part, self.spec, memory_format(self.layout))
                network = self.network if len(truth) == self.config.batch_size else self.module
                with arithmetic(self.layout, self.accelerator.device.type):
                    scores = network(ready)
                    loss = self.objective.loss(scores, target)
                    if self.teacher:
                        loss = loss + self.teacher.distance(scores, self.teacher.scores(ready))
                self.accelerator.backward(loss * (len(truth) / len(labels)))
                right = self.objective.right(scores.detach(), truth).sum()
                found += torch.stack([loss.detach() * len(truth), right, right.new_tensor(len(truth))]).to(found)
        except torch.OutOfMemoryError:
            return None
        return found

    def _parts_of(self, batch: int) -> int:
        """Parts that a batch of so many samples is taken in."""
        return effective(self.progress.parts, batch, max(batch, self.config.batch_size * self.config.accumulate))

    def _halve(self, batch: int) -> None:
        """Smaller parts of each batch from now on; the batch that a step learns from stays as large."""
        tried = self._parts_of(batch)
        if tried >= max(1, batch // 2):
            raise DeviceError(
                f"fine_tune: two samples of {' × '.join(map(str, shape(self.spec)))} must fit into the memory of "
                f"{self.device}, and do not. Free it of other processes, or choose a smaller model.architecture or "
                "model.image_size."
            )
        while self._parts_of(batch) == tried:  # a batch that is no whole one may be in one part still
            self.progress.parts *= 2
        torch.cuda.empty_cache()
        log.warning("out of memory on %s: each batch is taken in %d parts from here on", self.device, self.progress.parts)

    def _look(self, step: int, each: int, *, weights: bool) -> None:
        """Raise if the loss has ceased to be finite in this epoch, or if the weights have."""
        loss = float(self.sums[0])
        if math.isfinite(loss) and weights and not _all_finite(self.module):
            loss = math.nan
        if math.isfinite(loss):
            return
        trouble = _NotFinite(f"loss must be finite, got {loss} in epoch {step // each + 1}, step {step % each + 1}")
        if self.progress.scale == 1:
            raise trouble
        own, given = self.config.full_learning_rate, self.config.learning_rate
        now = f"auto, which found {self.peak:g}" if given == "auto" else f"{given:g}"
        field = "learning_rate"
        if self.peak == own:
            field, now = "full_learning_rate", f"{own:g}"
        raise TrainingError(
            f"fine_tune: the {trouble}, at a tenth of the rate too. Lower fine_tune.{field} (now {now}), or look for "
            "pictures that are out of range."
        )

    def _tell(self, writer: Any, epoch: int) -> None:
        """One epoch's figures; the next one starts from nothing."""
        loss, right, samples = self.sums.tolist()
        if self.shown is not None and self.shown.numel():
            if self.shown.ndim == 4:
                writer.add_images("train/pictures", self.shown[:SHOWN], epoch)
            self.shown = self.shown[:0]
        writer.add_scalar("speed/share_waiting_for_data", self.progress.waiting / max(1e-9, self.progress.seconds), epoch)
        writer.add_scalar("speed/images_per_second", epoch * samples / max(1e-9, self.progress.seconds), epoch)
        if memory := self.spent.memory_bytes:
            writer.add_scalar("speed/device_memory_gib", memory / 2**30, epoch)
        writer.add_scalar("train/loss", loss / samples, epoch)
        writer.add_scalar("train/accuracy", right / samples, epoch)
        writer.add_scalar("train/learning_rate", self.optimizer.param_groups[0]["lr"], epoch)
        self.sums.zero_()

    def _resume(self, every: int = 1) -> None:
        """Go on from the newest checkpoint, whoever wrote it."""
        found = self.checkpoints.load(self.module, self.optimizer, self.sums, every)
        if found is not None:
            log.info("resumed after step %d", found.step)
            self.progress = found
            self.outcome.load(found.beside)

    def _go_back(self, first: dict[str, Tensor]) -> None:
        """To the last good checkpoint, else to the weights that the training began with; from there at a lower rate."""
        spent, self.progress = self.progress, Progress()
        self._resume(self.config.checkpoint_every)  # where a run that nobody stopped would go back to
        if not self.progress.step:
            self._put_back(first)
        told = ("parts", "seconds", "waiting", "peak", "steps", "layout")
        self.progress = replace(self.progress, scale=LOWER, **{name: getattr(spent, name) for name in told})

    def _put_back(self, first: dict[str, Tensor]) -> None:
        """Begin again with the weights that the training began with."""
        self.module.load_state_dict(first)
        self.optimizer.state.clear()
        self.sums.zero_()
        self.outcome.begin(self.module)

    @property
    def spent(self) -> Cost:
        """What earlier runs have spent on this training, and what all of them waited for data and took of the device."""
        memory = torch.cuda.max_memory_allocated() if self.device.startswith("cuda") else 0
        before = self.before
        return Cost(seconds=before, device_seconds=before, waiting_seconds=self.progress.waiting, memory_bytes=memory)

    @property
    def record(self) -> Training:
        """What the options came to."""
        return Training(
            steps=self.progress.step,
            learning_rate=self.peak,
            blocks=len(self.parts),
            best_epoch=self.outcome.best_epoch or None,
            share=self.outcome.share,
            shortened=bool(self.progress.steps),
        )

    @torch.no_grad()
    def hits(self, pool: Pool) -> tuple[int, int]:
        """Right predictions and samples of a pool."""
        found = [
            hits_of(
                models.embed(self.module, self.spec, v.read(int(i) for i in r), device=self.accelerator.device.type)[1],
                labels_of(v, r, pool.targets),
                pool.targets,
            )
            for v, r in pool.parts
        ]
        return sum(h for h, _ in found), sum(n for _, n in found)


def _peak(config: FineTuneConfig, rung: Rung, pulled: float) -> float:
    """Learning rate at its peak; 0 if it is to be found."""
    if rung == "full" and config.full_learning_rate is not None:
        return config.full_learning_rate
    if config.learning_rate == "auto":
        return 0.0
    return config.learning_rate if rung == "pretrained" else config.learning_rate * (1 + 2 * pulled) / 3


class _NotFinite(Exception):
    """The loss or the weights ceased to be finite."""


def _all_finite(module: nn.Module) -> bool:
    """Whether all weights and buffers are finite; a buffer may hold -inf, as masks of attention do."""
    weights = all(bool(p.isfinite().all()) for p in module.parameters())
    return weights and all(bool((b < torch.inf).all()) for b in module.buffers() if b.is_floating_point())
