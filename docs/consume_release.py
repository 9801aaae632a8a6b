"""Use a release without Everfresh: torch, torchvision and safetensors are enough (timm for `timm/…`, your module for yours).

`python consume_release.py STORE RELEASE` scores the release on its own hold-out. STORE is the pipeline's folder in the
store, RELEASE the name of a folder in STORE/releases, as `everfresh status` shows both.
"""

import importlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file
from torchvision.transforms import v2


def load(release: Path) -> tuple[torch.nn.Module, Callable[[bytes], torch.Tensor], dict]:
    """The model in eval mode, what turns the bytes of a sample into its input, and config.json."""
    config = json.loads((release / "config.json").read_text())
    head, architecture = config["head"], config["architecture"]
    classes = len(config.get("targets") or config["classes"])
    features = config.get("features", [])  # of rows of a table; absent where samples are pictures
    if ":" in architecture:  # your own
        module, _, name = architecture.partition(":")
        told = {"features": sum(len(f["categories"]) or 1 for f in features)} if features else {}
        model = getattr(importlib.import_module(module), name)(classes, **told)
    else:
        library, _, name = architecture.rpartition("/")
        make = importlib.import_module("timm").create_model if library == "timm" else torchvision.models.get_model
        model = make(name, num_classes=classes)
    if head["kind"] == "pooled_linear":  # the architecture's own head ends in a convolution
        linear = torch.nn.Linear(head["embedding_dim"], classes)
        model.set_submodule(head["path"], torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(1), linear))
    model.load_state_dict(load_file(release / "model.safetensors"))
    if features:
        return model.eval(), lambda data: row(data, features), config
    t = config["transforms"]
    to_input = [v2.RGB(), v2.PILToTensor(), v2.Resize([t["resize"]]), v2.CenterCrop(t["center_crop"])]
    to_input += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(t["mean"], t["std"])]
    transform = v2.Compose(to_input)
    return model.eval(), lambda data: transform(Image.open(io.BytesIO(data))), config


def row(data: bytes, features: list[dict]) -> torch.Tensor:
    """A row, a JSON object of its columns: numbers standardised, a missing one at the mean, categories one-hot."""
    values, vector = json.loads(data), []
    for f in features:
        value = values[f["name"]]
        if f["categories"]:
            vector += [float(value == category) for category in f["categories"]]
        else:
            vector.append(0.0 if value is None else (value - f["mean"]) / f["std"])
    return torch.tensor(vector, dtype=torch.float64).float()


def sample(shard: Path, offset: int, size: int) -> bytes:
    """The bytes of one sample in a tar shard."""
    with shard.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def label(scores: torch.Tensor, config: dict) -> str:
    """What the model says of one sample, as labels are written: a class, a set such as `cat|dog`, or values."""
    if config.get("task") == "multi_label":
        return "|".join(sorted(name for name, s in zip(config["classes"], scores, strict=True) if s > 0)) or "|"
    if config.get("task") == "regression":
        return ";".join(f"{value:.6g}" for value in scores.tolist())
    return config["classes"][int(scores.argmax())]


def agree(said: str, other: str, config: dict, tolerance: float) -> bool:
    """Whether two labels are one: at most `tolerance` classes of a set differ, or no value by more than that."""
    if config.get("task") == "multi_label":
        return len((set(said.split("|")) ^ set(other.split("|"))) - {""}) <= tolerance
    if config.get("task") == "regression":
        return all(abs(float(a) - float(b)) <= tolerance for a, b in zip(said.split(";"), other.split(";"), strict=True))
    return said == other


def score(store: Path, release: str) -> tuple[float, float]:
    """Accuracy on the hold-out, and the share of predictions that are those of holdout.jsonl."""
    model, prepare, config = load(store / "releases" / release)
    samples = [json.loads(line) for line in (store / "releases" / release / "holdout.jsonl").read_text().splitlines()]
    with torch.no_grad():
        scores = torch.cat([model(prepare(sample(store / s["shard"], s["offset"], s["size"]))[None]) for s in samples])
    guesses, tolerance = [label(row, config) for row in scores], config.get("tolerance", 0)
    right = sum(agree(g, s["label"], config, tolerance) for g, s in zip(guesses, samples, strict=True))
    same = sum(agree(g, s["predicted"], config, tolerance / 1000) for g, s in zip(guesses, samples, strict=True))
    return right / len(samples), same / len(samples)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    accuracy, as_recorded = score(Path(sys.argv[1]), sys.argv[2])
    print(f"accuracy {accuracy:.4f}, predictions as recorded {as_recorded:.4f}")  # noqa: T201
