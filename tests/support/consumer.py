"""The consumers that the documentation shows, `docs/consume_*.py`: they know nothing of Everfresh."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"
SCRIPT = DOCS / "consume_release.py"
SCRIPTS = (SCRIPT, DOCS / "consume_pt2.py", DOCS / "consume_onnx.py")


@cache
def consumer(script: Path = SCRIPT) -> Any:
    """A script, as a module."""
    spec = importlib.util.spec_from_file_location(script.stem, script)
    if spec is None or spec.loader is None:
        raise LookupError(script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def score(store: Path, release: str) -> tuple[float, float]:
    """Accuracy of a release on its hold-out, and the share of predictions that are as recorded."""
    found: tuple[float, float] = consumer().score(store, release)
    return found
