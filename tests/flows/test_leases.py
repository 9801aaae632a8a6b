"""A slot that is lost in the middle of the work, on a real server."""

from __future__ import annotations

import threading
import time
import uuid

import pytest
from prefect import flow, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.concurrency import _leases
from prefect.flow_engine import run_flow
from prefect.states import Pending
from support.prefect_server import PrefectServer

from everfresh.flows.leases import SlotLost, leased
from everfresh.flows.outcome import in_one_sentence

RENEWAL = "concurrency-lease-renewal-"
"""How Prefect's thread is called that renews a lease, before the lease's id."""


def test_a_run_that_loses_its_slot_crashes_and_names_the_limit(server: PrefectServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_leases, "_RENEWAL_FRACTION", 0.01)
    limit = f"lost-{uuid.uuid4().hex[:8]}"

    @flow(name=limit)
    @in_one_sentence
    def work() -> None:
        with leased(limit):
            [lease] = [t.name.removeprefix(RENEWAL) for t in threading.enumerate() if t.name.startswith(RENEWAL)]
            client.release_concurrency_slots_with_lease(uuid.UUID(lease))
            for _ in range(600):
                time.sleep(0.1)

    with get_client(sync_client=True) as client:
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=limit, limit=1, active=True, active_slots=0))
        run = client.create_flow_run_from_deployment(client.create_deployment(client.create_flow(work), limit))
        client.set_flow_run_state(run.id, Pending())
        with pytest.raises(SlotLost, match=limit):
            run_flow(work, flow_run=client.read_flow_run(run.id))
        state = client.read_flow_run(run.id).state
    assert state is not None
    assert state.is_crashed()  # which the automations begin again
    assert f"a slot of the limit {limit} must be held to the end" in (state.message or "")
