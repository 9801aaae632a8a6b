"""Fine-tune: a window and the champion become a challenger."""

from __future__ import annotations

from everfresh.tasks.fine_tune.stage import fine_tune

__all__ = ["fine_tune"]
