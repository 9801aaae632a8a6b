"""``everfresh approve``: what waits for a person, and the answer. It loads neither torch nor, where no form waits, Prefect."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from everfresh.flows.cli_shared import AsJson, Pipeline, Reason, may_have_a_server, opened, show
from everfresh.tasks import approvals
from everfresh.tasks.config import PipelineConfig
from everfresh.tasks.errors import ConfigError, ReleaseError
from everfresh.tasks.records import Answer, Question
from everfresh.tasks.store import Store, pipeline_store

RANGE = re.compile(r"(?P<only>[1-9]\d*)|(?P<first>[1-9]\d*)?-(?P<last>[1-9]\d*)?")

app = typer.Typer()


@app.command()
def approve(
    pipeline: Pipeline,
    question: Annotated[
        str | None, typer.Argument(help="Number of the window that waits, or the question's id.", show_default=False)
    ] = None,
    reject: Annotated[bool, typer.Option("--reject", help="Say no: the champion stays, and nothing goes live.")] = False,
    reason: Reason = "",
    by: Annotated[str, typer.Option("--by", help="Who says so; your user name if not given.", show_default=False)] = "",
    as_json: AsJson = False,
) -> None:
    """Answer what a run has asked, before training or before publishing; with the pipeline alone: show what waits.

    A suspended run goes on by itself; where none is, the next `everfresh run` does. The first answer counts.

    Example: everfresh approve pipeline.yaml 12 --reject --reason "wait for the new scanner"
    """
    store = opened(pipeline)[1]
    waiting = approvals.waiting(store)
    if question is None and not reject and not reason:
        _listing(pipeline, waiting, as_json)
        return
    unanswered = approvals.unanswered(store)
    known = waiting or [q for q in approvals.pending(store) if q not in unanswered]  # who comes second is told who was first
    meant = next((q for q in known if q.id == question), None) or approvals.pick(known, _window(question))
    said = approvals.answer(store, meant, approved=not reject, by=by or _user(), reason=reason, through="command")
    if as_json:
        show(said.model_dump(mode="json"), as_json=True)
    _told(store, meant, said, pipeline, quiet=as_json)
    if said.approved is reject:
        raise ReleaseError(f"approve: window {meant.seq} must be unanswered, but {said.sentence}. The first answer counts.")


def _user() -> str:
    from everfresh.tasks.alias import user

    return user()


def _window(named: str | None) -> int | None:
    if named is None:
        return None
    if not named.isdigit():
        raise ConfigError(
            f"QUESTION must be the number of a window that waits, or the whole id of its question, got {named!r}. "
            "`everfresh approve pipeline.yaml` shows both."
        )
    return int(named)


def _listing(pipeline: Path, waiting: list[Question], as_json: bool) -> None:
    if as_json:
        show([q.model_dump(mode="json") for q in waiting], as_json=True)
    elif not waiting:
        sys.stdout.write("nothing waits for a person\n")
    for q in [] if as_json else waiting:
        sys.stdout.write(f"{q.words}\n\nasked {q.asked_at:%Y-%m-%d %H:%M} UTC as {q.id}; {_how(pipeline, q)}\n\n")


def _how(pipeline: Path, q: Question) -> str:
    return (
        f'answer with `everfresh approve {pipeline} {q.seq} [--reject] --reason "…"` until {q.expires_at:%Y-%m-%d %H:%M} UTC, '
        "after that it is as if rejected"
    )


def _told(store: Store, question: Question, said: Answer, pipeline: Path, *, quiet: bool) -> None:
    """Let the suspended run go on, and say what happens now."""
    goes_on = _resumed(store, question, said)
    if not quiet:
        then = "the suspended run goes on" if goes_on else f"`everfresh run {pipeline}` goes on"
        sys.stdout.write(f"window {question.seq}: {said.sentence}; {then}\n")


def _resumed(store: Store, question: Question, said: Answer) -> bool:
    """Whether a run was suspended with the form and goes on now. The answer stands without it: the next run finds it."""
    if not store.exists(f"{approvals.FOLDER}/{question.id}/form.json") or not may_have_a_server():
        return False
    from prefect.settings import PREFECT_API_URL

    if not PREFECT_API_URL.value():
        return False
    from everfresh.flows.approval import release_form

    try:
        return release_form(store, question, said)
    except Exception as error:  # of the client's many kinds
        if os.environ.get("EVERFRESH_DEBUG"):
            raise
        words = " ".join(str(error).split()) or type(error).__name__
        sys.stderr.write(f"everfresh: the suspended run could not be told ({words}); resume it in the UI, or run again\n")
        return False


def tell_waiting(config: PipelineConfig, pipeline: Path, *, quiet: bool) -> bool:
    """Say what waits for a person after a run, on stderr where stdout holds JSON; False if nothing does."""
    if config.approval.ask is None:
        return False
    waiting = approvals.waiting(pipeline_store(config))
    out = sys.stderr if quiet else sys.stdout
    for q in waiting:
        out.write(f"window {q.seq} waits for a person: {q.title}\n{_how(pipeline, q)}.\n")
        out.write(f"`everfresh approve {pipeline}` shows what to know; afterwards `everfresh run {pipeline}` goes on.\n")
    return bool(waiting)


def window_range(words: str | None) -> tuple[int | None, int | None]:
    """First and last window of `3-9`, `3-`, `-9` or `9`; None where an end is open.

    Raises:
        ConfigError: it is no such range.
    """
    if words is None:
        return None, None
    found = RANGE.fullmatch(words.strip())
    if found is None or words.strip() == "-":
        raise ConfigError(
            f"--windows must be a range of windows such as 3-9, 3-, -9 or 9, got {words!r}. See `everfresh history`."
        )
    if found["only"]:
        return int(found["only"]), int(found["only"])
    first, last = (int(end) if end else None for end in (found["first"], found["last"]))
    if first is not None and last is not None and first > last:
        raise ConfigError(f"--windows must go from the earlier to the later window, got {words!r}. Swap them.")
    return first, last
