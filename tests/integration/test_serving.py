"""A service in a process of its own, asked without a pause while releases come and go and the store is out of reach."""

from __future__ import annotations

import time

from support.proxy import always, running_proxy
from support.s3 import environment
from support.served import CODE, publish
from support.steady import moves, running_service

from everfresh.tasks.store import S3Store


def test_a_service_under_load_follows_every_move_and_outlives_an_outage(s3_endpoint: str, s3_store: S3Store) -> None:
    publish(s3_store, 1)
    with running_proxy(s3_endpoint) as proxy, running_service(s3_store.url(""), CODE, environment(proxy.endpoint)) as service:
        service.wait_for(1)
        *changes, last = moves(s3_store, releases=8, rollbacks=4, architecture=CODE)
        for change in changes:
            service.wait_for(change())
        before = service.version
        with proxy.injecting(always("reset")):
            version = last()
            time.sleep(1)
        with proxy.injecting(always("stall")):
            time.sleep(1)
            assert service.version == before
        service.wait_for(version)
        seen = service.end()
    assert seen.errors == []
    assert seen.loaded == []
    assert seen.calls > 100
    assert seen.swaps == len(changes) + 1
    assert seen.looks_failed >= 1
