"""What all commands share: arguments, exit codes, and how they print."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everfresh.tasks.config import PipelineConfig, load_config

if TYPE_CHECKING:
    from everfresh.flows.check import Checked

FAILED, WRONG_USE, REJECTED, STOPPED = 1, 2, 3, 130
MEANT = "A version such as v3, an alias, or how a release's id begins."

Pipeline = Annotated[Path, typer.Argument(help="The pipeline file, as `everfresh init` writes it.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of a table.")]
Release = Annotated[str, typer.Argument(help=MEANT, show_default=False)]
Reason = Annotated[str, typer.Option("--reason", help="Why; it stands in the history.")]


def show(value: Any, as_json: bool) -> None:
    """Print a table or text, or JSON."""
    if as_json:
        sys.stdout.write(json.dumps(value, indent=1, default=str) + "\n")
        return
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 200, markup=False).print(value)  # reasons are people's words


def opened(pipeline: Path) -> tuple[PipelineConfig, Any]:
    """The pipeline's config and its store."""
    from everfresh.tasks.store import pipeline_store

    config = load_config(pipeline)
    return config, pipeline_store(config)


def may_have_a_server() -> bool:
    """Whether any of the places where Prefect reads its settings exists: else its import, seconds long, is spared."""
    home = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()
    files = (home / "profiles.toml", Path("prefect.toml"), Path("pyproject.toml"), Path(".env"))
    return any(name.startswith("PREFECT_API") or name == "PREFECT_PROFILES_PATH" for name in os.environ) or any(
        path.exists() for path in files
    )


def tell_checks(checks: Iterable[Checked], as_json: bool) -> None:
    """Print a line for each check as it comes, or all as JSON; exit code 1 if one has failed."""
    lines = []
    for line in checks:
        lines.append({"check": line.name, "passed": line.passed, "words": line.words})
        if not as_json:
            sys.stdout.write(f"{'ok  ' if line.passed else 'FAIL'} {line.name}: {line.words}\n")
    if as_json:
        show(lines, as_json=True)
    if not all(line["passed"] for line in lines):
        raise typer.Exit(FAILED)
