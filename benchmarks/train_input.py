"""How near training from real JPEGs in shards comes to what decoding on the same processors leaves.

    PACS_DATA=… python benchmarks/train_input.py [--rounds 15] [--steps 12] [--workers N]
    python benchmarks/train_input.py --device cuda        # ResNet-50 at 224 from 500 × 400 JPEGs; not proven yet

Three sides take turns, some steps each, and are compared round by round:
compute   steps on a batch that lies in memory;
decode    the same number of batches decoded, cut and resized by torchvision's own operators from bytes in memory, on as many
          threads as there are processors, and nothing else: the physical cost of the pictures;
real      our feed, from shards in the store, without a cache of decoded pictures, and the same steps; it starts cold.

On a CPU decoding takes processors from training: the bound is compute / (compute + decode). On a GPU it is 1.

Promised: real reaches at least 0.95 of the bound (the median over the rounds), for squeezenet1_1 at 128 px, batch 32, and
resnet18 at 224 px, batch 16. Exits 1 if not.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor
from training import bare, bounds, inputs_of, pipeline, pool_of, promise, told, trainer_of, view_of

from everfresh.tasks.fine_tune.input import Batches, Feed, Pictures, _on_one_core, cores, workers_of
from everfresh.tasks.records import Layout, ModelSpec

SHAPES = {"squeezenet1_1": (128, 32), "resnet18": (224, 16)}
ON_GPU = {"resnet50": (224, 256)}
LAYOUT = Layout(precision="bf16", memory_format="channels_last")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--models", nargs="+")
    options = parser.parse_args()
    shapes = SHAPES if options.device == "cpu" else ON_GPU
    workers = workers_of(options.workers, options.device)
    print(f"{torch.get_num_threads()} threads, {cores()} cores, {workers} workers, {LAYOUT.name}", flush=True)
    kept = []
    for name in options.models or shapes:
        size, batch = shapes[name]
        with tempfile.TemporaryDirectory(prefix="everfresh-input-") as folder:
            if options.device != "cpu":
                enlarge(Path(folder))
            config = pipeline(Path(folder), name, size, batch_size=batch, cache_mib=0, augment="crop_flip")
            trainer, spec = trainer_of(config, Path(folder))
            step = bare(trainer.module, LAYOUT, options.device)
            pictures = Pictures(pool_of(view_of(config), "train"), spec, keep=0)
            assert pictures.kept is None
            rounds = list(measure(pictures, spec, step, options.rounds, options.steps, batch, workers, options.device))
        compute, decode, real = (statistics.median(r[i] for r in rounds) * 1e3 for i in range(3))
        bound = [c / (c + d) if options.device == "cpu" else 1.0 for c, d, _ in rounds]
        reached = [c / r for c, _, r in rounds]
        print(f"\n{name} at {size}: compute {compute:.3f}, decode {decode:.3f}, real {real:.3f} ms a picture (medians)")
        print(told("real / compute", reached))
        print(told("bound", bound))
        ratios = [r / b for r, b in zip(reached, bound, strict=True)]
        print(told("reached of the bound", ratios))
        kept.append(promise(f"{name}, median reached of the bound", bounds(ratios)[0], least=0.95))
    sys.exit(not all(kept))


def measure(
    pictures: Pictures, spec: ModelSpec, step: object, rounds: int, steps: int, batch: int, workers: int, device: str
) -> Iterator[tuple[float, float, float]]:
    """Seconds a picture of compute, decode, real, round by round; the first round counts for nothing."""
    batches = Batches(len(pictures), batch, 1_000, 0)
    steps = min(steps, len(pictures) // batch)
    coded = [next(view.read([row])) for view, row in pictures.places[: steps * batch]]
    pinned = device.startswith("cuda")
    feed = Feed(pictures, batches, "crop_flip", workers, pinned=pinned)
    pixels, labels = next(iter(Feed(pictures, batches, "crop_flip", 0)(0)))

    def trained(pixels: Tensor, labels: Tensor) -> None:
        pixels, labels = (t.to(device, non_blocking=True) for t in (pixels, labels))
        step(inputs_of(pixels, spec, LAYOUT), labels)  # type: ignore[operator]

    def compute() -> None:
        for _ in range(steps):
            trained(pixels, labels)

    def real() -> None:
        ready = feed(0)
        for _ in range(steps):
            trained(*next(ready))
        ready.close()

    with ThreadPoolExecutor(cores(), initializer=_on_one_core) as threads:

        def decode() -> None:
            for part in threads.map(lambda some: [decoded(data, spec.image_size) for data in some], chunks(coded, cores())):
                assert part

        for number in range(rounds + 1):
            found = []
            for side in (compute, decode, real):
                begun = time.perf_counter()
                side()
                found.append((time.perf_counter() - begun) / (steps * batch))
            if number:
                yield found[0], found[1], found[2]


def decoded(data: bytes, size: int) -> Tensor:
    """A picture by torchvision's operators alone: decoded, cut, resized."""
    picture = torch.ops.image.decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), 3, False)
    height, width = picture.shape[-2:]
    side = int(0.92 * min(height, width))
    found = picture[None, :, 2 : 2 + side, 2 : 2 + side]
    return torch.nn.functional.interpolate(found, size=(size, size), mode="bilinear", antialias=True)[0]


def chunks(items: list[bytes], count: int) -> list[list[bytes]]:
    return [items[i::count] for i in range(count)]


def enlarge(folder: Path) -> None:
    """PACS again as JPEGs of 500 × 400, as large as those of ImageNet."""
    from PIL import Image

    name = "pacs-art_painting.tar"
    with tarfile.open(f"{os.environ['PACS_DATA']}/{name}") as old, tarfile.open(folder / name, "w") as new:
        for member in old:
            if (file := old.extractfile(member)) is None:
                continue
            sink = io.BytesIO()
            Image.open(file).convert("RGB").resize((500, 400), Image.Resampling.BICUBIC).save(sink, "JPEG", quality=90)
            member.size = sink.tell()
            sink.seek(0)
            new.addfile(member, sink)
    os.environ["PACS_DATA"] = str(folder)


if __name__ == "__main__":
    main()
