"""Upload of a file whose bytes are proven, against boto3's `upload_file` of the same bytes to the same server.

Usage: python benchmarks/upload.py [--sizes 5 100 1000]

The server is SeaweedFS on this machine, so client, server and disk share its processors. `checksum` lets the server
check a CRC-32 of each part, `read_back` reads all of it again and compares SHA-256; both hash the file once on its
way, boto3 does not. Ratios are of medians over interleaved rounds: 1 is as fast as boto3. Peak memory is that of a
process of its own for each size (Linux); it must not grow with the size. The limit is the hashing alone, which is quoted.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.s3 import BUCKET, environment, running_server

from everfresh.tasks.config import S3Config
from everfresh.tasks.store import S3Store, s3

MB = 1_000_000
ROUNDS = {5: 41, 100: 11, 1000: 3}
FLAT = 64 * MB
"""A larger file may take so many bytes more at its peak than the one before it of 100 MB or more."""
PROMISED = {"checksum": 0.95, "read_back": 0.7}


def peak(settings: S3Config, path: Path, sent: Any) -> None:
    """Upload once and tell this process's peak memory, bytes."""
    S3Store(BUCKET, "memory", settings).keep_file("file", path)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    sent.put(int(status["VmHWM"].split()[0]) * 1024)  # ru_maxrss would count the parent too


def memory(settings: S3Config, path: Path) -> int:
    spawn = get_context("spawn")
    sent = spawn.Queue()
    process = spawn.Process(target=peak, args=(settings, path, sent))
    process.start()
    found: int = sent.get()
    process.join()
    return found


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--sizes", type=int, nargs="+", default=list(ROUNDS), help="in millions of bytes")
    sizes = arguments.parse_args().sizes
    settings = {name: S3Config.model_validate({"verify": name}) for name in PROMISED}
    with TemporaryDirectory() as temporary, running_server(Path(temporary)) as endpoint:
        os.environ.update(environment(endpoint))
        import boto3

        bare = boto3.client("s3")
        bare.create_bucket(Bucket=BUCKET)
        kept, peaks = True, dict.fromkeys(PROMISED, 0)
        for size in sizes:
            path = Path(temporary) / "file"
            path.write_bytes(b"")
            with path.open("wb") as file:
                for _ in range(size):
                    file.write(os.urandom(MB))
            times: dict[str, list[float]] = {"boto3": [], **{name: [] for name in PROMISED}}
            for _ in range(ROUNDS.get(size, 3)):
                times["boto3"].append(timed(lambda: bare.upload_file(str(path), BUCKET, "bare")))  # noqa: B023
                for name, setting in settings.items():
                    times[name].append(timed(lambda: S3Store(BUCKET, "kept", setting).keep_file(name, path)))  # noqa: B023
            limit = timed(lambda: hashlib.file_digest(path.open("rb"), "sha256"))  # noqa: B023
            middle = {name: statistics.median(found) for name, found in times.items()}
            line = f"{size:5} MB: boto3 {size / middle['boto3']:6.0f} MB/s (hashing alone {size / limit:.0f} MB/s)"
            for name, promised in PROMISED.items():
                ratio = middle["boto3"] / middle[name]
                kept &= ratio >= promised
                most = memory(settings[name], path)
                kept &= not peaks[name] or most <= peaks[name] + FLAT
                peaks[name] = most if size >= 100 else 0  # below, not all threads have a part to send
                line += f"; {name} {ratio:.2f} (promised {promised}), {most / MB:.0f} MB at most"
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
        bare.close()
        for setting in settings.values():
            s3.client(setting).close()
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()
