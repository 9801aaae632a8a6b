"""An evaluation in words, for its page and for its artifact. Loads nothing heavy."""

from __future__ import annotations

from everfresh.tasks.pages import percent, short
from everfresh.tasks.records import Evaluation, Interval

MARKS = {"passed": "✔", "failed": "✘", "undecided": "?"}


def sentence(evaluation: Evaluation, rung: str, version: int | None) -> str:
    """The verdict in one sentence: passed, or rejected and by which gate, and what the challenger gains."""
    here = evaluation.window
    score = f"it is right on {percent(here.challenger.accuracy)} of this window's hold-out"
    if here.champion is not None and here.gain is not None:
        score += f", {named(version)} on {percent(here.champion.accuracy)} ({points(here.gain.value)})"
    if evaluation.passed:
        count = len(evaluation.verdicts)
        return f"The challenger ({rung}) passes {'the gate' if count == 1 else f'all {count} gates'} and may go live: {score}."
    failed = ", ".join(short(name, 30) for name in dict.fromkeys(evaluation.failed_gates))
    stays = f" and {named(version)} stays" if version else ""
    return f"The challenger ({rung}) is rejected by {failed}{stays}: {score}."


def named(version: int | None) -> str:
    """A champion as people call it."""
    return "no champion" if version is None else f"v{version}"


def points(difference: float) -> str:
    """A difference of shares as people say it."""
    return f"{difference * 100:+.0f} points".replace("-", "−")


def difference_words(found: Interval, *, share: bool) -> str:
    """A difference with its interval; of shares in points."""
    said = [(f"{v * 100:+.1f}" if share else f"{v:+.3g}").replace("-", "−") for v in (found.value, found.low, found.high)]
    return said[0] if found.low == found.high else f"{said[0]} ({said[1]} … {said[2]})"
