"""``everfresh demo``: the whole loop over real digits from a scanner that ages, scored on digits it never sees."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from rich.console import Console
from rich.live import Live
from rich.table import Table

from everfresh.flows.digits import SCHEDULE, Arrival, Scanner, arrive, truth
from everfresh.flows.look import share
from everfresh.tasks.charts import TimelinePoint, data_uri, timeline_picture
from everfresh.tasks.config import load_config
from everfresh.tasks.errors import ConfigError
from everfresh.tasks.journal import scheduled
from everfresh.tasks.ledger import find
from everfresh.tasks.records import JournalEntry, Release
from everfresh.tasks.store import Store, pipeline_store

COLUMNS = (
    "window",
    "arrives",
    "samples",
    "drift",
    "accuracy est.",
    "true",
    "decision",
    "v1 frozen",
    "champion",
    "gates",
    "release",
)


def run_demo(folder: Path, seed: int) -> None:
    """Play the stream into a pipeline of its own and show what happens; goes on where an earlier run stopped.

    Args:
        folder: of the pipeline file, the inbox, the store and the report.
        seed: order of the digits, split and training.

    Raises:
        ConfigError: the folder was begun with another seed.
    """
    begun = time.monotonic()
    folder = folder.resolve()
    pipeline = pipeline_file(folder, seed)
    config = load_config(pipeline)
    store = pipeline_store(config)
    scores = Scores(store, folder / "truth.json", seed)
    console = Console(width=None if os.isatty(1) else 170)
    os.environ["EVERFRESH_PROGRESS"] = "0"  # the table is the progress
    from everfresh.flows.retrain import retrain

    table = _table()
    entries: list[JournalEntry] = []
    known = scheduled(store).last_seq()
    with Live(table, console=console, auto_refresh=False, vertical_overflow="visible") as live:
        for arrival in SCHEDULE:
            if arrival.number > known:
                console.print(f"[dim]window {arrival.number}: {arrival.samples} scans arrive ({arrival.name}) …[/dim]")
                arrive(folder / "inbox", arrival, seed)
                retrain(config)
            entry = scheduled(store).entry(arrival.number)
            if entry is None:
                raise ConfigError(
                    f"{folder} must hold the demo's stream alone, got another one. Delete it or give another folder."
                )
            entries.append(entry)
            table.add_row(*_row(arrival, entry, scores.row(arrival, entry, entries)))
            live.refresh()
    if known == len(SCHEDULE):
        fresh = retrain(config)
        console.print(
            f"Every window was treated before: nothing was trained, nothing published ({len(fresh)} ticks, "
            f"{time.monotonic() - begun:.0f} s)."
        )
    page = _report(folder, scores, entries)
    _closing_words(console, folder, page, scores, entries, time.monotonic() - begun)


class Scores:
    """True accuracy on the digits kept apart, by release and scanner; computed once, kept beside the store."""

    def __init__(self, store: Store, path: Path, seed: int) -> None:
        self.store, self.path, self.seed = store, path, seed
        self.known: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}

    def of(self, release: str | None, scanner: Scanner) -> float | None:
        """Accuracy of a release on the 400 digits under a scanner; None without a release."""
        if release is None:
            return None
        name = f"{release} {scanner.contrast} {scanner.blur} {scanner.slant}"
        if name not in self.known:
            self.known[name] = self._score(release, scanner)
            partial = self.path.with_suffix(".partial")
            partial.write_text(json.dumps(self.known, indent=1))
            partial.replace(self.path)
        return self.known[name]

    def _score(self, release: str, scanner: Scanner) -> float:
        from PIL import Image

        from everfresh.tasks import models

        found = find(self.store, f"releases/{release}/release.json", Release)
        if found is None:
            raise ConfigError(
                f"{self.store.url('releases')} must hold {release}, got none. Delete the demo's folder and run again."
            )
        pages, labels = truth(self.seed, scanner)
        pictures = []
        for page in pages:
            buffer = io.BytesIO()
            Image.fromarray(page).save(buffer, "PNG")
            pictures.append(buffer.getvalue())
        module = models.load(self.store, found.spec, found.files["model.safetensors"])
        _, scored = models.embed(module, found.spec, pictures)
        names = [found.spec.classes[int(i)] for i in scored.argmax(dim=1)]
        return sum(int(a) == int(b) for a, b in zip(names, labels, strict=True)) / len(labels)

    def row(self, arrival: Arrival, entry: JournalEntry, entries: list[JournalEntry]) -> tuple[float | None, float, float]:
        """Under this window's scanner: the champion that met it, version 1, and the champion after it."""
        before = entries[-2].champion if len(entries) > 1 else None
        frozen, after = self.of(entries[0].champion, arrival.scanner), self.of(entry.champion, arrival.scanner)
        return self.of(before, arrival.scanner), frozen or 0.0, after or 0.0


def pipeline_file(folder: Path, seed: int) -> Path:
    """Write the demo's pipeline into a folder, if it is not there yet.

    Raises:
        ConfigError: another one is there.
    """
    path = folder / "pipeline.yaml"
    text = files("everfresh.flows").joinpath("templates/digits.yaml").read_text("utf-8").replace("$SEED", str(seed))
    if path.exists() and path.read_text("utf-8") != text:
        raise ConfigError(f"{path} must be the demo's with seed {seed}, got another file. Give another folder, or delete it.")
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(text, "utf-8")
    partial.replace(path)
    return path


def _table() -> Table:
    table = Table(title="A scanner ages, and the model is kept fresh", header_style="bold", pad_edge=False, show_lines=False)
    for name in COLUMNS:
        table.add_column(
            name, justify="right" if name in {"window", "samples", "accuracy est.", "true", "v1 frozen", "champion"} else "left"
        )
    return table


def _row(arrival: Arrival, entry: JournalEntry, scored: tuple[float | None, float, float]) -> list[str]:
    met, frozen, after = scored
    drift = "–" if entry.score is None else f"[red]ALARM[/red] {entry.score:.2f}" if entry.alarm else f"quiet {entry.score:.2f}"
    return [
        str(arrival.number),
        arrival.name,
        str(entry.samples),
        drift,
        share(entry.estimated_accuracy),
        share(met),
        _decision(entry),
        share(frozen),
        f"[bold]{share(after)}[/bold]",
        _gates(entry),
        f"[green]v{entry.version}[/green]" if entry.version else "",
    ]


def _decision(entry: JournalEntry) -> str:
    if entry.decision.action == "nothing":
        return "nothing: no trigger fired"
    if entry.decision.action == "bootstrap":
        return "train version 1"
    rungs = " → ".join(f"{t.rung} {t.cost.seconds:.1f} s" for t in entry.tried)
    return f"{' + '.join(entry.decision.triggers)}: {rungs}"


def _gates(entry: JournalEntry) -> str:
    if entry.failed_gates:
        return f"[red]✘ {', '.join(entry.failed_gates)}[/red]" + (" · suspect" if entry.trust == "suspect" else "")
    return "[green]✔[/green]" if entry.version else ""


def _report(folder: Path, scores: Scores, entries: list[JournalEntry]) -> Path:
    points = []
    for arrival, entry in zip(SCHEDULE, entries, strict=True):
        points.append(
            TimelinePoint(
                window=arrival.number,
                name=arrival.name,
                phase=arrival.phase,
                frozen=scores.of(entries[0].champion, arrival.scanner) or 0.0,
                champion=scores.of(entry.champion, arrival.scanner) or 0.0,
                alarm=entry.alarm,
                release=f"v{entry.version}" if entry.version else None,
                rejected=bool(entry.failed_gates),
            )
        )
    picture = folder / "fresh.png"
    timeline_picture(points, picture, "Accuracy on 400 digits that nobody trained on")
    rows: list[dict[str, Any]] = [
        {"arrival": a, "entry": e, "decision": _decision(e), "frozen": p.frozen, "champion": p.champion}
        for a, e, p in zip(SCHEDULE, entries, points, strict=True)
    ]
    page = folder / "fresh.html"
    environment = Environment(loader=PackageLoader("everfresh.flows"), autoescape=True)
    page.write_text(environment.get_template("demo.html.j2").render(picture=data_uri(picture), rows=rows), "utf-8")
    return page


def _closing_words(
    console: Console, folder: Path, page: Path, scores: Scores, entries: list[JournalEntry], seconds: float
) -> None:
    aged = SCHEDULE[-1].scanner
    first, last = entries[0].champion, entries[-1].champion
    here = Path(os.path.relpath(folder))
    trained = sum(len(e.tried) for e in entries)
    home = os.environ.get("PREFECT_HOME")
    bin_folder = Path(sys.executable).parent
    on_path = shutil.which("everfresh") == str(bin_folder / "everfresh")
    tool = "" if on_path else f"{os.path.relpath(bin_folder)}/"
    prefect = f"{f'PREFECT_HOME={os.path.relpath(home)} ' if home else ''}{tool}prefect"
    console.print(
        f"\nOn the aged scanner: version 1 frozen [bold]{share(scores.of(first, aged))}[/bold], "
        f"kept fresh [bold]{share(scores.of(last, aged))}[/bold]. "
        f"On clean digits: {share(scores.of(first, Scanner()))} → {share(scores.of(last, Scanner()))}.\n"
        f"{trained} trainings, {sum(e.version is not None for e in entries)} releases, "
        f"{sum(bool(e.failed_gates) for e in entries)} challengers rejected; {seconds:.0f} s.\n",
        highlight=False,
    )
    console.print(
        "Look next at\n"
        f"  the picture            {here / 'fresh.png'}  ({here / page.name} in a browser)\n"
        f"  every tick             {tool}everfresh history {here / 'pipeline.yaml'}\n"
        f"  where it stands        {tool}everfresh status {here / 'pipeline.yaml'}\n"
        f"  the drift reports      {here / 'store/digits/drift'}/*/attempts/*/drift.html\n"
        f"  each challenger        {here / 'store/digits/evaluations'}/*/attempts/*/report.html\n"
        f"  these runs in Prefect  {prefect} server start   then open http://127.0.0.1:4200\n"
        f"  go back                {tool}everfresh rollback {here / 'pipeline.yaml'}\n"
        f"  your own model         {tool}everfresh init pipeline.yaml",
        highlight=False,
        soft_wrap=True,
    )
