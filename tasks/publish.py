"""Publish: a proven challenger becomes a release, and the release becomes champion. Or it never happened.

A release is a folder of files whose record, ``release.json``, is created last; readers look for the record. The
champion is the last move in the alias log, and a move is created at the number after the one that the challenger
was proven against: whoever moved meanwhile makes it fail, and the challenger is evaluated again.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from everfresh.tasks import alias, models
from everfresh.tasks.card import card
from everfresh.tasks.config import FineTuneConfig, PipelineConfig
from everfresh.tasks.embeddings import Embedder
from everfresh.tasks.errors import ChampionMoved, DataError, ReleaseError
from everfresh.tasks.ledger import champion_moves, find, settle
from everfresh.tasks.metrics import score
from everfresh.tasks.package import as_json, gates_of, package, write
from everfresh.tasks.records import (
    AliasMove,
    Banked,
    Candidate,
    Component,
    Evaluation,
    ModelSpec,
    Part,
    Reference,
    Release,
    Scores,
    Tick,
    Verdict,
    Window,
    digest_of,
)
from everfresh.tasks.releases import find_release, sign_release
from everfresh.tasks.store import Store, file_digest, scratch
from everfresh.tasks.store.base import check_digest
from everfresh.tasks.targets import Targets
from everfresh.tasks.views import View

SAME = ("pipeline", "spec", "files", "holdout_view", "bank", "reference", "parent", "rung", "seq")
"""Fields that tell whether the record of a release that stands is the one that would be written."""


def publish(
    store: Store,
    config: PipelineConfig,
    tick: Tick,
    candidate: Candidate,
    evaluation: Evaluation,
    bank: tuple[Banked, ...],
) -> AliasMove:
    """Make a proven challenger the champion.

    Args:
        store: of the pipeline.
        config: of the pipeline.
        tick: in which it was made.
        candidate: the challenger.
        evaluation: its proof, against the champion that it replaces.
        bank: windows whose hold-outs it never learnt from, its own included: they become its reference.

    Returns:
        The move that made it champion; the earlier one if a run before a crash had made it already.

    Raises:
        ReleaseError: the evaluation did not pass.
        ChampionMoved: the champion is no longer the one of the evaluation.
    """
    if not evaluation.passed or evaluation.candidate != candidate.key:
        raise ReleaseError(
            f"publish: the evaluation must be of this candidate and passed, got failed gates {list(evaluation.failed_gates)}."
        )
    moves = champion_moves(store)
    seq = evaluation.champion_move + 1
    while (later := moves.entry(seq)) is not None:
        if later.release == candidate.key and later.kind == "publish":
            return later
        seq += 1
    if seq != evaluation.champion_move + 1:
        raise _moved(evaluation)
    release = _write_release(store, config, tick, candidate, evaluation, bank)
    if not tick.replay:
        _sign(store, release)
    head = moves.entry(evaluation.champion_move)
    move = AliasMove(
        seq=seq,
        id=uuid.uuid4().hex,
        kind="publish",
        release=release.id,
        version=1 + max((m.version for m in moves), default=0),
        barred=head.barred if head else (),
        retired=head.retired if head else (),
        evaluation=evaluation.key,
        by=alias.user(),
        reason=f"window {tick.seq}, {candidate.rung}" + (f": {tick.reason}" if tick.reason else ""),
        at=store.now(),
    )
    if moves.append(seq, move):
        return move
    if (winner := moves.entry(seq)) is not None and winner.release == candidate.key and winner.kind == "publish":
        return winner
    raise _moved(evaluation)


def adopt(store: Store, config: PipelineConfig, weights: str, window: Window) -> AliasMove:
    """Make a model that already runs version 1, exactly as it is, with its baseline on samples it never learnt from.

    Args:
        store: of the pipeline.
        config: of the pipeline; names the architecture and the classes, in the order of the model's outputs.
        weights: a state dict, as a path or a store key.
        window: the view of its validation samples.

    Raises:
        ModelError: the weights do not fit.
        DataError: the samples have no labels among the classes.
        ReleaseError: there is a champion already.
    """
    moves = champion_moves(store)
    if (head := moves.last()) is not None:
        raise ReleaseError(
            f"adopt: the pipeline {config.name} must have no champion yet, got v{head.version}. "
            "Use another name or store, or roll back to the version you want."
        )
    view = View(store, window.view)
    targets = Targets.wanted(config.model)
    rows = view.rows("holdout", targets)
    if not len(rows):
        raise DataError(
            f"adopt: the reference must hold some labelled with model.classes, got {window.samples} samples with the "
            f"labels {sorted(window.classes | window.pending)[:10]}. Use one folder a class, or the label column of rows."
        )
    module, spec = models.adopt(config.model, weights, config.s3)
    with scratch() as temporary:
        path = temporary / "model.safetensors"
        models.save(module, path)
        key = digest_of("adopted", models.encoder_digest(module, spec, "fp32"), file_digest(path), window.view, spec)
        part = store.keep_file(f"releases/{key}/model.safetensors", path)
    _, scores = Embedder.open(store, spec, part, "fp32", code=config.model.architecture).scores(view, rows)
    truth = targets.encode([view.samples[int(r)].label for r in rows])
    bank = (Banked(view=window.view, seq=0, regime="adopted", labelled=window.labelled),)
    files, verdicts = _model_files(store, config, key, spec, part, view)
    release = _settle_release(
        store,
        config,
        key=key,
        spec=spec,
        files=files,
        scores={("this model", "validation samples"): score(scores, truth, targets)},
        verdicts=verdicts,
        view=view,
        bank=bank,
        lineage={"adopted": True, "reference_view": window.view},
        origin="It was trained elsewhere and adopted as it is.",
        fields={"pipeline": config.name, "evaluation": "", "parent": None, "rung": "adopted", "seq": 0},
    )
    _sign(store, release)
    move = AliasMove(
        seq=1,
        id=uuid.uuid4().hex,
        kind="adopt",
        release=release.id,
        version=1,
        by=alias.user(),
        reason="adopted",
        at=store.now(),
    )
    if not moves.append(1, move):
        raise ReleaseError("adopt: another run made a champion meanwhile. Look at `everfresh status`.")
    return move


def _moved(evaluation: Evaluation) -> ChampionMoved:
    return ChampionMoved(
        f"publish: the champion must still be that of move {evaluation.champion_move}, got a later move. "
        "The challenger is evaluated against the new champion."
    )


def _write_release(
    store: Store, config: PipelineConfig, tick: Tick, candidate: Candidate, evaluation: Evaluation, bank: tuple[Banked, ...]
) -> Release:
    view = View(store, tick.view)
    files, _ = _model_files(store, config, candidate.key, candidate.spec, candidate.weights, view, replay=bool(tick.replay))
    moved = champion_moves(store).last_seq() != evaluation.champion_move
    if moved and not store.exists(f"releases/{candidate.key}/release.json"):  # else another run published this challenger
        raise _moved(evaluation)  # before anything is told of a proof that no longer counts
    tables = {("this model", "this window's hold-out"): evaluation.window.challenger}
    if evaluation.window.champion:
        tables["the champion before", "this window's hold-out"] = evaluation.window.champion
    if evaluation.bank:
        tables["this model", "earlier hold-outs"] = evaluation.bank.challenger
        if evaluation.bank.champion:
            tables["the champion before", "earlier hold-outs"] = evaluation.bank.champion
    lineage = candidate.model_dump(
        mode="json",
        include={
            "rung",
            "view",
            "replay",
            "champion",
            "start",
            "seed",
            "code",
            "versions",
            "device",
            "cost",
            "trained_on",
            "recipe",
            "training",
            "layout",
        },
    ) | {
        "parent": candidate.champion,
        "evaluation": evaluation.key,
        "holdout_view": tick.view,
        "bank": [banked.view for banked in bank],
    }
    return _settle_release(
        store,
        config,
        key=candidate.key,
        spec=candidate.spec,
        files=files,
        scores=tables,
        verdicts=evaluation.verdicts,
        view=view,
        bank=bank,
        lineage=lineage,
        origin=(
            f"Window {tick.seq} of the stream, by the rung “{candidate.rung}”, from {candidate.trained_on} samples, "
            f"{len(candidate.replay)} earlier windows replayed; {candidate.cost.seconds:.1f} s on {candidate.device}."
            f"{_recipe_words(candidate)}"
        ),
        fields={
            "pipeline": f"{config.name}/replays/{tick.replay}" if tick.replay else config.name,
            "evaluation": evaluation.key,
            "parent": candidate.champion,
            "rung": candidate.rung,
            "seq": tick.seq,
        },
    )


def _model_files(
    store: Store, config: PipelineConfig, key: str, spec: ModelSpec, weights: Part, view: View, *, replay: bool = False
) -> tuple[dict[str, Part], tuple[Verdict, ...]]:
    """The files that hold the model, tried before by the evaluation, and what the gates `serves` said of them.

    A replay publishes to nobody: its releases hold the weights alone.

    Raises:
        ReleaseError: one of the gates said no.
    """
    with scratch() as folder:
        if replay or not gates_of(config):
            write(store, config, spec, weights, view, () if replay else config.release.formats, folder)
            return _placed(store, key, folder), ()
        made = package(store, config, key, spec, weights, view)
        if failed := [verdict.words for verdict in made.verdicts if not verdict.passed]:
            raise ReleaseError(f"{failed[0]} Nothing went live.")
        for name, part in made.files.items():
            store.fetch(part.key, folder / name)
            check_digest(folder / name, part, store.url(part.key))
        return _placed(store, key, folder), made.verdicts


def _placed(store: Store, key: str, folder: Path) -> dict[str, Part]:
    """The files of a folder as those of a release, but what its record names already stays as it is."""
    names = {path.name: path for path in sorted(folder.iterdir())}
    if (known := find(store, f"releases/{key}/release.json", Release)) is None:
        return {name: store.keep_file(f"releases/{key}/{name}", path) for name, path in names.items()}
    for name, path in names.items():
        if name not in known.files or known.files[name].sha256 != file_digest(path):
            raise _other(store, key, name)
    return {name: known.files[name] for name in names}


def _other(store: Store, key: str, what: str) -> ReleaseError:
    return ReleaseError(
        f"publish: {store.url(f'releases/{key}/release.json')} must be the record of this very model, got one with another "
        f"{what}. It was not signed and nothing went live. Find out who wrote it; if no alias names it, delete that folder."
    )


def _keep_first(store: Store, key: str, data: bytes) -> Part:
    """The part under `key`: these bytes, or those of a run that was first and whose record may name them already.

    Written again also where they stand: what a run that died has left must not look like debris any longer.
    """
    return store.keep(key, data if store.create(key, data) else store.get(key))


def _recipe_words(candidate: Candidate) -> str:
    """What of the recipe is not as it comes, for the card; empty where no network was trained."""

    def changed(recipe: Mapping[str, Any], usual: Mapping[str, Any], path: str = "") -> Iterator[str]:
        for name, value in recipe.items():
            if name == "seed":  # which stands in the lineage
                continue
            if isinstance(value, Mapping):
                yield from changed(value, usual[name], f"{path}{name}.")
            elif value != usual.get(name):
                yield f"{path}{name} {value}"

    words = ", ".join(changed(candidate.recipe, FineTuneConfig().model_dump(mode="json")))
    return f" Trained with {words}; all else as it comes." if words else ""


def _settle_release(
    store: Store,
    config: PipelineConfig,
    *,
    key: str,
    spec: ModelSpec,
    files: Mapping[str, Part],
    scores: Mapping[tuple[str, str], Scores],
    verdicts: Sequence[Verdict],
    view: View,
    bank: tuple[Banked, ...],
    lineage: Mapping[str, Any],
    origin: str,
    fields: Mapping[str, Any],
) -> Release:
    """Write what is told of a release beside the files that hold the model, then the record that makes it exist.

    Raises:
        ReleaseError: a record stands that is not of this model.
    """
    reference = _reference(store, key, bank)
    own = next(iter(scores.values()))
    parts = dict(files)
    draft = Release(
        id=key,
        spec=spec,
        files=parts,
        holdout_view=view.window.view,
        bank=bank,
        reference=reference.id,
        accuracy=own.accuracy,
        created_at=store.now(),
        **fields,
    )
    texts = {
        "metrics.json": as_json({f"{who} on {where}": s.model_dump(mode="json") for (who, where), s in scores.items()}),
        "verdicts.json": as_json([verdict.model_dump(mode="json") for verdict in verdicts]),
        "lineage.json": as_json(dict(lineage)),
        "card.md": card(config, draft, scores, verdicts, origin, view, store.read(files["holdout.jsonl"]).decode()),
    }
    for name, text in texts.items():
        parts[name] = _keep_first(store, f"releases/{key}/{name}", text.encode())
    release = draft.model_copy(update={"files": parts})
    settled = settle(store, f"releases/{key}/release.json", release)
    for field in SAME:
        if getattr(settled, field) != getattr(release, field):
            raise _other(store, key, field)
    return settled


def _sign(store: Store, release: Release) -> None:
    """Sign what is to go live, and make sure that whoever loads it in this environment will take it.

    The signature alone comes after the record, which it covers.

    Raises:
        ReleaseError: a signature is asked for at each load, and there is no key to make one.
    """
    sign_release(store, release.id, checked=release)
    find_release(store, release.id)


def _reference(store: Store, release: str, bank: tuple[Banked, ...]) -> Reference:
    """What drift from this release is measured against: the hold-outs of the bank, a component for each regime."""
    regimes: dict[str, list[str]] = {}
    for banked in bank:
        regimes.setdefault(banked.regime, []).append(banked.view)
    components = tuple(Component(name=n, views=tuple(v), splits=("holdout",)) for n, v in regimes.items())
    reference = Reference(id=digest_of("reference", release, components), release=release, components=components)
    return settle(store, f"references/{reference.id}/record.json", reference)
