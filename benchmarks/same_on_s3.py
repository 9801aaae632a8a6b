"""The digits of the demo, and PACS, with the store in a folder and with the store on a real S3 server: all must be equal.

    [PACS_DATA=… SQUEEZENET=…] python benchmarks/same_on_s3.py [--seed 0]

Both stores are fed by the same inbox, window by window. Compared are all view ids, drift, candidate and evaluation keys,
decisions, digests of weights and alias moves; it fails if one differs. PACS is left out, saying so, without its data.
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

from support.s3 import BUCKET, environment, running_server

from everfresh.flows.demo import pipeline_file
from everfresh.flows.digits import SCHEDULE, arrive
from everfresh.flows.look import fingerprint
from everfresh.tasks.config import PipelineConfig, load_config
from everfresh.tasks.store import pipeline_store

PACS = Path(__file__).parents[1] / "deployments/pipelines/pacs.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    same = True
    with tempfile.TemporaryDirectory(prefix="everfresh-s3-") as folder, running_server(Path(folder)) as endpoint:
        place = Path(folder)
        os.environ |= environment(endpoint) | {"EVERFRESH_CACHE": str(place / "cache")}
        import boto3

        boto3.client("s3").create_bucket(Bucket=BUCKET)
        digits = load_config(pipeline_file(place / "digits", seed))
        same &= compare(digits, [lambda arrival=arrival: arrive(place / "digits/inbox", arrival, seed) for arrival in SCHEDULE])
        if "PACS_DATA" in os.environ and "SQUEEZENET" in os.environ:
            os.environ |= {"PACS_STORE": str(place / "pacs"), "PACS_SEED": str(seed)}
            same &= compare(load_config(PACS), [lambda: None])
        else:
            print("pacs: left out, PACS_DATA and SQUEEZENET are not set")
    sys.exit(not same)


def compare(config: PipelineConfig, arrivals: list[Callable[[], object]]) -> bool:
    """Play a pipeline on both stores; tells whether they end equal."""
    from everfresh.flows.retrain import retrain

    configs = {"folder": config, "S3": config.model_copy(update={"store": f"s3://{BUCKET}/stores"})}
    seconds = dict.fromkeys(configs, 0.0)
    for arrival in arrivals:
        arrival()
        for name, one in configs.items():
            begun = time.monotonic()
            retrain(one, drain=True)
            seconds[name] += time.monotonic() - begun
    on_folder, on_s3 = (fingerprint(pipeline_store(one)) for one in configs.values())
    weights = sum(len(entry.get("tried", ())) for entry in on_s3)
    print(
        f"{config.name}: {sum('window' in e for e in on_s3)} ticks, {sum('move' in e for e in on_s3)} moves, "
        f"{weights} digests of weights: {'equal' if on_folder == on_s3 else 'DIFFERENT'} "
        f"(folder {seconds['folder']:.0f} s, S3 {seconds['S3']:.0f} s)",
        flush=True,
    )
    return on_folder == on_s3 and weights > 0


if __name__ == "__main__":
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("EVERFRESH_PROGRESS", "0")
    main()
