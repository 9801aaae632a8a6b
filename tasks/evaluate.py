"""Evaluate: the challenger against the champion on the same held-out samples, and what the gates say of it.

Two sets: this window's hold-out, and the bank of earlier ones, pooled and bounded. Neither model ever learnt from
them. Floors look at all of the challenger's classes; the two models are compared on the classes that both know. Every
verdict is recorded with its numbers, passed or not. Gates compare in fp32, the precision that is served.
"""

from __future__ import annotations

from everfresh.tasks.charts import classes_picture, confusion_picture, values_picture
from everfresh.tasks.config import PipelineConfig, ServesGate
from everfresh.tasks.embeddings import Embedder
from everfresh.tasks.errors import ObjectMissing
from everfresh.tasks.evaluation_page.keep import with_page
from everfresh.tasks.gates import Contender, Judged, Trial, compare, judge, look
from everfresh.tasks.ledger import attempt_folder, champion_moves, find, settle
from everfresh.tasks.package import gates_of, makers, package
from everfresh.tasks.records import (
    AliasMove,
    Candidate,
    Comparison,
    DriftReport,
    Evaluation,
    Part,
    Tick,
    Verdict,
    digest_of,
)
from everfresh.tasks.releases import find_release
from everfresh.tasks.store import Store, scratch
from everfresh.tasks.trust import judge_labels, suspicion
from everfresh.tasks.views import View

NO_HOLDOUT = "holdout: the window has no labelled hold-out sample, so nothing is proven"


def evaluate(
    store: Store, config: PipelineConfig, tick: Tick, candidate: Candidate, drift: DriftReport | None = None, *, against: int
) -> Evaluation:
    """Prove a challenger, or not.

    Args:
        store: of the pipeline.
        config: of the pipeline.
        tick: names the window and the bank.
        candidate: the challenger.
        drift: what was measured of the window, its labels' agreement among it; None without a champion.
        against: sequence of the alias move that made the champion to beat; 0 if there is none.

    Raises:
        ObjectMissing: a record or file that this builds on is gone.
    """
    move = champion_moves(store).entry(against)
    champion = find_release(store, move.release) if move else None
    if move and champion is None:
        raise ObjectMissing(
            f"{store.url(f'releases/{move.release}/release.json')} must exist: v{move.version} is champion. Restore it."
        )
    bank = tuple(b for b in tick.bank if b.view != tick.view)
    served = gates_of(config) and not tick.replay  # a replay serves nobody
    key = digest_of(
        "evaluation", 5, candidate.key, champion.id if champion else None, against, config.gates, tick.view,
        [b.view for b in bank], config.window.bank_max_samples, drift.key if drift else None, tick.trust_labels,
        config.release.formats, makers(config) if served else None,
    )  # fmt: skip
    if (known := find(store, f"evaluations/{key}/record.json", Evaluation)) is not None:
        return known
    ours = Embedder.open(store, candidate.spec, candidate.weights, code=config.model.architecture)
    theirs = (
        Embedder.open(store, champion.spec, champion.files["model.safetensors"], code=config.model.architecture)
        if champion
        else None
    )
    window = look(ours, theirs, [View(store, tick.view)], 10**9, [str(tick.seq)])
    earlier = look(
        ours, theirs, [View(store, b.view) for b in bank], config.window.bank_max_samples, [str(b.seq) for b in bank]
    )
    here, there = compare(window, key), compare(earlier, key) if len(earlier.labels) else None
    trial = Trial(
        window, here, earlier, there, seed=key,
        challenger=Contender(ours, candidate.weights),
        champion=Contender(theirs, champion.files["model.safetensors"]) if champion and theirs else None,
    )  # fmt: skip
    verdicts = [judge(gate, trial) for gate in config.gates if not isinstance(gate, ServesGate)]
    seen = here.challenger.accuracy if len(window.labels) else None
    trust = judge_labels(View(store, tick.view).window, drift, seen, vouched=tick.trust_labels)
    if trust != "trusted":
        verdicts.append(Verdict(gate="labels", passed=False, numbers={}, words=suspicion(drift)))
    if not len(window.labels):
        verdicts.append(Verdict(gate="holdout", passed=False, numbers={}, words=NO_HOLDOUT))
    if move:
        verdicts += _alias_verdicts(move, candidate)
    if served and all(v.passed for v in verdicts):
        verdicts += package(store, config, candidate.key, candidate.spec, candidate.weights, View(store, tick.view)).verdicts
    evaluation = Evaluation(
        key=key,
        candidate=candidate.key,
        champion=champion.id if champion else None,
        champion_move=against,
        window=here,
        bank=there,
        bank_views=tuple(b.view for b in bank),
        verdicts=tuple(verdicts),
        trust=trust,
        passed=all(v.passed for v in verdicts),
        files=_pictures(store, f"evaluations/{key}", here, window),
    )
    if config.evaluation.report:
        version = move.version if move else None
        evaluation = with_page(store, evaluation, trial, candidate, pipeline=config.name, seq=tick.seq, version=version)
    return settle(store, f"evaluations/{key}/record.json", evaluation)


def _alias_verdicts(move: AliasMove, candidate: Candidate) -> list[Verdict]:
    """A pinned champion stays, a release that was rolled back or retired does not return by itself."""
    verdicts = []
    if move.pinned:
        words = f"pinned: v{move.version} is pinned ({move.reason}); `everfresh unpin` lets it move"
        verdicts.append(Verdict(gate="pinned", passed=False, numbers={}, words=words))
    if candidate.key in move.barred:
        words = "barred: this very release was rolled back; force a retraining to make another"
        verdicts.append(Verdict(gate="barred", passed=False, numbers={}, words=words))
    if candidate.key in move.retired:
        words = "retired: this very release was retired; `everfresh restore` takes that back"
        verdicts.append(Verdict(gate="retired", passed=False, numbers={}, words=words))
    return verdicts


def _pictures(store: Store, folder: str, here: Comparison, window: Judged) -> dict[str, Part]:
    """How both models do on the window's hold-out: confusions, F1 by class of sets, or values against the labels'."""
    targets = window.targets
    with scratch() as temporary:
        match targets.task:
            case "single_label":
                path = temporary / "confusion.png"
                confusion_picture(
                    here.champion.confusion if here.champion else None, here.challenger.confusion, targets.names, path
                )
            case "multi_label":
                path = temporary / "classes.png"
                classes_picture(here.champion.per_class if here.champion else None, here.challenger.per_class, path)
            case "regression":
                path = temporary / "values.png"
                before = None if window.champion is None else window.champion.numpy()
                values_picture(before, window.challenger.numpy(), window.labels, targets, path)
        return {path.name: store.keep_file(f"{attempt_folder(folder)}/{path.name}", path)}
