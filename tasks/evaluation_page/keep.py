"""The page beside the record of an evaluation: made where it is wanted, and missed by nobody's verdict."""

from __future__ import annotations

import logging

from everfresh.tasks.errors import StoreError
from everfresh.tasks.evaluation_page.page import write_page
from everfresh.tasks.gates import Trial
from everfresh.tasks.ledger import attempt_folder, find
from everfresh.tasks.records import Candidate, Evaluation
from everfresh.tasks.store import Store, scratch

log = logging.getLogger(__name__)
ANSWERS = {
    "confusion.png": "How often each model takes which class for which",
    "classes.png": "F1 of both models by class",
    "values.png": "What each model says against what the label says",
}
"""Pictures of both models' answers, and what they show."""


def with_page(
    store: Store, evaluation: Evaluation, trial: Trial, candidate: Candidate, *, pipeline: str, seq: int, version: int | None
) -> Evaluation:
    """An evaluation with the page that shows it among its files; as it was where none could be made, which is logged.

    Args:
        store: of the pipeline.
        evaluation: not yet recorded.
        trial: both models, and what they said of the held-out samples.
        candidate: the challenger.
        pipeline: its name.
        seq: of the window.
        version: number of the champion's release; None without one.

    Raises:
        StoreError: the store is out of reach, so that no evaluation could be recorded either.
    """
    attempt = attempt_folder(f"evaluations/{evaluation.key}")
    with scratch() as here:
        try:
            shown = next((name for name in ANSWERS if name in evaluation.files), None)
            files = write_page(
                evaluation,
                trial,
                here,
                pipeline=pipeline,
                seq=seq,
                version=version,
                tried=_tried(store, candidate),
                answers=(store.local(evaluation.files[shown]), ANSWERS[shown]) if shown else None,
            )
        except StoreError:
            raise
        except Exception:  # of drawing, or of somebody's network that cannot be explained: none is worth a verdict
            log.warning("the page of evaluation %s could not be made; its verdict stands", evaluation.key, exc_info=True)
            return evaluation
        kept = {name: store.keep_file(f"{attempt}/{name}", path) for name, path in files.items()}
    return evaluation.model_copy(update={"files": evaluation.files | kept})


def _tried(store: Store, candidate: Candidate) -> list[Candidate]:
    """The rungs of this window on whose weights a challenger builds, cheapest first, itself last."""
    found = [candidate]
    while (start := found[0].start) is not None and start != candidate.champion:
        before = find(store, f"candidates/{start}/record.json", Candidate)
        if before is None or before.view != candidate.view:
            break
        found.insert(0, before)
    return found
