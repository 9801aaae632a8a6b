"""What Prefect is told: entry points by module path, parameters, no pickled result, example files that validate."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prefect import Flow, Task
from prefect.flows import load_flow_from_entrypoint
from support.prefect_server import PrefectServer
from support.stream import Pipeline

from everfresh.tasks import steps
from everfresh.tasks.config import PipelineConfig, load_config

ROOT = Path(__file__).parents[2]
FLOWS = {
    "retrain": {"config", "force", "reason", "rung", "trust_labels", "drain", "first_window", "last_window"},
    "monitor": {"config"},
    "replay": {"config", "name", "rung", "last", "all_rungs"},
    "rollback": {"config", "to", "reason"},
    "fine_tune": {"config", "tick", "rung", "start"},
    "sweep": {"config", "older_than_hours", "delete"},
}
TICK = {
    "seq": 1,
    "view": "v",
    "champion": None,
    "champion_move": 0,
    "reference": None,
    "bank": [],
    "now": "2026-01-01T00:00:00Z",
}
REQUIRED: dict[str, dict[str, object]] = {"fine-tune": {"tick": TICK | {"now": "2026-01-01T00:00:00Z"}, "rung": "head"}}
EXAMPLES = sorted((ROOT / "deployments" / "pipelines").glob("*.yaml"))
STEPS = [value for value in vars(steps).values() if isinstance(value, Task)]


def flow(name: str) -> Flow[..., object]:
    return load_flow_from_entrypoint(f"everfresh.flows.{name}.{name}")


@pytest.mark.parametrize("name", FLOWS)
def test_a_flow_is_found_by_module_path(name: str) -> None:
    assert flow(name).name == name.replace("_", "-")
    assert flow(name).description


@pytest.mark.parametrize("name", FLOWS)
def test_a_flow_says_what_it_takes(name: str) -> None:
    schema = flow(name).parameters
    assert set(schema.properties) == FLOWS[name]
    assert "config" in schema.required
    assert "PipelineConfig" in schema.definitions


@pytest.mark.parametrize("name", FLOWS)
def test_a_flow_takes_its_config_as_json_too(name: str) -> None:
    """A deployment holds its parameters as JSON; Prefect makes records of them."""
    raw = {"name": "p", "store": "s", "source": {"kind": "folder"}, "model": {"classes": ["a", "b"]}}
    given = {"config": raw}
    given |= REQUIRED.get(name.replace("_", "-"), {})
    assert isinstance(flow(name).validate_parameters(given)["config"], PipelineConfig)


@pytest.mark.parametrize("name", FLOWS)
def test_no_flow_keeps_its_result(name: str) -> None:
    assert flow(name).persist_result is False


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_no_step_keeps_its_result_and_all_share_one_policy(step: Task[..., object]) -> None:
    assert step.persist_result is False
    assert step.cache_policy.__class__.__name__ == "_None"
    assert (step.retries, step.retry_delay_seconds) == (2, [1, 10])


def test_the_steps_have_names_of_their_own() -> None:
    names = [step.name for step in STEPS]
    assert len(set(names)) == len(names) >= 12


def test_nothing_was_kept_in_prefects_own_storage(played: Pipeline, server: PrefectServer) -> None:
    kept = server.home / "storage"
    assert not kept.exists() or list(kept.iterdir()) == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_pipeline_validates(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    needed = set(re.findall(r"\$\{(\w+)\}", path.read_text("utf-8")))
    for name in needed:
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    assert load_config(path).name == path.stem
