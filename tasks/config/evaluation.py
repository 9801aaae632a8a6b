"""What an evaluation leaves behind beside its verdicts."""

from __future__ import annotations

from everfresh.tasks.config.base import Section


class EvaluationConfig(Section):
    """How the proof of a challenger is told."""

    report: bool = True
    """Write the page that shows each evaluation: gates, slices, flips, and what both models looked at."""
