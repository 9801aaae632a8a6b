"""What fine-tuning forgets: photos, then art paintings, then cartoons, against plain fine-tuning and two kinds of replay.

    PACS_DATA=… SQUEEZENET=… python benchmarks/forgetting.py [--seeds 5] [--json out.json]

Each domain is one window of 1,200 pictures, split as the pipeline in deployments/pipelines/pacs.yaml says. Version 1 is a
head on photos. At each later window Everfresh does what the pipeline does when it climbs its ladder to the end: the head
is refitted, the network fine-tuned from there (rung ``full``, its recipe as configured). Then each baseline, which starts
from the same version 1 and goes on from its own weights, gets the device time that this took (processor seconds; one
thread), with the same optimizer, peak rate, batch and augmentation, warm-up and cosine over that time:

- ``plain``: the new window alone.
- ``replay``: the new window and all earlier ones, shuffled together (naive replay).
- ``experience replay``: each batch half from the new window, half from a memory of the earlier ones that is balanced over
  classes (as Avalanche's ReplayPlugin and Renate's experience replay); the memory holds as much as Everfresh may replay.

It prints accuracies on all hold-outs of each domain, and paired differences over seeds with 95 % t intervals. It fails if
Everfresh does not keep photos better than plain fine-tuning (interval above zero), or if an interval against a baseline
lies below zero anywhere: behind it.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pacs_stream import DOMAINS, PIPELINE, interval
from torch import Tensor, nn

METHODS = ("everfresh", "plain", "replay", "experience replay")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="rows of seeds that were run before are kept here and not run again")
    options = parser.parse_args()
    rows = json.loads(options.json.read_text()) if options.json and options.json.exists() else []
    for seed in range(options.seeds):
        if not any(row["seed"] == seed for row in rows):
            rows.append(run(seed))
            if options.json:
                options.json.write_text(json.dumps(rows, indent=1))
    print("| | " + " | ".join(DOMAINS) + " | mean | seconds |\n|---|---|---|---|---|---|")
    for method in METHODS:
        scores = [row[method]["accuracy"] for row in rows]
        cells = [interval([s[d] for s in scores]) for d in DOMAINS] + [interval([statistics.mean(s.values()) for s in scores])]
        print(f"| {method} | {' | '.join(cells)} | {statistics.mean(row[method]['seconds'] for row in rows):.0f} |")
    missed = []
    for method in METHODS[1:]:
        for domain in DOMAINS:
            gaps = [row["everfresh"]["accuracy"][domain] - row[method]["accuracy"][domain] for row in rows]
            low, high = bounds(gaps)
            print(f"everfresh - {method} on {domain}: {statistics.mean(gaps):+.3f} [{low:+.3f}, {high:+.3f}]")
            if high < 0 or (method == "plain" and domain == "photo" and low <= 0):
                missed.append(f"against {method} on {domain}: [{low:+.3f}, {high:+.3f}]")
    sys.exit("\n".join(missed) or 0)


def bounds(values: list[float]) -> tuple[float, float]:
    """95 % t interval of the mean; unbounded for a single value."""
    from scipy.stats import t

    if len(values) < 2:
        return -math.inf, math.inf
    half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return statistics.mean(values) - half, statistics.mean(values) + half


def run(seed: int) -> dict[str, Any]:
    """All methods on one seed of the split."""
    from everfresh.tasks import evaluate, fine_tune, ingest, models, publish
    from everfresh.tasks.config import FloorGate, load_config
    from everfresh.tasks.records import Banked, Tick
    from everfresh.tasks.store import pipeline_store
    from everfresh.tasks.views import View

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="everfresh-forgetting-") as folder:
        os.environ |= {"PACS_STORE": folder, "PACS_SEED": str(seed)}
        config = load_config(PIPELINE)
        whole = config.window.model_copy(update={"min_samples": 1200, "max_samples": 1200, "bank_max_samples": 10_000})
        config = config.model_copy(update={"window": whole, "gates": (FloorGate(minimum=0),)})
        store = pipeline_store(config)
        views: list[View] = []
        bank: tuple[Banked, ...] = ()
        champion, module, spent = None, None, []
        baselines: dict[str, nn.Module] = {}
        seconds = dict.fromkeys(METHODS, 0.0)
        for seq in range(1, len(DOMAINS) + 1):
            entry = ingest.ingest(store, config)
            assert entry is not None
            views.append(View(store, entry.view))
            tick = Tick(
                seq=seq, view=entry.view, champion=champion, champion_move=seq - 1, reference=None, bank=bank, now=store.now()
            )
            begun = time.process_time()
            made = fine_tune.fine_tune(store, config, tick, "head")
            if champion:
                made = fine_tune.fine_tune(store, config, tick, "full", made)
                spent.append(time.process_time() - begun)
                seconds["everfresh"] += spent[-1]
            proof = evaluate.evaluate(store, config, tick, made, against=seq - 1)
            bank = (*bank, Banked(view=entry.view, seq=seq, regime=f"window {seq}"))
            champion = publish.publish(store, config, tick, made, proof, bank).release
            module = models.load(store, made.spec, made.weights)
            if seq == 1:
                baselines = {method: copy.deepcopy(module) for method in METHODS[1:]}
            else:
                for method, net in baselines.items():
                    took = time.process_time()
                    baseline(method, net, views, made.spec, config, spent[-1], seed)
                    seconds[method] += time.process_time() - took
        nets: dict[str, Any] = {"everfresh": module, **baselines}
        row = {
            method: {"accuracy": accuracies(net, made.spec, views), "seconds": seconds[method]} for method, net in nets.items()
        }
        print(json.dumps({"seed": seed, **row}), flush=True)
        return {"seed": seed, **row}


def baseline(method: str, net: nn.Module, views: list[Any], spec: Any, config: Any, budget: float, seed: int) -> None:
    """Fine-tune in place for `budget` processor seconds."""
    from torchvision.transforms import v2

    new = pictures(views[-1:], "train", spec)
    old = pictures(views[:-1], "train", spec)
    memory = balanced(old[1], config.fine_tune.replay_max_samples, seed)
    everything = tuple(torch.cat([a, b]) for a, b in zip(new, old, strict=True))
    batch, peak = config.fine_tune.batch_size, config.fine_tune.learning_rate / 3
    crop = v2.Compose([v2.RandomResizedCrop(spec.image_size, scale=(0.7, 1.0), antialias=True), v2.RandomHorizontalFlip()])
    optimizer = torch.optim.AdamW(net.parameters(), lr=peak, weight_decay=config.fine_tune.weight_decay)
    net.to(memory_format=torch.channels_last).train()
    torch.manual_seed(seed)
    draw: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
        "plain": lambda: some(new, batch),
        "replay": lambda: some(everything, batch),
        "experience replay": lambda: tuple(  # type: ignore[return-value]
            torch.cat(pair)
            for pair in zip(some(new, batch // 2), some((old[0][memory], old[1][memory]), batch // 2), strict=True)
        ),
    }
    begun = time.process_time()
    while (share := (time.process_time() - begun) / budget) < 1:
        for group in optimizer.param_groups:
            group["lr"] = peak * (
                max(share, 0.01) / 0.1 if share < 0.1 else 0.5 * (1 + math.cos(math.pi * (share - 0.1) / 0.9))
            )
        pixels, labels = draw[method]()
        pixels = normalised(torch.stack([crop(p) for p in pixels]), spec)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.model.precision == "bf16"):
            loss = nn.functional.cross_entropy(net(pixels), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def some(pool: tuple[Tensor, ...], size: int) -> tuple[Tensor, Tensor]:
    """`size` samples of a pool, drawn without replacement."""
    rows = torch.randperm(len(pool[1]))[:size]
    return pool[0][rows], pool[1][rows]


def balanced(labels: Tensor, most: int, seed: int) -> Tensor:
    """Rows of a memory of at most `most` samples with equal shares of the classes, drawn from a seed."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    rank = torch.zeros(len(labels), dtype=torch.long)
    for name in labels.unique():
        mine = order[labels[order] == name]
        rank[mine] = torch.arange(len(mine))
    return torch.argsort(rank, stable=True)[:most]


def pictures(views: list[Any], split: str, spec: Any) -> tuple[Tensor, Tensor]:
    """Pictures (N, 3, S, S) uint8 and class numbers (N,) of a split."""
    from everfresh.tasks.images import to_tensor

    rows = [(view, int(r)) for view in views for r in view.rows(split, spec.classes)]
    pixels = torch.stack([to_tensor(next(view.read([r])), spec.image_size) for view, r in rows])
    return pixels, torch.tensor([spec.classes.index(view.samples[r].label) for view, r in rows])


def normalised(pixels: Tensor, spec: Any) -> Tensor:
    from everfresh.tasks.images import normalise

    return normalise(pixels, spec.mean, spec.std).to(memory_format=torch.channels_last)


@torch.no_grad()
def accuracies(net: nn.Module, spec: Any, views: list[Any]) -> dict[str, float]:
    """Accuracy on the hold-out of each domain, fp32."""
    net.eval()
    found = {}
    for domain, view in zip(DOMAINS, views, strict=True):
        pixels, labels = pictures([view], "holdout", spec)
        scores = torch.cat([net(normalised(part, spec)) for part in pixels.split(64)])
        found[domain] = float(np.mean((scores.argmax(dim=1) == labels).numpy()))
    return found


if __name__ == "__main__":
    os.environ.setdefault("EVERFRESH_PROGRESS", "0")
    main()
