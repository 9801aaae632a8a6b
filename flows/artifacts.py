"""What people look at in the Prefect UI: tables, words and pictures, one artifact key a topic."""

from __future__ import annotations

import base64
import json
import logging

import httpx
from prefect.artifacts import create_markdown_artifact
from prefect.exceptions import PrefectException

from everfresh.flows.markdown import plain as _cell
from everfresh.tasks.config import PipelineConfig
from everfresh.tasks.ledger import champion_moves
from everfresh.tasks.records import Candidate, ColumnDrift, Decision, DriftReport, Evaluation, JournalEntry, Part, Tick
from everfresh.tasks.steps import open_pipeline

log = logging.getLogger(__name__)
SHOWN_COLUMNS = 10
PAGE, SLICES = "report.html", "slices.png"
"""Files of an evaluation."""


def drift_table(config: PipelineConfig, tick: Tick, drift: DriftReport | None) -> None:
    """The drift of one window: what happened in words and on one page, the most drifted columns, where the reports are."""
    if drift is None:
        return
    store = open_pipeline(config, tick)
    rows = "\n".join(_row(c, config.drift.p_words(c.p_value)) for c in drift.columns[:SHOWN_COLUMNS])
    measured = (
        f"{drift.labels.champion.value:.1%} measured here on {drift.labels.samples} labels (which agree with their "
        f"neighbours {drift.labels.neighbours:.1%}, {drift.labels.chance:.1%} by chance), "
        if drift.labels
        else ""
    )
    verdict = f"**{drift.verdict.capitalize()}**" if drift.alarm else drift.verdict.capitalize()
    lines = [
        f"## {config.name} · window {tick.seq}: {verdict}",
        *([f"{_cell(drift.words)}."] if drift.words else []),
        *([_picture(config, tick, drift.files["drift.png"], "drift.png")] if "drift.png" in drift.files else []),
        f"p {config.drift.p_words(drift.p_value)} against {_cell(drift.nearest)} ({drift.reference_samples} reference, "
        f"{drift.current_samples} current samples; an alarm needs p ≤ {config.drift.false_alarm_rate:.2g} and an effect of "
        f"{config.drift.min_effect:g}, here {drift.score:.2f}).",
        f"The champion's accuracy: {drift.reference_accuracy:.1%} on the reference, {measured}"
        f"{drift.estimated_accuracy.value:.1%} estimated here without labels.",
        f"| column | mean, reference → here | effect (SD) | distance | p, corrected |\n|---|---|---|---|---|\n{rows}",
        *_beside(config, tick, drift),
        "To open beside this page:\n"
        + "\n".join(f"- `{store.url(part.key)}`" for name, part in drift.files.items() if name.endswith((".html", ".json"))),
    ]
    _tell(config, tick, "drift", lines, f"window {tick.seq}: {drift.verdict}, {drift.score:.2f}; {drift.loss}")


def decision_words(config: PipelineConfig, tick: Tick, decision: Decision) -> None:
    """What the policy says of one window: the action, what speaks for it, which rungs may be tried and which not."""
    ladder = [f"{place}. {rung}" for place, rung in enumerate(decision.ladder, 1)]
    lines = [
        f"## {config.name} · window {tick.seq}: {decision.action}",
        "\n".join(f"- {_cell(reason)}" for reason in decision.reasons),
        *(["Rungs, until one is enough:\n\n" + "\n".join(ladder)] if ladder else []),
        *(f"Left out: {rung}, {_cell(why)}" for rung, why in decision.left_out.items()),
    ]
    fired = f" ({', '.join(decision.triggers)})" if decision.triggers else ""
    _tell(config, tick, "decision", lines, f"window {tick.seq}: {decision.action}{fired}")


def tick_summary(config: PipelineConfig, tick: Tick, entry: JournalEntry, evaluation: Evaluation | None) -> None:
    """What was decided and why, what each rung cost and reached, what the gates said, and who is champion now."""
    lines = [f"## {config.name} · window {tick.seq}: {_cell(headline(entry))}"]
    lines += [f"- {_cell(reason)}" for reason in entry.decision.reasons]
    lines += [f"- {_cell(said.sentence)}" for said in entry.answers]
    if entry.tried:
        lines.append(
            "\n| rung | tune accuracy | gain on tune | seconds | images/s | waiting for data |\n|---|---|---|---|---|---|"
        )
        for tried in entry.tried:
            speed = f"{tried.cost.images_per_second:.0f} | {tried.cost.waiting:.0%}"
            gain = "–" if tried.tune_gain is None else f"{tried.tune_gain:+.1%}"
            lines.append(f"| {tried.rung} | {tried.tune_accuracy:.1%} | {gain} | {tried.cost.seconds:.1f} | {speed} |")
        lines += [f"| {rung} | {_cell(why)} | | | | |" for rung, why in entry.unfit.items()]
        lines += [f"| {rung} | not tried | | | | |" for rung in entry.not_tried]
    if evaluation:
        lines.append("\n| gate | verdict |\n|---|---|")
        for v in evaluation.verdicts:
            lines.append(f"| {'✔' if v.passed else '✘'} {_cell(v.gate)} | {_cell(v.words.removeprefix(f'{v.gate}: '))} |")
        shown = {name: part for name, part in evaluation.files.items() if name.endswith(".png") and name != SLICES}
        lines += ["", *(_picture(config, tick, part, name) for name, part in shown.items())]
    _tell(config, tick, "tick", ["\n".join(lines)], f"window {tick.seq}: {headline(entry)}")
    _cost(config, tick, entry)
    if entry.version is not None:
        _release(config, tick, entry)


def evaluation_report(config: PipelineConfig, tick: Tick, candidate: Candidate, evaluation: Evaluation) -> None:
    """The proof of one challenger: the verdict, every gate, both models' scores, accuracy by slice, where the page is."""
    from everfresh.tasks.evaluation_page.words import MARKS, difference_words, sentence

    store = open_pipeline(config, tick)
    champion = champion_moves(store).entry(evaluation.champion_move)
    verdict = sentence(evaluation, candidate.rung, champion.version if champion else None)
    gates = [
        f"- {MARKS[v.outcome]} **{_cell(v.gate)}** {_cell(v.words.removeprefix(f'{v.gate}: '))}"
        + (f" *(can tell {_cell(v.resolves)})*" if v.resolves else "")
        for v in evaluation.verdicts
    ]
    scores = []
    for name, on in (("this window's hold-out", evaluation.window), ("earlier hold-outs", evaluation.bank)):
        if on is not None:
            before = "–" if on.champion is None else f"{on.champion.accuracy:.1%}"
            gain = "–" if on.gain is None else difference_words(on.gain, share=True)
            scores.append(f"| {name} | {on.challenger.samples} | {on.challenger.accuracy:.1%} | {before} | {gain} |")
    lines = [
        f"## {config.name} · window {tick.seq}: {'passed' if evaluation.passed else 'rejected'}",
        _cell(verdict),
        "\n".join(gates),
        "\n".join(["| right answers | samples | challenger | champion | gain, points |\n|---|---|---|---|---|", *scores]),
        *([_picture(config, tick, evaluation.files[SLICES], SLICES)] if SLICES in evaluation.files else []),
        *([f"The page: `{store.url(evaluation.files[PAGE].key)}`"] if PAGE in evaluation.files else []),
    ]
    _tell(config, tick, "evaluation", lines, f"window {tick.seq}: {verdict}")


def headline(entry: JournalEntry) -> str:
    """One tick in a few words."""
    challenger = next((t.rung for t in entry.tried if t.failed_gates is not None), "challenger")
    if entry.version is not None:
        return f"released v{entry.version}, made by {challenger}"
    if entry.failure:
        return f"training failed: {entry.failure}"
    if entry.failed_gates:
        return f"{challenger} rejected by {', '.join(entry.failed_gates)}; v{entry.champion_version} stays"
    if entry.decision.action == "retrain" and not entry.tried:
        reasons = "; ".join(f"{rung}: {why}" for rung, why in entry.unfit.items())
        return f"no rung has an answer ({reasons}); v{entry.champion_version} stays"
    stays = f"v{entry.champion_version} stays" if entry.champion_version else "no champion yet"
    return f"{'drift alarm, ' if entry.alarm else ''}nothing done, {stays}"


def _cost(config: PipelineConfig, tick: Tick, entry: JournalEntry) -> None:
    """What one tick took, and what that bought."""
    wall, bought = (entry.finished_at - entry.started_at).total_seconds(), entry.gain
    rows = [(t.rung, t.cost, "–" if t.tune_gain is None else f"{t.tune_gain:+.1%}") for t in entry.tried]
    table = [
        f"| {name} | {c.seconds:.1f} | {c.device_seconds:.1f} | {c.samples:,} | {c.memory_bytes / 2**20:,.0f} | {gain} |"
        for name, c, gain in [*rows, *([("all", entry.cost, "")] if len(rows) > 1 else [])]
    ]
    head = "| rung | seconds | device seconds | samples seen | peak MiB of device | gain on tune |\n|---|---|---|---|---|---|"
    gain = f"{bought.value:+.1%} [{bought.low:+.1%}, {bought.high:+.1%}]" if bought else "nothing was compared"
    lines = [
        f"## {config.name} · window {tick.seq}: {wall:.0f} s from beginning to end, {entry.cost.seconds:.1f} s of training",
        *(["\n".join([head, *table])] if rows else ["Nothing was trained."]),
        f"Challenger against champion on this window's hold-out: {gain}.",
    ]
    _tell(config, tick, "cost", lines, f"window {tick.seq}: {wall:.0f} s, {entry.cost.seconds:.1f} s of training; {gain}")


def _release(config: PipelineConfig, tick: Tick, entry: JournalEntry) -> None:
    """What went live: its number, who made it, where it stands."""
    store = open_pipeline(config, tick)
    right = "" if entry.challenger_accuracy is None else f", {entry.challenger_accuracy:.1%} right on its hold-out"
    lines = [
        f"## {config.name} · v{entry.version}: {_cell(headline(entry))}",
        f"- window {entry.seq}, {entry.samples:,} samples{right}",
        *(f"- {_cell(reason)}" for reason in entry.decision.reasons),
        f"- where it stands: `{store.url(f'releases/{entry.release}')}`",
        f"- the way back: `everfresh rollback` with the pipeline's file, or its deployment `rollback/{config.name}`",
    ]
    _tell(config, tick, "release", lines, f"v{entry.version} of window {entry.seq}{right}")


def _beside(config: PipelineConfig, tick: Tick, drift: DriftReport) -> list[str]:
    """Where Evidently's defaults say otherwise than we do, and why."""
    part = drift.files.get("differences.json")
    if part is None:
        return []
    found = json.loads(open_pipeline(config, tick).read(part))
    rows = [
        f"| {_cell(d['column'])} | {_verdict(d['drifted'])}, p {config.drift.p_words(d['p_value'])} | {_verdict(d['theirs'])}, "
        f"{d['method']} {'–' if d['score'] is None else format(d['score'], '.2g')} | {_cell(d['reason'])} |"
        for d in found["columns"]
        if d["reason"]
    ]
    head = "| column | ours | Evidently's default | why they differ |\n|---|---|---|---|"
    return [_cell(found["words"]), *(["\n".join([head, *rows])] if rows else [])]


def _verdict(drifted: bool) -> str:
    return "drifted" if drifted else "quiet"


def _row(column: ColumnDrift, p: str) -> str:
    return f"| {_cell(column.name)} | {_means(column)} | {column.effect:+.2f} | {column.statistic:.2f} | {p} |"


def _means(column: ColumnDrift) -> str:
    if column.reference_mean is None or column.current_mean is None:
        return "–"
    return f"{column.reference_mean:.3g} → {column.current_mean:.3g}"


def _picture(config: PipelineConfig, tick: Tick, part: Part, name: str) -> str:
    data = base64.b64encode(open_pipeline(config, tick).read(part)).decode()
    return f"![{name}](data:image/png;base64,{data})"


def _tell(config: PipelineConfig, tick: Tick, topic: str, lines: list[str], words: str) -> None:
    """The newest page of a topic; work is never ended by a server that is out of reach."""
    try:
        create_markdown_artifact("\n\n".join(lines), key=_key(config, tick, topic), description=words)
    except (httpx.HTTPError, PrefectException, OSError) as error:
        log.warning("the page %s could not be told to Prefect: %s", _key(config, tick, topic), error)


def _key(config: PipelineConfig, tick: Tick, topic: str) -> str:
    """One timeline a topic; a replay's is its own."""
    return f"{config.name}-replay-{topic}" if tick.replay else f"{config.name}-{topic}"
