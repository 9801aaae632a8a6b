"""How often drift detection rings when nothing moved, and how often when something did, against the published detectors.

    DRIFT_DATA=… SQUEEZENET=… python benchmarks/drift_quality.py [--parts fresh fixed power evidently] [--markdown FILE]

The shifts, sizes and pools stand in `drift_grid.yaml`, committed before the methods; everything here is its `judge` role,
which nothing was tuned on. `fresh`: 1,000 quiet windows, each with a reference of its own. `fixed`: 100 references, 200
quiet windows each. `power`: 200 windows a cell; every method alarms above its own threshold measured on 1,000 quiet
windows of that size, so all have the same false-alarm rate of 5 %; all see the same windows (the four of the literature only
outputs or embeddings, as they are published; ours the image properties too). `evidently`: a subset, since
it is slow. The limit of a power is 1; that of a false-alarm rate is the declared one. Exits 1 if a promise is broken.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import detectors
import numpy as np
from scipy.stats import binom
from shifted import GRID, Stream, load
from tqdm import tqdm

from everfresh.tasks.drift import shift
from everfresh.tasks.drift.frame import Frame

LEVEL, RATES = GRID["level"], GRID["quiet_windows"]["rates"]
OURS = "Everfresh"
METHODS = (OURS, *detectors.BASELINES)
STREAMS: dict[str, Stream] = {}


def ours(reference: Frame, current: Frame, seed: int, permutations: int) -> shift.Shift:
    return shift.compare("reference", reference, current, components=16, permutations=permutations, seed=seed)


def seeded(*parts: int | str | None) -> np.random.Generator:
    """A generator for one window; equal parts give equal windows."""
    return np.random.default_rng(zlib.crc32(repr(parts).encode()))


# --- what a worker does ------------------------------------------------------------------------------------------------


def scored(job: tuple[str, int, str | None, int, int]) -> tuple[tuple[str, int, str | None], np.ndarray]:
    """(windows, methods) scores of some windows of one cell."""
    name, size, moved, first, last = job
    rows = []
    for number in range(first, last):
        reference, current = STREAMS[name].draw(seeded(name, size, moved, number), moved, size)
        found = ours(reference, current, number, 199).strength
        rows.append([found, *(score(reference, current, number) for score in detectors.BASELINES.values())])
    return (name, size, moved), np.array(rows)


def quiet_p(job: tuple[str, int, int, int]) -> tuple[tuple[str, int], np.ndarray]:
    """(windows, 2) p-values of ours and of BBSD with Bonferroni on quiet windows with fresh references."""
    name, size, first, last = job
    rows = []
    for number in range(first, last):
        reference, current = STREAMS[name].draw(seeded("fresh", name, size, number), None, size)
        rows.append([ours(reference, current, number, 999).p_value, detectors.bbsd_p(reference, current)])
    return (name, size), np.array(rows)


def fixed_p(job: tuple[str, int, int, int]) -> tuple[tuple[str, int], np.ndarray]:
    """(1, windows, 2) p-values of quiet windows against one reference."""
    name, size, number, windows = job
    stream = STREAMS[name]
    held = seeded("fixed", name, size, number).permutation(len(stream.quiet))[: stream.reference]
    rows = []
    for window in range(windows):
        reference, current = stream.draw(seeded("fixed", name, size, number, window), None, size, held)
        rows.append([ours(reference, current, window, 199).p_value, detectors.bbsd_p(reference, current)])
    return (name, size), np.array([rows])


def evidently(job: tuple[str, int, str | None, int, int]) -> tuple[tuple[str, int, str | None], np.ndarray]:
    """(windows, 5): preset's share, verdict, any column; embeddings' score, verdict."""
    name, size, moved, first, last = job
    rows = []
    for number in range(first, last):
        reference, current = STREAMS[name].draw(seeded(name, size, moved, number), moved, size)
        rows.append([*detectors.evidently_preset(reference, current), *detectors.evidently_embeddings(reference, current)])
    return (name, size, moved), np.array(rows, dtype=float)


def run(work: Callable[[Any], tuple[Any, np.ndarray]], jobs: list[Any], words: str) -> dict[Any, np.ndarray]:
    found: dict[Any, list[np.ndarray]] = {}
    with get_context("fork").Pool(os.cpu_count()) as pool:
        for key, rows in tqdm(pool.imap(work, jobs, chunksize=1), words, total=len(jobs), disable=None, mininterval=5):
            found.setdefault(key, []).append(rows)
    return {key: np.concatenate(rows) for key, rows in found.items()}


def pieces(count: int, most: int = 50) -> Iterator[tuple[int, int]]:
    for first in range(0, count, most):
        yield first, min(count, first + most)


# --- the tables --------------------------------------------------------------------------------------------------------


def fresh() -> tuple[list[str], list[str]]:
    """False alarms with a reference of its own for each window."""
    plan = GRID["quiet_windows"]["fresh"]
    cells = [(name, size) for name in STREAMS for size in plan[name]]
    found = run(quiet_p, [(*cell, a, b) for cell in cells for a, b in pieces(plan["windows"])], "fresh references")
    simultaneous = (1 - 0.95 ** (1 / (len(cells) * len(RATES)))) / 2
    lines = [
        f"| stream | n | declared | {OURS} | allowed, simultaneous 95 % | BBSD, Bonferroni |",
        "|---|---|---|---|---|---|",
    ]
    broken = []
    for (name, size), p in found.items():
        for rate in RATES:
            alarms = (p <= rate + 1e-12).sum(axis=0)
            low, high = (int(binom.ppf(q, len(p), rate)) for q in (simultaneous, 1 - simultaneous))
            lines.append(
                f"| {name} | {size} | {rate:.0%} | {alarms[0] / len(p):.1%} | {low / len(p):.1%} … {high / len(p):.1%} "
                f"| {alarms[1] / len(p):.1%} |"
            )
            if not low <= alarms[0] <= high:
                broken.append(f"false alarms, fresh references, {name}, n = {size}: {alarms[0]} of {len(p)} at {rate:.0%}")
    return lines, broken


def fixed() -> tuple[list[str], list[str]]:
    """False alarms with references that stay."""
    plan = GRID["quiet_windows"]["fixed"]
    cells = [(name, size) for name in STREAMS for size in plan[name]]
    jobs = [(*cell, number, plan["windows"]) for cell in cells for number in range(plan["references"])]
    found = run(fixed_p, jobs, "fixed references")
    lines = [
        f"| stream | n | declared | {OURS}: mean (× declared) | 90th percentile (×) | BBSD, Bonferroni: mean (×) | 90th (×) |",
        "|---|---|---|---|---|---|---|",
    ]
    broken = []
    for (name, size), p in found.items():
        for rate in RATES:
            alarms = (p <= rate + 1e-12).mean(axis=1)  # (references, methods)
            mean, ninth = alarms.mean(axis=0), np.quantile(alarms, 0.9, axis=0)
            texts = [f"{m:.2%} ({m / rate:.2f}) | {q:.1%} ({q / rate:.1f})" for m, q in zip(mean, ninth, strict=True)]
            lines.append(f"| {name} | {size} | {rate:.0%} | {texts[0]} | {texts[1]} |")
            if mean[0] > 1.2 * rate or ninth[0] > 3 * rate:
                broken.append(f"false alarms, fixed references, {name}, n = {size} at {rate:.0%}: {texts[0]}")
    return lines, broken


def power() -> tuple[list[str], list[str]]:
    """Detection rates at a measured false-alarm rate."""
    jobs = []
    for name, stream in STREAMS.items():
        for size in stream.sizes:
            jobs += [(name, size, None, a, b) for a, b in pieces(GRID["quiet"])]
            jobs += [(name, size, moved, a, b) for moved in stream.shifts for a, b in pieces(GRID["trials"])]
    found = run(scored, jobs, "power")
    hits = {}
    for (name, size, moved), scores in found.items():
        if moved is not None:
            hits[name, size, moved] = scores > np.quantile(found[name, size, None], 1 - LEVEL, axis=0)
    sizes = sorted({size for _, size, _ in hits})
    lines = [f"| n | cells | {' | '.join(METHODS)} | {OURS} − best other, 95 % |", f"|---|---|{'---|' * len(METHODS)}---|"]
    broken = []
    for size in sizes:
        table = np.stack([h for (_, s, _), h in hits.items() if s == size]).astype(float)  # (cells, trials, methods)
        mean = table.mean(axis=(0, 1))
        best = 1 + int(np.argmax(mean[1:]))
        gap = table[:, :, 0] - table[:, :, best]
        spread = 1.96 * float(np.sqrt(gap.var(axis=1, ddof=1).sum() / gap.shape[1])) / len(gap)
        lead = f"{gap.mean():+.3f} ± {spread:.3f} ({METHODS[best]})"
        lines.append(f"| {size} | {len(table)} | {' | '.join(f'{m:.3f}' for m in mean)} | {lead} |")
        if gap.mean() + spread < 0:
            broken.append(f"power at n = {size}: {gap.mean():+.3f} ± {spread:.3f} behind {METHODS[best]}")
    lines += ["", f"Per shift: {OURS} / {' / '.join(detectors.BASELINES)}.", ""]
    for name, stream in STREAMS.items():
        lines += [f"| {name} | {' | '.join(f'n = {s}' for s in stream.sizes)} |", f"|---|{'---|' * len(stream.sizes)}"]
        for moved in stream.shifts:
            cells = [" / ".join(f"{v:.2f}".lstrip("0") for v in hits[name, s, moved].mean(axis=0)) for s in stream.sizes]
            lines.append(f"| {moved} | {' | '.join(cells)} |")
        lines.append("")
    return lines, broken


def against_evidently() -> tuple[list[str], list[str]]:
    """Evidently's preset and embedding drift with their defaults on a subset, and how often they ring on quiet windows."""
    plan, name = GRID["evidently"], "mnist"
    quiet = 3 * plan["trials"]
    jobs = [(name, size, None, a, b) for size in plan["sizes"] for a, b in pieces(quiet, 10)]
    jobs += [
        (name, size, moved, a, b) for size in plan["sizes"] for moved in plan["shifts"] for a, b in pieces(plan["trials"], 10)
    ]
    found = run(evidently, jobs, "Evidently")
    mine = run(scored, [(*job[:2], job[2], job[3], job[4]) for job in jobs], "the same windows")
    lines = [
        f"| n | | {OURS} at 5 % | preset: its verdict | preset: any column | embeddings: its verdict | preset at 5 % "
        "| embeddings at 5 % |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for size in plan["sizes"]:
        calm, own = found[name, size, None], mine[name, size, None][:, 0]
        cuts = np.quantile(calm, 1 - LEVEL, axis=0)
        moved = np.concatenate([found[name, size, m] for m in plan["shifts"]])
        seen = np.concatenate([mine[name, size, m][:, 0] for m in plan["shifts"]])
        for words, theirs, us in ((f"{quiet} quiet windows", calm, own), (f"{len(plan['shifts'])} shifts", moved, seen)):
            values = [(us > np.quantile(own, 1 - LEVEL)).mean(), *theirs[:, [1, 2, 4]].mean(axis=0)]
            values += [(theirs[:, 0] > cuts[0]).mean(), (theirs[:, 3] > cuts[3]).mean()]
            lines.append(f"| {size} | {words} | {' | '.join(f'{v:.2f}' for v in values)} |")
    return lines, []


PARTS = {"fresh": fresh, "fixed": fixed, "power": power, "evidently": against_evidently}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--streams", nargs="+", choices=GRID["streams"], default=list(GRID["streams"]))
    parser.add_argument("--cache", type=Path, default=Path("run/drift"), help="where the frames are kept")
    parser.add_argument("--share", type=float, default=1.0, help="of the grid's windows, for a quick look: intervals grow")
    parser.add_argument("--markdown", type=Path, help="write the tables here too, one file a part")
    parser.add_argument("--sizes", nargs="+", type=int, help="of quiet windows; else those of the grid")
    parser.add_argument("--references", type=int, help="that stay, for `fixed`; else as many as in the grid")
    options = parser.parse_args()
    quiet = GRID["quiet_windows"]
    if options.sizes:
        for plan in (quiet["fresh"], quiet["fixed"]):
            plan.update({name: [n for n in plan[name] if n in options.sizes] for name in GRID["streams"]})
    quiet["fixed"]["references"] = options.references or quiet["fixed"]["references"]
    for name in options.streams:
        STREAMS[name] = load(name, "judge", options.cache)
    if options.share < 1:
        print(f"a quick look: {options.share:.0%} of the grid's windows\n")
        for counts, names in (
            (GRID, ("trials", "quiet")),
            (GRID["quiet_windows"]["fresh"], ("windows",)),
            (GRID["quiet_windows"]["fixed"], ("references",)),
        ):
            counts.update({name: max(20, int(counts[name] * options.share)) for name in names})
    broken = []
    for part in options.parts:
        begun = time.monotonic()
        lines, bad = PARTS[part]()
        broken += bad
        text = f"## {(PARTS[part].__doc__ or '').strip()}\n\n" + "\n".join(lines)
        print(f"{text}\n\n({time.monotonic() - begun:.0f} s)\n", flush=True)
        if options.markdown:
            options.markdown.mkdir(parents=True, exist_ok=True)
            (options.markdown / f"{part}.md").write_text(text + "\n")
    print(json.dumps({"broken": broken}))
    sys.exit("\n".join(broken) or 0)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
