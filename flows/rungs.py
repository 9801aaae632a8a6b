"""What a replay with all rungs tells: the cost and gain of each rung at every retraining, and which ladder would do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from rich.table import Table

from everfresh.tasks.config import Rung
from everfresh.tasks.records import JournalEntry, TriedRung

WITHIN = 0.01
"""Accuracy a window by which an answer may be behind the best one and still be called as good."""


@dataclass(frozen=True)
class Account:
    """One way to answer every retraining of a stream."""

    name: str
    answers: int
    """Retrainings at which it had an answer."""
    passed: int
    """Of them, by the gates."""
    seconds: float
    """On the training device, in all."""
    tune: float
    """Mean gain of accuracy on *tune* over the champion of the time; 0 where it had no answer."""
    holdout: float
    """The same on the windows' hold-outs."""
    bought: float
    """The same, of what passed the gates: what would have gone live."""


def accounts(entries: Sequence[JournalEntry]) -> list[Account]:
    """The ladder's own account, then each rung's; empty if there was no retraining."""
    retrained = [e for e in entries if e.decision.action == "retrain"]
    if not retrained:
        return []
    chosen = [next((t for t in e.tried if t.failed_gates is not None), None) for e in retrained]
    spent = sum(t.cost.device_seconds for e in retrained for t in e.tried)
    rungs = [_account(r, [next((t for t in e.beside if t.rung == r), None) for e in retrained]) for r in get_args(Rung)]
    return [_account("the ladder", chosen, spent), *rungs]


def _account(name: str, tried: Sequence[TriedRung | None], spent: float | None = None) -> Account:
    answers = [t for t in tried if t is not None]
    passed = [t for t in answers if t.failed_gates == ()]

    def mean(gains: list[float | None]) -> float:
        return sum(g or 0.0 for g in gains) / len(tried)

    return Account(
        name=name,
        answers=len(answers),
        passed=len(passed),
        seconds=sum(t.cost.device_seconds for t in answers) if spent is None else spent,
        tune=mean([t.tune_gain for t in answers]),
        holdout=mean([t.gain.value if t.gain else None for t in answers]),
        bought=mean([t.gain.value if t.gain else None for t in passed]),
    )


def rungs_table(entries: Sequence[JournalEntry]) -> Table:
    """One row for the ladder and one for each rung, over all retrainings of a replay."""
    found = accounts(entries)
    count = sum(e.decision.action == "retrain" for e in entries)
    table = Table(title=f"What each rung costs and gains over {count} retrainings", header_style="bold", pad_edge=False)
    for name in ("rung", "answers", "passed the gates", "device-seconds", "gain on tune", "on hold-out", "gone live"):
        table.add_column(name, justify="left" if name == "rung" else "right")
    for a in found:
        gains = (f"{g:+.1%}" for g in (a.tune, a.holdout, a.bought))
        table.add_row(a.name, str(a.answers), str(a.passed), f"{a.seconds:.1f}", *gains)
    return table


def advice(entries: Sequence[JournalEntry]) -> str:
    """Which ladder would have been the cheapest adequate one, in a sentence or two."""
    found = accounts(entries)
    if not found:
        return "Nothing was retrained: there is no rung to advise."
    own = found[0]
    top = max(found, key=lambda a: (a.bought, -a.seconds))
    cheapest = min((a for a in found if a.bought >= top.bought - WITHIN), key=lambda a: a.seconds)
    if top.bought <= 0:
        return "No rung bought anything that passed the gates: look at the labels, the gates, or the triggers."
    told = f"The ladder bought {_words(own)}"
    if cheapest is own:
        return f"{told}; no rung alone would have bought as much for less. Keep the ladder."
    best = "" if top in (cheapest, own) else f" (the most: {top.name}, {_words(top)})"
    return (
        f"{told}; {cheapest.name} alone {_words(cheapest)}{best}. Try `policy: {{ladder: [{cheapest.name}]}}` in a replay of "
        "its own: every rung here started from the champions that the ladder made."
    )


def _words(account: Account) -> str:
    return f"{100 * account.bought:+.1f} points a retraining for {account.seconds:.1f} device-seconds"
