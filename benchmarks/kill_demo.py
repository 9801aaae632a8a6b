"""kill -9 at random moments of the demo, each followed by a rerun to the end, compared with an undisturbed run.

    python benchmarks/kill_demo.py [--kills 5] [--seed 0]

Compared are all view ids, drift, candidate and evaluation keys, decisions, digests of weights and alias moves.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from everfresh.flows.look import fingerprint
from everfresh.tasks.config import load_config
from everfresh.tasks.store import pipeline_store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="everfresh-kill-") as folder:
        begun = time.monotonic()
        finish(Path(folder) / "undisturbed")
        length = time.monotonic() - begun
        expected = result(Path(folder) / "undisturbed")
        print(f"undisturbed: {length:.0f} s, {len(expected)} ticks and moves", flush=True)
        same = 0
        for number in range(options.kills):
            place = Path(folder) / f"killed-{number}"
            # The first seconds only start Python and the server; the last ones only draw.
            moment = draw.uniform(12, length - 5)
            reached = kill(place, moment)
            finish(place)
            equal = result(place) == expected
            same += equal
            print(f"killed after {moment:5.1f} s ({reached}): {'equal' if equal else 'DIFFERENT'}", flush=True)
        print(f"{same} of {options.kills} reruns equal the undisturbed run")
    sys.exit(same != options.kills)


def demo(place: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PREFECT_HOME": str(place.parent / f"{place.name}-prefect")}
    command = [str(Path(sys.executable).parent / "everfresh"), "demo", str(place)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)


def finish(place: Path) -> None:
    process = demo(place)
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"the demo failed: {errors.decode()}")


def kill(place: Path, moment: float) -> str:
    """SIGKILL the demo and the server that it started, after `moment` seconds; says how far it was."""
    process = demo(place)
    time.sleep(moment)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    entries = result(place) if (place / "pipeline.yaml").exists() else []
    return f"{sum('window' in e for e in entries)} ticks done"


def result(place: Path) -> list[dict[str, object]]:
    config = load_config(place / "pipeline.yaml")
    return fingerprint(pipeline_store(config))


if __name__ == "__main__":
    main()
