"""What Prefect's server knows of a pipeline: its runs, what each was started by, and its events."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.events.filters import EventAnyResourceFilter, EventFilter, EventNameFilter, EventOccurredFilter
from prefect.events.schemas.events import ReceivedEvent

PAGE = 200
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
EVENTS = 50
"""Of one answer, the most that the server gives."""


@dataclass(frozen=True)
class Run:
    """A flow run, and where it comes from."""

    id: UUID
    flow: str
    name: str
    state: str
    message: str
    pool: str | None
    by: str
    """``schedule``, ``automation …``, ``run …`` or ``a person``."""
    parent: UUID | None
    """The run that asked for it and waits."""
    started: datetime | None
    ended: datetime | None

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.ended is not None


class Watch:
    """Asks the server about one pipeline, again and again.

    Args:
        client: of the server.
        pipeline: its name; runs are found by the tag ``pipeline:<name>``.
    """

    def __init__(self, client: SyncPrefectClient, pipeline: str) -> None:
        self.client, self.pipeline = client, pipeline
        self._flows: dict[UUID, str] = {}
        self._parents: dict[UUID, UUID | None] = {}

    def runs(self, since: datetime) -> list[Run]:
        """All runs that were due since then and have left the schedule, oldest first."""
        wanted = FlowRunFilter(tags=FlowRunFilterTags(all_=[f"pipeline:{self.pipeline}"]))
        found: list[FlowRun] = []
        while page := self.client.read_flow_runs(
            flow_run_filter=wanted, sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=PAGE, offset=len(found)
        ):
            found += page
            if len(page) < PAGE or (page[-1].expected_start_time or since) < since:
                break
        begun = [r for r in found if r.start_time and (r.expected_start_time or since) >= since]
        return [self._run(r) for r in sorted(begun, key=lambda r: r.start_time or since)]

    def events(self, since: datetime) -> list[ReceivedEvent]:
        """The pipeline's own events, and what automations did about it, oldest first."""
        acts = self._events(since, event=EventNameFilter(name=["prefect.automation.action.executed"]))
        ours = f"everfresh · {self.pipeline} · "
        return sorted(
            [
                *self._events(since, any_resource=EventAnyResourceFilter(id=[f"everfresh.pipeline.{self.pipeline}"])),
                *(act for act in acts if (act.resource.get("prefect.resource.name") or "").startswith(ours)),
            ],
            key=lambda event: event.occurred,
        )

    def worker(self, run: Run) -> str | None:
        """The worker that took a run last, by what it told."""
        about = EventAnyResourceFilter(id=[f"prefect.flow-run.{run.id}"])
        taken = self._events(LONG_AGO, event=EventNameFilter(name=["prefect.worker.submitted-flow-run"]), any_resource=about)
        newest = max(taken, key=lambda event: event.occurred, default=None)
        return None if newest is None else newest.resource.get("prefect.resource.name") or newest.resource.id

    def _run(self, run: FlowRun) -> Run:
        parent = self._parent(run.parent_task_run_id)
        creator = run.created_by
        if parent is not None:
            by = "run"
        elif run.auto_scheduled:
            by = "schedule"
        elif creator is not None and creator.type == "AUTOMATION":
            by = f"automation {creator.display_value or ''}".strip()
        else:
            by = "a person"
        return Run(
            id=run.id,
            flow=self._flow(run.flow_id),
            name=run.name,
            state=run.state_name or "",
            message=(run.state.message if run.state else None) or "",
            pool=run.work_pool_name,
            by=by,
            parent=parent,
            started=run.start_time,
            ended=run.end_time,
        )

    def _flow(self, id: UUID) -> str:
        if id not in self._flows:
            self._flows[id] = self.client.read_flow(id).name
        return self._flows[id]

    def _parent(self, task_run: UUID | None) -> UUID | None:
        if task_run is not None and task_run not in self._parents:
            self._parents[task_run] = self.client.read_task_run(task_run).flow_run_id
        return self._parents[task_run] if task_run is not None else None

    def _events(self, since: datetime, **wanted: Any) -> Iterator[ReceivedEvent]:
        filter = EventFilter(occurred=EventOccurredFilter.model_validate({"since": since}), **wanted)
        page = self.client.read_events(filter=filter, limit=EVENTS)
        yield from page.events
        while page.next_page:
            page = self.client.read_events_page(str(page.next_page))
            yield from page.events
