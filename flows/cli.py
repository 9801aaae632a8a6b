"""``everfresh``: the command line.

Exit codes: 0 done or nothing to do, 1 failed, or `verify` found a release that is not whole, 2 wrong usage or config, 3 a
gate rejected the challenger, a forced rung has no answer, or `compare` found drift, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from everfresh.flows import (
    cli_approval,
    cli_channel,
    cli_deploy,
    cli_doctor,
    cli_look,
    cli_moves,
    cli_releases,
    cli_stack,
    logs,
)
from everfresh.flows.cli_shared import FAILED, REJECTED, STOPPED, WRONG_USE, AsJson, Pipeline, Reason, show, tell_checks
from everfresh.tasks.config import PipelineConfig, Rung, load_config
from everfresh.tasks.errors import ConfigError, EverfreshError

SERVER_WITHIN = 180
"""Seconds in which Prefect's temporary server must answer; ten are enough on an idle machine."""

app = typer.Typer(
    name="everfresh",
    help="Keeps a deployed PyTorch model fresh: ingest, detect drift, decide, fine-tune, prove, publish.",
    epilog="Start with `everfresh demo`, or `everfresh init pipeline.yaml` for your own model.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(cli_channel.app)
app.add_typer(cli_look.app)
app.add_typer(cli_moves.app)
app.add_typer(cli_releases.app)
app.add_typer(cli_stack.app)
app.add_typer(cli_approval.app)
app.add_typer(cli_doctor.app)
app.add_typer(cli_deploy.app)


@app.callback()
def settings(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and Prefect's own log.")] = False,
) -> None:
    """Options of every command."""
    os.environ["EVERFRESH_DEBUG"] = "1" if debug else os.environ.get("EVERFRESH_DEBUG", "")
    quiet = {
        "PREFECT_LOGGING_EXTRA_LOGGERS": "everfresh",  # our lines stand with the run in the UI
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",  # a command is no run
    }
    if not os.environ["EVERFRESH_DEBUG"]:
        quiet |= {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL", "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL"}
    for name, value in quiet.items():
        os.environ.setdefault(name, value)
    if home := os.environ.get("PREFECT_HOME"):
        with suppress(OSError):  # Prefect says so itself where it matters
            Path(home).expanduser().mkdir(parents=True, exist_ok=True)  # it makes the last folder only
    logging.getLogger("everfresh").setLevel(logging.INFO)  # Prefect gives extra loggers its handler, but not its level


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="Where to write the file.")] = Path("pipeline.yaml"),
    rows: Annotated[bool, typer.Option("--rows", help="For rows of tables instead of pictures.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is there.")] = False,
) -> None:
    """Write a commented pipeline file, and its JSON schema for your editor."""
    from everfresh.flows.scaffold import write_pipeline

    for written in write_pipeline(path, rows=rows, overwrite=force):
        sys.stdout.write(f"wrote {written}\n")


@app.command()
def check(pipeline: Pipeline, as_json: AsJson = False) -> None:
    """Validate a pipeline against the real source, store, weights and Prefect API."""
    from everfresh.flows.check import check as run_checks

    tell_checks(run_checks(load_config(pipeline)), as_json)


@app.command()
def run(
    pipeline: Pipeline,
    force: Annotated[bool, typer.Option("--force", help="Retrain on the newest window whatever the policy says.")] = False,
    reason: Reason = "",
    rung: Annotated[
        str | None, typer.Option("--rung", help="With --force: the one rung to try: recalibrate, head, full, pretrained.")
    ] = None,
    trust_labels: Annotated[
        bool, typer.Option("--trust-labels", help="With --force: the window's labels are right, though they look suspect.")
    ] = False,
    windows: Annotated[
        str | None,
        typer.Option("--windows", help="With --force: retrain on the last of these, replaying only these: 3-9, 3-, -9 or 9."),
    ] = None,
    drain: Annotated[bool, typer.Option("--all", help="Go on until nothing is new, instead of one window.")] = False,
    as_json: AsJson = False,
) -> None:
    """One tick: take in what is new, detect drift, decide, and retrain, prove and publish if need be."""
    config = load_config(pipeline)
    if (rung is not None or reason or trust_labels or windows) and not force:
        raise ConfigError(
            "--rung, --reason, --trust-labels and --windows must go with --force, got no --force. "
            "Add it, or set the policy in the file."
        )
    first, last = cli_approval.window_range(windows)
    from everfresh.flows.retrain import retrain

    _ready(quiet=as_json)
    chosen: dict[str, Any] = {"rung": _rung(rung), "trust_labels": trust_labels, "first_window": first, "last_window": last}
    entries = retrain(config, force=force, reason=reason, drain=drain, **chosen)
    waits = cli_approval.tell_waiting(config, pipeline, quiet=as_json)
    if entries or as_json or not waits:
        _report(config, entries, as_json, "there is no window yet to retrain on" if force else "nothing is new in the source")
    tried = [entry for entry in entries if entry.decision.action != "nothing"]
    if tried and (tried[-1].failed_gates or (tried[-1].request and not tried[-1].tried)):
        raise typer.Exit(REJECTED)


@app.command()
def monitor(
    pipelines: Annotated[list[Path], typer.Argument(help="Pipeline files; several are looked at in one run.")],
    threads: Annotated[int, typer.Option("--threads", help="Stores and sources looked at at a time.", min=1, max=64)] = 8,
    as_json: AsJson = False,
) -> None:
    """The cheap part: take in what is new, measure drift, alert. Of several, one that fails does not stop the others."""
    if len(pipelines) > 1:
        _monitor_all(pipelines, threads, as_json)
        return
    config = load_config(pipelines[0])
    from everfresh.flows.monitor import monitor as run_monitor

    _ready(quiet=as_json)
    drift = run_monitor(config)
    if as_json:
        show(drift.model_dump(mode="json") if drift else None, as_json=True)
    elif drift is None:
        sys.stdout.write("nothing new, or no champion yet\n")
    else:
        verdict = "ALARM" if drift.alarm else drift.verdict
        sys.stdout.write(f"{verdict}: p {config.drift.p_words(drift.p_value)} against {drift.nearest}, {drift.loss}\n")


def _monitor_all(files: Sequence[Path], threads: int, as_json: bool) -> None:
    from everfresh.flows.declared import as_parameter
    from everfresh.flows.monitor_all import PipelinesFailed, monitor_all, overview

    configs, wrong = [], []
    for file in files:
        try:
            configs.append(as_parameter(load_config(file)))
        except ConfigError as error:
            wrong.append(f"{file}: {error}")
    _ready(quiet=as_json)
    try:
        looked = monitor_all(configs, threads=threads)
    except PipelinesFailed as failed:
        looked = failed.looked
    if as_json:
        show([one.as_json() for one in looked], as_json=True)
    else:
        show(overview(looked), as_json=False)
    for words in wrong:
        sys.stderr.write(f"{words}\n")
    if wrong or any(one.failure for one in looked):
        raise typer.Exit(WRONG_USE if wrong else FAILED)


@app.command()
def compare(
    reference: Annotated[Path, typer.Argument(help="What is normal: .parquet, .csv, .tsv, .jsonl, or a folder of Parquet.")],
    current: Annotated[Path, typer.Argument(help="What came since, with the same columns.")],
    rate: Annotated[
        float, typer.Option("--rate", help="False alarms among windows in which nothing changed.", min=0.0001, max=0.5)
    ] = 0.01,
    max_samples: Annotated[
        int, typer.Option("--max-samples", help="Rows of each table that are tested, drawn at random.", min=20, max=1_000_000)
    ] = 5_000,
    ignore: Annotated[list[str] | None, typer.Option("--ignore", help="A column to leave out; repeat it for more.")] = None,
    categorical: Annotated[
        list[str] | None, typer.Option("--categorical", help="A column of numbers that are codes; repeat it for more.")
    ] = None,
    page: Annotated[Path | None, typer.Option("--html", help="Also write Evidently's page of both samples here.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the samples and the permutations.", min=0)] = 0,
    as_json: AsJson = False,
) -> None:
    """Has this table drifted from that one? Any columns, no model, no pipeline file.

    All columns are tested together at one false-alarm rate. Exit code 0: quiet, or too few rows to test; 3: drift.

    Numbers are compared as numbers, texts and truth values as categories, vectors as embeddings; missing values count too.

    Of points in time and ids in text only whether they are there is tested; a number that counts rows always grows, so
    leave it out with --ignore. Files may be of any size: they are read once.

    Example: everfresh compare january.parquet february.parquet --ignore row_id --categorical store || echo "look at it"
    """
    from everfresh.flows import compare as tables

    drift, config = tables.compare(
        reference,
        current,
        rate=rate,
        max_samples=max_samples,
        seed=seed,
        categorical=categorical or [],
        ignore=ignore or [],
        page=page,
    )
    if as_json:
        show(tables.as_json(drift), as_json=True)
    else:
        sys.stdout.write(f"{tables.headline(drift)}\n")
        show(tables.column_table(drift, config), as_json=False)
    if drift.report.alarm:
        raise typer.Exit(REJECTED)


@app.command()
def replay(
    pipeline: Pipeline,
    name: Annotated[str, typer.Option("--name", help="Of the replay; the same name goes on where it stopped.")] = "",
    rung: Annotated[
        str | None, typer.Option("--rung", help="The one rung to try: recalibrate, head, full, pretrained.")
    ] = None,
    last: Annotated[int | None, typer.Option("--last", help="Stop after this window.")] = None,
    all_rungs: Annotated[
        bool, typer.Option("--all-rungs", help="Measure what every rung would have cost and gained, too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Past windows in order, same steps, nothing published: try a policy before living with it."""
    config = load_config(pipeline)
    from everfresh.flows.replay import replay as run_replay

    if not name:
        name = uuid.uuid4().hex[:8]
        sys.stderr.write(f"This is replay {name}; should it be interrupted, --name {name} goes on with it.\n")
    _ready(quiet=as_json)
    made, entries = run_replay(config, name, _rung(rung), last, all_rungs)
    _report(config, entries, as_json, "no window is left to replay")
    if not as_json:
        if all_rungs:
            from everfresh.flows.rungs import advice, rungs_table
            from everfresh.tasks.journal import scheduled
            from everfresh.tasks.store import pipeline_store

            whole = list(scheduled(pipeline_store(config, made)))  # also what an earlier call has replayed
            show(rungs_table(whole), as_json=False)
            sys.stdout.write(f"{advice(whole)}\n")
        sys.stdout.write(f"replay {made}: under replays/{made}/ in the store; the live champion was not touched\n")


def _rung(name: str | None) -> Rung | None:
    match name:
        case None | "recalibrate" | "head" | "full" | "pretrained":
            return name
        case _:
            raise ConfigError(f"--rung must be recalibrate, head, full or pretrained, got {name!r}. Choose one.")


def _report(config: PipelineConfig, entries: Sequence[Any], as_json: bool, idle: str) -> None:
    from everfresh.flows.artifacts import headline
    from everfresh.flows.look import history_table, set_aside

    if as_json:
        show([e.model_dump(mode="json") for e in entries], as_json=True)
    elif not entries:
        sys.stdout.write(f"nothing to do: {idle}\n")
    else:
        show(history_table(list(entries), []), as_json=False)
        for entry in entries:
            sys.stdout.write(f"window {entry.seq}: {headline(entry)}\n")
        for words in set_aside(config, entries):
            sys.stdout.write(f"{words}\n")


def _ready(*, quiet: bool) -> None:
    """Tell each step in a sentence on stderr, and start Prefect's temporary server where no other is configured.

    The server is started by a thread that Ctrl-C does not reach, and inherits that: Ctrl-C must end the run, which then
    tells the server, and not the server under the run. A run that is killed takes the server with it.
    """
    if not quiet:
        told = logging.StreamHandler()
        told.setFormatter(logs.formatter())
        logging.getLogger("everfresh").addHandler(told)
    from prefect.settings import PREFECT_API_URL

    if PREFECT_API_URL.value():
        return
    from prefect.server.api.server import SubprocessASGIServer

    failed: list[RuntimeError] = []
    server = SubprocessASGIServer()

    def start() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            server.start(SERVER_WITHIN)
        except RuntimeError as error:
            failed.append(error)

    starting = threading.Thread(target=start, daemon=True)
    starting.start()
    while starting.is_alive() and server.server_process is None:
        time.sleep(0.01)
    if server.server_process is not None:
        _dies_with_us(server.server_process.pid)
    starting.join()
    if failed:
        raise EverfreshError(
            f"prefect: its temporary server must answer within {SERVER_WITHIN} s, got: {failed[0]} "
            "Start one with `prefect server start` and set PREFECT_API_URL to it, then run again."
        )


WATCH = """
import sys, psutil
watched = psutil.Process(int(sys.argv[1]))
sys.stdin.read()
if watched.is_running():  # and no other one that has its number by now
    watched.kill()
"""


def _dies_with_us(pid: int) -> None:
    """Let a process end when this one does, however that is: another waits on a pipe that only this process holds open."""
    reader, _held = os.pipe()
    quiet = subprocess.DEVNULL
    command = [sys.executable, "-c", WATCH, str(pid)]
    subprocess.Popen(command, stdin=reader, stdout=quiet, stderr=quiet, start_new_session=True)  # noqa: S603 - our own words
    os.close(reader)


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Where to keep it.")] = Path("run/digits"),
    seed: Annotated[int, typer.Option("--seed", help="Order of the digits, split and training.", min=0)] = 0,
) -> None:
    """See the whole loop work on real digits from a scanner that ages; about two minutes on two cores."""
    from everfresh.flows.demo import run_demo

    _ready(quiet=True)
    run_demo(folder, seed)


def main() -> None:
    """Run a command; errors that are meant for people are one sentence on stderr."""
    try:
        app()
    except EverfreshError as error:
        if os.environ.get("EVERFRESH_DEBUG"):
            raise
        sys.stderr.write(f"everfresh: {error}\n")
        raise SystemExit(WRONG_USE if isinstance(error, ConfigError) else FAILED) from None
    except SystemExit as end:
        if end.code == STOPPED:  # typer makes this of Ctrl-C, without a word
            sys.stderr.write("everfresh: stopped; the same command goes on where it was\n")
        raise
    except Exception as error:
        if os.environ.get("EVERFRESH_DEBUG"):
            raise
        sys.stderr.write(f"everfresh: {_cause(error)}\n")
        raise SystemExit(FAILED) from None


def _cause(error: Exception) -> str:
    """What an error that nobody foresaw may come from: a Prefect server that is gone shows in many ways."""
    from everfresh.flows.check import prefect_api

    try:
        prefect_api()
    except EverfreshError as gone:
        return str(gone)
    words = " ".join(str(error).split()) or "no more is known"
    return (
        f"{type(error).__name__}: {words}. What was done is kept and the same command goes on where it was; "
        "with `everfresh --debug` before the command it shows where this comes from."
    )
