"""Use `model.onnx` of a release: ONNX Runtime, Pillow and NumPy, no torch. See docs/consumers.md.

`python consume_onnx.py STORE RELEASE` scores the release on its own hold-out, as consume_release.py does.
"""

import io
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image


def load(release: Path) -> onnxruntime.InferenceSession:
    """Makes scores (N, C) of pictures (N, 3, S, S) uint8."""
    return onnxruntime.InferenceSession(release / "model.onnx", providers=["CPUExecutionProvider"])


def picture(data: bytes, side: int) -> np.ndarray:
    """One picture as the model takes it, (3, S, S) uint8: the shorter side resized to S, the centre cut out."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    width, height = (side * max(1, d) // min(image.size) for d in image.size)
    left, top = round((width - side) / 2), round((height - side) / 2)
    image = image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + side, top + side))
    return np.asarray(image).transpose(2, 0, 1)


def score(store: Path, release: str) -> float:
    """Accuracy on the hold-out, of one of several classes."""
    folder = store / "releases" / release
    config, session = json.loads((folder / "config.json").read_text()), load(folder)
    right = []
    for line in map(json.loads, (folder / "holdout.jsonl").read_text().splitlines()):
        with (store / line["shard"]).open("rb") as shard:
            shard.seek(line["offset"])
            sample = picture(shard.read(line["size"]), config["transforms"]["resize"])
        (scores,) = session.run(["scores"], {"samples": sample[None]})
        right.append(config["classes"][int(scores[0].argmax())] == line["label"])
    return sum(right) / len(right)


if __name__ == "__main__":
    print(f"accuracy {score(Path(sys.argv[1]), sys.argv[2]):.4f}")  # noqa: T201
