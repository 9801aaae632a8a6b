"""The console script in processes of its own."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from support.warm import in_child

SCRIPT = str(Path(sys.executable).with_name("everfresh"))
SECRET = "wJalrXUtnFEMI-planted-not-a-real-key"
"""Stands in every command's environment; must never come out again."""


@dataclass(frozen=True)
class Everfresh:
    """Runs `everfresh …` in one environment."""

    environment: Mapping[str, str]

    def __call__(self, *arguments: str | Path, **extra: str) -> subprocess.CompletedProcess[str]:
        """Run one to its end, in a process of its own that has imported all but Prefect, which reads the environment."""
        command = [SCRIPT, *map(str, arguments)]
        with TemporaryDirectory() as folder:
            files = [Path(folder) / name for name in ("stdout", "stderr")]
            code = in_child(_command, command, {**self.environment, **extra}, files)
            out, err = (file.read_text("utf-8") for file in files)
        assert SECRET not in out + err
        return subprocess.CompletedProcess(command, code, out, err)

    def start(self, *arguments: str | Path) -> subprocess.Popen[str]:
        """Start the installed script without waiting for it; only errors are kept."""
        command = [SCRIPT, *map(str, arguments)]
        return subprocess.Popen(
            command, env=dict(self.environment), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )


def _command(command: Sequence[str], environment: Mapping[str, str], files: Sequence[Path]) -> None:
    """What the installed script does, and what Python does at its end, which a forked process leaves out."""
    os.environ.clear()
    os.environ.update(environment)
    for number, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    sys.argv = list(command)
    from everfresh.flows.cli import main

    try:
        main()
    finally:
        sys.stdout.flush()
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
