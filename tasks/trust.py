"""May the labels of a window be trusted? Pure, from records alone."""

from __future__ import annotations

from everfresh.tasks.config import Trust
from everfresh.tasks.records import DriftReport

QUIET_SHARE, DRIFTED_SHARE = 0.6, 0.3
"""Labels with which nothing agrees to this share of the usual accuracy, both above chance, are suspect.

Where the pictures have drifted too, low accuracy has another explanation, and only labels that nobody can learn are.
"""


def judge_labels(drift: DriftReport | None, challenger: float | None, *, floors_passed: bool = True) -> Trust:
    """Whether the window's labels may be trained on and compared with later.

    They are suspect if nothing agrees with them: neither the champion, nor the window's own neighbours in the
    embedding, nor a challenger that was trained on them, each far below the champion's usual accuracy, counted above
    what chance would reach. A new regime is not suspect: there the challenger, or the neighbours, agree. Without a
    champion to ask, they are suspect if a challenger trained on them fails its own floors.

    Args:
        drift: what was measured; None without a champion.
        challenger: its accuracy on the window's hold-out; None if none was trained.
        floors_passed: whether the challenger passed its floors.
    """
    if drift is None:
        return "trusted" if floors_passed else "suspect"
    if drift.labels is None:
        return "trusted"
    chance = min(drift.labels.chance, 0.99)
    witnesses = [drift.labels.champion.high, drift.labels.neighbours, *([] if challenger is None else [challenger])]
    above = (max(witnesses) - chance) / (1 - chance)
    usual = (drift.reference_accuracy - chance) / (1 - chance)
    return "suspect" if above < (DRIFTED_SHARE if drift.alarm else QUIET_SHARE) * usual else "trusted"
