"""The training loop of the rungs ``full`` and ``pretrained``: AdamW, warm-up and cosine, step by step.

Order and randomness of an epoch follow from (seed, epoch), and a checkpoint holds the state of the generators. So a run
that was killed goes on from its last checkpoint, in the middle of an epoch too; on the CPU it ends in the same bytes.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from everfresh.tasks import models
from everfresh.tasks.config import FineTuneConfig, PipelineConfig, Rung
from everfresh.tasks.errors import StoreError, TrainingError
from everfresh.tasks.fine_tune.checkpoint import Checkpoints, Progress
from everfresh.tasks.fine_tune.input import Batches, Pictures, augmented
from everfresh.tasks.fine_tune.interrupt import Stop, stoppable
from everfresh.tasks.fine_tune.pool import Pool, hits_of, labels_of
from everfresh.tasks.fine_tune.recipe import groups, rate
from everfresh.tasks.inputs import prepare, shape
from everfresh.tasks.progress import bar
from everfresh.tasks.records import Cost, ModelSpec, Part
from everfresh.tasks.store import Store, scratch

log = logging.getLogger(__name__)

LOWER = 0.1
"""Of the learning rate, for the second try after a loss that was not finite."""
SHOWN = 16
"""Pictures in the event file, as the model saw them."""
LOOK_EVERY = 20
"""Steps between two looks at the loss on a device that runs ahead of us; on the CPU each step is looked at."""


class Trainer:
    """One training run over a pool."""

    def __init__(
        self, store: Store, module: nn.Module, spec: ModelSpec, config: PipelineConfig, rung: Rung, folder: str, attempt: str
    ) -> None:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        AcceleratorState._reset_state(reset_partial_state=True)  # each stage chooses its own precision
        self.accelerator = Accelerator(mixed_precision="bf16" if config.model.precision == "bf16" else "no")
        self.device = str(self.accelerator.device)
        self.store, self.spec, self.attempt = store, spec, attempt
        self.config: FineTuneConfig = config.fine_tune
        self.peak = self.config.learning_rate if rung == "pretrained" else self.config.learning_rate / 3
        self.layout = models.layout(config.model.precision)
        module = module.to(memory_format=self.layout)
        optimizer = torch.optim.AdamW(groups(module, self.config.weight_decay), lr=self.peak)
        self.module: nn.Module
        self.module, self.optimizer = self.accelerator.prepare(module, optimizer)
        self.checkpoints = Checkpoints(store, folder, attempt)
        self.progress = Progress()
        self.shown: Tensor | None = None
        """Pictures (B, 3, S, S) of the first step as the model saw them, until they were told."""
        self.before = 0.0
        """Seconds that earlier runs, which did not come to an end, have put into the steps that this one goes on from."""
        self.sums = torch.zeros(3, dtype=torch.float64, device="cpu" if self.device == "mps" else self.device)
        """Loss, right answers and samples of the running epoch so far."""

    def run(self, pool: Pool) -> dict[str, Part]:
        """Train for the configured epochs, from the newest checkpoint if one is there; returns the event files.

        Raises:
            TrainingError: the loss is not finite, at the lower rate either.
        """
        from torch.utils.tensorboard import SummaryWriter

        pictures = Pictures(pool, self.spec)
        batches = Batches(len(pictures), self.config.batch_size, self.config.epochs, self.config.seed)
        self._resume()
        self.before = self.progress.seconds
        first = {} if self.progress.step else {n: t.detach().cpu().clone() for n, t in self.module.state_dict().items()}
        with scratch() as temporary:
            writer = SummaryWriter(temporary)
            with stoppable() as stop:
                try:
                    self._train(pictures, batches, writer, stop)
                except _NotFinite as trouble:
                    log.warning("the %s; going back, at a tenth of the learning rate", trouble)
                    self._go_back(first)
                    self._train(pictures, batches, writer, stop)
            for name, weights in self.module.named_parameters():
                writer.add_histogram(name, weights.detach().float().cpu(), self.config.epochs)
            writer.close()
            events = sorted(temporary.iterdir())
            return {f"tensorboard/{p.name}": self.store.keep_file(f"{self.attempt}/tensorboard/{p.name}", p) for p in events}

    def _train(self, pictures: Pictures, batches: Batches, writer: Any, stop: Stop) -> None:
        """Steps until the last one, or until somebody says stop: then what was done is kept."""
        look = 1 if self.device == "cpu" else LOOK_EVERY
        start, ended = replace(self.progress), time.monotonic()
        for step, rows in bar(enumerate(batches.rows(start), start.step), "train", total=batches.steps - start.step):
            self._step(pictures, rows, step, batches.steps)
            done = step + 1
            last, stopped = done == batches.steps, stop.asked is not None
            keep = stopped or (done % self.config.checkpoint_every == 0 and not last)
            if keep or last or done % look == 0:
                self._look(step, batches.each, weights=keep or last)
            begun, ended = ended, time.monotonic()
            self.progress.step, self.progress.seconds = done, self.progress.seconds + ended - begun
            if done % batches.each == 0:
                self._tell(writer, done // batches.each)
            if keep:
                self.checkpoints.save(self.module, self.optimizer, self.sums, self.progress)
            if stopped:
                log.warning(
                    "told to stop: %d of %d steps are done and kept; the next run goes on from there", done, batches.steps
                )
                return
        if stop.asked is not None:  # after the last step
            self.checkpoints.save(self.module, self.optimizer, self.sums, self.progress)

    def _step(self, pictures: Pictures, rows: Tensor, step: int, steps: int) -> None:
        self.module.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.progress.scale * rate(self.peak, step, steps)
        begun = time.monotonic()
        loaded = [pictures[int(i)] for i in rows]
        pixels = torch.stack([augmented(picture, self.config.augment) for picture, _ in loaded])
        labels = torch.tensor([label for _, label in loaded], device=self.device)
        self.progress.waiting += time.monotonic() - begun
        if self.shown is None:
            self.shown = pixels
        pixels = pixels.to(self.device)
        while (found := self._gradients(pixels, labels)) is None:
            self._halve(len(rows))
        if self.config.clip_norm is not None:
            self.accelerator.clip_grad_norm_(self.module.parameters(), self.config.clip_norm)
        self.optimizer.step()
        self.sums += found

    def _gradients(self, pixels: Tensor, labels: Tensor) -> Tensor | None:
        """Gradients of the mean loss over a batch, in as many parts as fit; sums (3,) as in `sums`, None if memory ran out."""
        found, parts = torch.zeros_like(self.sums), min(self.progress.parts, len(labels) // 2)  # batch norm needs two
        self.optimizer.zero_grad()
        try:
            for part, truth in zip(*(t.tensor_split(parts) for t in (pixels, labels)), strict=True):
                with self.accelerator.autocast():
                    scores = self.module(prepare(part, self.spec, self.layout))
                    loss = nn.functional.cross_entropy(scores, truth, label_smoothing=self.config.label_smoothing)
                self.accelerator.backward(loss * (len(truth) / len(labels)))
                right = (scores.detach().argmax(dim=1) == truth).sum()
                found += torch.stack([loss.detach() * len(truth), right, right.new_tensor(len(truth))]).to(found)
        except torch.OutOfMemoryError:
            return None
        return found

    def _halve(self, batch: int) -> None:
        """Twice as many parts of each batch from now on; the batch that a step learns from stays as large."""
        if self.progress.parts * 4 > batch:
            raise TrainingError(
                f"fine_tune: two samples of {' × '.join(map(str, shape(self.spec)))} must fit into the memory of "
                f"{self.device}, and do not. Free it of other processes, or choose a smaller model.architecture or "
                "model.image_size."
            )
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
        raise TrainingError(
            f"fine_tune: the {trouble}, at a tenth of the rate too. Lower fine_tune.learning_rate (now "
            f"{self.config.learning_rate:g}), or look for pictures that are out of range."
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

    def _go_back(self, first: dict[str, Tensor]) -> None:
        """To the last good checkpoint, else to the weights that this run began with; from there at a lower rate."""
        spent, self.progress = self.progress, Progress()
        self._resume(self.config.checkpoint_every)  # where a run that nobody stopped would go back to
        if not self.progress.step:
            if not first:
                raise StoreError("fine_tune: the checkpoint that this run went on from is gone or damaged. Run it again.")
            self.module.load_state_dict(first)
            self.optimizer.state.clear()
            self.sums.zero_()
        self.progress = replace(self.progress, scale=LOWER, parts=spent.parts, seconds=spent.seconds, waiting=spent.waiting)

    @property
    def spent(self) -> Cost:
        """What earlier runs have spent on this training, and what all of them waited for data and took of the device."""
        memory = torch.cuda.max_memory_allocated() if self.device.startswith("cuda") else 0
        before = self.before
        return Cost(seconds=before, device_seconds=before, waiting_seconds=self.progress.waiting, memory_bytes=memory)

    @torch.no_grad()
    def hits(self, pool: Pool) -> tuple[int, int]:
        """Right predictions and samples of a pool."""
        found = [
            hits_of(
                models.embed(self.module, self.spec, v.read(int(i) for i in r), device=self.accelerator.device.type)[1],
                labels_of(v, r, pool.classes),
            )
            for v, r in pool.parts
        ]
        return sum(h for h, _ in found), sum(n for _, n in found)


class _NotFinite(Exception):
    """The loss or the weights ceased to be finite."""


def _all_finite(module: nn.Module) -> bool:
    return all(bool(t.isfinite().all()) for t in module.state_dict().values() if t.is_floating_point())
