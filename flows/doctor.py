"""``everfresh doctor``: is what the loop runs on well? Server, workers, pools, deployments, store, clock, GPU, versions, disk.

`check` asks whether a pipeline fits its source and store before it runs; `doctor` asks the same of the machinery around it,
and why nothing happens. Each line comes with its remedy. What it finds out about the store is what `check` finds out, by
doing; beside that a temporary file is written to each folder that runs write to.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING

from everfresh.flows.check import Checked, api_url, of_device, of_store, prefect_api, tried
from everfresh.tasks.config import PipelineConfig
from everfresh.tasks.errors import EverfreshError
from everfresh.tasks.store import cache_folder

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import WorkPool

NAMED = 4
"""Differences that are named; `everfresh deploy --dry-run` shows all."""
CLOCKS_WITHIN = timedelta(seconds=30)
"""Between server and this machine: schedules, time-outs and the age of heartbeats are compared across the two."""
LEAST_FREE = 2 << 30
"""Bytes a disk must have free: a checkpoint, or a window's shards, take less."""


def doctor(config: PipelineConfig | None) -> Iterator[Checked]:
    """Look at everything; yields one line each, failures with their remedy.

    Args:
        config: a pipeline, whose pools, deployments, automations and store are looked at too; None for the machine alone.
    """
    if config is not None:
        yield from of_store(config)
        yield tried("device", lambda: of_device(config))
    else:
        yield tried("device", _devices)
    yield tried("versions", versions)
    yield tried("disk", _disk)
    reached = tried("server", prefect_api)
    yield reached
    if reached.passed and api_url():
        yield from _behind_server(config)


def _behind_server(config: PipelineConfig | None) -> Iterator[Checked]:
    """What only a server that answers can tell."""
    from prefect import get_client

    with get_client(sync_client=True) as client:
        looks: dict[str, Callable[[], str]] = {
            "server version": lambda: _server_version(client),
            "server clock": lambda: _server_clock(client),
            "leases": lambda: _leases(client),
            "telemetry": lambda: _telemetry(client),
        }
        for name, look in looks.items():
            yield tried(name, look)
        if config is None:
            for pool in client.read_work_pools():
                yield tried(f"pool {pool.name}", lambda pool=pool: _workers(client, pool))  # type: ignore[misc]
            return
        for name in filter(None, (config.deploy.pool, config.deploy.gpu_pool)):
            yield tried(f"pool {name}", lambda name=name: _pool(client, config, name))  # type: ignore[misc]
        yield tried("deployed", lambda: _deployed(config))
        yield tried("switched off", lambda: _switched_off(client, config))


def _devices() -> str:
    from everfresh.tasks.fine_tune import device

    return f"this machine has {', '.join(device.present())}"


def versions() -> str:
    """Whether what is installed is what Everfresh asks for.

    Raises:
        EverfreshError: something is missing, or of a version that was found not to work.
    """
    from packaging.requirements import Requirement

    wrong, asked = [], [Requirement(line) for line in importlib.metadata.requires("everfresh") or ()]
    for need in (one for one in asked if one.marker is None or one.marker.evaluate({"extra": ""})):
        try:
            found = importlib.metadata.version(need.name)
        except importlib.metadata.PackageNotFoundError:
            found = "none"
        if found == "none" or not need.specifier.contains(found, prereleases=True):
            wrong.append(f"{need.name}{need.specifier}, got {found}")
    if wrong:
        raise EverfreshError(
            f"versions must be {'; '.join(wrong)}. `git pull` and `make -B .venv/.installed` bring those that were tried."
        )
    return f"everfresh {importlib.metadata.version('everfresh')}, prefect {importlib.metadata.version('prefect')}, as asked for"


def _disk() -> str:
    """Of the folders that runs write to, the one with the least room left; of one that does not exist yet, its parent."""
    home = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()
    folders = {next(p for p in (f, *f.parents) if p.exists()) for f in (cache_folder(), home, Path(tempfile.gettempdir()))}
    for folder in folders:
        _can_be_written(folder)
    free, folder = min((shutil.disk_usage(folder).free, folder) for folder in folders)
    if free < LEAST_FREE:
        raise EverfreshError(
            f"disk: {LEAST_FREE >> 30} GiB must be free at {folder}, got {free / (1 << 30):.1f}. Remove what is not needed "
            "there, or point EVERFRESH_CACHE, PREFECT_HOME or TMPDIR at another disk."
        )
    return f"{free / (1 << 30):.0f} GiB free at {folder}"


def _can_be_written(folder: Path) -> None:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"everfresh")
    except OSError as error:
        raise EverfreshError(
            f"disk: runs must be able to write to {folder}, got: {error.strerror}. Make that possible, or point "
            "EVERFRESH_CACHE, PREFECT_HOME or TMPDIR at another folder."
        ) from error


def _server_version(client: SyncPrefectClient) -> str:
    server, here = client.api_version(), client.client_version()
    if server.split(".")[:2] != here.split(".")[:2]:
        raise EverfreshError(
            f"server: Prefect must be {'.'.join(here.split('.')[:2])}, as here, got {server}. Install the same on both sides, "
            "the server first."
        )
    return f"Prefect {server}; here {here}"


def _server_clock(client: SyncPrefectClient) -> str:
    begun = time.monotonic()
    told = parsedate_to_datetime(client.request("GET", "/health").headers["date"])
    slack = timedelta(seconds=1 + time.monotonic() - begun)  # the header has whole seconds
    off = told - datetime.now(UTC)
    if abs(off) > CLOCKS_WITHIN + slack:
        raise EverfreshError(
            f"clock: server and this machine must agree within {CLOCKS_WITHIN.seconds} s, got {off.total_seconds():+.0f} s at "
            "the server. Set the wrong one (NTP): schedules tick at the wrong time, and living runs count as crashed."
        )
    return f"within {abs(off.total_seconds()) + slack.total_seconds():.0f} s of this machine's"


def _leases(client: SyncPrefectClient) -> str:
    """Where the server keeps who holds which slot of a limit."""
    from everfresh.flows.stack import LEASE_STORAGE

    kept: str = client.request("GET", "/admin/settings").json()["server"]["concurrency"]["lease_storage"]
    if kept.endswith(".memory"):
        raise EverfreshError(
            "leases must be kept where the Prefect server finds them when it starts anew, got its memory: the slot of a run "
            "under way would stay taken for good, and the next run wait for it. Start the server with "
            f"PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE={LEASE_STORAGE}, or with prefect_redis.lease_storage."
        )
    return f"kept by {kept}"


def _telemetry(client: SyncPrefectClient) -> str:
    """What the server says of itself; whoever asks for it may have it. What Everfresh starts itself sends none."""
    if client.request("GET", "/admin/settings").json()["server"]["analytics_enabled"] is False:
        return "the server sends none"
    return "sent by the Prefect server; unless you mean it, start it with PREFECT_SERVER_ANALYTICS_ENABLED=false"


def _pool(client: SyncPrefectClient, config: PipelineConfig, name: str) -> str:
    from prefect.exceptions import ObjectNotFound

    try:
        pool = client.read_work_pool(name)
    except ObjectNotFound:
        raise EverfreshError(
            f"pool {name} must be on the server, got none of that name. `everfresh deploy` makes it."
        ) from None
    if pool.type != config.deploy.kind:
        raise EverfreshError(
            f"pool {name} must be of deploy.kind {config.deploy.kind}, got {pool.type}. Correct deploy.kind, name another, "
            f"or `prefect work-pool delete {name}` and deploy again."
        )
    if missing := _missing(config, pool):
        file = f"infra/work_pools/{'gpu' if name == config.deploy.gpu_pool else 'cpu'}-{config.deploy.kind}.json"
        raise EverfreshError(
            f"pool {name} must have the template of {file}, got one without {', '.join(missing)}: a worker that finds no pool "
            f"makes one from Prefect's default. `prefect work-pool update {name} --base-job-template {file}`, or say what "
            "runs need in deploy.job_variables."
        )
    return _workers(client, pool)


def _missing(config: PipelineConfig, pool: WorkPool) -> list[str]:
    """What our template gives runs and the pool's does not; nothing where somebody has added variables of their own."""
    from everfresh.flows import declared

    wanted = declared.pools(config)[pool.name]["variables"]["properties"]
    had = (pool.base_job_template.get("variables") or {}).get("properties") or {}
    if had.keys() - wanted.keys():
        return []
    given = declared.job_variables(config, gpu=pool.name == config.deploy.gpu_pool)
    lacks = (n for n, one in wanted.items() if n not in had or (one.get("default") and had[n].get("default") is None))
    return [name for name in lacks if name not in given]


def _workers(client: SyncPrefectClient, pool: WorkPool) -> str:
    """Whether anybody takes the pool's runs."""
    if pool.is_paused:
        raise EverfreshError(f"pool {pool.name} must not be paused, got one that is. `prefect work-pool resume {pool.name}`.")
    workers = client.read_workers_for_work_pool(pool.name)
    online = [worker.name for worker in workers if str(worker.status.value).upper() == "ONLINE"]
    if not online:
        last = max((w.last_heartbeat_time for w in workers if w.last_heartbeat_time), default=None)
        since = f"the last was heard of at {last:%Y-%m-%d %H:%M:%S} UTC" if last else "none ever was"
        raise EverfreshError(
            f"pool {pool.name} must have a worker online, got none ({since}). Runs wait until there is one: "
            f"`prefect worker start --pool {pool.name}` on a machine that has everfresh."
        )
    limit = f", at most {pool.concurrency_limit} runs at once" if pool.concurrency_limit is not None else ""
    return f"{pool.type}, {len(online)} worker{'s' * (len(online) > 1)} online ({', '.join(sorted(online)[:3])}){limit}"


def _deployed(config: PipelineConfig) -> str:
    """Whether the server has what the pipeline file says, as `everfresh deploy --dry-run` compares it."""
    from everfresh.flows.deploy import deploy

    if changes := deploy(config, dry_run=True):
        named = ", ".join(f"{change.sign} {change.what}" for change in changes[:NAMED])
        more = f" and {len(changes) - NAMED} more" if len(changes) > NAMED else ""
        raise EverfreshError(
            f"the server must have what the pipeline file says, got {len(changes)} differences: {named}{more}. "
            "`everfresh deploy` makes it so; with --dry-run it shows all."
        )
    return "deployments, schedules, limits and automations are as the pipeline file says"


def _switched_off(client: SyncPrefectClient, config: PipelineConfig) -> str:
    """What a person has paused, which `deploy` respects, and which is forgotten."""
    from everfresh.flows.deploy import all_automations, existing

    deployments = existing(client, config)
    off = [f"deployment {flow}/{config.name}" for flow, one in deployments.items() if one.paused]
    off += [
        f"schedule of {flow}/{config.name}" for flow, one in deployments.items() if any(not s.active for s in one.schedules)
    ]
    prefix = f"everfresh · {config.name} · "
    off += [f"automation {a.name}" for a in all_automations(client) if a.name.startswith(prefix) and not a.enabled]
    if off:
        raise EverfreshError(
            f"nothing must be switched off, got {', '.join(sorted(off))}. Switch it on in the UI when it may run."
        )
    return "nothing"
