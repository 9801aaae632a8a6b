"""The console script in processes of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SCRIPT = str(Path(sys.executable).with_name("everfresh"))
SECRET = "wJalrXUtnFEMI-planted-not-a-real-key"
"""Stands in every command's environment; must never come out again."""
WITHIN = 240.0
"""Seconds for one command."""


@dataclass(frozen=True)
class Everfresh:
    """Runs `everfresh …` in one environment."""

    environment: Mapping[str, str]

    def __call__(self, *arguments: str | Path, **extra: str) -> subprocess.CompletedProcess[str]:
        command = [SCRIPT, *map(str, arguments)]
        environment = {**self.environment, **extra}
        done = subprocess.run(command, capture_output=True, text=True, timeout=WITHIN, env=environment, check=False)
        assert SECRET not in done.stdout + done.stderr
        return done

    def start(self, *arguments: str | Path) -> subprocess.Popen[str]:
        """The same without waiting; only errors are kept."""
        command = [SCRIPT, *map(str, arguments)]
        return subprocess.Popen(
            command, env=dict(self.environment), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
