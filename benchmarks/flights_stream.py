"""The flights of 2013 as a stream of rows through a network of the user's own: frozen, and kept fresh by the pipeline.

    FLIGHTS=nyc_flights_2013.parquet python benchmarks/flights_stream.py [--months 12] [--share 1] [--json out.json]
    FLIGHTS=nyc_flights_2013.parquet python benchmarks/flights_stream.py --write inbox

The pipeline is deployments/pipelines/flights.yaml. January to March come first and make version 1; each later month is a
window of its own. Before the pipeline treats a month, version 1 and the champion of that day score all of its flights, which
neither has seen: the area under the ROC curve (AUC), accuracy, and log loss. It fails if the champions kept fresh have, in
the mean over the months, no higher AUC than version 1.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

PIPELINES = Path(__file__).parent.parent / "deployments/pipelines"
LATE = 15
"""Minutes."""
FIRST = 3
"""Months that version 1 learns from."""
COLUMNS = ["time", "minute", "weekday", "distance", "carrier", "origin", "dest", "late"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--months", type=int, default=12)
    parser.add_argument("--share", type=float, default=1.0, help="of the flights of each month")
    parser.add_argument("--write", type=Path, help="write the table, a file a month, and end")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    path = os.environ.get("FLIGHTS")
    if not path or not Path(path).is_file():
        sys.exit("FLIGHTS must be the path of nyc_flights_2013.parquet, got " + repr(path))
    months = dict(by_month(pd.read_parquet(path), options.share))
    if options.write:
        options.write.mkdir(parents=True, exist_ok=True)
        for month, rows in months.items():
            rows.to_parquet(options.write / f"{month:02d}.parquet", index=False)
        return
    rows = run({month: rows for month, rows in months.items() if month <= options.months})
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    print("| month | flights | late | AUC of version 1 | AUC of the champion | log loss | accuracy | alarm | release | s |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for r in rows:
        v1, champion = r["frozen"], r["champion"]
        print(
            f"| {r['month']} | {r['flights']:,} | {r['late']:.1%} | {v1['auc']:.3f} | {champion['auc']:.3f} "
            f"| {v1['loss']:.3f} → {champion['loss']:.3f} | {v1['accuracy']:.3f} → {champion['accuracy']:.3f} "
            f"| {'yes' if r['alarm'] else 'no'} | {r['release'] or '–'} | {r['seconds']:.0f} |"
        )
    means = {name: statistics.mean(r[name]["auc"] for r in rows) for name in ("frozen", "champion")}
    print(f"\nmean AUC: {means['frozen']:.3f} frozen, {means['champion']:.3f} kept fresh")
    sys.exit(0 if means["champion"] > means["frozen"] else "the champions kept fresh rank no better than version 1")


def by_month(flights: pd.DataFrame, share: float) -> Iterator[tuple[int, pd.DataFrame]]:
    """The table as the pipeline takes it: what is known before a flight starts, and whether it arrived late."""
    clock = flights["sched_dep_time"].astype(int)
    flights = flights.assign(
        minute=clock // 100 * 60 + clock % 100,
        day_of=pd.to_datetime(flights[["year", "month", "day"]].astype(int)),
        late=np.where(flights["arr_delay"] > LATE, "yes", "no"),
    )
    flights["time"] = flights["day_of"] + pd.to_timedelta(flights["minute"], unit="min")
    flights["weekday"] = flights["day_of"].dt.strftime("%a")
    for month, rows in flights.groupby("month"):
        yield int(month), rows.sample(frac=share, random_state=2013).sort_index()[COLUMNS]  # type: ignore[call-overload]


def run(months: dict[int, pd.DataFrame]) -> list[dict[str, Any]]:
    """A row of results for each month after the first ones."""
    sys.path.insert(0, str(PIPELINES))  # where flights_model.py stands
    from everfresh.flows.retrain import retrain
    from everfresh.tasks.config import load_config
    from everfresh.tasks.store import pipeline_store

    with tempfile.TemporaryDirectory(prefix="everfresh-flights-") as folder:
        inbox = Path(folder) / "inbox"
        inbox.mkdir()
        os.environ |= {"FLIGHTS_STORE": f"{folder}/store", "FLIGHTS_INBOX": str(inbox)}
        config = load_config(PIPELINES / "flights.yaml")
        most = max(len(rows) for rows in months.values())
        window = config.window.model_copy(update={"max_samples": FIRST * most, "min_samples": 1})
        drift = config.drift.model_copy(update={"report": False})
        proof = config.evaluation.model_copy(update={"report": False})
        config = config.model_copy(update={"window": window, "drift": drift, "evaluation": proof})
        store = pipeline_store(config)
        for month in list(months)[:FIRST]:
            months[month].to_parquet(inbox / f"{month:02d}.parquet", index=False)
        (first,) = retrain(config)
        print(f"version 1: {first.samples:,} flights, {first.cost.seconds:.0f} s", file=sys.stderr, flush=True)
        champion, found = first.champion, []
        for month in list(months)[FIRST:]:
            months[month].to_parquet(inbox / f"{month:02d}.parquet", index=False)
            (entry,) = retrain(config)
            row = {
                "month": month,
                "flights": entry.samples,
                "late": float((months[month]["late"] == "yes").mean()),
                "frozen": scores(store, first.champion, entry.view),
                "champion": scores(store, champion, entry.view),
                "alarm": entry.alarm,
                "release": f"v{entry.version}" if entry.version else "",
                "failed": entry.failed_gates,
                "seconds": entry.cost.seconds,
            }
            print(json.dumps(row), file=sys.stderr, flush=True)
            champion = entry.champion
            found.append(row)
        return found


def scores(store: Any, release_id: str | None, name: str) -> dict[str, float]:
    """What a release makes of all rows of a window."""
    from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

    from everfresh.tasks import models
    from everfresh.tasks.ledger import find
    from everfresh.tasks.records import Release
    from everfresh.tasks.views import View

    release = find(store, f"releases/{release_id}/release.json", Release)
    assert release is not None
    view = View(store, name)
    module = models.load(store, release.spec, release.files["model.safetensors"], code=release.spec.architecture)
    rows = view.rows(known=release.spec.classes).tolist()
    made = models.embed(module, release.spec, view.read(rows))[1].softmax(dim=1)[:, 1].double().numpy()
    late = np.array([view.samples[r].label == "yes" for r in rows])
    return {
        "auc": float(roc_auc_score(late, made)),
        "loss": float(log_loss(late, made)),
        "accuracy": float(accuracy_score(late, made > 0.5)),
    }


if __name__ == "__main__":
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
    os.environ.setdefault("EVERFRESH_PROGRESS", "0")
    main()
