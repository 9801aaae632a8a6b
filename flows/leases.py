"""Slots that runs hold while they do what must not be done by two at once: use a GPU, publish."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prefect.concurrency.sync import concurrency
from prefect.context import FlowRunContext

LEASE = 90.0
"""Seconds after which the slot of a run that died is free again; one that lives renews it."""


@contextmanager
def leased(limit: str) -> Iterator[None]:
    """Hold a slot of a global concurrency limit; a run that loses its lease ends rather than go on beside another.

    Only deployed runs do: `everfresh deploy` makes the limits, and a run from the terminal has a person to mind it.

    Args:
        limit: name of the limit, see `declared.gpu_limit` and `declared.publish_limit`.
    """
    if not deployed():
        yield
        return
    with concurrency(limit, strict=True, lease_duration=LEASE):
        yield


def deployed() -> bool:
    """Whether the present flow run is a deployment's own, not one inside of it."""
    context = FlowRunContext.get()
    return bool(context and context.flow_run and context.flow_run.deployment_id)
