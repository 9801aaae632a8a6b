"""Slots that runs hold while they do what must not be done by two at once: use a GPU, publish."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from prefect.concurrency.sync import concurrency
from prefect.context import FlowRunContext

LEASE = 90.0
"""Seconds after which the slot of a run that died is free again; one that lives renews it."""


class SlotLost(BaseException):
    """No ordinary error: what catches these must not go on, and Prefect counts the run as crashed, which is begun again."""


@contextmanager
def leased(limit: str) -> Iterator[None]:
    """Hold a slot of a global concurrency limit; a run that loses its lease ends rather than go on beside another.

    Only deployed runs do: `everfresh deploy` makes the limits, and a run from the terminal has a person to mind it.

    Args:
        limit: name of the limit, see `declared.gpu_limit` and `declared.publish_limit`.

    Raises:
        SlotLost: the lease could not be renewed.
    """
    if not deployed():
        yield
        return
    try:
        with concurrency(limit, strict=True, lease_duration=LEASE):
            yield
    except asyncio.CancelledError as ended:  # Prefect's way to end a run, which says nothing of why
        raise SlotLost(
            f"a slot of the limit {limit} must be held to the end, got a lease that could not be renewed: the Prefect server "
            "was out of reach or started anew, or somebody freed the slot. See to the server; the next run goes on where this "
            "one was."
        ) from ended


def deployed() -> bool:
    """Whether the present flow run is a deployment's own, not one inside of it."""
    context = FlowRunContext.get()
    return bool(context and context.flow_run and context.flow_run.deployment_id)
