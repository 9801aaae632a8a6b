"""Drift: reference against current."""

from everfresh.tasks.drift.detect import detect

__all__ = ["detect"]
