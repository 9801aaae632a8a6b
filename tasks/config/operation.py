"""How the deployed flows run by themselves: schedules, work pools, alerts, and where a person is asked."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self, get_args
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, Field, field_validator, model_validator

from everfresh.tasks.config.base import Section, unique

BLOCK = re.compile(r"[a-z0-9][a-z0-9-]*/[a-z0-9][a-z0-9-]*")
REFERENCE = re.compile(r"\{\{\s*prefect\.(blocks|variables)\.[\w.-]+\s*\}\}")
"""What Prefect's worker replaces by a block's or a variable's value when it starts a run."""
HEARTBEATS = 3
"""Heartbeats that a run may miss before it counts as crashed."""
Stage = Literal["before_training", "before_publishing"]
"""Where a person is asked."""


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError(f"must be an IANA zone, got {name!r}. Write it as Europe/Berlin or UTC") from None
    return name


Zone = Annotated[str, AfterValidator(_zone)]
PoolName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]


class ScheduleConfig(Section):
    """When the deployed flows tick; `everfresh deploy` sets it up. `everfresh run` is one tick at any time."""

    retrain: str | None = None
    """Cron expression of the whole loop, such as `0 3 * * *`; null for by hand, or by an alert, only."""
    monitor: str | None = None
    """Cron expression of the cheap part: ingest, drift, alert."""
    sweep: str | None = None
    """Cron expression of removing debris and what `retention` lets go."""
    timezone: Zone = "UTC"
    """IANA zone in which the cron expressions are read."""

    @field_validator("retrain", "monitor", "sweep")
    @classmethod
    def _five_fields(cls, cron: str | None) -> str | None:
        if cron is not None and len(cron.split()) != 5:
            raise ValueError(f"must be a cron expression of five fields, got {cron!r}. Every night at three is '0 3 * * *'")
        return cron


AlertEvent = Literal[
    "drift.detected", "data.quarantined", "retraining.decided", "approval.asked", "gate.rejected", "release.published",
    "champion.rolled-back", "champion.promoted",
]  # fmt: skip
Notice = Literal[
    "drift.detected", "data.quarantined", "retraining.decided", "approval.asked", "gate.rejected", "release.published",
    "champion.rolled-back", "champion.promoted", "run.failed", "run.crashed", "schedule.missed",
]  # fmt: skip


class AlertsConfig(Section):
    """Which happenings are emitted as Prefect events `everfresh.<name>`, and what automations make of them."""

    events: tuple[AlertEvent, ...] = (
        "drift.detected", "data.quarantined", "retraining.decided", "approval.asked", "gate.rejected", "release.published",
        "champion.rolled-back", "champion.promoted",
    )  # fmt: skip
    """Names of the events."""
    notify: Annotated[tuple[str, ...], AfterValidator(unique)] = ()
    """Prefect notification blocks that are told, as `type/name`: `slack-webhook/ops`, `custom-webhook/pager`. Addresses and
    passwords stand in the block, never here; `everfresh channel` makes one."""
    notify_on: Annotated[tuple[Notice, ...], AfterValidator(unique)] = (
        "drift.detected", "approval.asked", "gate.rejected", "run.failed", "run.crashed", "schedule.missed",
    )  # fmt: skip
    """What they are told of: names of `events`, and `run.failed`, `run.crashed`, `schedule.missed`."""
    retrain: bool = False
    """Start `retrain` on a drift alert, without waiting for its schedule; the policy decides as always."""
    debounce_minutes: float = Field(default=60.0, ge=0, le=10_080)
    """At most one start by an alert in so many minutes."""

    @field_validator("notify")
    @classmethod
    def _blocks(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if not BLOCK.fullmatch(name):
                raise ValueError(
                    f"must name blocks as type/name, got {name!r}. `prefect block ls` shows them; such as slack-webhook/ops"
                )
        return names

    @model_validator(mode="after")
    def _happenings_are_emitted(self) -> Self:
        listened: dict[str, tuple[str, ...]] = {"retrain": ("drift.detected",) if self.retrain else ()}
        if "notify_on" in self.model_fields_set:
            listened["notify_on"] = tuple(name for name in self.notify_on if name in get_args(AlertEvent))
        for field, names in listened.items():
            if missing := [name for name in names if name not in self.events]:
                raise ValueError(
                    f"events must hold what {field} listens to, got none of {', '.join(missing)}: it would never be told. "
                    "Add it to events"
                )
        return self


class ApprovalConfig(Section):
    """Where the loop waits for a person: in the Prefect UI, or by `everfresh approve`. Waiting holds no worker."""

    ask: Stage | None = None
    """`before_training` shows drift and expected cost, `before_publishing` the gates; null asks nobody."""
    hours: float = Field(default=72.0, gt=0, le=8_760)
    """After so many hours without an answer it is as if rejected: nothing goes live unseen."""


class DeployConfig(Section):
    """Where the deployed flows run, and with what environment."""

    pool: PoolName = "cpu"
    """Work pool of `monitor`, `retrain`, `rollback` and `sweep`."""
    gpu_pool: PoolName | None = None
    """Work pool to which `retrain` sends the rungs `full` and `pretrained`; null, or one that the server does not have: they
    run where `retrain` runs."""
    kind: Literal["process", "docker", "kubernetes"] = "process"
    """Kind of the pools that `everfresh deploy` makes where there is none of that name, from `infra/work_pools/`."""
    image: str | None = None
    """Container image of docker and kubernetes jobs, such as `registry.example/everfresh:0.1`; null for the pool's own."""
    gpu_slots: int = Field(default=1, ge=1, le=10_000)
    """Fine-tunings that run on the GPU pool at once, over all pipelines; one for each GPU."""
    env: dict[str, str] = Field(default={})
    """Environment of every job. What is secret comes from a block: `"{{ prefect.blocks.secret.s3-key }}"`."""
    job_variables: dict[str, Any] = Field(default={})
    """Further variables of the pool's job template, for every job; `prefect work-pool inspect` shows which there are."""
    gpu_job_variables: dict[str, Any] = Field(default={})
    """The same for jobs on the GPU pool, over those above."""
    heartbeat_seconds: int = Field(default=60, ge=30, le=86_400)
    """Seconds between signs of life of a run; three that are missing and it counts as crashed, and is started again."""
