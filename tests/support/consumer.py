"""The consumer that the documentation shows, `docs/consume_release.py`: it knows nothing of Everfresh."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parents[2] / "docs" / "consume_release.py"


@cache
def consumer() -> Any:
    """The script, as a module."""
    spec = importlib.util.spec_from_file_location("consume_release", SCRIPT)
    if spec is None or spec.loader is None:
        raise LookupError(SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def score(store: Path, release: str) -> tuple[float, float]:
    """Accuracy of a release on its hold-out, and the share of predictions that are as recorded."""
    found: tuple[float, float] = consumer().score(store, release)
    return found
