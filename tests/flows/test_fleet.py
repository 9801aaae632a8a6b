"""One `monitor` run over many pipelines, against a real server."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.prefect_server import PrefectServer
from support.stream import AGED, Pipeline, make_pipeline

from everfresh.flows.declared import as_parameter
from everfresh.flows.monitor_all import PipelinesFailed, monitor_all
from everfresh.tasks.config import parse_config


def test_a_config_is_the_same_after_the_short_way(played: Pipeline) -> None:
    assert parse_config(as_parameter(played.config)) == played.config


def test_one_that_fails_does_not_stop_the_others(pipeline: Pipeline, server: PrefectServer, tmp_path: Path) -> None:
    """A wrong config, a store that is a file, one with drift, one with nothing new: each is told, and the drift is alerted."""
    idle = make_pipeline(tmp_path / "idle", "idle")
    blocked = make_pipeline(tmp_path / "blocked", "blocked")
    blocked.arrives(1)
    (blocked.folder / "store").write_text("not a folder", "utf-8")
    pipeline.arrives(3, AGED)
    configs = [
        {"name": "wrong", "store": "x"},
        *(as_parameter(one.config) for one in (blocked, pipeline, idle)),
    ]
    with pytest.raises(PipelinesFailed, match="2 of 4 pipelines failed, the others were looked at: wrong: ") as failed:
        monitor_all(configs, name=pipeline.name, threads=2)
    wrong, broken, drifted, quiet = failed.value.looked
    assert "source" in wrong.failure
    assert broken.failure
    assert "\n" not in broken.failure
    assert drifted.tick is not None
    assert drifted.drift is not None
    assert (drifted.tick.seq, quiet.words) == (3, "nothing new")
    [page] = server.artifacts(f"{pipeline.name}-fleet")
    assert page["description"].endswith("2 failed")
    assert "| blocked | – | failed |" in page["data"]
    [run] = server.call("flow_runs/filter", flow_runs={"name": {"like_": f"{pipeline.name} · 4 pipelines"}})
    assert run["state"]["type"] == "FAILED"
    assert run["state"]["message"].startswith("2 of 4 pipelines failed")
    again = monitor_all(configs[2:], name=pipeline.name)
    assert [one.words for one in again] == ["nothing new", "nothing new"]
