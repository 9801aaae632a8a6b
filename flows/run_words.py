"""How a tick ended, in the fewest words: for names of runs and rows of pages. It loads no Prefect."""

from __future__ import annotations

from everfresh.tasks.records import JournalEntry


def outcome(entry: JournalEntry) -> str:
    """`released v4`, `rejected by floor`, `nothing done`."""
    if entry.version is not None:
        return f"released v{entry.version}"
    if entry.failure:
        return "training failed"
    if entry.failed_gates:
        return f"rejected by {', '.join(entry.failed_gates)}"
    if entry.decision.action == "retrain":
        return "no rung has an answer"
    return "nothing done"
