"""May the labels of a window be trusted? Pure, from records alone."""

from __future__ import annotations

from everfresh.tasks.config import Trust
from everfresh.tasks.records import DriftReport, Window

QUIET_SHARE, DRIFTED_SHARE = 0.6, 0.3
"""Labels with which nothing agrees to this share of the usual accuracy, both above chance, are suspect.

Where the pictures have drifted too, low accuracy has another explanation, and only labels that nobody can learn are.
"""
VARIED = 0.99
"""Labels that agree with each other by chance more often than this do not vary: anybody can learn them."""
ENOUGH = 10
"""Labels a class; with fewer, a first challenger that learns nothing says nothing of them."""


def judge_labels(window: Window, drift: DriftReport | None, challenger: float | None, *, vouched: bool = False) -> Trust:
    """Whether the window's labels may be trained on and compared with later.

    On pictures like those that the champion knows, the champion is the one witness: labels that contradict it far
    below its usual accuracy are wrong, or their meaning has changed, and a person must say which. On pictures that have
    drifted it may be the champion that is wrong: there the labels' nearest neighbours in the embedding, or a challenger
    that was trained on them, may speak for them too, unless all labels are the same. All accuracies count above what
    chance would reach. Without a champion, labels are suspect if a challenger learnt next to nothing from enough of them.

    Args:
        window: what came in.
        drift: what was measured; None without a champion.
        challenger: its accuracy on the window's hold-out; None if none was trained.
        vouched: a person has said that the labels are right.
    """
    if vouched:
        return "trusted"
    if drift is None:
        chance = _chance(window)
        if challenger is None or window.labelled < ENOUGH * len(window.classes) or chance > VARIED:
            return "trusted"
        return "suspect" if challenger < chance + DRIFTED_SHARE * (1 - chance) else "trusted"
    if drift.labels is None:
        return "trusted"
    chance = min(drift.labels.chance, VARIED)
    moved = drift.moved or not drift.tested
    witnesses = [drift.labels.champion.high]
    if moved and drift.labels.chance < VARIED:
        witnesses += [drift.labels.neighbours, *([] if challenger is None else [challenger])]
    above = (max(witnesses) - chance) / (1 - chance)
    usual = (drift.reference_accuracy - chance) / (1 - chance)
    return "suspect" if above < (DRIFTED_SHARE if moved else QUIET_SHARE) * usual else "trusted"


def believed_from(window: Window, drift: DriftReport | None, *, vouched: bool = False) -> float:
    """Accuracy, 0…1, from which a challenger makes the window's labels believable; 0 if they are anyway, 2 if none can."""
    if judge_labels(window, drift, None, vouched=vouched) == "trusted" or drift is None or drift.labels is None:
        return 0.0
    if judge_labels(window, drift, 1.0) == "suspect":
        return 2.0
    chance = drift.labels.chance
    return chance + DRIFTED_SHARE * (drift.reference_accuracy - chance)


def suspicion(drift: DriftReport | None) -> str:
    """Why a suspect window's labels are not believed, and what to do about it."""
    if drift is None:
        return (
            "labels: a challenger learnt next to nothing from this window's labels: it is suspect. Correct them, or train "
            "better (fine_tune.epochs, fine_tune.learning_rate, model.weights) and `everfresh run --force`"
        )
    if drift.moved or not drift.tested:
        who = "nothing agrees with this window's labels, neither champion nor neighbours nor challenger"
    else:
        who = "this window's labels contradict the champion on pictures like those that it knows"
    return f"labels: {who}: it is suspect. Correct them; if they are right, `everfresh run --force --trust-labels`"


def _chance(window: Window) -> float:
    """How often two labels of the window agree by chance."""
    if window.chance is not None:
        return window.chance
    total = sum(window.classes.values())
    return sum((n / total) ** 2 for n in window.classes.values()) if total else 1.0
