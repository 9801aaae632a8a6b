"""What `infra/compose.yaml` starts, as far as it can be started without containers."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from support.prefect_server import PrefectServer
from support.s3 import environment, free_ports, program

from everfresh.tasks.config import S3Config
from everfresh.tasks.errors import AccessRefused
from everfresh.tasks.store import S3Store, s3

INFRA = Path(__file__).parents[2] / "infra"
NEIGHBOUR = "127.0.0.2"
"""As another container sees this one: not on its loopback address."""


class Door(NamedTuple):
    """Where the S3 server of the compose file is."""

    s3: int
    filer: int
    server: int
    """Process id of SeaweedFS."""
    keys: dict[str, tuple[str, str]]


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """The services `s3` and `seaweedfs` with the commands of the file, on other ports and folders."""
    folder = tmp_path_factory.mktemp("compose")
    (folder / "data").mkdir()
    runpy.run_path(str(INFRA / "make_secrets.py"))["write"](folder)
    people = json.loads((folder / "s3.json").read_text())["identities"]
    keys = {one["name"]: (c["accessKey"], c["secretKey"]) for one in people for c in one["credentials"]}
    services = yaml.safe_load((INFRA / "compose.yaml").read_text())["services"]
    master, volume, filer, inside, outside = free_ports(5)
    moved = {"/data": str(folder / "data"), "/run/s3.json": str(folder / "s3.json"), "/door.py": str(INFRA / "door.py")}
    moved |= {"8333": str(outside), "8334": str(inside), "python3": sys.executable}

    def command(service: str) -> list[str]:
        parts = (str(part).rpartition("=") for part in services[service]["command"])
        return [f"{name}{sign}{moved.get(value, value)}" for name, sign, value in parts]

    ports = [f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", "-master.electionTimeout=1s"]
    sockets = [f"-filer.localSocket={folder}/f.sock", f"-s3.localSocket={folder}/s.sock"]
    passphrase = dict(line.split("=", 1) for line in (folder / "s3.env").read_text().splitlines())
    own = os.environ | services["seaweedfs"]["environment"] | passphrase
    with ExitStack() as stack, (folder / "log").open("wb") as log:
        started = []
        for argv in ([program(), *command("seaweedfs"), *ports, *sockets], command("s3")):
            started.append(subprocess.Popen(argv, env=own, stdout=log, stderr=log, cwd=folder))
            stack.callback(started[-1].wait)
            stack.callback(started[-1].kill)
        deadline = time.monotonic() + 60
        bucket = "/buckets/everfresh-models/"  # which it makes when all else is up
        while (answer("GET", outside, "/healthz"), answer("GET", filer, bucket, "127.0.0.1")) != (200, 200):
            assert time.monotonic() < deadline, (folder / "log").read_text()[-2000:]
            time.sleep(0.1)
        yield Door(outside, filer, started[0].pid, keys)


def answer(method: str, port: int, path: str, host: str = NEIGHBOUR) -> int | None:
    """The status that somebody without keys gets; None where nobody listens."""
    request = urllib.request.Request(f"http://{host}:{port}{path}", b"x" if method == "PUT" else None, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as got:
            return int(got.status)
    except urllib.error.HTTPError as refused:
        return refused.code
    except OSError:
        return None


def store(door: Door, role: str, patch: pytest.MonkeyPatch) -> S3Store:
    """The bucket of the compose file, as a container with the keys of that role reaches it."""
    for name, value in environment(f"http://{NEIGHBOUR}:{door.s3}", *door.keys[role]).items():
        patch.setenv(name, value)
    patch.setattr("boto3.DEFAULT_SESSION", None)
    s3.client.cache_clear()
    return S3Store("everfresh-models", "p", S3Config())


def test_a_container_reaches_s3_with_its_keys_and_no_further(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = store(door, "publisher", monkeypatch)
    big = os.urandom(20_000_000)
    assert mine.create("stream/00000001.json", b"{}")
    mine.put("windows/v/shard-0.tar", big)
    assert mine.get("windows/v/shard-0.tar") == big
    with pytest.raises(AccessRefused):
        mine.delete("stream/00000001.json")
    theirs = store(door, "reader", monkeypatch)
    assert theirs.get("stream/00000001.json") == b"{}"
    with pytest.raises(AccessRefused):
        theirs.get("windows/v/shard-0.tar")
    s3.client.cache_clear()


def test_nobody_gets_around_the_policies_by_the_ports_behind_s3(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """The filer asks nobody for a key: who reaches it reads, writes and deletes what S3 forbids him."""
    mine = store(door, "publisher", monkeypatch)
    mine.create("stream/00000002.json", b"{}")
    path = "/buckets/everfresh-models/p/stream/00000002.json"
    assert answer("GET", door.filer, path, "127.0.0.1") == 200
    assert [answer(method, door.filer, path) for method in ("GET", "PUT", "DELETE")] == [None, None, None]
    assert [answer(method, door.s3, path.removeprefix("/buckets")) for method in ("GET", "PUT", "DELETE")] == [403, 403, 403]
    assert mine.get("stream/00000002.json") == b"{}"
    s3.client.cache_clear()


def test_the_server_behind_the_door_listens_on_loopback_only(door: Door) -> None:
    """Its gRPC too, which knows no keys either."""
    heard = listeners(door.server)
    assert len(heard) > 6
    assert {address for address, _ in heard} == {"0100007F"}


def listeners(pid: int) -> list[tuple[str, int]]:
    """Addresses and ports on which a process listens, as the kernel writes them."""
    held = {str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.is_symlink()}
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in held:
                address, _, port = fields[1].partition(":")
                found.append((address, int(port, 16)))
    return found


@pytest.mark.parametrize(("service", "template"), [("worker", "cpu-process"), ("gpu-worker", "gpu-process")])
def test_a_worker_that_finds_no_pool_makes_ours(service: str, template: str, server: PrefectServer) -> None:
    """`everfresh deploy` leaves a pool as it is, and workers are up before anybody deploys."""
    told = yaml.safe_load((INFRA / "compose.yaml").read_text())["services"][service]["command"]
    pool = f"pool-{uuid.uuid4().hex[:8]}"
    moved = {told[told.index("--pool") + 1]: pool, f"/opt/everfresh/work_pools/{template}.json": f"work_pools/{template}.json"}
    own = [sys.executable, "-m", *(moved.get(word, word) for word in told if word != "--with-healthcheck"), "--run-once"]
    subprocess.run(own, cwd=INFRA, env=server.environment(), check=True, capture_output=True, timeout=120)
    made = server.call("work_pools/filter", work_pools={"name": {"any_": [pool]}})[0]
    assert made["base_job_template"] == json.loads((INFRA / "work_pools" / f"{template}.json").read_text())
