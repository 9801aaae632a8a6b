"""The consumer that the documentation shows, `docs/consume_release.py`: it knows nothing of Everfresh."""

from __future__ import annotations

import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "docs" / "consume_release.py"


def score(store: Path, release: str) -> tuple[float, float]:
    """Accuracy of a release on its hold-out, and the share of predictions that are as recorded."""
    spec = importlib.util.spec_from_file_location("consume_release", SCRIPT)
    if spec is None or spec.loader is None:
        raise LookupError(SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: tuple[float, float] = module.score(store, release)
    return found
