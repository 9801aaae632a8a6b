"""The gates against the truth: challengers of known quality, and which of them go live.

    PACS_DATA=… SQUEEZENET=… python benchmarks/gates_truth.py [--streams pacs digits] [--json run/gates/results.json]

A champion is trained on one window; challengers are made by the product's own rungs from the next one, most of them spoilt:
labels shuffled by 10 to 100 %, a class or a slice destroyed, scores scaled, hold-out samples trained on, weights that are no
numbers, a network that is slow or large; and good ones, against this champion and against one that learnt from few samples.
In all 50 by the head rung and 10 by the full rung a stream. Each is judged by `evaluate` with the gates of GATES. What it is
worth is its gain over the champion in a pool that no rung and no gate ever sees: photos, art paintings and cartoons of PACS
(1,800 pictures), clean and aged digits (897). It fails if one that is at least LOSS behind the champion in the pool goes
live, if fewer than SHARE of those at least GAIN ahead of it do, or if a gate misses the fault that is its own. It draws the
curve in between, share that goes live by true gain with Wilson intervals, beside the results.

What is done is kept in the JSON file: a rerun goes on.
"""

from __future__ import annotations

import argparse
import copy
import csv
import itertools
import json
import os
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from everfresh.tasks.slices import wilson

LOSS, GAIN, SHARE = -0.03, 0.08, 0.95
BASE, WINDOW = 600, 1200
"""Samples of the two windows of PACS; of digits half as many."""
FEW, MOST = 30, 0.6
"""Samples that the weak champion learnt from; share of the training samples that each good challenger draws."""
USUAL = 0.2
"""p-value at which the gate `better` passes as it comes."""
GATES: list[dict[str, Any]] = [
    {"kind": "floor", "minimum": 0.5},
    {"kind": "better", "confidence": 0.95},
    {"kind": "no_worse", "margin": 0.02},
    {"kind": "slices", "columns": ["domain"]},
    {"kind": "calibration"},
    {"kind": "latency"},
    {"kind": "size"},
]
OWN_GATE = {"slice destroyed": "slices", "miscalibrated": "calibration", "slow": "latency", "large": "size"}


# --- networks: the one that is deployed, and two that are not fit for it -----------------------------------------------------


def squeezenet(num_classes: int) -> nn.Module:
    """SqueezeNet 1.1 with the weights of ImageNet, under the name of this file, so that its twins may stand in."""
    from torchvision import models

    return models.squeezenet1_1(num_classes=num_classes)


def small(num_classes: int) -> nn.Module:
    """The demo's network."""
    from everfresh.tasks.models import small_cnn

    return small_cnn(num_classes)


class _Slow(nn.Module):
    """Its input, after as much work as some networks are."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        waste = pixels.new_ones(768, 768)
        for _ in range(8):
            waste = waste @ waste / 768
        return pixels + 0 * waste.mean()


def _worn(module: nn.Module, *, slow: bool) -> nn.Module:
    if slow:
        first = next(iter(module.named_children()))[0]
        module.set_submodule(first, nn.Sequential(_Slow(), module.get_submodule(first)))
    else:
        module.register_buffer("ballast", torch.zeros(2_000_000))
    return module


def slow_squeezenet(num_classes: int) -> nn.Module:
    """The same answers, later."""
    return _worn(squeezenet(num_classes), slow=True)


def large_squeezenet(num_classes: int) -> nn.Module:
    """The same answers, from a larger file."""
    return _worn(squeezenet(num_classes), slow=False)


def slow_small(num_classes: int) -> nn.Module:
    """The same answers, later."""
    return _worn(small(num_classes), slow=True)


def large_small(num_classes: int) -> nn.Module:
    """The same answers, from a larger file."""
    return _worn(small(num_classes), slow=False)


# --- samples -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Picture:
    """One sample: its file's bytes, its label, and the slice that it is of."""

    data: bytes
    suffix: str
    label: str
    domain: str


def pacs() -> Iterator[Picture]:
    """All 3,600 pictures in the order of their archives."""
    for domain in ("photo", "art_painting", "cartoon"):
        with tarfile.open(Path(os.environ["PACS_DATA"]) / f"pacs-{domain}.tar") as archive:
            for member in archive:
                if (file := archive.extractfile(member)) is not None:
                    yield Picture(file.read(), Path(member.name).suffix, Path(member.name).parent.name, domain)


def digits() -> Iterator[Picture]:
    """All 1,797 digits, every second one from an aged scanner."""
    import io

    from PIL import Image
    from sklearn.datasets import load_digits

    from everfresh.flows.digits import Scanner, scan

    data = load_digits()
    for number, (image, label) in enumerate(zip(data.images, data.target, strict=True)):
        aged = number % 2 == 1
        page = scan(image[None] / 16, Scanner(0.6, 0.6, 12.0) if aged else Scanner())[0]
        buffer = io.BytesIO()
        Image.fromarray(page).save(buffer, "PNG")
        yield Picture(buffer.getvalue(), ".png", str(label), "aged" if aged else "clean")


STREAMS: dict[str, dict[str, Any]] = {  # `scaled` is the factor on the scores of the miscalibrated
    "pacs": {
        "pictures": pacs,
        "sizes": (BASE, WINDOW),
        "scaled": 8.0,
        "model": {
            "architecture": "gates_truth:squeezenet",
            "weights": "${SQUEEZENET}",
            "classes": ["dog", "elephant", "giraffe", "guitar", "horse", "house", "person"],
            "image_size": 128,
            "precision": "bf16",
        },
        "bootstrap": "head",
        "fine_tune": {"epochs": 2, "batch_size": 32, "learning_rate": 0.0006, "augment": "crop_flip"},
    },
    "digits": {
        "pictures": digits,
        "sizes": (BASE // 2, WINDOW // 2),
        "scaled": 0.1,  # a sharp one errs too seldom to be far off
        "model": {
            "architecture": "gates_truth:small",
            "weights": None,
            "classes": [str(n) for n in range(10)],
            "image_size": 32,
            "mean": [0.3, 0.3, 0.3],
            "std": [0.3, 0.3, 0.3],
        },
        "bootstrap": "pretrained",
        "fine_tune": {"epochs": 16, "full_epochs": 4, "batch_size": 16, "learning_rate": 0.005, "augment": "none"},
    },
}


# --- challengers -------------------------------------------------------------------------------------------------------------

Spoil = Callable[[list[Any], np.random.Generator], dict[int, str]]
"""(training samples, draw) -> other labels by row of the sample in that list."""


def shuffled(share: float) -> Spoil:
    """A share of the labels dealt anew among themselves."""

    def spoil(samples: list[Any], draw: np.random.Generator) -> dict[int, str]:
        rows = draw.permutation(len(samples))[: round(share * len(samples))]
        return dict(zip(rows.tolist(), [samples[r].label for r in draw.permutation(rows)], strict=True))

    return spoil


def class_destroyed(number: int) -> Spoil:
    """All of one class called by the name of the next."""

    def spoil(samples: list[Any], _: np.random.Generator) -> dict[int, str]:
        names = sorted({s.label for s in samples})
        lost, other = names[number % len(names)], names[(number + 1) % len(names)]
        return {row: other for row, s in enumerate(samples) if s.label == lost}

    return spoil


def slice_destroyed(domain: str) -> Spoil:
    """Within one slice each class called by the name of the next."""

    def spoil(samples: list[Any], _: np.random.Generator) -> dict[int, str]:
        names = sorted({s.label for s in samples})
        following = dict(zip(names, [*names[1:], names[0]], strict=True))
        inside = [row for row, s in enumerate(samples) if json.loads(s.slices)["domain"] == domain]
        return {row: following[samples[row].label] for row in inside}

    return spoil


@dataclass(frozen=True)
class Challenger:
    """One to be made."""

    kind: str
    rung: str
    seed: int
    spoil: Spoil | None = None
    after: str = ""
    """What is done to it once it is trained."""
    weak: bool = False
    """Whether it meets the champion that learnt from few samples."""

    @property
    def name(self) -> str:
        return f"{self.kind} · {self.rung} · {self.seed}"


def challengers(domains: list[str]) -> list[Challenger]:
    """Fifty by the head rung and ten by the full rung."""
    found = [Challenger(f"shuffled {10 * n} %", "head", s, shuffled(n / 10)) for n in range(1, 11) for s in range(2)]
    found += [Challenger("class destroyed", "head", s, class_destroyed(s)) for s in range(5)]
    found += [Challenger("slice destroyed", "head", s, slice_destroyed(domains[s % len(domains)])) for s in range(3)]
    found += [Challenger(kind, "head", s, after=kind) for kind in ("miscalibrated", "slow", "large", "NaN") for s in range(2)]
    found += [Challenger("trained on the hold-out", "head", s, shuffled(0.6), after="hold-out") for s in range(2)]
    found += [Challenger("good", "head", s) for s in range(4)]
    found += [Challenger("good, weak champion", "head", s, weak=True) for s in range(8)]
    found += [Challenger(f"shuffled {n} %", "full", 0, shuffled(n / 100)) for n in (20, 40, 60, 80, 100)]
    found += [Challenger("class destroyed", "full", 0, class_destroyed(3)), Challenger("good", "full", 0)]
    return found + [Challenger("good, weak champion", "full", s, weak=True) for s in range(3)]


class Stream:
    """One stream with its champions, and the pool that tells the truth."""

    def __init__(self, name: str, folder: Path) -> None:
        from everfresh.tasks import ingest
        from everfresh.tasks.config import parse_config
        from everfresh.tasks.ledger import stream
        from everfresh.tasks.records import Banked
        from everfresh.tasks.store import pipeline_store
        from everfresh.tasks.views import View

        about = STREAMS[name]
        pictures = list(about["pictures"]())
        order = np.random.default_rng(0).permutation(len(pictures))
        base, window = about["sizes"]
        self.scaled = about["scaled"]
        self.truth = [pictures[i] for i in order[base + window :]]
        self.domains = sorted({p.domain for p in pictures})
        model = about["model"] | ({"weights": os.environ["SQUEEZENET"]} if about["model"]["weights"] else {})
        self.config = parse_config(
            {
                "name": name,
                "store": str(folder / "store"),
                "source": {
                    "kind": "folder",
                    "path": str(folder / "inbox"),
                    "labels": {"kind": "sidecar", "path": "labels.csv", "slice_columns": ["domain"]},
                },
                "window": {"holdout_fraction": 0.35, "tune_fraction": 0.1, "bank_max_samples": 10_000},
                "model": model,
                "drift": {"report": False},
                "policy": {"bootstrap": about["bootstrap"]},
                "fine_tune": about["fine_tune"],
                "gates": GATES,
                "release": {"formats": []},
                "evaluation": {"report": False},
            }
        )
        self.store = pipeline_store(self.config)
        self.views = []
        for seq, rows in ((1, order[:base]), (2, order[base : base + window])):
            write(folder / "inbox", seq, [pictures[i] for i in rows])
            entry = stream(self.store).entry(seq) or ingest.ingest(self.store, self.config)
            assert entry is not None
            self.views.append(View(self.store, entry.view))
        self.bank = (Banked(view=self.views[0].window.view, seq=1, regime="window 1", labelled=base),)
        self.known: dict[str, torch.Tensor] = {}
        """Embeddings of the pool by encoder."""
        self.champion(weak=False)
        self.champion(weak=True)

    def champion(self, *, weak: bool) -> None:
        """Moves 1 and 2 of the alias: a release of the first window, and one with a head that was fitted on FEW of it."""
        from everfresh.tasks import evaluate, fine_tune, publish
        from everfresh.tasks.config import FloorGate
        from everfresh.tasks.ledger import champion_moves

        if champion_moves(self.store).entry(1 + weak) is not None:
            return
        open_gates = self.config.model_copy(update={"gates": (FloorGate(minimum=0),)})
        tick = self.tick(1, against=int(weak))
        if weak:
            with training_on(lambda pool: replace(pool, parts=((pool.parts[0][0], pool.parts[0][1][:FEW]),))):
                made = fine_tune.fine_tune(self.store, self.config, tick, "head")
        else:
            made = fine_tune.fine_tune(self.store, self.config, tick, self.config.policy.bootstrap)
        proof = evaluate.evaluate(self.store, open_gates, tick, made, against=tick.champion_move)
        publish.publish(self.store, open_gates, tick, made, proof, self.bank)

    def tick(self, seq: int, against: int, request: str = "") -> Any:
        """Of a window, with the champion of a move; forced by `request`, so that each has a seed of its own."""
        from everfresh.tasks.ledger import champion_moves
        from everfresh.tasks.records import Tick

        move = champion_moves(self.store).entry(against)
        return Tick(
            seq=seq,
            request=request,
            view=self.views[seq - 1].window.view,
            champion=move.release if move else None,
            champion_move=against,
            reference=None,
            bank=self.bank if seq > 1 else (),
            now=self.store.now(),
        )

    def judge(self, wanted: Challenger) -> dict[str, Any]:
        """Make one, let the gates judge it, and see what it is worth."""
        from everfresh.tasks import evaluate, fine_tune
        from everfresh.tasks.errors import EverfreshError

        against = 1 + wanted.weak
        tick = self.tick(2, against, wanted.name)
        with training_on(self.spoilt(wanted)):
            made = fine_tune.fine_tune(self.store, self.config, tick, "head")
            if wanted.rung == "full":
                made = fine_tune.fine_tune(self.store, self.config, tick, "full", made)
        made = self.altered(made, wanted)
        try:
            proof = evaluate.evaluate(self.store, self.config, tick, made, against=against)
            failed, verdicts = list(proof.failed_gates), [v.model_dump(mode="json") for v in proof.verdicts]
        except EverfreshError as error:
            failed, verdicts = [f"refused: {error}"], []
        gain = None
        if wanted.after != "NaN":
            gain = self.worth(made.spec, made.weights) - self.worth(*self.release(against))
        return {"kind": wanted.kind, "rung": wanted.rung, "gain": gain, "failed": failed, "verdicts": verdicts}

    def spoilt(self, wanted: Challenger) -> Callable[[Any], Any]:
        """What becomes of the training samples."""

        def change(pool: Any) -> Any:
            draw = np.random.default_rng(wanted.seed)
            parts = []
            for number, (view, rows) in enumerate(pool.parts):
                if wanted.spoil:
                    other = wanted.spoil([view.samples[int(r)] for r in rows], draw)
                    told = {int(rows[place]): label for place, label in other.items()}
                    view = copy.copy(view)
                    view._samples = [replace(s, label=told.get(row, s.label)) for row, s in enumerate(view.samples)]
                if wanted.after == "hold-out" and number == 0:
                    rows = np.concatenate([rows, view.rows("holdout", pool.targets)])
                if wanted.kind.startswith("good"):
                    rows = np.sort(draw.permutation(rows)[: round(MOST * len(rows))])
                parts.append((view, rows))
            return replace(pool, parts=tuple(parts))

        return change

    def altered(self, made: Any, wanted: Challenger) -> Any:
        """The candidate as it comes, or what was made of it after its training."""
        from everfresh.tasks import models
        from everfresh.tasks.records import digest_of
        from everfresh.tasks.store import scratch

        if wanted.after in {"", "hold-out"}:
            return made
        architecture = self.config.model.architecture
        module, spec = models.load(self.store, made.spec, made.weights, code=architecture), made.spec
        if wanted.after in {"slow", "large"}:
            spec = spec.model_copy(update={"architecture": architecture.replace(":", f":{wanted.after}_")})
            module = _worn(module, slow=wanted.after == "slow")
        else:
            with torch.no_grad():
                head = models.linear_head(module, spec)
                head.weight.mul_(self.scaled if wanted.after == "miscalibrated" else float("nan"))
                head.bias.mul_(self.scaled)
        key = digest_of(made.key, wanted.after)
        with scratch() as folder:
            models.save(module, folder / "model.safetensors")
            weights = self.store.keep_file(f"candidates/{key}/model.safetensors", folder / "model.safetensors")
        return made.model_copy(update={"key": key, "spec": spec, "weights": weights})

    def release(self, move: int) -> tuple[Any, Any]:
        """Spec and weights of the release of a move."""
        from everfresh.tasks.ledger import champion_moves, find
        from everfresh.tasks.records import Release

        found = find(self.store, f"releases/{champion_moves(self.store).entry(move).release}/release.json", Release)
        assert found is not None
        return found.spec, found.files["model.safetensors"]

    def worth(self, spec: Any, weights: Any) -> float:
        """Accuracy in the pool, fp32."""
        from everfresh.tasks import models

        module = models.load(self.store, spec, weights, code=self.config.model.architecture)
        encoder = models.encoder_digest(module, spec, "fp32")
        if encoder not in self.known:
            self.known[encoder] = models.embed(module, spec, (p.data for p in self.truth))[0]
        head = models.linear_head(module, spec)
        with torch.no_grad():
            guesses = head(self.known[encoder]).argmax(dim=1).tolist()
        return float(np.mean([spec.classes[g] == p.label for g, p in zip(guesses, self.truth, strict=True)]))


@contextmanager
def training_on(change: Callable[[Any], Any]) -> Iterator[None]:
    """Within it every rung trains on what `change` makes of its training samples; *tune* stays as it is."""
    from everfresh.tasks.fine_tune import stage

    pools = stage._pools

    def changed(*given: Any) -> Any:
        train, tune, kept = pools(*given)
        return change(train), tune, kept

    stage._pools = changed
    try:
        yield
    finally:
        stage._pools = pools


def write(inbox: Path, seq: int, pictures: list[Picture]) -> None:
    """A window's files, and their rows in the table of labels."""
    folder = inbox / f"{seq:02d}"
    if folder.exists():
        return
    folder.mkdir(parents=True)
    table = inbox / "labels.csv"
    fresh = not table.exists()
    with table.open("a", newline="") as file:
        rows = csv.writer(file)
        if fresh:
            rows.writerow(["key", "label", "domain"])
        for number, picture in enumerate(pictures):
            name = f"{seq:02d}/{number:05d}{picture.suffix}"
            (inbox / name).write_bytes(picture.data)
            rows.writerow([name, picture.label, picture.domain])


# --- what is told ------------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", nargs="+", choices=list(STREAMS), default=list(STREAMS))
    parser.add_argument("--json", type=Path, default=Path("run/gates/results.json"))
    options = parser.parse_args()
    options.json.parent.mkdir(parents=True, exist_ok=True)
    known: dict[str, Any] = json.loads(options.json.read_text()) if options.json.exists() else {}
    rows = []
    for name in options.streams:
        stream = Stream(name, options.json.parent / name)
        for wanted in challengers(stream.domains):
            key = f"{name} · {wanted.name}"
            if key not in known:
                known[key] = stream.judge(wanted)
                partial = options.json.with_suffix(".partial")
                partial.write_text(json.dumps(known, indent=1))
                partial.replace(options.json)
                row = known[key]
                print(key, "-" if row["gain"] is None else f"{row['gain']:+.3f}", row["failed"] or "goes live", flush=True)
            rows.append({"stream": name} | known[key])
    missed = told(rows)
    picture(rows, options.json.with_name("gates.png"))
    sys.exit("\n".join(missed) or 0)


def of_quality(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that differ in what they are worth, not in how sure, fast or large they are."""
    return [r for r in rows if r["gain"] is not None and r["kind"] not in {"miscalibrated", "slow", "large"}]


def usually(row: dict[str, Any]) -> bool:
    """Whether it goes live with the gate `better` as it comes, from the p-value that was recorded."""
    found = next((v["numbers"] for v in row["verdicts"] if v["gate"] == "better"), None)
    return found is not None and not set(row["failed"]) - {"better"} and found["gain"] > 0 and found["p_value"] <= USUAL


def told(rows: list[dict[str, Any]]) -> list[str]:
    """Print who went live, by what they are worth; returns what was missed."""
    measured = of_quality(rows)
    print("\n| true gain, points | challengers | go live | 95 % | `better` as it comes |\n|---|---|---|---|---|")
    for (low, high), inside in binned(measured):
        live = sum(not r["failed"] for r in inside)
        share = f"{wilson(live, len(inside)).low:.0%} … {wilson(live, len(inside)).high:.0%}"
        usual = sum(map(usually, inside))
        print(f"| {100 * low:+.0f} … {100 * high:+.0f} | {len(inside)} | {live} | {share} | {usual} |")
    print("\n| challengers | how many | go live | stopped by |\n|---|---|---|---|")
    for kind in dict.fromkeys(r["kind"] for r in rows):
        mine = [r for r in rows if r["kind"] == kind]
        by = sorted({f.split(":")[0] for r in mine for f in r["failed"]})
        print(f"| {kind} | {len(mine)} | {sum(not r['failed'] for r in mine)} | {', '.join(by) or '–'} |")
    missed = [
        f"{r['stream']}, {r['kind']} by {r['rung']}: {r['gain']:+.3f} and goes live"
        for r in measured
        if r["gain"] <= LOSS and not r["failed"]
    ]
    good = [r for r in measured if r["gain"] >= GAIN]
    live = sum(not r["failed"] for r in good)
    print(f"\nof {len(good)} that are at least {100 * GAIN:.0f} points better {live} go live")
    if not good or live < SHARE * len(good):
        missed.append(f"{live} of {len(good)} at least {GAIN:+.2f} ahead go live, promised {SHARE:.0%}")
    blind = [r for r in rows if r["kind"] in OWN_GATE and OWN_GATE[r["kind"]] not in r["failed"]]
    return missed + [f"{r['stream']}, {r['kind']}: not stopped by {OWN_GATE[r['kind']]}, but by {r['failed']}" for r in blind]


def binned(rows: list[dict[str, Any]]) -> Iterator[tuple[tuple[float, float], list[dict[str, Any]]]]:
    """Challengers by their true gain."""
    edges = [-1.0, -0.2, -0.08, -0.03, 0.0, 0.03, 0.08, 0.2, 1.0]
    for low, high in itertools.pairwise(edges):
        inside = [r for r in rows if low < r["gain"] <= high]
        if inside:
            yield (low, high), inside


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """Each challenger by what it is worth, and the share that goes live."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5))
    measured = of_quality(rows)
    for name in dict.fromkeys(r["stream"] for r in measured):
        mine = [r for r in measured if r["stream"] == name]
        jitter = np.random.default_rng(0).uniform(-0.03, 0.03, len(mine))
        axes.plot(
            [100 * r["gain"] for r in mine], [(not r["failed"]) + j for r, j in zip(mine, jitter, strict=True)], ".", label=name
        )
    centres, shares, bars = [], [], []
    for _, inside in binned(measured):
        share = wilson(sum(not r["failed"] for r in inside), len(inside))
        centres.append(100 * float(np.mean([r["gain"] for r in inside])))
        shares.append(share.value)
        bars.append((share.value - share.low, share.high - share.value))
    axes.errorbar(centres, shares, np.array(bars).T, fmt="k-o", capsize=3, label="share, 95 %")
    for edge in (100 * LOSS, 100 * GAIN):
        axes.axvline(edge, color="grey", linestyle=":")
    axes.set(xlabel="true gain over the champion, points", ylabel="share that goes live", ylim=(-0.08, 1.08))
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    os.environ.setdefault("EVERFRESH_PROGRESS", "0")
    sys.path.insert(0, str(Path(__file__).parent))
    main()
