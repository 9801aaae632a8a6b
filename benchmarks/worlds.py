"""Frames of clean and shifted pictures behind the drift benchmarks: the product's own properties, model and embeddings.

`world(stream, half)` gives one frame of all pictures that the champion never learnt from and one for each shift of
drift_grid.yaml, made from the same pictures in the same order; they are kept in a cache folder since embedding all of
them takes minutes. Data: DRIFT_DATA holds mnist.npz, uci_digits.npz and the pacs-*.tar; SQUEEZENET the weights.
"""

from __future__ import annotations

import io
import os
import pickle
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from everfresh.tasks import models
from everfresh.tasks.config import ModelConfig
from everfresh.tasks.drift.frame import Frame
from everfresh.tasks.images import examine

GRID = yaml.safe_load((Path(__file__).parent / "drift_grid.yaml").read_text())
PACS_CLASSES = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
PROPERTIES = ("brightness", "contrast", "sharpness", "colourfulness")
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class World:
    """Frames of one stream; row i of a shifted frame is row i of the clean one, shifted, but for other domains."""

    clean: Frame
    shifted: dict[str, Frame]

    def window(self, name: str | None, size: int, free: NDArray[np.int64], rng: np.random.Generator, shift: Any) -> Frame:
        """A window of `size` rows of the clean frame (name None) or of one shift, from the rows that are `free`."""
        if name is None:
            return self.clean.take(rng.choice(free, size, replace=False))
        kind, share = shift["kind"], shift.get("share", 1.0)
        if kind in {"knockout", "only"}:
            inside = self.clean.labels[free] == shift["of"]
            if kind == "only":
                return self.clean.take(rng.choice(free[inside], size, replace=size > inside.sum()))
            weights = np.where(inside, 1.0 - share, 1.0)
            return self.clean.take(rng.choice(free, size, replace=False, p=weights / weights.sum()))
        other = self.shifted[name]
        touched = int(rng.binomial(size, share))
        rows = rng.permutation(free)
        moved = rng.choice(len(other), touched, replace=False) if kind == "domain" else rows[:touched]
        return _joined(other.take(moved), self.clean.take(rows[touched:size]))


def _joined(first: Frame, second: Frame) -> Frame:
    from everfresh.tasks.drift.shift import concatenate

    return concatenate([f for f in (first, second) if len(f)])


def world(stream: str, half: str, cache: Path) -> World:
    """All frames of one stream; `half` is ``tune`` or ``judge``."""
    kept = cache / f"{stream}-{half}.pickle"  # our own file on our own disk
    if kept.exists():
        return pickle.loads(kept.read_bytes())  # type: ignore[no-any-return]
    torch.manual_seed(0)
    made = (_mnist if stream == "mnist" else _pacs)(GRID["streams"][stream], half)
    cache.mkdir(parents=True, exist_ok=True)
    kept.write_bytes(pickle.dumps(made))
    return made


def _mnist(stream: dict[str, Any], half: str) -> World:
    data = Path(os.environ["DRIFT_DATA"])
    mnist, uci = np.load(data / "mnist.npz"), np.load(data / "uci_digits.npz")

    def part(name: str, start: int, end: int) -> tuple[Pixels, NDArray[np.int64]]:
        images = np.repeat(mnist[f"{name}_images"][start:end, :, :, None], 3, axis=3)
        return images, mnist[f"{name}_labels"][start:end].astype(np.int64)

    others = np.stack(
        [np.asarray(Image.fromarray(np.uint8(i * 15.9)).resize((28, 28), Image.Resampling.BICUBIC)) for i in uci["images"]]
    )
    domains = {"uci": (np.repeat(others[..., None], 3, axis=3), uci["labels"].astype(np.int64))}
    classes = tuple(str(i) for i in range(10))
    config = ModelConfig(architecture="everfresh.tasks.models:small_cnn", weights=None, classes=classes, image_size=28)
    module, spec = models.start(config, seed=0)
    learnt = part(*stream[half]["learn"])
    _train(module, spec, *learnt)
    return _frames(stream, part(*stream[half]["draw"]), domains, partial(_score, module, spec, "fp32"), classes)


def _train(module: torch.nn.Module, spec: Any, images: Pixels, labels: NDArray[np.int64]) -> None:
    """A champion of the usual kind: eight passes with AdamW under one cycle."""
    from everfresh.tasks.images import normalise

    pixels = normalise(torch.from_numpy(images).permute(0, 3, 1, 2), spec.mean, spec.std)
    wanted = torch.from_numpy(labels)
    passes = 8
    optimizer = torch.optim.AdamW(module.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=passes * -(-len(pixels) // 64))
    module.train()
    for _ in range(passes):
        for rows in torch.randperm(len(pixels)).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(module(pixels[rows]), wanted[rows]).backward()
            optimizer.step()
            schedule.step()


def _pacs(stream: dict[str, Any], half: str) -> World:
    from sklearn.linear_model import LogisticRegression

    data = Path(os.environ["DRIFT_DATA"])
    loaded = {d: _archive(data / f"pacs-{d}.tar") for d in ("photo", "art_painting", "cartoon")}
    (domain, start, end), (_, first, last) = stream[half]["learn"], stream[half]["draw"]
    images, labels = loaded[domain]
    config = ModelConfig(
        architecture="squeezenet1_1", weights=os.environ["SQUEEZENET"], classes=PACS_CLASSES, image_size=128, precision="bf16"
    )
    module, spec = models.start(config, seed=0)
    spec = models.with_linear_head(module, spec, 0)
    learnt, _ = models.embed(module, spec, (_png(i) for i in images[start:end]), precision="bf16")
    centre, scale = learnt.mean(dim=0).double().numpy(), learnt.std(dim=0).double().numpy() + 1e-6
    fit = LogisticRegression(C=0.01, max_iter=500).fit((learnt.double().numpy() - centre) / scale, labels[start:end])
    head = models.linear_head(module, spec)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(fit.coef_ / scale))
        head.bias.copy_(torch.from_numpy(fit.intercept_ - (fit.coef_ / scale) @ centre))
    draw = (images[first:last], labels[first:last])
    rest = {d: pair for d, pair in loaded.items() if d != domain}
    rest.setdefault("art_painting", loaded["photo"])  # where the stream starts from paintings, photos are the other domain
    return _frames(stream, draw, rest, partial(_score, module, spec, "bf16"), PACS_CLASSES)


def _archive(path: Path) -> tuple[Pixels, NDArray[np.int64]]:
    pictures, labels = [], []
    with tarfile.open(path) as archive:
        for member in sorted(archive.getmembers(), key=lambda m: m.name):
            if member.isfile() and (file := archive.extractfile(member)):
                pictures.append(np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB")))
                labels.append(PACS_CLASSES.index(member.name.split("/")[-2]))
    order = np.random.default_rng(0).permutation(len(labels))  # the archive is sorted by class
    return np.stack(pictures)[order], np.array(labels, dtype=np.int64)[order]


def _score(module: torch.nn.Module, spec: Any, precision: str, pictures: Iterable[bytes]) -> tuple[Any, Any]:
    embedded, scores = models.embed(module, spec, pictures, precision=precision)
    return embedded.double().numpy(), scores.double().softmax(dim=1).numpy()


def _frames(
    stream: dict[str, Any],
    draw: tuple[Pixels, NDArray[np.int64]],
    domains: dict[str, tuple[Pixels, NDArray[np.int64]]],
    score: Callable[[Iterable[bytes]], tuple[Any, Any]],
    classes: tuple[str, ...],
) -> World:
    shifted: dict[str, Frame] = {}
    whole: dict[str, Frame] = {}
    for name, shift in stream["shifts"].items():
        if shift["kind"] in {"knockout", "only"}:
            continue
        whole_shift = {k: v for k, v in shift.items() if k != "share"}
        same = repr(whole_shift)
        if same not in whole:
            images, labels = domains[shift["of"]] if shift["kind"] == "domain" else (shift_pixels(draw[0], shift), draw[1])
            whole[same] = frame(images, labels, score, classes)
            print(f"{name}: {whole[same].correct.mean():.3f}", flush=True)
        shifted[name] = whole[same]
    return World(frame(*draw, score, classes), shifted)


def frame(
    images: Pixels, labels: NDArray[np.int64], score: Callable[[Iterable[bytes]], tuple[Any, Any]], classes: tuple[str, ...]
) -> Frame:
    """The monitoring frame of pictures (N, H, W, 3), as ingest and detect make it."""
    encoded = [_png(i) for i in images]
    measured = [examine(data) for data in encoded]
    embeddings, probabilities = score(encoded)
    numerical = {p: np.array([getattr(m, p) for m in measured], dtype=np.float64) for p in PROPERTIES}
    numerical["confidence"] = probabilities.max(axis=1)
    predicted = np.array([classes[i] for i in probabilities.argmax(axis=1)], dtype=np.str_)
    return Frame(numerical, {"prediction": predicted}, probabilities, embeddings, classes, labels, ((None, 0),) * len(labels))  # type: ignore[arg-type]


def _png(image: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def shift_pixels(images: Pixels, shift: dict[str, Any]) -> Pixels:
    """Pictures (N, H, W, 3) under one shift of the grid; the same draw for the same pictures."""
    rng = np.random.default_rng(0)
    return np.stack([_shifted(image, shift, rng) for image in images])


def _shifted(image: Pixels, shift: dict[str, Any], rng: np.random.Generator) -> Pixels:
    values = image.astype(np.float32)
    match shift["kind"]:
        case "noise":
            grey = image.shape[0] == 28  # MNIST has one channel
            noise = rng.normal(0, shift["sigma"], (*image.shape[:2], 1 if grey else 3))
            values = values + noise
        case "brightness":
            values = values * shift["factor"]
        case "contrast":
            values = values.mean() + (values - values.mean()) * shift["factor"]
        case "blur":
            return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(shift["sigma"])))
        case "transform":
            return _transformed(image, shift, rng)
    return np.rint(values).clip(0, 255).astype(np.uint8)


def _transformed(image: Pixels, shift: dict[str, Any], rng: np.random.Generator) -> Pixels:
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as F

    side = image.shape[0]
    angle, (right, down) = rng.uniform(-1, 1) * shift["degrees"], rng.uniform(-1, 1, 2) * shift["translate"] * side
    moved = F.affine(
        torch.from_numpy(image).permute(2, 0, 1),
        angle,
        [float(right), float(down)],
        1 + float(rng.uniform(0, shift["zoom"])),
        [0.0, 0.0],
        interpolation=InterpolationMode.BILINEAR,
    )
    if shift.get("mirror") and rng.random() < 0.5:
        moved = F.horizontal_flip(moved)
    return moved.permute(1, 2, 0).numpy()


def _build(job: tuple[str, str, Path]) -> str:
    torch.set_num_threads(1)
    world(*job)
    return f"{job[0]} {job[1]}"


def prepare(cache: Path, halves: Iterable[str] = ("judge",)) -> Iterator[str]:
    """Build what is missing of both streams, one process a world."""
    jobs = [(stream, half, cache) for half in halves for stream in GRID["streams"]]
    with get_context("spawn").Pool(2) as pool:
        yield from pool.imap_unordered(_build, jobs)
