"""Decide: what to do about a window, in words, from records alone.

Pure functions of (history, drift, policy): no torch, no store, no clock. A policy can so be replayed over recorded
measurements at no cost, and a rerun after a crash decides the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from everfresh.tasks.config import OnAge, OnDrift, OnNewSamples, OnPerformance, PolicyConfig, Rung, Trigger, Trust
from everfresh.tasks.records import (
    AliasMove,
    Banked,
    Candidate,
    Decision,
    DriftReport,
    JournalEntry,
    Tick,
    Window,
)
from everfresh.tasks.trust import believed_from

FORGOTTEN = 0.02
"""Accuracy on the earlier windows' *tune* that a candidate may lose against the champion and be enough, or the best."""
MOST_BANKED = 64
"""Windows in the bank; the one of the most frequent regime that has the fewest labels leaves first, the oldest of equals."""


def decide(
    policy: PolicyConfig,
    tick: Tick,
    window: Window,
    drift: DriftReport | None,
    last: JournalEntry | None,
    champion: AliasMove | None,
    champion_since: datetime | None,
) -> Decision:
    """What to do about a window.

    Args:
        policy: triggers, cooldown and ladder.
        tick: what it set out from; its `request` is not empty when a person forces.
        window: what came in.
        drift: what was measured; None without a champion.
        last: the tick before.
        champion: the move that made the champion; None without one.
        champion_since: when the champion's release was made.

    Returns:
        The action and its reasons, also those for doing nothing.
    """
    trainable = window.splits.get("train", 0)
    if champion is None or drift is None:
        if trainable < 2 or len(window.train_classes) < 2:
            return _nothing(
                f"there is no champion yet, and {trainable} labelled training samples of {len(window.train_classes)} classes "
                "cannot train one",
                *_waiting(window),
            )
        return Decision(action="bootstrap", reasons=("there is no champion yet",), ladder=(policy.bootstrap,))
    target = max(0.0, drift.reference_accuracy - policy.adequate_drop)
    left_out: dict[Rung, str] = {} if tick.rung else _hopeless(policy, drift)
    ladder = (tick.rung,) if tick.rung else tuple(rung for rung in policy.ladder if rung not in left_out)
    plan: dict[str, Any] = {"ladder": ladder, "left_out": left_out, "target": target}
    plan["believed_from"] = believed_from(window, drift, vouched=tick.trust_labels)
    obstacle = _obstacle(tick, window)
    if tick.request:
        reason = f"forced by a person: {tick.reason or 'no reason given'}"
        if obstacle:
            return _nothing(f"{reason}; {obstacle}")
        return Decision(action="retrain", reasons=(reason,), triggers=("force",), **plan)
    verdicts = [_judge(trigger, tick, window, drift, last, champion_since) for trigger in policy.triggers]
    reasons = tuple(words for _, words in verdicts) or ("no trigger is configured: this pipeline only watches",)
    fired = tuple(t.kind for t, (yes, _) in zip(policy.triggers, verdicts, strict=True) if yes)
    if not fired:
        return _nothing(*reasons, *_waiting(window))
    if champion.pinned:
        why = champion.reason or champion.kind
        return _nothing(*reasons, f"but v{champion.version} is pinned ({why}); `everfresh unpin` lets it move")
    if obstacle:
        return _nothing(*reasons, obstacle)
    since = last.windows_since_training if last else policy.cooldown_windows
    if since < policy.cooldown_windows:
        passed = f"but only {since} windows have passed since the last training"
        words = f"{passed}, within the cooldown of {policy.cooldown_windows}"
        return _nothing(*reasons, words)
    return Decision(action="retrain", reasons=reasons, triggers=fired, **plan)


def _hopeless(policy: PolicyConfig, drift: DriftReport) -> dict[Rung, str]:
    """Rungs that cannot be adequate here, and why; one is left whatever is known.

    Recalibrating adds class shares to the scores: where those have not moved it predicts what the champion predicts.
    """
    moved = any(not shift.estimated.low <= shift.reference <= shift.estimated.high for shift in drift.classes)
    if moved or "recalibrate" not in policy.ladder or len(policy.ladder) == 1:
        return {}
    return {"recalibrate": "no class's share is known to have moved"}


def _nothing(*reasons: str) -> Decision:
    return Decision(action="nothing", reasons=reasons)


def _waiting(window: Window) -> tuple[str, ...]:
    """What a person should know of labels that are no class."""
    if not window.pending:
        return ()
    names = ", ".join(list(window.pending)[:5]) + (", …" if len(window.pending) > 5 else "")
    return (f"{sum(window.pending.values())} samples wait, their labels are not in model.classes: {names}",)


def _obstacle(tick: Tick, window: Window) -> str:
    """Why nothing can be trained on a window; empty if something can."""
    if not window.splits.get("train"):
        return "; ".join(("but the window has no labelled sample to train on", *_waiting(window)))
    if len(window.train_classes) < 2 and not any(banked.seq for banked in tick.replayed):  # an adopted model's are all hold-out
        (only,) = window.train_classes
        return f"but the window has training samples of one class only ({only!r}) and nothing earlier to replay"
    return ""


def _judge(
    trigger: Trigger,
    tick: Tick,
    window: Window,
    drift: DriftReport,
    last: JournalEntry | None,
    since: datetime | None,
) -> tuple[bool, str]:
    match trigger:
        case OnDrift(min_severity=floor):
            if not drift.tested:
                return False, (
                    f"drift was not tested: too few samples ({drift.current_samples} here, {drift.reference_samples} in the "
                    "reference)"
                )
            if not drift.alarm:
                early = "the window differs, but it takes more of them to alarm, or the last alarm was just now"
                return False, f"no drift alarm (p = {drift.p_value:.3g}{f': {early}' if drift.exceeds else ''})"
            harm = f"drift alarm (p = {drift.p_value:.3g}), {drift.loss}"
            return drift.severity >= floor, f"{harm}, {'at least' if drift.severity >= floor else 'below'} {floor:.1%}"
        case OnPerformance(max_drop=most):
            if drift.labels is None:
                return False, "performance cannot be measured: too few labels"
            measured = drift.labels.champion
            drop = drift.reference_accuracy - measured.value
            words = f"measured accuracy {measured.value:.1%} against {drift.reference_accuracy:.1%}"
            if drop < most:
                return False, f"{words}: no drop of {100 * most:.1f} points"
            if measured.high >= drift.reference_accuracy:
                return False, f"{words}: a drop, but within chance (up to {measured.high:.1%} at {drift.labels.samples} labels)"
            return True, f"{words}: dropped by {100 * drop:.1f} points"
        case OnNewSamples(count=count):
            fresh = window.labelled + (last.samples_since_training if last else 0)
            return fresh >= count, f"{fresh} labelled samples since the last training, of {count}"
        case OnAge(days=days):
            age = (tick.now - since).total_seconds() / 86_400 if since else 0.0
            if age < 0:
                return (
                    False,
                    f"the champion is dated {-age:.1f} days after the store's clock, which went back",
                )
            return age >= days, f"the champion is {age:.1f} days old, of {days:g}"


def next_rung(decision: Decision, tried: Sequence[Candidate], unfit: Collection[Rung] = ()) -> Rung | None:
    """The next rung to try, or None: the last one was enough on *tune*, or there is none left.

    None as well if nobody agrees with the labels, the last rung neither: what a dearer one learns from them is wrong, too.
    A recalibration, which learns nothing from them, does not speak against them.

    Args:
        decision: with the ladder and the target.
        tried: what the rungs tried so far made, in order.
        unfit: rungs that had no answer.
    """
    if tried and (decision.action == "bootstrap" or enough(decision, tried[-1])):
        return None
    if tried and tried[-1].reached < decision.believed_from and (tried[-1].rung != "recalibrate" or decision.believed_from > 1):
        return None
    done = {*unfit, *(candidate.rung for candidate in tried)}
    return next((rung for rung in decision.ladder if rung not in done), None)


def enough(decision: Decision, candidate: Candidate) -> bool:
    """Whether a rung's answer is adequate on *tune*: it reaches the target, has not forgotten, and if nothing was trained, it
    gained something.

    A recalibration that predicts what the champion predicts is no answer to lost accuracy, however good both look on few
    samples. Where there is no *tune* sample at all, nothing could say what a dearer rung buys: the first that learns must do.
    """
    if not candidate.measured:
        return True
    return _answers(candidate) and candidate.reached >= decision.target and candidate.forgot <= FORGOTTEN


def _answers(candidate: Candidate) -> bool:
    return candidate.rung != "recalibrate" or candidate.gain is None or candidate.gain > 0


def best(tried: Sequence[Candidate]) -> Candidate | None:
    """The candidate with the best tune accuracy over the new and the earlier windows; the cheaper one of equals.

    One that has forgotten is not the best while there is another: the gates would refuse it, and look at one alone. A
    recalibration that gained nothing is no other, for what predicts as the champion does has forgotten nothing either.
    """
    if not tried:
        return None
    answers = [c for c in tried if _answers(c)] or tried
    keeping = [c for c in answers if c.forgot <= FORGOTTEN]
    return max(keeping or answers, key=lambda c: c.reached + (c.reached if c.kept_accuracy is None else c.kept_accuracy))


def bank_after(tick: Tick, window: Window, drift: DriftReport | None, trust: Trust) -> tuple[Banked, ...]:
    """The bank with this window in it, if it is labelled and trusted. What moved makes a regime of its own."""
    if trust != "trusted" or not window.splits.get("holdout") or any(b.view == window.view for b in tick.bank):
        return tick.bank
    regime = drift.regime if drift and not drift.moved and drift.regime else f"window {tick.seq}"
    bank = [*tick.bank, Banked(view=window.view, seq=tick.seq, regime=regime, labelled=window.labelled)]
    if len(bank) > MOST_BANKED:
        crowded = Counter(b.regime for b in bank).most_common(1)[0][0]
        bank.remove(min((b for b in bank if b.regime == crowded), key=lambda b: (b.labelled, b.seq)))
    return tuple(bank)
