"""A service under a steady load while releases come and go: what refreshing costs a prediction, and that none fails.

    python benchmarks/serve_refresh.py [--releases 50] [--rollbacks 20] [--outage 60]

A real S3 server on loopback, the service in a process of its own: three threads that each ask about four pictures, fifty times
a second at most. First without refreshing; then with two looks a second while releases are published and rolled back; then
with the store out of reach, half of the time by refused connections, half by requests that get no answer. Every answer is
checked to be that of the release which it names: each release gives probabilities of its own. It fails if one call does.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.proxy import Proxy, always, running_proxy
from support.s3 import BUCKET, environment, running_server
from support.served import publish
from support.steady import Seen, Service, moves, running_service

from everfresh.tasks.config import S3Config
from everfresh.tasks.store import S3Store, s3

CODE = "everfresh.tasks.models:small_cnn"
LOOKS = 0.5
"""Seconds between two looks at the store."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--releases", type=int, default=50)
    parser.add_argument("--rollbacks", type=int, default=20)
    parser.add_argument("--outage", type=float, default=60.0)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="everfresh-serve-") as folder, running_server(Path(folder)) as endpoint:
        os.environ |= environment(endpoint) | {"EVERFRESH_CACHE": f"{folder}/cache"}
        s3.client(S3Config()).create_bucket(Bucket=BUCKET)
        store = S3Store(BUCKET, "served")
        publish(store, 1, architecture=CODE)
        changes = list(moves(store, chosen.releases, chosen.rollbacks, CODE))
        followed: list[float] = []
        with running_proxy(endpoint) as proxy:
            rows = {"without refreshing": phase(store, proxy, 0, lambda _service: time.sleep(20))}
            rows["refreshing, nothing new"] = phase(store, proxy, LOOKS, lambda _service: time.sleep(20))
            name = f"{chosen.releases} releases, {chosen.rollbacks} rollbacks"
            rows[name] = phase(store, proxy, LOOKS, lambda service: follow(service, changes, followed))
            outage = next(iter(moves(store, 1, 0, CODE, first=chosen.releases + 2)))
            rows[f"store down for {chosen.outage:.0f} s"] = phase(
                store, proxy, LOOKS, lambda service: away(service, proxy, outage, chosen.outage, followed)
            )
    print("| | calls | failed | p50, ms | p99, ms | moves followed |\n|---|---|---|---|---|---|")
    for name, seen in rows.items():
        print(f"| {name} | {seen.calls:,} | {len(seen.errors)} | {seen.p50:.1f} | {seen.p99:.1f} | {seen.swaps} |")
    waits = sorted(followed[:-1])
    print(
        f"\nFrom a move to its release's first answer, with a look every {LOOKS:g} s: median {waits[len(waits) // 2]:.2f} s, "
        f"at most {waits[-1]:.2f} s; from the end of the outage {followed[-1]:.1f} s."
    )
    sys.exit(any(seen.errors for seen in rows.values()))


def phase(store: S3Store, proxy: Proxy, refresh: float, during: Callable[[Service], object]) -> Seen:
    """One service process, and what happens meanwhile."""
    with running_service(store.url(""), CODE, environment(proxy.endpoint), refresh=refresh) as service:
        service.wait_for_any()
        during(service)
        return service.end()


def follow(service: Service, changes: list[Callable[[], int]], followed: list[float]) -> None:
    """Each move in turn, as soon as the one before is followed."""
    followed.extend(service.wait_for(change()) for change in changes)


def away(service: Service, proxy: Proxy, change: Callable[[], int], seconds: float, followed: list[float]) -> None:
    """The store is out of reach, a release comes meanwhile, the store comes back."""
    with proxy.injecting(always("reset")):
        version = change()
        time.sleep(seconds / 2)
    with proxy.injecting(always("stall")):
        time.sleep(seconds / 2)
    followed.append(service.wait_for(version))


if __name__ == "__main__":
    main()
