"""What the Prefect server should have for a pipeline: deployments, work pools and limits, made from the config alone.

`flows/deploy.py` compares it with what the server has. A deployment holds the whole config as JSON and names its flow by
module path, so a worker needs Everfresh installed and nothing else: no file, no folder, no code to pull.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from prefect import Flow
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema

from everfresh.tasks.config import PipelineConfig

Declared = dict[str, Any]
"""A deployment in plain values, as people would compare two of them."""
FLOWS = ("monitor", "retrain", "fine-tune", "rollback", "sweep")
"""Flows that are deployed for each pipeline."""
FLEET = "monitor-all"
"""The flow that is deployed for a fleet, in the place of the schedules of its pipelines' `monitor`."""
ONE_AT_A_TIME = {
    "retrain": "ENQUEUE",  # what a person or an alert has asked for is not dropped
    "monitor": "CANCEL_NEW",  # the next look sees what this one would have seen
    "monitor-all": "CANCEL_NEW",
    "sweep": "CANCEL_NEW",
}
"""Flows of which one run at a time is enough, and what becomes of a second."""
COMMON: dict[str, Callable[[PipelineConfig], Any]] = {
    "schedule.monitor": lambda config: config.schedule.monitor,
    "schedule.timezone": lambda config: config.schedule.timezone,
    "deploy.pool": lambda config: config.deploy.pool,
    "deploy.kind": lambda config: config.deploy.kind,
    "deploy.image": lambda config: config.deploy.image,
    "deploy.env": lambda config: config.deploy.env,
    "deploy.job_variables": lambda config: config.deploy.job_variables,
    "deploy.heartbeat_seconds": lambda config: config.deploy.heartbeat_seconds,
}
"""What the pipelines of a fleet must have in common: one run has it once."""
KEPT_SILENT = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1", "PREFECT_LOGGING_EXTRA_LOGGERS": "everfresh"}
"""Telemetry of every part is off; our lines stand with the run in the UI."""
EVICTED = {"PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR": "reschedule"}
"""A pod whose node is taken back gives its run to the next worker; else it would be missed after three heartbeats only."""


def gpu_limit(config: PipelineConfig) -> str:
    """Name of the limit that keeps fine-tunings on one GPU pool to its slots."""
    return f"everfresh-gpu-{config.deploy.gpu_pool}"


def publish_limit(config: PipelineConfig) -> str:
    """Name of the limit that lets one run at a time publish for a pipeline."""
    return f"everfresh-publish-{config.name}"


def limits(config: PipelineConfig) -> dict[str, int]:
    """Slots of each global concurrency limit."""
    gpu = {gpu_limit(config): config.deploy.gpu_slots} if config.deploy.gpu_pool else {}
    return {**gpu, publish_limit(config): 1}


def pools(config: PipelineConfig) -> dict[str, dict[str, Any]]:
    """The base job template of each work pool, for one that the server does not have yet."""
    wanted = {config.deploy.pool: "cpu"}
    if config.deploy.gpu_pool:
        wanted[config.deploy.gpu_pool] = "gpu"
    return {name: template(place, config.deploy.kind) for name, place in wanted.items()}


def template(place: str, kind: str) -> dict[str, Any]:
    """A base job template of `infra/work_pools/`.

    Args:
        place: ``cpu`` or ``gpu``.
        kind: ``process``, ``docker`` or ``kubernetes``.
    """
    text = files("everfresh.infra").joinpath("work_pools", f"{place}-{kind}.json").read_text("utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def tags(config: PipelineConfig) -> list[str]:
    """On everything that belongs to a pipeline."""
    return ["everfresh", f"pipeline:{config.name}"]


def flow_of(name: str) -> Flow[..., Any]:
    """A flow by the name that Prefect shows."""
    return load_flow_from_entrypoint(entrypoint(name))


def entrypoint(name: str) -> str:
    """Module path of a flow."""
    module = name.replace("-", "_")
    return f"everfresh.flows.{module}.{module}"


def deployments(config: PipelineConfig) -> dict[str, Declared]:
    """What each flow's deployment should be, by the flow's name."""
    return {name: _deployment(config, name) for name in FLOWS}


def fleet(head: PipelineConfig, configs: Sequence[PipelineConfig]) -> dict[str, Declared]:
    """What the deployment of a fleet should be; `head` stands for all of them, see `flows/deploy_fleet.py`."""
    facts = _deployment(head, FLEET)
    cron = head.schedule.monitor
    facts["parameters"] = {"configs": [as_parameter(config) for config in configs], "name": head.name}
    facts["schedules"] = [] if cron is None else [f"{cron} {head.schedule.timezone}"]
    return {FLEET: facts}


def in_a_fleet(config: PipelineConfig) -> PipelineConfig:
    """The config of a pipeline that a fleet looks at: its own `monitor` is for by hand only."""
    return config.model_copy(update={"schedule": config.schedule.model_copy(update={"monitor": None})})


def as_parameter(config: PipelineConfig) -> dict[str, Any]:
    """A config as short as it can be told: Prefect takes 512 KiB of parameters a run."""
    return config.model_dump(mode="json", exclude_unset=True)


def _deployment(config: PipelineConfig, name: str) -> Declared:
    flow = flow_of(name)
    gpu = name == "fine-tune" and config.deploy.gpu_pool is not None
    cron = getattr(config.schedule, name, None)
    return {
        "entrypoint": entrypoint(name),
        "description": flow.description,
        "tags": tags(config),
        "parameters": {"config": config.model_dump(mode="json")},
        "form": form(flow),
        "schedules": [] if cron is None else [f"{cron} {config.schedule.timezone}"],
        "one at a time": ONE_AT_A_TIME.get(name),
        "work pool": config.deploy.gpu_pool if gpu else config.deploy.pool,
        "job variables": job_variables(config, gpu=gpu),
    }


def job_variables(config: PipelineConfig, *, gpu: bool) -> dict[str, Any]:
    """What a run's process, container or pod is given, over the template of its pool."""
    how = config.deploy
    given: dict[str, Any] = {**({"image": how.image} if how.image else {}), **how.job_variables}
    if gpu:
        given |= how.gpu_job_variables
    heartbeat = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(how.heartbeat_seconds)}
    evicted = EVICTED if how.kind == "kubernetes" else {}
    return {**given, "env": {**KEPT_SILENT, **heartbeat, **evicted, **how.env, **given.get("env", {})}}


@cache
def form(flow: Flow[..., Any]) -> dict[str, Any]:
    """The parameters of a flow as *Custom run* asks for them.

    Records become plain objects and the config comes last: hundreds of fields that are in the file already would bury the
    five that a person fills in. The flow itself validates them in full.
    """
    schema = parameter_schema(flow.fn).model_dump()
    properties = {name: _plain(field) for name, field in schema["properties"].items()}
    if "config" in properties:
        properties["config"]["description"] = "The pipeline file as it was deployed; leave it as it is."
    last = sorted(properties, key=lambda name: (properties[name]["type"] in {"object", "array"}, properties[name]["position"]))
    for position, name in enumerate(last):
        properties[name]["position"] = position
    schema["properties"] = {name: properties[name] for name in last}
    given = {"config", "configs"}  # by the deployment
    schema["required"] = [name for name in schema.get("required", []) if name not in given]
    return {**schema, "definitions": {}}


def _sentence(words: str) -> str:
    """A name, or what is said of it, as a person begins to read it."""
    return words[:1].upper() + (words[1:] if " " in words else words[1:].replace("_", " "))


def _plain(field: Mapping[str, Any]) -> dict[str, Any]:
    """A field without references: a record becomes an object, what may be null or something else just that something."""
    own = {key: field[key] for key in ("title", "description", "position", "default") if field.get(key) is not None}
    own |= {key: _sentence(own[key]) for key in ("title", "description") if key in own}
    kinds = [kind for kind in field.get("anyOf", [field]) if kind.get("type") != "null"]
    kind = kinds[0] if len(kinds) == 1 else {"type": "string"}
    if "$ref" in kind or "allOf" in kind:
        return {**own, "type": "object"}
    return {**kind, **own}
