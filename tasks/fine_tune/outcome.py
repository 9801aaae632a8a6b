"""Which weights come out of a training: the last, their running mean, the best epoch's, or a mixture with the start."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from everfresh.tasks.config import KeepConfig
from everfresh.tasks.fine_tune.keep import Average, Start, State, between, copied
from everfresh.tasks.fine_tune.objective import Objective
from everfresh.tasks.fine_tune.pool import Pool
from everfresh.tasks.fine_tune.tune import Tune
from everfresh.tasks.records import ModelSpec

log = logging.getLogger(__name__)


class Outcome:
    """Weights that a training keeps beside those that it moves, and what it chooses among them.

    Args:
        module: at its start.
        keep: the section.
        patience: epochs that may do no better on *tune*; None if *tune* does not end the training.
        start: of that training; weights whose body and head have learnt something are worth mixing with.
    """

    def __init__(self, module: nn.Module, keep: KeepConfig, patience: int | None, start: Start) -> None:
        self.keep, self.patience = keep, patience
        self.origin: State = {}
        if keep.interpolate and start.mixed:
            now = copied(module)
            self.origin = {name: (start.origin or now)[name].to(tensor.device) for name, tensor in now.items()}
        self.tune: Tune | None = None
        self.device = "cpu"
        self.share: float | None = None
        """Of the new weights in the mixture that was chosen."""
        self.begin(module)

    def begin(self, module: nn.Module) -> None:
        """Forget all but the start."""
        self.average = Average(module, self.keep.ema) if self.keep.ema else None
        self.best: dict[str, Tensor] = {}
        self.best_score = (-1.0, 0.0)
        self.best_epoch = self.epoch = 0

    def judge_by(self, tune: Pool, kept: Pool, spec: ModelSpec, objective: Objective, device: str) -> None:
        """Take *tune* of the window and of earlier ones to choose by, if something is to be chosen."""
        if self.patience is None and not (self.origin and len(self.keep.interpolate) > 1):
            return
        if len(tune) + len(kept):
            self.tune, self.device = Tune(tune, kept, spec, objective), device
        else:
            log.warning("there is no tune sample: the training goes to its end, and its last weights are taken")

    def after(self, module: nn.Module, step: int) -> None:
        """Note the weights after a step."""
        if self.average:
            self.average.update(module, step)

    def judge(self, module: nn.Module, epoch: int) -> None:
        """Look at *tune* after an epoch, from 1, if that decides when it is over, and keep the best weights."""
        if self.patience is None or self.tune is None:
            return
        with self._released(module):
            found = self.tune.score(module, self.device)
            self.epoch = epoch
            if found > self.best_score:
                self.best, self.best_score, self.best_epoch = copied(module), found, epoch
        if self.over:
            log.info("ended after epoch %d: none did better on *tune* than epoch %d", epoch, self.best_epoch)

    @property
    def over(self) -> bool:
        """Whether *tune* has ended the training."""
        return self.patience is not None and self.epoch - self.best_epoch >= self.patience

    @contextmanager
    def _released(self, module: nn.Module) -> Iterator[None]:
        """Within it the network has the weights that would be released now: their mean, if one is kept."""
        if self.average is None:
            yield
            return
        now = copied(module)
        module.load_state_dict(self.average.state)
        try:
            yield
        finally:
            module.load_state_dict(now)

    def settle(self, module: nn.Module) -> None:
        """From the weights of the last step to those that are released."""
        if self.best or self.average:
            module.load_state_dict(self.best or self.average.state)  # type: ignore[union-attr]
        shares, tune = self.keep.interpolate, self.tune
        if not self.origin or (len(shares) > 1 and tune is None):
            return
        end = copied(module)

        def score(share: float) -> tuple[float, float]:
            module.load_state_dict(between(self.origin, end, share))
            return tune.score(module, self.device) if tune else (0.0, 0.0)

        self.share = shares[0] if len(shares) == 1 else max(sorted({*shares, 1.0}, reverse=True), key=score)
        log.info("mixed %g of the new weights with the start", self.share)
        module.load_state_dict(between(self.origin, end, self.share))

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        tensors = {f"best.{name}": tensor for name, tensor in self.best.items()}
        if self.average:
            tensors |= {f"average.{name}": tensor for name, tensor in self.average.state.items()}
        numbers = [*self.best_score, float(self.best_epoch), float(self.epoch)]
        return tensors | {"judged": torch.tensor(numbers, dtype=torch.float64)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """From a checkpoint."""
        self.best = {name.removeprefix("best."): tensor for name, tensor in state.items() if name.startswith("best.")}
        if self.average:
            for name, tensor in self.average.state.items():
                tensor.copy_(state[f"average.{name}"])
        accuracy, loss, best, epoch = state["judged"].tolist()
        self.best_score, self.best_epoch, self.epoch = (accuracy, loss), int(best), int(epoch)
