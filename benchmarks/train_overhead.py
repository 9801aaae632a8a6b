"""What our training loop costs beside the plainest torch loop of the same model, precision and memory format.

    python benchmarks/train_overhead.py [--pairs 40] [--models squeezenet1_1 resnet18 resnet50]

Both train on one batch that lies in memory, alternating step by step, so that what others do to the machine meets both.
Ours is all that a run does for a step: from uint8 pixels, with normalisation, the schedule of the learning rate, the loss
watched, sums for the epoch, progress; the bare loop starts from normalised floats in the right memory format. The
limit is a ratio of 1. Checkpoints, every 100 steps, are left out.

Promised: the upper 95 % bound of the paired ratios is at most 1.05 for each model. Exits 1 if it is not.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter
from training import Memory, bare, bounds, inputs_of, pipeline, promise, told, trainer_of

from everfresh.tasks.fine_tune.input import Batches
from everfresh.tasks.fine_tune.interrupt import Stop

SHAPES = {"squeezenet1_1": (128, 32), "resnet18": (224, 16), "resnet50": (224, 8)}
"""Side in pixels and batch."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--models", nargs="+", default=list(SHAPES))
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--memory-format", default="channels_last")
    options = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, {os.cpu_count()} cores, {options.precision} {options.memory_format}", flush=True)
    kept = []
    for name in options.models:
        ours, theirs = measure(name, options.pairs, options.precision, options.memory_format)
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        batch = SHAPES[name][1]
        print(f"\n{name}: ours {batch / min(ours):.1f} images/s, bare {batch / min(theirs):.1f} (least time of a step each)")
        print(told("time of a step, ours / bare", ratios))
        kept.append(promise(f"{name}, upper bound", bounds(ratios)[2], most=1.05))
    sys.exit(not all(kept))


def measure(name: str, pairs: int, precision: str, form: str) -> tuple[list[float], list[float]]:
    """Seconds of our steps and of the bare ones beside them."""
    size, batch = SHAPES[name]
    with tempfile.TemporaryDirectory(prefix="everfresh-overhead-") as folder:
        config = pipeline(Path(folder), name, size, batch_size=batch, precision=precision, memory_format=form)
        trainer, spec = trainer_of(config, Path(folder))
        plain = copy.deepcopy(trainer.module)
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (batch, 3, size, size), generator=generator).to(torch.uint8)
        labels = torch.randint(0, 7, (batch,), generator=generator)
        batches = Batches(batch * 10_000, batch, 1, 0)
        batches.steps = 2 * (pairs + 2)
        trainer._lay_out(batches)
        step, inputs = bare(plain, trainer.layout), inputs_of(pixels, spec, trainer.layout)
        ours: list[float] = []
        theirs: list[float] = []
        last = [time.perf_counter()]

        def between() -> None:
            """Our step has ended: two of the bare ones, the second of which finds the caches as ours finds them, warm."""
            ours.append(time.perf_counter() - last[0])
            if len(ours) % 2:  # every other step of ours follows one of its own, as in a training
                last[0] = time.perf_counter()
                return
            step(inputs, labels)
            begun = time.perf_counter()
            step(inputs, labels)
            theirs.append(time.perf_counter() - begun)
            last[0] = time.perf_counter()

        trainer.peak = 1e-5
        writer = SummaryWriter(folder)
        trainer._train(Memory(batches, pixels, labels, between), writer, Stop())  # type: ignore[arg-type]
        writer.close()
    return ours[1::2][2:], theirs[2:]


if __name__ == "__main__":
    main()
