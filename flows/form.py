"""The form that *Custom run* of a deployment shows: a few typed fields, and the pipeline last, as it was deployed."""

from __future__ import annotations

from typing import Any

from prefect import Flow
from prefect.utilities.callables import parameter_schema

CONFIG = "config"


def form(flow: Flow[..., Any]) -> dict[str, Any]:
    """The parameters of a flow as a schema that Prefect's UI makes a short form of.

    What Prefect makes of the signature has a field for each of the hundred options of a pipeline, and offers two types for
    whatever may be left out.
    """
    made = parameter_schema(flow).model_dump()
    fields = {name: _field(name, made["properties"][name]) for name in sorted(made["properties"], key=lambda n: n == CONFIG)}
    for position, field in enumerate(fields.values()):
        field["position"] = position
    return {"type": "object", "title": "Parameters", "properties": fields, "required": [CONFIG] if CONFIG in fields else []}


def _field(name: str, found: dict[str, Any]) -> dict[str, Any]:
    title, description = name.replace("_", " ").capitalize(), found.get("description", "")
    if name == CONFIG:
        return {"title": "Pipeline", "type": "object", "description": "As `everfresh deploy` has set it."}
    [kind] = [one for one in found.get("anyOf", [found]) if one.get("type") != "null"]
    shown = {key: kind[key] for key in ("type", "enum", "items", "minimum") if key in kind}
    default = {} if found.get("default") is None else {"default": found["default"]}
    return {"title": title, "description": f"{description[:1].upper()}{description[1:]}", **shown, **default}
