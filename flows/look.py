"""``everfresh status`` and ``history``: what the store says of a pipeline, as records and as tables."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

from rich.table import Table

from everfresh.tasks import approvals
from everfresh.tasks.catalogue import Entry, catalogue, removed
from everfresh.tasks.config import PipelineConfig
from everfresh.tasks.journal import idle_since, latest
from everfresh.tasks.ledger import CHAMPION, alias_names, aliases, champion_moves, find, moves, stream
from everfresh.tasks.records import AliasMove, JournalEntry, Release, RemovedRelease
from everfresh.tasks.store import Store, pipeline_store

MEANS = {
    "right_is": "right is",
    "champion_accuracy": "its accuracy, at release",
    "drift_alarm": "drift alarm on it",
    "alarms_waiting": "drift alarm on windows that wait",
    "estimated_accuracy": "estimated accuracy on it, of the champion that met it",
    "measured_accuracy": "measured accuracy on it, of the champion that met it",
}
"""Facts of the status whose key does not say all: the champion that met the last window may have been replaced since."""


READERS = 8
"""Journal entries that are read at the same time; a store far away answers each in milliseconds."""


def history(store: Store) -> tuple[list[JournalEntry], list[AliasMove]]:
    """All journal entries, by window and time, and all moves of the champion."""
    keys = [item.key for item in store.list("journal") if item.key.endswith(".json")]
    with ThreadPoolExecutor(READERS) as readers:
        entries = list(readers.map(lambda key: JournalEntry.from_bytes(store.get(key), store.url(key)), keys))
    return sorted(entries, key=lambda e: (e.seq, e.started_at)), list(champion_moves(store))


def other_moves(store: Store) -> dict[str, list[AliasMove]]:
    """All moves of every alias but the champion, by its name."""
    return {name: list(moves(store, name)) for name in alias_names(store) if name != CHAMPION}


def status(config: PipelineConfig) -> dict[str, Any]:
    """Where the pipeline of a file stands, as plain values."""
    return facts(config.name, pipeline_store(config), config)


def facts(name: str, store: Store, config: PipelineConfig | None = None) -> dict[str, Any]:
    """Where a pipeline stands, as plain values; what its store does not say is left to its file."""
    move, last, head = champion_moves(store).last(), latest(store), stream(store).last()
    release = find(store, f"releases/{move.release}/release.json", Release) if move else None
    others = {name: m for name, m in aliases(store).items() if name != CHAMPION}
    return {
        "pipeline": name,
        "store": store.url(""),
        "champion": f"v{move.version}" if move else None,
        "release": store.url(f"releases/{move.release}") if move else None,
        "since": move.at.isoformat() if move else None,
        "champion_accuracy": release.accuracy if release else None,
        "right_is": meaning(config) if config else None,
        "by": f"{move.by}: {move.kind}{_because(move.reason)}" if move else None,
        "pinned": move.pinned if move else False,
        "other_aliases": [f"{name} is {m.label}, by {m.by}{_because(m.reason)}" for name, m in others.items()],
        "windows": head.seq if head else 0,
        "windows_waiting": (head.seq if head else 0) - (last.seq if last else 0),
        "last_window": last.seq if last else None,
        "drift_alarm": last.alarm if last else None,
        "alarms_waiting": _alarms(store, last.seq if last else 0, head.seq if head else 0, release),
        "estimated_accuracy": last.estimated_accuracy if last else None,
        "measured_accuracy": last.measured_accuracy if last else None,
        "last_decision": last.decision.action if last else None,
        "reasons": list(last.decision.reasons) if last else [],
        "last_tick": last.finished_at.isoformat() if last else None,
        "nothing_new_at": idle_since(store),
        "approvals": [
            {"id": q.id, "stage": q.stage, "window": q.seq, "title": q.title, "until": q.expires_at.isoformat()}
            for q in approvals.waiting(store)
        ],
    }


def meaning(config: PipelineConfig) -> str:
    """When a prediction counts as right, which is what every accuracy is the share of."""
    model = config.model
    if model.task == "regression":
        return f"at most {model.tolerance:g} off in {', '.join(model.targets)}"
    if model.task == "multi_label":
        return f"at most {model.tolerance:g} classes wrong" if model.tolerance else "the very set of classes"
    return "the class"


def status_table(facts: dict[str, Any]) -> Table:
    """The status as two columns."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        if name == "approvals":
            continue
        shown = "; ".join(map(str, value)) if isinstance(value, list) else share(value) if "accuracy" in name else str(value)
        table.add_row(MEANS.get(name, name.replace("_", " ")), "–" if value is None or value == [] else shown)
    if facts["approvals"]:  # of the windows that wait, the first waits for the answer
        for asked in facts["approvals"]:
            what = f"window {asked['window']}, {asked['stage'].replace('_', ' ')}, until {_minute(asked['until'])} UTC"
            how = f"question {asked['id']}; answer with `everfresh approve` and the pipeline's file"
            table.add_row("waits for a person", f"{what}: {asked['title']} ({how})")
    elif waiting := facts["windows_waiting"]:
        what = "the window that was" if waiting == 1 else f"{waiting} windows that were"
        table.add_row("next", f"`everfresh run` goes on with {what} taken in; a training goes on from its last checkpoint")
    elif facts["last_tick"] is None:
        table.add_row("next", "`everfresh run` makes the first tick")
    return table


LOOKED = 20
"""Windows that wait, the newest ones, at which it is looked."""


def _alarms(store: Store, treated: int, newest: int, release: Release | None) -> list[int]:
    """Windows that wait for their tick and have raised an alarm, by what was told of them; the newest ones."""
    waiting = [stream(store).entry(seq) for seq in range(max(treated, newest - LOOKED) + 1, newest + 1)] if release else []
    told = "alerts/drift.detected-{}-{}.json"
    return [e.seq for e in waiting if e and release and store.exists(told.format(e.view, release.reference))]


def overview_table(found: Sequence[dict[str, Any]]) -> Table:
    """One row a pipeline."""
    table = Table(header_style="bold", pad_edge=False)
    for name in (
        "pipeline",
        "champion",
        "since",
        "windows",
        "waiting",
        "drift",
        "right, last window",
        "last decision",
        "last tick",
    ):
        table.add_column(name, justify="right" if name in {"windows", "waiting", "right, last window"} else "left")
    for one in found:
        right = one["estimated_accuracy"] if one["measured_accuracy"] is None else one["measured_accuracy"]
        alarm = {None: "–", True: "ALARM", False: "quiet"}[True if one["alarms_waiting"] else one["drift_alarm"]]
        pinned = " pinned" if one["pinned"] else ""
        since, ticked = (_minute(one[key]) for key in ("since", "last_tick"))
        counts = (str(one["windows"]), str(one["windows_waiting"]))
        table.add_row(
            one["pipeline"], f"{one['champion'] or '–'}{pinned}", since, *counts, alarm, share(right),
            "waits for a person" if one["approvals"] else one["last_decision"] or "–", ticked,
        )  # fmt: skip
    return table


def _minute(moment: str | None) -> str:
    return (moment or "–")[:16].replace("T", " ")


def release_facts(store: Store, *, everything: bool = False) -> list[dict[str, Any]]:
    """All releases, oldest first, as plain values; with `everything` also those whose weights were removed."""
    found = [(entry.release, _facts(entry)) for entry in catalogue(store)]
    if everything:
        known = {release.id for release, _ in found}
        found += [(r.release, _facts_of_removed(r)) for r in removed(store) if r.release.id not in known]
    return [facts for _, facts in sorted(found, key=lambda pair: (pair[0].created_at, pair[0].id))]


def _facts(entry: Entry) -> dict[str, Any]:
    state = ["retired"] * entry.retired + ["barred"] * entry.barred
    return _made(entry.release, entry.version) | {"aliases": list(entry.aliases), "size": entry.size, "state": state}


def _facts_of_removed(gone: RemovedRelease) -> dict[str, Any]:
    size = sum(part.size for part in gone.release.files.values())
    words = f"weights removed {gone.at:%Y-%m-%d} by {gone.by}{_because(gone.reason)}"
    return _made(gone.release, gone.version) | {"aliases": [], "size": size, "state": [words]}


def _made(release: Release, version: int) -> dict[str, Any]:
    return {
        "version": f"v{version}" if version else None,
        "id": release.id,
        "made": release.created_at.isoformat(),
        "rung": release.rung,
        "window": release.seq,
        "accuracy": release.accuracy,
    }


def releases_table(facts: list[dict[str, Any]]) -> Table:
    """One row a release."""
    table = Table(header_style="bold", pad_edge=False)
    for name in ("version", "id", "made", "rung", "window", "accuracy", "aliases", "size", "state"):
        table.add_column(name, justify="right" if name in {"window", "accuracy", "size"} else "left")
    for one in facts:
        table.add_row(
            one["version"] or "–",
            one["id"][:12],
            one["made"][:16].replace("T", " "),
            one["rung"],
            str(one["window"]),
            share(one["accuracy"]),
            ", ".join(one["aliases"]) or "–",
            f"{one['size']:,}",
            ", ".join(one["state"]) or "–",
        )
    return table


MOST_LAYERS = 15
"""Layers whose change is shown."""


def difference_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """What is between two releases, in lines for people."""
    one, other = found["releases"]
    for made in (one, other):
        origin = f"{made['rung']}, window {made['window']}, accuracy {share(made['accuracy'])} on its hold-out"
        yield f"{made['name']} ({made['id'][:12]}) {made['made'][:16].replace('T', ' ')}: {origin}"
    for where, (low, value, high) in (found["gain"] or {}).items():
        yield f"gain on the same {where} samples: {value:+.1%} [{low:+.1%}, {high:+.1%}]"
    for section in ("lineage", "config", "metrics"):
        yield from _pairs(section, found[section])
    data = found["data"]
    yield from _pairs(
        "data", {"windows": data["windows"]} | {f"samples of {name}": pair for name, pair in data["classes"].items()}
    )
    for name, key in ((one["name"], "only_in_one"), (other["name"], "only_in_other")):
        if data[key]:
            yield f"  only {name} learnt from: {', '.join(view[:12] for view in data[key])}"
    if (weights := found["weights"]) is None:
        yield "weights: not compared"
        return
    layers = list(weights["layers"].items())
    yield f"weights: changed by {_change(weights['overall'])} of their norm; most changed of {len(layers)} layers first"
    yield from (f"  {layer}: {_change(change)}" for layer, change in layers[:MOST_LAYERS])
    for key in ("only_in_one", "only_in_other", "other_shape"):
        if weights[key]:
            yield f"  {key.replace('_', ' ')}: {', '.join(weights[key])}"


def _pairs(section: str, pairs: Mapping[str, list[Any]]) -> Iterator[str]:
    changed = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    yield f"{section}:" if changed else f"{section}: equal"
    for name, (before, after) in changed.items():
        yield f"  {name}: {_short(before)} → {_short(after)}"


def _short(value: Any) -> str:
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _change(value: float | None) -> str:
    return "from nothing" if value is None else f"{value:.2%}"


def history_table(
    entries: list[JournalEntry], moves: list[AliasMove], others: Mapping[str, list[AliasMove]] | None = None
) -> Table:
    """One row a tick, and the moves that people made, of the champion and of the `others`, in order of time."""
    table = Table(header_style="bold", pad_edge=False)
    for name in (
        "window",
        "samples",
        "drift",
        "accuracy est.",
        "measured",
        "decision",
        "tried",
        "gates",
        "gain",
        "champion",
        "cost",
    ):
        table.add_column(name, justify="right" if name in {"samples", "gain", "cost", "window"} else "left")
    rows: list[tuple[Any, list[str]]] = [(e.finished_at, _tick_row(e)) for e in entries]
    rows += [
        (m.at, _move_row(m, _meant(m, before, moves))) for before, m in pairwise([None, *moves]) if m and m.kind != "publish"
    ]
    rows += [(m.at, _move_row(m, f" {name} {m.label}", "")) for name, log in (others or {}).items() for m in log]
    for _, row in sorted(rows, key=lambda r: r[0]):
        table.add_row(*row)
    return table


def _move_row(move: AliasMove, meant: str, champion: str | None = None) -> list[str]:
    words = f"{move.kind}{meant} by {move.by}{_because(move.reason)}"
    return ["", "", "", "", "", words, "", "", "", move.label if champion is None else champion, ""]


def _meant(move: AliasMove, before: AliasMove | None, moves: Sequence[AliasMove]) -> str:
    """Which releases a move of the champion has retired or restored."""
    changed = set(move.retired) ^ set(before.retired if before else ())
    labels = [next((m.label for m in moves if m.release == release), release[:12]) for release in sorted(changed)]
    wanted = move.kind in {"retire", "restore"} and labels
    return f" {', '.join(labels)}" if wanted else ""


def _tick_row(entry: JournalEntry) -> list[str]:
    marks = [" forced"] * bool(entry.request) + [" suspect"] * (entry.trust == "suspect")
    released = f" → v{entry.version}" if entry.version else ""
    return [
        f"{entry.seq}{''.join(marks)}",
        f"{entry.samples}" + (f" (+{entry.quarantined} bad)" if entry.quarantined else ""),
        "–" if entry.score is None else f"{'ALARM' if entry.alarm else 'quiet'} {entry.score:.2f}",
        share(entry.estimated_accuracy),
        share(entry.measured_accuracy),
        f"{entry.decision.action}: {_why(entry)}",
        _climbed(entry),
        "passed" if entry.version else f"failed {', '.join(entry.failed_gates)}" if entry.failed_gates else "–",
        f"{entry.gain.value:+.1%}" if entry.gain else "–",
        f"v{entry.champion_version}{released and ' new'}" if entry.champion_version else "–",
        f"{entry.cost.seconds:.1f} s",
    ]


def _climbed(entry: JournalEntry) -> str:
    """Each rung with its seconds and its gain on *tune*, an arrow before the one that went to the gates, and the others."""
    gains = ("" if t.tune_gain is None else f" {t.tune_gain:+.0%}" for t in entry.tried)
    tried = [
        f"{'' if t.failed_gates is None else '→ '}{t.rung} {t.cost.seconds:.0f}s{gain}"
        for t, gain in zip(entry.tried, gains, strict=True)
    ]
    left = [*(f"{rung} no answer" for rung in entry.unfit), *(f"{rung} not tried" for rung in entry.not_tried)]
    return ", ".join([*tried, *left]) or "–"


def _why(entry: JournalEntry) -> str:
    if entry.request:
        return entry.decision.reasons[0]
    if entry.alarm and not entry.decision.triggers:
        return "; ".join(entry.decision.reasons)
    return ", ".join(entry.decision.triggers) or entry.decision.reasons[-1]


def _because(reason: str) -> str:
    return f": {reason}" if reason else ""


def set_aside(config: PipelineConfig, entries: Sequence[JournalEntry], most: int = 5) -> Iterator[str]:
    """The first files that each tick's window has in quarantine, with the reason, and where all of them stand."""
    store = pipeline_store(config)
    for entry in entries:
        if entry.quarantined:
            key = f"quarantine/{entry.view}/quarantine.jsonl"
            for line in store.get(key).decode().splitlines()[:most]:
                row = json.loads(line)
                yield f"set aside in window {entry.seq}: {row['key']!r} {row['reason']}"
            yield f"all {entry.quarantined} with their reasons: {store.url(key)}"


def share(value: float | None) -> str:
    """A share as people read it."""
    return "–" if value is None else f"{value:.1%}"


def fingerprint(store: Store) -> list[dict[str, Any]]:
    """What two runs over the same stream have equal: ids, decisions and digests of weights; no times, costs, addresses."""
    entries, moves = history(store)
    ticks: list[dict[str, Any]] = [
        {
            "window": e.view,
            "drift": e.drift,
            "alarm": e.alarm,
            "decision": e.decision.model_dump(mode="json"),
            "tried": [[t.rung, t.candidate, t.weights_sha256] for t in e.tried],
            "evaluation": e.evaluation,
            "failed_gates": e.failed_gates,
            "champion": e.champion,
            "trust": e.trust,
        }
        for e in entries
    ]
    return [*ticks, *({"move": m.kind, "release": m.release, "version": m.version} for m in moves)]
