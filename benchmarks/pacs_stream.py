"""PACS as a stream, photo → art painting → cartoon: what each rung keeps, gains and costs, over several seeds.

    PACS_DATA=… SQUEEZENET=… python benchmarks/pacs_stream.py [--seeds 5] [--rungs head full] [--json out.json]

For each seed of the split the pipeline in deployments/pipelines/pacs.yaml runs over the nine windows; the ladder is
one rung alone. At the end version 1 (frozen after the first photos) and the champion are scored on all hold-outs of
each domain: 1,200 pictures a domain, about a third held out, never trained or tuned on by either. The head rung bounds
itself by the embedding of one epoch; the baseline named "frozen" is version 1 in the same run. It fails if the champions
of a rung reach less, in the mean over seeds, than PROMISED.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

DOMAINS = ("photo", "art_painting", "cartoon")
PROMISED = {"photo": 0.90, "art_painting": 0.74, "cartoon": 0.79}
PIPELINE = Path(__file__).parent.parent / "deployments/pipelines/pacs.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rungs", nargs="+", default=["head", "full"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = [run(seed, rung) for rung in options.rungs for seed in range(options.seeds)]
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    print("\n| | photo | art_painting | cartoon | retrainings | releases | seconds each |")
    print("|---|---|---|---|---|---|---|")
    first = [r for r in rows if r["rung"] == options.rungs[0]]
    print(f"| frozen version 1 | {' | '.join(interval([r['frozen'][d] for r in first]) for d in DOMAINS)} | | | |")
    for rung in options.rungs:
        mine = [r for r in rows if r["rung"] == rung]
        seconds = [s for r in mine for s in r["seconds"]]
        print(
            f"| {rung} rung alone | {' | '.join(interval([r['champion'][d] for r in mine]) for d in DOMAINS)} "
            f"| {statistics.mean(len(r['seconds']) for r in mine):.1f} | {statistics.mean(r['releases'] for r in mine):.1f} "
            f"| {statistics.median(seconds):.1f} (median), {max(seconds):.1f} (most) |"
        )
    missed = [
        f"{rung} rung on {domain}: {mean:.3f}, promised {PROMISED[domain]}"
        for rung in options.rungs
        for domain in DOMAINS
        if (mean := statistics.mean(r["champion"][domain] for r in rows if r["rung"] == rung)) < PROMISED[domain]
    ]
    sys.exit("\n".join(missed) or 0)


def run(seed: int, rung: str) -> dict[str, Any]:
    """One seed of the split with one rung as the whole ladder."""
    from everfresh.flows.retrain import retrain
    from everfresh.tasks.config import load_config
    from everfresh.tasks.store import pipeline_store

    with tempfile.TemporaryDirectory(prefix="everfresh-pacs-") as folder:
        os.environ |= {"PACS_STORE": folder, "PACS_SEED": str(seed)}
        config = load_config(PIPELINE)
        policy = config.policy.model_copy(update={"ladder": (rung,)})
        drift = config.drift.model_copy(update={"report": False})
        proof = config.evaluation.model_copy(update={"report": False})
        config = config.model_copy(update={"policy": policy, "drift": drift, "evaluation": proof})
        begun = time.monotonic()
        entries = retrain(config, drain=True)
        store = pipeline_store(config)
        trained = [e for e in entries if e.tried and e.decision.action == "retrain"]
        row = {
            "seed": seed,
            "rung": rung,
            "frozen": by_domain(store, *model_of(store, entries[0].champion)),
            "champion": by_domain(store, *model_of(store, entries[-1].champion)),
            "seconds": [e.cost.seconds for e in trained],
            "releases": sum(e.version is not None for e in entries),
            "alarms": [e.seq for e in entries if e.alarm],
            "wall": time.monotonic() - begun,
        }
        print(json.dumps(row), flush=True)
        return row


def model_of(store: Any, release_id: str | None) -> tuple[Any, Any]:
    """How to build the model of a release, and its weights."""
    from everfresh.tasks.ledger import find
    from everfresh.tasks.records import Release

    release = find(store, f"releases/{release_id}/release.json", Release)
    assert release is not None
    return release.spec, release.files["model.safetensors"]


def by_domain(store: Any, spec: Any, weights: Any) -> dict[str, float]:
    """Accuracy of a model on all hold-outs of each domain."""
    import numpy as np

    from everfresh.tasks.embeddings import Embedder
    from everfresh.tasks.ledger import stream
    from everfresh.tasks.views import View

    embedder = Embedder.open(store, spec, weights)
    hits: dict[str, list[bool]] = {d: [] for d in DOMAINS}
    for entry in stream(store):
        view = View(store, entry.view)
        rows = view.rows("holdout", spec.classes)
        _, scores = embedder.scores(view, rows)
        for row, guess in zip(rows, scores.argmax(dim=1).tolist(), strict=True):
            sample = view.samples[int(row)]
            domain = next(d for d in DOMAINS if sample.key.startswith(f"pacs-{d}.tar"))
            hits[domain].append(spec.classes[guess] == sample.label)
    return {d: float(np.mean(h)) for d, h in hits.items()}


def interval(values: list[float]) -> str:
    """Mean and 95 % t interval over seeds."""
    from scipy.stats import t

    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.3f}"
    half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:.3f} ± {half:.3f}"


if __name__ == "__main__":
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("EVERFRESH_PROGRESS", "0")
    main()
