"""The cheapest adequate answer: what the ladder reaches and costs against retraining from pretrained on everything.

    PACS_DATA=… SQUEEZENET=… python benchmarks/adapt.py [--streams pacs digits] [--seeds 5] [--json run/adapt.json]
    PACS_DATA=… SQUEEZENET=… python benchmarks/adapt.py --rungs [--seeds 5] [--json run/adapt.json]

Without `--rungs`: the pipelines of the PACS stream and of the demo's digits run as they are (`auto`). Beside them, at
every window, a model is trained from the start weights on the training samples of all trusted windows so far
(`everything`), with the same epochs, rate and augmentation, a fresh head and nothing kept; it is published to nobody.
After each window both are scored on what was seen so far: on PACS the held-out pictures of all trusted windows so far, on
digits the 400 that were kept apart, under every scanner so far. It fails unless auto reaches RATIO of the other's accuracy
at every window, in the mean over seeds, for at most SHARE of its device-seconds. These are seconds of training, the
champion's embedding of every new picture, which drift detection makes anyway, counted to auto once more. Libraries are
loaded before the first training.

With `--rungs`: PACS with the full rung as the whole ladder, with the head rung, and from pretrained on everything at the
end; mean accuracy over the three domains, and paired 95 % t intervals over seeds of full minus each of the others. It
fails unless both exclude zero. `probed` is everything with a head that was refitted on frozen features first, as
`fine_tune.probe_first` does it; it is told and not promised.

What is done is kept in the JSON file and the folder beside it, by stream, seed and method: a rerun goes on.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pacs_stream import DOMAINS, PIPELINE, by_domain, interval, model_of

RATIO, SHARE = 0.99, 0.10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", nargs="+", choices=["pacs", "digits"], default=["pacs", "digits"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rungs", action="store_true", help="compare rungs at the end of PACS instead")
    parser.add_argument("--json", type=Path, default=Path("run/adapt/results.json"))
    options = parser.parse_args()
    results = Results(options.json)
    warm()
    if options.rungs:
        sys.exit(rungs(results, range(options.seeds)))
    missed = [words for name in options.streams for words in compare(results, name, range(options.seeds))]
    sys.exit("\n".join(missed) or 0)


def warm() -> None:
    """Load what training needs: the first to train would pay seconds for it, and digits are trained in seconds."""
    import accelerate  # noqa: F401
    import torch
    import torch.utils.tensorboard
    from sklearn.linear_model import LogisticRegression

    LogisticRegression().fit([[0.0], [1.0]], [0, 1])
    torch.nn.Conv2d(3, 3, 3)(torch.zeros(2, 3, 8, 8)).sum().backward()
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)]).step()


class Results:
    """What was measured, by stream, seed and method, kept in a file after each; stores stand in a folder beside it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def of(self, stream: str, seed: int, method: str) -> Any:
        name = f"{stream} {seed} {method}"
        if name not in self.known:
            place = Stream(stream, seed, self.path.parent / f"{stream}-{seed}", method)
            self.known[name] = place.windows(method) if method in {"auto", "everything"} else place.final()
            print(name, json.dumps(self.known[name]), flush=True)
            partial = self.path.with_suffix(".partial")
            partial.write_text(json.dumps(self.known, indent=1))
            partial.replace(self.path)
        return self.known[name]


class Stream:
    """One stream with one seed, played into a store of its own."""

    def __init__(self, name: str, seed: int, folder: Path, method: str) -> None:
        from everfresh.flows.demo import pipeline_file
        from everfresh.tasks.config import load_config
        from everfresh.tasks.store import pipeline_store

        self.name, self.seed, self.method = name, seed, method
        self.folder = (
            folder if method in {"auto", "everything", "last", "probed"} else folder.with_name(f"{folder.name}-{method}")
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        if name == "pacs":
            os.environ |= {"PACS_STORE": str(self.folder.resolve()), "PACS_SEED": str(seed)}
            config = load_config(PIPELINE)
        else:
            config = load_config(pipeline_file(self.folder, seed))
        policy = config.policy.model_copy(update={"ladder": (method,)}) if method in {"head", "full"} else config.policy
        drift = config.drift.model_copy(update={"report": False})
        proof = config.evaluation.model_copy(update={"report": False})
        self.config = config.model_copy(update={"policy": policy, "drift": drift, "evaluation": proof})
        self.store = pipeline_store(self.config)

    def play(self) -> list[Any]:
        """The loop over the whole stream; goes on where an earlier run stopped. Returns the journal."""
        from everfresh.flows.digits import SCHEDULE, arrive
        from everfresh.flows.retrain import retrain
        from everfresh.tasks.journal import scheduled

        if self.name == "pacs":
            retrain(self.config, drain=True)
        else:
            for arrival in SCHEDULE:
                if arrival.number > scheduled(self.store).last_seq():
                    arrive(self.folder / "inbox", arrival, self.seed)
                    retrain(self.config)
        return list(scheduled(self.store))

    def windows(self, method: str) -> list[dict[str, Any]]:
        """Accuracy on what was seen so far, and device-seconds, window by window."""
        rows, seen, latest = [], [], None
        for entry in self.play():
            trusted = entry.trust == "trusted"
            seen += [entry.view] * trusted
            if method == "auto":
                latest = model_of(self.store, entry.champion)
                cost = entry.cost.device_seconds + self.embedding(entry.view)
                passes = sum(t.cost.samples for t in entry.tried if t.rung not in {"recalibrate", "head"})
            else:
                cost, passes = 0.0, 0
                if trusted or latest is None:
                    made = self.everything(entry.seq)
                    latest = made.spec, made.weights
                    cost, passes = made.cost.device_seconds, made.cost.samples
            tried = [t.rung for t in entry.tried] if method == "auto" else []
            accuracy = self.accuracy(*latest, seen, entry.seq)
            rows.append({"window": entry.seq, "accuracy": accuracy, "seconds": cost, "passes": passes})
            rows[-1] |= {"tried": tried, "released": entry.version} if method == "auto" else {}
        return rows

    def everything(self, seq: int, *, probed: bool = False) -> Any:
        """From the start weights on all trusted windows up to `seq`: a candidate that nobody is told of."""
        from everfresh.tasks.config import KeepConfig
        from everfresh.tasks.fine_tune import fine_tune
        from everfresh.tasks.ledger import find
        from everfresh.tasks.records import Tick

        tick = find(self.store, f"ticks/{seq:08d}-tick.json", Tick)
        assert tick is not None
        plain = {"replay_max_samples": 10_000_000, "probe_first": probed, "keep": KeepConfig()}
        all_of_it = self.config.fine_tune.model_copy(update=plain)
        return fine_tune(self.store, self.config.model_copy(update={"fine_tune": all_of_it}), tick, "pretrained")

    def embedding(self, view: str) -> float:
        """Seconds in which the configured network embeds the pictures of a window."""
        from everfresh.tasks import models
        from everfresh.tasks.views import View

        window = View(self.store, view)
        module, spec = models.start(self.config.model, 0)
        begun = time.monotonic()
        models.embed(module, spec, window.read(range(len(window.samples))), precision=self.config.model.precision)
        return time.monotonic() - begun

    def accuracy(self, spec: Any, weights: Any, views: list[str], seq: int) -> float:
        """Of a model on what was seen up to window `seq`."""
        from everfresh.flows.digits import SCHEDULE
        from everfresh.tasks import models
        from everfresh.tasks.embeddings import Embedder
        from everfresh.tasks.views import View

        hits: list[bool] = []
        if self.name == "digits":
            module = models.load(self.store, spec, weights)
            for scanner in dict.fromkeys(a.scanner for a in SCHEDULE[:seq]):
                pictures, labels = truth_files(self.seed, scanner)
                guesses = models.embed(module, spec, pictures)[1].argmax(dim=1).tolist()
                hits += [int(spec.classes[g]) == int(label) for g, label in zip(guesses, labels, strict=True)]
        else:
            embedder = Embedder.open(self.store, spec, weights)
            for window in (View(self.store, view) for view in views):
                held = window.rows("holdout", spec.classes)
                guesses = embedder.scores(window, held)[1].argmax(dim=1).tolist()
                hits += [spec.classes[g] == window.samples[int(r)].label for g, r in zip(guesses, held, strict=True)]
        return statistics.mean(hits)

    def final(self) -> dict[str, Any]:
        """Accuracy on all held-out pictures of each domain at the end, and device-seconds."""
        entries = self.play()
        if self.method in {"last", "probed"}:
            made = self.everything(entries[-1].seq, probed=self.method == "probed")
            return by_domain(self.store, made.spec, made.weights) | {"seconds": made.cost.device_seconds}
        found = by_domain(self.store, *model_of(self.store, entries[-1].champion))
        return found | {"seconds": sum(e.cost.device_seconds for e in entries)}


def truth_files(seed: int, scanner: Any) -> tuple[Iterator[bytes], Any]:
    """The digits that were kept apart as PNG files under a scanner, and their labels."""
    from PIL import Image

    from everfresh.flows.digits import truth

    pages, labels = truth(seed, scanner)

    def encoded() -> Iterator[bytes]:
        for page in pages:
            buffer = io.BytesIO()
            Image.fromarray(page).save(buffer, "PNG")
            yield buffer.getvalue()

    return encoded(), labels


def compare(results: Results, name: str, seeds: range) -> list[str]:
    """Print what both reach on a stream; returns what was missed."""
    ours = [results.of(name, seed, "auto") for seed in seeds]
    theirs = [results.of(name, seed, "everything") for seed in seeds]
    print(f"\n{name}, {len(seeds)} seeds\n\n| window | auto | everything | ratio | tried |\n|---|---|---|---|---|")
    missed = []
    for window, pairs in enumerate(zip(zip(*ours, strict=True), zip(*theirs, strict=True), strict=True), 1):
        mine, full = (statistics.mean(row["accuracy"] for row in rows) for rows in pairs)
        tried = " · ".join("+".join(row["tried"]) or "–" for row in pairs[0])
        print(f"| {window} | {mine:.3f} | {full:.3f} | {mine / full:.3f} | {tried} |")
        if mine < RATIO * full:
            missed.append(f"{name}, window {window}: {mine / full:.3f} of the accuracy, promised {RATIO}")
    spent, full_price = (statistics.mean(sum(r["seconds"] for r in rows) for rows in runs) for runs in (ours, theirs))
    steps, all_steps = (statistics.mean(sum(r["passes"] for r in rows) for rows in runs) for runs in (ours, theirs))
    print(f"\ndevice-seconds: {spent:.1f} against {full_price:.1f}, {spent / full_price:.1%}")
    print(f"samples through the whole network and back: {steps:.0f} against {all_steps:.0f}, {steps / all_steps:.1%}")
    if spent > SHARE * full_price:
        missed.append(f"{name}: {spent / full_price:.1%} of the device-seconds, promised at most {SHARE:.0%}")
    return missed


def rungs(results: Results, seeds: range) -> str | int:
    """Print what each rung alone reaches on PACS, and how far full is ahead; returns what was missed."""
    names = {"full": "full", "head": "head", "everything": "last", "probed": "probed"}
    found = {rung: [results.of("pacs", seed, method) for seed in seeds] for rung, method in names.items()}
    mean = {rung: [statistics.mean(row[d] for d in DOMAINS) for row in rows] for rung, rows in found.items()}
    print("\n| | photo | art_painting | cartoon | mean | device-seconds |\n|---|---|---|---|---|---|")
    for rung, rows in found.items():
        domains = " | ".join(interval([row[d] for row in rows]) for d in DOMAINS)
        print(f"| {rung} | {domains} | {interval(mean[rung])} | {statistics.mean(row['seconds'] for row in rows):.0f} |")
    missed = []
    for other in ("head", "everything", "probed"):
        ahead = [a - b for a, b in zip(mean["full"], mean[other], strict=True)]
        print(f"full - {other}: {interval(ahead)}")
        if other != "probed" and lower(ahead) <= 0:
            missed.append(f"full - {other}: {interval(ahead)}, promised above 0")
    return "\n".join(missed) or 0


def lower(values: list[float]) -> float:
    """Lower end of the 95 % t interval of a mean; of one value nothing is known."""
    from scipy.stats import t

    if len(values) < 2:
        return float("-inf")
    return float(statistics.mean(values) - t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5)


if __name__ == "__main__":
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("EVERFRESH_PROGRESS", "0")
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")  # on a busy machine
    main()
