"""What of old releases is kept."""

from __future__ import annotations

from pydantic import Field

from everfresh.tasks.config.base import Section


class RetentionConfig(Section):
    """Which releases `everfresh sweep --delete` keeps: the newest, the young, ancestors of the champion, and what is in use.

    In use is what an alias names, or has named within `--older-than` hours; what a tick under way sets out from; what
    `model.weights` names. Of the others the weights go; record, card, metrics and lineage stay. Challengers that
    never became a release go `keep_days` and `--older-than` hours after their tick has ended.
    """

    keep_releases: int | None = Field(default=None, ge=1)
    """So many of the newest releases stay, retired ones not counted; null for no such rule."""
    keep_days: float | None = Field(default=None, gt=0)
    """Releases younger than so many days stay; null for no such rule. While both are null, all releases stay."""

    keep_ancestors: int | None = Field(default=1, ge=0)
    """So many ancestors of the champion stay, the nearest first: the release that it was made from, the one that this was made
    from; null for all of them. Of those that go the record stays, so the line can be read back to version 1."""

    @property
    def asked(self) -> bool:
        """Whether any release may go."""
        return self.keep_releases is not None or self.keep_days is not None

    @property
    def words(self) -> str:
        """The rules in a few words."""
        rules = [f"the {self.keep_releases} newest"] if self.keep_releases is not None else []
        rules += [f"those of {self.keep_days:g} days"] if self.keep_days is not None else []
        return f"keep {' and '.join(rules) or 'all'}"
