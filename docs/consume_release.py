"""Use a release without Everfresh: torch, torchvision and safetensors are enough.

`python consume_release.py STORE RELEASE` scores the release on its own hold-out; STORE is the pipeline's folder.
"""

import io
import json
import sys
from pathlib import Path

import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file
from torchvision.transforms.v2 import functional as F


def load(folder: Path) -> tuple[torch.nn.Module, dict]:
    """The model in eval mode, and its config.json."""
    config = json.loads((folder / "config.json").read_text())
    model = torchvision.models.get_model(config["architecture"], num_classes=len(config["classes"]))
    if config["head"]["kind"] == "pooled_linear":  # the architecture ends in a convolution
        linear = torch.nn.Linear(config["head"]["embedding_dim"], len(config["classes"]))
        head = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(1), linear)
        model.set_submodule(config["head"]["path"], head)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval(), config


def prepare(picture: Image.Image, transforms: dict) -> torch.Tensor:
    """An upright picture as the model's input (3, S, S)."""
    side = transforms["center_crop"]
    resized = F.resize(F.pil_to_tensor(picture.convert("RGB")), [transforms["resize"]], antialias=True)
    return F.normalize(F.center_crop(resized, [side, side]).float() / 255, transforms["mean"], transforms["std"])


def score(store: Path, release: str) -> tuple[float, float]:
    """Accuracy on the hold-out, and the share of predictions that are those of holdout.jsonl."""
    model, config = load(store / "releases" / release)
    lines = (store / "releases" / release / "holdout.jsonl").read_text().splitlines()
    right = same = 0
    for sample in map(json.loads, lines):
        with (store / sample["shard"]).open("rb") as shard:
            shard.seek(sample["offset"])
            picture = Image.open(io.BytesIO(shard.read(sample["size"])))
        with torch.no_grad():
            scores = model(prepare(picture, config["transforms"])[None])
        guess = config["classes"][int(scores.argmax())]
        right, same = right + (guess == sample["label"]), same + (guess == sample["predicted"])
    return right / len(lines), same / len(lines)


if __name__ == "__main__":
    print(*score(Path(sys.argv[1]), sys.argv[2]))  # noqa: T201
