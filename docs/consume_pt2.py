"""Use `model.pt2` of a release: torch and torchvision, none of the network's code. See docs/consumers.md.

`python consume_pt2.py STORE RELEASE` scores the release on its own hold-out, as consume_release.py does.
"""

import io
import json
import sys
from pathlib import Path

import torch
from PIL import Image
from torchvision.transforms import v2


def load(release: Path) -> torch.nn.Module:
    """Scores (N, C) of pictures (N, 3, S, S) uint8. Verify the folder first: an archive of torch.export may hold pickles."""
    return torch.export.load(release / "model.pt2").module()


def picture(data: bytes, side: int) -> torch.Tensor:
    """One picture as the model takes it, (3, S, S) uint8."""
    pixels = v2.functional.pil_to_tensor(Image.open(io.BytesIO(data)).convert("RGB"))
    return v2.functional.center_crop(v2.functional.resize(pixels, [side], antialias=True), [side, side])


def score(store: Path, release: str) -> float:
    """Accuracy on the hold-out, of one of several classes."""
    folder = store / "releases" / release
    config, model = json.loads((folder / "config.json").read_text()), load(folder)
    right = []
    for line in map(json.loads, (folder / "holdout.jsonl").read_text().splitlines()):
        with (store / line["shard"]).open("rb") as shard:
            shard.seek(line["offset"])
            sample = picture(shard.read(line["size"]), config["transforms"]["resize"])
        with torch.no_grad():
            scores = model(sample[None])[0]
        right.append(config["classes"][int(scores.argmax())] == line["label"])
    return sum(right) / len(right)


if __name__ == "__main__":
    print(f"accuracy {score(Path(sys.argv[1]), sys.argv[2]):.4f}")  # noqa: T201
