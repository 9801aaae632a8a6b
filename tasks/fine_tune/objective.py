"""What training minimises: the task's loss over a batch, and the units in which a regression is trained.

``class_balanced`` weighs each class by (1 - β) / (1 - βⁿ), n its training samples (Cui et al., CVPR 2019), brought to a mean
of 1 over the classes that occur. ``focal`` multiplies the cross-entropy of a sample, or of each class of a set, by (1 - p)^γ,
p the probability of what is true (Lin et al., ICCV 2017).

Values are trained on in standard deviations of the training samples from their mean, so that one learning rate serves any
unit. The last layer is moved there before the first step and back after the last, so a release predicts in units.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from everfresh.tasks.config import LOSSES, FineTuneConfig
from everfresh.tasks.targets import Targets


class Objective:
    """The loss of one training run.

    Args:
        targets: what the model is asked for.
        config: names the loss and its settings.
        truth: labels of all training samples, as `Targets.encode` makes them.
    """

    def __init__(self, targets: Targets, config: FineTuneConfig, truth: Tensor) -> None:
        self.targets, self.config = targets, config
        self.kind = config.loss or LOSSES[targets.task][0]
        self.weights = class_weights(truth, len(targets.names), config.balance_beta) if self.kind == "class_balanced" else None
        outputs = len(targets.names)
        self.centre, self.scale = torch.zeros(outputs), torch.ones(outputs)
        if targets.task == "regression" and len(truth):
            spread, self.centre = torch.std_mean(truth.double(), dim=0, correction=0)
            self.centre, self.scale = self.centre.float(), torch.where(spread > 0, spread, 1.0).float()

    def loss(self, scores: Tensor, truth: Tensor) -> Tensor:
        """Mean loss of a batch, so that the losses of its parts add up in their shares.

        Args:
            scores: (B, K) of the model; of a regression in standard deviations.
            truth: (B,) class numbers, or (B, C) shares of the classes; (B, C) of a set, 0…1; (B, T) values in units.
        """
        smooth = self.config.label_smoothing
        match self.kind:
            case "cross_entropy":
                return F.cross_entropy(scores, truth, label_smoothing=smooth)
            case "class_balanced":
                weights = self.weights.to(scores) if self.weights is not None else None
                return F.cross_entropy(scores, truth, weight=weights, label_smoothing=smooth, reduction="none").mean()
            case "focal" if self.targets.task == "single_label":
                return focal(scores, truth, self.config.focal_gamma)
            case "focal":
                each = F.binary_cross_entropy_with_logits(scores, truth.to(scores), reduction="none")
                return ((1 - (-each).exp()) ** self.config.focal_gamma * each).mean()
            case "bce":
                return F.binary_cross_entropy_with_logits(scores, truth.to(scores))
        wanted = self.standardised(truth)
        match self.kind:
            case "mse":
                return F.mse_loss(scores.float(), wanted)
            case "mae":
                return F.l1_loss(scores.float(), wanted)
        return F.huber_loss(scores.float(), wanted, delta=self.config.huber_delta)

    def own(self, scores: Tensor, truth: Tensor) -> Tensor:
        """The task's own mean loss, whatever is minimised: log loss of a class or a set, squared error in deviations."""
        match self.targets.task:
            case "single_label":
                return F.cross_entropy(scores, truth)
            case "multi_label":
                return F.binary_cross_entropy_with_logits(scores, truth)
            case "regression":
                return F.mse_loss(scores, self.standardised(truth))

    def right(self, scores: Tensor, truth: Tensor) -> Tensor:
        """(B,) which predictions of a batch are right; `scores` as in `loss`, `truth` as labels are."""
        if self.targets.task == "regression":
            scores = scores.float() * self.scale.to(scores.device) + self.centre.to(scores.device)
        found: Tensor = self.targets.right(scores, truth)
        return found

    def standardised(self, values: Tensor) -> Tensor:
        """Values (B, T) in standard deviations from the training samples' mean."""
        return (values.float() - self.centre.to(values.device)) / self.scale.to(values.device)

    @torch.no_grad()
    def enter(self, head: nn.Linear, *, drawn: bool) -> None:
        """Let the last layer predict in standard deviations, in place; one that was just drawn does so as it is.

        Without a bias it can be scaled alone: then values are trained on as they are, but for their scale.
        """
        if self.targets.task != "regression":
            return
        if head.bias is None:
            self.centre = torch.zeros_like(self.centre)
        if not drawn:
            _rescale(head, -self.centre.double() / self.scale.double(), 1 / self.scale.double())

    @torch.no_grad()
    def leave(self, head: nn.Linear) -> None:
        """Let the last layer predict in units again, in place."""
        if self.targets.task == "regression":
            _rescale(head, self.centre.double(), self.scale.double())


def _rescale(head: nn.Linear, offset: Tensor, factor: Tensor) -> None:
    """Outputs become offset + factor · outputs, computed in double precision."""
    head.weight.copy_(head.weight.cpu().double() * factor[:, None])  # not every device has such numbers
    if head.bias is not None:
        head.bias.copy_(head.bias.cpu().double() * factor + offset)


def class_weights(truth: Tensor, classes: int, beta: float) -> Tensor:
    """(C,) weights of the classes by the effective number of their samples, of mean 1 over those that occur; 0 elsewhere."""
    counts = torch.bincount(truth, minlength=classes).double()
    weights = torch.where(counts > 0, (1 - beta) / (1 - beta ** counts.clamp(min=1)), 0.0)
    return (weights / weights.sum() * (counts > 0).sum()).float()


def focal(scores: Tensor, truth: Tensor, gamma: float) -> Tensor:
    """Mean focal loss of class scores (B, C) against class numbers (B,) or shares of the classes (B, C)."""
    logs = scores.float().log_softmax(dim=1)
    shares = F.one_hot(truth, scores.shape[1]).to(logs) if truth.ndim == 1 else truth
    return -(shares * (1 - logs.exp()) ** gamma * logs).sum(dim=1).mean()
