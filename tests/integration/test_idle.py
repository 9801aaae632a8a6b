"""A tick with nothing to do is cheap: it loads nothing heavy."""

from __future__ import annotations

import subprocess
import sys

from support.cli import Everfresh
from support.stream import Pipeline

HEAVY = "torch torchvision evidently boto3 pyarrow pandas sklearn scipy matplotlib"
CODE = """
import atexit, sys
heavy = sys.argv.pop().split()
atexit.register(lambda: print("loaded:", *(name for name in heavy if name in sys.modules)))
from everfresh.flows.cli import main
main()
"""


def test_an_idle_tick_loads_no_heavy_library(played: Pipeline, everfresh: Everfresh) -> None:
    command = [sys.executable, "-c", CODE, "run", str(played.file), HEAVY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=dict(everfresh.environment), check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["nothing to do: nothing is new in the source", "loaded:"]
