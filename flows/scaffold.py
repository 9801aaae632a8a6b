"""``everfresh init``: a pipeline file in which every field says what it means, made from the config itself."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from everfresh.tasks.config import Column, ImageFolder, ModelConfig, PipelineConfig, PolicyConfig, TableRows, json_schema
from everfresh.tasks.errors import ConfigError

SCHEMA = "pipeline.schema.json"
WIDEST = 120
"""Characters of a line."""
EXAMPLE = PipelineConfig(
    name="my-model", store="store", source=ImageFolder(path="inbox"), model=ModelConfig(classes=("cat", "dog"))
)

ROWS_EXAMPLE = PipelineConfig(
    name="my-model",
    store="store",
    source=TableRows(paths=("inbox",), label_column="label", timestamp_column="time"),
    model=ModelConfig(
        architecture="my_package.my_module:my_network",
        weights=None,
        classes=("no", "yes"),
        features=(Column(name="age"), Column(name="country", categories=("DE", "FR"))),
    ),
    policy=PolicyConfig(bootstrap="pretrained"),
)


def write_pipeline(path: Path, *, rows: bool = False, overwrite: bool = False) -> list[Path]:
    """Write a commented pipeline file and, beside it, the JSON schema with which editors complete it.

    Args:
        path: of the file.
        rows: for rows of tables instead of pictures.
        overwrite: also where a file is there already.

    Raises:
        ConfigError: the file is there already.
    """
    if path.exists() and not overwrite:
        raise ConfigError(f"{path}: must not exist yet, got a file. Give another name, or --force to overwrite it.")
    schema = path.parent / SCHEMA
    path.parent.mkdir(parents=True, exist_ok=True)
    head = [
        f"# yaml-language-server: $schema={SCHEMA}",
        f"# An Everfresh pipeline. Check it with `everfresh check {path.name}`, run one tick with `everfresh run {path.name}`.",
        "# Relative paths start at this file's folder. Credentials never stand here: boto3 finds them (AWS_* variables,",
        "# profile, role). ${NAME} and ${NAME:-default} are taken from the environment.",
        "",
    ]
    path.write_text("\n".join([*head, *_section(ROWS_EXAMPLE if rows else EXAMPLE)]) + "\n", encoding="utf-8")
    schema.write_text(json_schema(), encoding="utf-8")
    return [path, schema]


def _section(model: BaseModel, indent: int = 0) -> Iterator[str]:
    space = "  " * indent
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if indent == 0:
            yield ""
        for line in textwrap.wrap(" ".join((field.description or "").split()), 110 - len(space), break_on_hyphens=False):
            yield f"{space}# {line}"
        if isinstance(value, BaseModel):
            yield f"{space}{name}:"
            yield from _section(value, indent + 1)
        elif isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
            yield f"{space}{name}:"
            for item in value:
                lines = list(_section(item, indent + 2))
                first = next(i for i, line in enumerate(lines) if not line.lstrip().startswith("#"))
                yield from lines[:first]
                yield f"{space}  - {lines[first].lstrip()}"
                yield from lines[first + 1 :]
            for kind in _others(field, value):
                yield from _as_comment(kind, f"{space}  ")
        elif isinstance(value, tuple) and len(f"{space}{name}: {_inline(value)}") > WIDEST:
            yield f"{space}{name}:"
            yield from (f"{space}  - {_inline(item)}" for item in value)
        else:
            yield f"{space}{name}: {_inline(value)}"


def _others(field: FieldInfo, used: Sequence[BaseModel]) -> list[type[BaseModel]]:
    """Kinds of a list that it has not, and that are complete with their defaults."""
    members = get_args(get_args(get_args(field.annotation)[0])[0])
    kinds = [kind for kind in members if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return [k for k in kinds if not any(isinstance(v, k) for v in used) and not any(f.is_required() for f in _fields(k))]


def _fields(kind: type[BaseModel]) -> list[FieldInfo]:
    return list(kind.model_fields.values())


def _as_comment(kind: type[BaseModel], space: str) -> Iterator[str]:
    """An entry to be taken in by removing its `#`: what it is for, and its fields with their defaults."""
    width = 110 - len(space)
    for line in textwrap.wrap(" ".join((kind.__doc__ or "").split()), width, break_on_hyphens=False):
        yield f"{space}# {line}"
    fields = ", ".join(f"{name}: {_inline(field.default)}" for name, field in kind.model_fields.items())
    for line in textwrap.wrap(f"- {{{fields}}}", width, break_on_hyphens=False, subsequent_indent="   "):
        yield f"{space}#{line}"


def _inline(value: Any) -> str:
    plain = to_jsonable_python(value)
    if isinstance(plain, list):
        return json.dumps(plain)
    return yaml.safe_dump(plain, default_flow_style=True, width=1000).removesuffix("\n...\n").strip()
