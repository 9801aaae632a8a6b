"""Samples on which one model is right and the other wrong, as people see them: picture, label, both answers, why."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from everfresh.tasks.evaluation_page.looks import heat, reasons
from everfresh.tasks.evaluation_page.samples import confidence, read
from everfresh.tasks.gates import Contender, Judged
from everfresh.tasks.inputs import decode
from everfresh.tasks.pages import jpeg_uri, short, thumbnail
from everfresh.tasks.slices import LABEL

log = logging.getLogger(__name__)
SHOWN = 8
SIDE = 144
"""Pixels of a thumbnail."""
OUTLINE = (230.0, 159.0, 0.0)


@dataclass(frozen=True)
class Flip:
    """One sample as the page shows it."""

    picture: str
    """A URI; empty for a row of a table, and where it cannot be read."""
    label: str
    before: str
    """What the champion says."""
    after: str
    """What the challenger says."""
    where: str
    """Its slices."""
    looks: tuple[str, str] | None = None
    """Where champion and challenger looked, each the URI of a picture."""
    reasons: tuple[str, str] | None = None
    """Of a row: what spoke for the answer of each."""


def shown_flips(
    judged: Judged, rows: NDArray[np.int64], challenger: Contender | None, champion: Contender | None, *, explained: int
) -> list[Flip]:
    """The first of some flips, the very first with what both models looked at.

    Args:
        judged: the samples.
        rows: flips, most telling first; without a champion there is none.
        challenger: the model itself.
        champion: likewise; without either nothing is explained.
        explained: how many to explain; it costs about one prediction each and model.
    """
    some = [int(row) for row in rows[:SHOWN]]
    if not some or judged.champion is None or not judged.places:
        return []
    data = list(read(judged, some))
    looked = _looked(judged, some[:explained], data, challenger, champion)
    pictures = not (challenger and challenger.embedder.spec.features)
    samples = judged.samples()
    found = []
    for place, row in enumerate(some):
        tile = thumbnail(data[place], SIDE) if pictures else None
        pair = looked[place] if place < len(looked) else None
        found.append(
            Flip(
                picture="" if tile is None else jpeg_uri(tile),
                label=short(str(samples[row].label), 40),
                before=_answer(judged, judged.champion, row),
                after=_answer(judged, judged.challenger, row),
                where=", ".join(f"{short(n, 16)} {short(str(v[row]), 20)}" for n, v in judged.columns.items() if n != LABEL),
                looks=pair if pictures else None,
                reasons=None if pictures else pair,
            )
        )
    return found


def _answer(judged: Judged, scores: Tensor, row: int) -> str:
    one = scores[[row]].numpy()
    sure = float(confidence(judged.targets, one)[0])
    return short(judged.targets.texts(one)[0], 40) + ("" if np.isnan(sure) else f" {sure:.0%}")


def _looked(
    judged: Judged, rows: Sequence[int], data: Sequence[bytes], challenger: Contender | None, champion: Contender | None
) -> list[tuple[str, str]]:
    """For each of `rows` what champion and challenger looked at; nothing where a network cannot be asked, which is logged."""
    if not (challenger and champion) or judged.champion is None:
        return []
    try:
        before = _explained(judged, rows, data, champion, judged.champion.numpy())
        after = _explained(judged, rows, data, challenger, judged.challenger.numpy())
    except Exception:  # of somebody's network, which need not let gradients through
        log.warning("what the models looked at could not be found", exc_info=True)
        return []
    return list(zip(before, after, strict=True))


def _explained(
    judged: Judged, rows: Sequence[int], data: Sequence[bytes], model: Contender, scores: NDArray[np.float32]
) -> list[str]:
    """For each of `rows` what the model looked at: the URI of a picture, or words."""
    module, spec = model.embedder.module, model.embedder.spec
    batch = torch.stack([decode(d, spec) for d in data[: len(rows)]])
    outputs = [spec.classes.index(judged.targets.names[_asked(judged, row, spec.classes, scores)]) for row in rows]
    if spec.features:
        return [_reason_words(found) for found in reasons(module, spec, batch, outputs)]
    return [_lit(picture, warmth) for picture, warmth in zip(batch, heat(module, spec, batch, outputs), strict=True)]


def _asked(judged: Judged, row: int, known: Sequence[str], scores: NDArray[np.float32]) -> int:
    """Which output to explain: the class that the model chose; of sets and values the one on which the two differ most."""
    values = scores[row]
    if judged.targets.task != "single_label" and judged.champion is not None:
        values = np.abs(judged.challenger[row].numpy() - judged.champion[row].numpy())
    has = np.array([name in known for name in judged.targets.names])
    return int(np.where(has, values, -np.inf).argmax())


def _reason_words(added: dict[str, float]) -> str:
    return ", ".join(f"{short(name, 20)} {value:+.2g}".replace("-", "−") for name, value in list(added.items())[:3])


def _lit(picture: Tensor, warmth: NDArray[np.float32]) -> str:
    """The picture as the model was fed it, dark and grey where it did not look, the brighter half outlined."""
    from PIL import Image

    whole = Image.fromarray(picture.permute(1, 2, 0).numpy())
    how = Image.Resampling.NEAREST if whole.width < SIDE else Image.Resampling.LANCZOS
    pixels = np.asarray(whole.resize((SIDE, SIDE), how), dtype=np.float32)  # (S, S, 3)
    light = np.asarray(Image.fromarray(warmth).resize((SIDE, SIDE), Image.Resampling.BILINEAR))[..., None]
    mixed = pixels.mean(axis=2, keepdims=True) * 0.35 * (1 - light) + pixels * light
    bright = np.pad(light[..., 0] > 0.5, 2, mode="edge")
    inner = np.logical_and.reduce([bright[y : y + SIDE, x : x + SIDE] for y in (0, 2, 4) for x in (0, 2, 4)])
    mixed[bright[2:-2, 2:-2] & ~inner] = OUTLINE
    return jpeg_uri(Image.fromarray(mixed.clip(0, 255).astype(np.uint8)))
