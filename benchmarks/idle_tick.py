"""What a tick with nothing new costs, against an empty Prefect flow with as many tasks, on a running server.

    python benchmarks/idle_tick.py [--pairs 9]

Both are whole processes, in turn, A B A B …; quoted is the median of the ratios. The empty flow has the idle tick's
number of tasks, the same task options, and the same parameter, so the ratio is what Everfresh itself adds: reading the
pipeline file, the stream's head and the source's listing. The limit is 1: the empty flow.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

EMPTY = """
from prefect import flow, task
from prefect.cache_policies import NO_CACHE

@task(name="nothing", cache_policy=NO_CACHE, persist_result=False, retries=2, retry_delay_seconds=[1, 10])
def nothing(config):
    return None

@flow(name="empty", persist_result=False)
def empty(config: dict):
    return nothing(config)

empty({"name": "digits"})
"""
TICK = """
import sys
from everfresh.flows.retrain import retrain
from everfresh.tasks.config import load_config
assert retrain(load_config(sys.argv[1])) == []
loaded = {"torch", "evidently", "boto3"} & set(sys.modules)
assert not loaded, loaded
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="everfresh-idle-") as folder:
        place = Path(folder)
        server, url = start_server(place)
        environment = os.environ | {"PREFECT_API_URL": url, "PREFECT_HOME": str(place / "client")}
        environment["PREFECT_LOGGING_LEVEL"] = "ERROR"
        try:
            pipeline = prepare(place, environment)
            seconds: dict[str, list[float]] = {"idle tick": [], "empty flow": []}
            for number in range(options.pairs + 1):
                for name, code in (("idle tick", TICK), ("empty flow", EMPTY)):
                    begun = time.monotonic()
                    subprocess.run([sys.executable, "-c", code, str(pipeline)], env=environment, check=True)
                    if number:  # the first pair warms up
                        seconds[name].append(time.monotonic() - begun)
        finally:
            server.kill()
            server.wait()
    ratios = [a / b for a, b in zip(seconds["idle tick"], seconds["empty flow"], strict=True)]
    for name, values in seconds.items():
        print(f"{name}: median {statistics.median(values):.2f} s ({min(values):.2f} … {max(values):.2f})")
    median = statistics.median(ratios)
    print(f"idle tick / empty flow: median {median:.2f} ({min(ratios):.2f} … {max(ratios):.2f}), limit 1, target 1.30")
    sys.exit(median > 1.30)


def start_server(place: Path) -> tuple[subprocess.Popen[bytes], str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"PREFECT_HOME": str(place / "server"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    command = [str(Path(sys.executable).parent / "prefect"), "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}/api"
    deadline = time.monotonic() + 90
    while True:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=1)
            return server, url
        except OSError:
            if time.monotonic() > deadline or server.poll() is not None:
                server.kill()
                raise SystemExit("the Prefect server did not come up in 90 s") from None
            time.sleep(0.3)


def prepare(place: Path, environment: dict[str, str]) -> Path:
    """A pipeline whose first window has been treated, so that nothing is new."""
    from importlib.resources import files

    from everfresh.flows.digits import SCHEDULE, arrive

    pipeline = place / "pipeline.yaml"
    text = files("everfresh.flows").joinpath("templates/digits.yaml").read_text("utf-8")
    pipeline.write_text(text.replace("$SEED", "0").replace("epochs: 16", "epochs: 1"))
    arrive(place / "inbox", SCHEDULE[0], 0)
    command = [str(Path(sys.executable).parent / "everfresh"), "run", str(pipeline)]
    # A first challenger of one epoch may fail its floor (3): the window has been treated all the same.
    code = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL).returncode
    assert code in {0, 3}, code
    return pipeline


if __name__ == "__main__":
    main()
