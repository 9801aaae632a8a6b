"""The streams of `drift_grid.yaml` as frames: a champion is trained, each shift is applied, everything is embedded once.

Not a benchmark of its own. Needs the folder of `mnist.npz`, `uci_digits.npz`, `pacs-*.tar` in DRIFT_DATA and SqueezeNet's
weights in SQUEEZENET. Frames are kept in a cache folder; delete it to make them anew.
"""

from __future__ import annotations

import io
import os
import pickle
import sys
import tarfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image, ImageFilter
from torch import nn
from tqdm import tqdm

from everfresh.tasks import images, models
from everfresh.tasks.drift.frame import Frame
from everfresh.tasks.records import ModelSpec

GRID = yaml.safe_load((Path(__file__).parent / "drift_grid.yaml").read_text())
PACS = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
DIGITS = tuple("0123456789")
PROPERTIES = ("brightness", "contrast", "sharpness", "colourfulness")


def data() -> Path:
    """The folder of the real pictures, or a sentence that ends the run."""
    if "DRIFT_DATA" not in os.environ or "SQUEEZENET" not in os.environ:
        sys.exit("DRIFT_DATA must name the folder of mnist.npz, uci_digits.npz and pacs-*.tar, SQUEEZENET the weights: not set")
    return Path(os.environ["DRIFT_DATA"])


@dataclass(frozen=True)
class Pictures:
    """Decoded pictures (N) with their labels (N,)."""

    images: list[Image.Image]
    labels: np.ndarray

    def some(self, first: int, last: int) -> Pictures:
        return Pictures(self.images[first:last], self.labels[first:last])


@dataclass(frozen=True)
class Stream:
    """What references and windows of one stream are drawn from."""

    name: str
    quiet: Frame
    """The pool that references and quiet windows come from."""
    shifted: dict[str, Frame]
    """By shift: the same pool under it, or the pool of another domain."""
    shifts: dict[str, dict[str, Any]]
    sizes: tuple[int, ...]
    reference: int

    def draw(self, rng: np.random.Generator, shift: str | None, size: int, held: np.ndarray | None = None) -> tuple[Any, Any]:
        """A reference and a window, disjoint; `held` are the rows of a reference that stays.

        Without replacement, but for a class that has fewer pictures than the window.
        """
        rows = rng.permutation(len(self.quiet)) if held is None else held
        kept = rows[: self.reference]
        free = np.setdiff1d(np.arange(len(self.quiet)), kept) if held is not None else rows[self.reference :]
        free = rng.permutation(free)
        return self.quiet.take(kept), self._window(rng, shift, size, free)

    def _window(self, rng: np.random.Generator, shift: str | None, size: int, free: np.ndarray) -> Frame:
        if shift is None:
            return self.quiet.take(free[:size])
        how, moved = self.shifts[shift], self.shifted[shift]
        labels = self.quiet.labels[free]
        match how["kind"]:
            case "knockout":
                kept = free[(labels != how["of"]) | (rng.random(len(free)) >= how["share"])]
                return self.quiet.take(kept[:size])
            case "only":
                kept = free[labels == how["of"]]
                return self.quiet.take(kept[:size] if len(kept) >= size else rng.choice(kept, size))
            case "domain":
                touched = int(rng.binomial(size, how.get("share", 1.0)))
                others = rng.choice(len(moved), touched, replace=touched > len(moved))
                return joined(self.quiet.take(free[: size - touched]), moved.take(others))
            case _:
                touched = int(rng.binomial(size, how.get("share", 1.0)))
                return joined(self.quiet.take(free[touched:size]), moved.take(free[:touched]))


def joined(first: Frame, second: Frame) -> Frame:
    from everfresh.tasks.drift.frame import concatenate

    return concatenate([first, second]) if len(first) and len(second) else first if len(first) else second


def load(name: str, role: str, cache: Path) -> Stream:
    """One stream of the grid; `role` is ``tune`` or ``judge``."""
    settings = GRID["streams"][name]
    kept = cache / f"{name}-{role}.pickle"  # our own file, of our own making, in a folder of this machine
    if kept.exists():
        quiet, shifted = pickle.loads(kept.read_bytes())
    else:
        torch.manual_seed(0)
        learn, pool, others = (mnist if name == "mnist" else pacs)(settings[role])
        model, spec = (digits_champion if name == "mnist" else pacs_champion)(learn)
        quiet = frame_of(model, spec, pool, f"{name} quiet")
        shifted = {}
        for shift, how in settings["shifts"].items():
            if how["kind"] in {"knockout", "only"}:
                shifted[shift] = quiet
            elif how["kind"] == "domain":
                if how["of"] in others:
                    same = [s for s in shifted if settings["shifts"][s].get("of") == how["of"]]
                    shifted[shift] = shifted[same[0]] if same else frame_of(model, spec, others[how["of"]], f"{name} {shift}")
            else:
                touched = Pictures(list(apply(pool.images, how, shift)), pool.labels)
                whole = {k: v for k, v in how.items() if k != "share"}
                same = [s for s in shifted if {k: v for k, v in settings["shifts"][s].items() if k != "share"} == whole]
                shifted[shift] = shifted[same[0]] if same else frame_of(model, spec, touched, f"{name} {shift}")
        cache.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(pickle.dumps((quiet, shifted)))
    shifts = {shift: how for shift, how in settings["shifts"].items() if shift in shifted}
    return Stream(name, quiet, shifted, shifts, tuple(settings["sizes"]), settings["reference"])


def mnist(role: dict[str, list[Any]]) -> tuple[Pictures, Pictures, dict[str, Pictures]]:
    found = np.load(data() / "mnist.npz")

    def some(of: str, first: int, last: int) -> Pictures:
        pixels = found[f"{of}_images"][first:last]
        return Pictures([Image.fromarray(p) for p in pixels], found[f"{of}_labels"][first:last].astype(np.int64))

    uci = np.load(data() / "uci_digits.npz")
    grown = [
        Image.fromarray(np.clip(p * 16.0, 0, 255).astype(np.uint8)).resize((28, 28), Image.Resampling.BILINEAR)
        for p in uci["images"]
    ]
    return some(*role["learn"]), some(*role["draw"]), {"uci": Pictures(grown, uci["labels"].astype(np.int64))}


def pacs(role: dict[str, list[Any]]) -> tuple[Pictures, Pictures, dict[str, Pictures]]:
    domains = {}
    for domain in ("photo", "art_painting", "cartoon"):
        with tarfile.open(data() / f"pacs-{domain}.tar") as archive:
            members = sorted((m for m in archive if m.isfile()), key=lambda m: m.name)
            files = [(m.name.split("/")[-2], archive.extractfile(m).read()) for m in members]  # type: ignore[union-attr]
        order = np.random.default_rng(0).permutation(len(files))  # the archives are sorted by class
        labels = np.array([PACS.index(files[i][0]) for i in order], dtype=np.int64)
        domains[domain] = Pictures([Image.open(io.BytesIO(files[i][1])).convert("RGB") for i in order], labels)
    own = role["draw"][0]
    learn, draw = (domains[of].some(first, last) for of, first, last in (role["learn"], role["draw"]))
    return learn, draw, {name: pictures for name, pictures in domains.items() if name != own}


def apply(pictures: Iterable[Image.Image], how: dict[str, Any], seed: str) -> Iterable[Image.Image]:
    """One shift on each picture."""
    from torchvision.transforms import v2

    rng = np.random.default_rng(zlib.crc32(str(sorted(how.items())).encode()))
    torch.manual_seed(zlib.crc32(seed.encode()))
    for picture in pictures:
        pixels = np.asarray(picture, dtype=np.float64)
        match how["kind"]:
            case "noise":
                pixels = pixels + rng.normal(0, how["sigma"], pixels.shape)
            case "brightness":
                pixels = pixels * how["factor"]
            case "contrast":
                pixels = pixels.mean() + (pixels - pixels.mean()) * how["factor"]
            case "blur":
                pixels = np.asarray(picture.filter(ImageFilter.GaussianBlur(how["sigma"])), dtype=np.float64)
            case "transform":
                turn = v2.RandomAffine(how["degrees"], (how["translate"],) * 2, (1.0, 1.0 + how["zoom"]))
                turned = v2.RandomHorizontalFlip(0.5 if how.get("mirror") else 0.0)(turn(picture))
                pixels = np.asarray(turned, dtype=np.float64)
        yield Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def encoded(picture: Image.Image) -> bytes:
    sink = io.BytesIO()
    picture.save(sink, "PNG", compress_level=1)
    return sink.getvalue()


def frame_of(model: nn.Module, spec: ModelSpec, pictures: Pictures, name: str) -> Frame:
    """What the loop would measure of these pictures: examined, embedded, scored."""
    rows: dict[str, list[float]] = {p: [] for p in (*PROPERTIES, "aspect", "pixels")}

    def examined() -> Iterable[bytes]:
        for picture in tqdm(pictures.images, name, disable=None, leave=False):
            file = encoded(picture)
            found = images.examine(file)
            for prop in PROPERTIES:
                rows[prop].append(getattr(found, prop))
            rows["aspect"].append(found.width / found.height)
            rows["pixels"].append(found.width * found.height)
            yield file

    embeddings, scores = models.embed(model, spec, examined())
    probabilities = scores.double().softmax(dim=1).numpy()
    numerical = {prop: np.array(values, dtype=np.float64) for prop, values in rows.items()}
    numerical["confidence"] = probabilities.max(axis=1)
    predicted = np.array(spec.classes)[probabilities.argmax(axis=1)]
    return Frame(
        numerical, {"prediction": predicted}, probabilities, embeddings.double().numpy(), spec.classes, pictures.labels, ()
    )


def digits_champion(learn: Pictures) -> tuple[nn.Module, ModelSpec]:
    """The demo's small network, six epochs over the pictures it may learn from."""
    model = models.small_cnn(10)
    mean, std = (0.13,) * 3, (0.31,) * 3
    pixels = torch.stack([images.to_tensor(encoded(p), 28) for p in learn.images])
    pixels, labels = images.normalise(pixels, mean, std), torch.from_numpy(learn.labels)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=6 * (len(labels) // 64))
    for _ in range(6):
        for rows in torch.randperm(len(labels))[: len(labels) // 64 * 64].split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(pixels[rows]), labels[rows]).backward()
            optimizer.step()
            schedule.step()
    spec = ModelSpec(
        architecture="everfresh.tasks.models:small_cnn",
        classes=DIGITS,
        head="11",
        native_head=False,
        embedding_dim=96,
        image_size=28,
        mean=mean,
        std=std,
    )
    return model.eval(), spec


def pacs_champion(learn: Pictures) -> tuple[nn.Module, ModelSpec]:
    """SqueezeNet with a head fitted on its embeddings: the head rung."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from everfresh.tasks.config import ModelConfig

    raw = {"architecture": "squeezenet1_1", "weights": os.environ["SQUEEZENET"], "classes": PACS, "image_size": 128}
    model, spec = models.start(ModelConfig.model_validate(raw), 0)
    spec = models.with_linear_head(model, spec, 0) if spec.native_head else spec
    embeddings, _ = models.embed(model, spec, (encoded(p) for p in learn.images))
    fitted = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
    fitted.fit(embeddings.numpy(), learn.labels)
    scale, line = fitted[0], fitted[1]
    head = models.linear_head(model, spec)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(line.coef_ / scale.scale_))
        head.bias.copy_(torch.from_numpy(line.intercept_ - line.coef_ @ (scale.mean_ / scale.scale_)))
    return model.eval(), spec
