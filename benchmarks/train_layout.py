"""Whether the setting that is chosen by itself is the fastest: precision × memory format × eager or compiled.

    python benchmarks/train_layout.py [--steps 12] [--compile] [--run-steps 2000]

For each model the choice is made as a training makes it, from nothing; then every setting of the grid trains on a batch in
memory, taking turns step by step, and each one's median step counts. A last batch, checkpoints and input are left out. The
limit is a ratio of 1 to the best of the grid. With ``--compile`` the grid has compiled settings too, which take minutes
each to compile, and the choice is that of a training of ``--run-steps`` steps.

Promised: chosen / best at most 1.03 for each model; at least 1.8 times as fast as fp32 as it comes, where bf16 pays (where
the best setting is in bf16). Exits 1 if not.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from training import PAYS, bare, inputs_of, pipeline, promise, trainer_of

from everfresh.tasks.config import FineTuneConfig
from everfresh.tasks.fine_tune.layout import choose
from everfresh.tasks.inputs import noise
from everfresh.tasks.records import Layout

SHAPES = {"squeezenet1_1": (128, 32), "resnet18": (224, 16), "resnet50": (224, 8), "mobilenet_v3_small": (224, 32)}
"""Side in pixels and batch."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--models", nargs="+", default=list(SHAPES))
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--run-steps", type=int, default=2000)
    options = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, {os.cpu_count()} cores", flush=True)
    kept = []
    for name in options.models:
        chosen, medians, seconds = measure(name, options.steps, options.run_steps, compiling=options.compile)
        best, plain = min(medians, key=lambda n: medians[n]), medians["fp32 contiguous"]
        batch = SHAPES[name][1]
        print(f"\n{name}, batch {batch}: chosen {chosen} in {seconds:.1f} s")
        for layout, median in sorted(medians.items(), key=lambda item: item[1]):
            print(f"  {layout:32} {median * 1e3:8.1f} ms a step {batch / median:7.1f} images/s")
        kept.append(promise(f"{name}, chosen / best of the grid", medians[chosen] / medians[best], most=1.03))
        if best.startswith("bf16"):
            kept.append(promise(f"{name}, fp32 contiguous / chosen", plain / medians[chosen], least=PAYS))
    sys.exit(not all(kept))


def measure(name: str, steps: int, run_steps: int, *, compiling: bool) -> tuple[str, dict[str, float], float]:
    """Name of the chosen setting, median seconds a step of each, seconds that choosing took."""
    size, batch = SHAPES[name]
    with tempfile.TemporaryDirectory(prefix="everfresh-layout-") as folder:
        os.environ["EVERFRESH_CACHE"] = folder
        trainer, spec = trainer_of(pipeline(Path(folder), name, size, batch_size=batch), Path(folder))
        begun = time.perf_counter()
        config = FineTuneConfig(compile="auto" if compiling else False)
        chosen = choose(config, Layout(), trainer.module, noise(spec, batch), name, run_steps)
        seconds = time.perf_counter() - begun
        pixels = torch.randint(0, 256, (batch, 3, size, size), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
        labels = torch.arange(batch) % 7
        grid = [
            Layout(precision=p, memory_format=f, compiled=c)  # type: ignore[arg-type]
            for c in ((False, True) if compiling else (False,))
            for p in ("fp32", "bf16")
            for f in ("contiguous", "channels_last")
        ]
        sides = {a.name: (bare(copy.deepcopy(trainer.module), a), inputs_of(pixels, spec, a)) for a in grid}
        times: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(steps + 1):
            for layout, (step, inputs) in sides.items():
                begun = time.perf_counter()
                step(inputs, labels)
                if number:
                    times[layout].append(time.perf_counter() - begun)
    return chosen.name, {name: statistics.median(found) for name, found in times.items()}, seconds


if __name__ == "__main__":
    main()
