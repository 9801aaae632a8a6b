"""The gate on robustness: the same pictures with noise, out of focus, too bright … must be recognised still.

Corruptions and their five severities follow ImageNet-C (Hendrycks and Dietterich, ICLR 2019), made with torchvision's
transforms; what is measured in pixels there, on a side of 224, grows with the side. Both models see the same corrupted pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from io import BytesIO
from itertools import islice, product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from everfresh.tasks.config import Corruption, RobustnessGate
from everfresh.tasks.embeddings import Embedder
from everfresh.tasks.gates.judged import Judged, Trial, but_for, in_order, undecided, unshared
from everfresh.tasks.gates.many import drops, floors, together
from everfresh.tasks.images import framed, pixels
from everfresh.tasks.inputs import prepare
from everfresh.tasks.progress import bar
from everfresh.tasks.records import Verdict
from everfresh.tasks.views import seeded_choice

BATCH = 32
SIDE = 224
"""Of the pictures that the radii below are for."""
LEAST_SIDE = 112
"""Below it they shrink no further: smaller than a pixel they would do nothing."""
SEVERITIES: dict[Corruption, tuple[float, ...]] = {
    "noise": (0.08, 0.12, 0.18, 0.26, 0.38),  # standard deviation, of 0…1
    "blur": (1, 2, 3, 4, 6),  # standard deviation in pixels
    "brightness": (1.25, 1.5, 1.75, 2, 2.5),  # factor
    "darkness": (0.7, 0.55, 0.4, 0.3, 0.2),  # factor
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),  # factor
    "jpeg": (25, 18, 15, 10, 7),  # quality
    "pixelate": (0.6, 0.5, 0.4, 0.3, 0.25),  # of the side
}


def corrupted(picture: Tensor, corruption: Corruption, severity: int, seed: int) -> Tensor:
    """A picture (3, S, S) uint8 with one corruption, the same for the same seed.

    Args:
        picture: as the model sees it before normalisation.
        corruption: which.
        severity: 1…5.
        seed: of what is random in it.
    """
    amount, side = SEVERITIES[corruption][severity - 1], picture.shape[-1]
    made: Tensor
    match corruption:
        case "noise":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                made = F.gaussian_noise(picture, 0.0, amount)
        case "blur":
            sigma = amount * max(side, LEAST_SIDE) / SIDE
            reach = min(int(np.ceil(3 * sigma)), side - 1)  # edges are reflected
            kernel = 2 * reach + 1
            made = F.gaussian_blur(picture, [kernel, kernel], [sigma, sigma])
        case "brightness" | "darkness":
            made = F.adjust_brightness(picture, amount)
        case "contrast":
            made = F.adjust_contrast(picture, amount)
        case "jpeg":
            sink = BytesIO()
            F.to_pil_image(picture).save(sink, "JPEG", quality=int(amount))
            made = pixels(sink.getvalue())
        case "pixelate":
            few = min(max(round(side * amount), 2), side)
            small = F.resize(picture, [few, few], antialias=True)
            made = F.resize(small, [side, side], interpolation=InterpolationMode.NEAREST)
    return made


def robustness(gate: RobustnessGate, trial: Trial) -> Verdict:
    """Whether a corruption is shown to bring the accuracy below the floor, or further down than it does the champion's."""
    judged, name = trial.on(gate.scope), "robustness"
    if not len(judged.labels) and gate.scope == "bank":
        return Verdict(gate=name, passed=True, numbers={}, words="robustness: there is no earlier hold-out yet")
    if trial.champion is None and gate.minimum is None:
        return Verdict(gate=name, passed=True, numbers={}, words="robustness: there is no champion to compare with")
    chosen = seeded_choice(len(judged.labels), gate.max_samples, name, [v.window.view for v in judged.views])
    if len(chosen) < gate.min_samples:
        words = f"there are {len(chosen)} {gate.scope} samples, and it needs {gate.min_samples}"
        return undecided(name, gate.too_few, words, samples=float(len(chosen)))
    if trial.challenger is None:
        raise ValueError("the challenger must be there to be run")
    models = [m.embedder for m in (trial.challenger, trial.champion) if m is not None]
    kinds = list(product(gate.corruptions, gate.severities))
    places = [f"{corruption} {severity}" for corruption, severity in kinds]
    right = _right(judged, models, chosen, kinds)
    numbers = {"samples": float(len(chosen))} | dict(zip(places, right[0].mean(axis=1).tolist(), strict=True))
    checks, untested = [], []
    if gate.minimum is not None:
        checks.append(floors(places, right[0].sum(axis=1), np.full(len(kinds), len(chosen)), gate.minimum))
    both = judged.shared[chosen]
    if gate.max_drop is not None and len(models) > 1:
        if (known := int(both.sum())) < gate.min_samples:
            untested.append(unshared("max_drop", known, gate.min_samples))
        else:
            now, before = (hits[:, both] for hits in right)
            lost, won = (before & ~now).sum(axis=1), (now & ~before).sum(axis=1)
            checks.append(drops(places, lost, won, np.full(len(kinds), known), gate.max_drop))
    if not checks:
        return undecided(name, gate.too_few, "; ".join(untested), **numbers)
    about = f"{right[0].mean():.1%} right on {len(chosen)} {gate.scope} samples under {len(kinds)} corruptions"
    if len(right) > 1:
        about += f" (champion {right[1].mean():.1%})"
        numbers |= {f"champion, {place}": float(hits) for place, hits in zip(places, right[1].mean(axis=1), strict=True)}
    return but_for(untested, together(name, checks, gate.confidence, about, **numbers), gate.too_few)


def _right(
    judged: Judged, models: Sequence[Embedder], chosen: NDArray[np.int64], kinds: Sequence[tuple[Corruption, int]]
) -> list[NDArray[np.bool_]]:
    """Of each model (K, n) whether it is right under each of K corruptions of the chosen samples (n,)."""
    found = [np.zeros((len(kinds), len(chosen)), dtype=bool) for _ in models]
    side, done = max(m.spec.image_size for m in models), 0
    coming = bar(judged.read(chosen), "corrupt", total=len(chosen))
    while batch := list(islice(coming, BATCH)):
        pictures = [(framed(pixels(data), side), int.from_bytes(sha256(data).digest()[:7])) for data in batch]
        inside = slice(done, done := done + len(batch))
        for number, (corruption, severity) in enumerate(kinds):
            changed = [corrupted(picture, corruption, severity, seed) for picture, seed in pictures]
            for hits, model in zip(found, models, strict=True):
                scores = in_order(_scores(model, changed), model.spec.classes, judged.targets.names)
                hits[number, inside] = judged.targets.right(scores.numpy(), judged.labels[chosen[inside]])
    return found


@torch.no_grad()
def _scores(model: Embedder, pictures: Sequence[Tensor]) -> Tensor:
    """(B, C) of pictures (3, S, S) uint8."""
    size = model.spec.image_size
    return torch.as_tensor(model.module.eval()(prepare(torch.stack([framed(p, size) for p in pictures]), model.spec)).float())
