"""``everfresh init``: a file that says what each field means, and that is valid as it stands."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import yaml
from jsonschema import Draft202012Validator
from pydantic import BaseModel

from everfresh.flows.scaffold import EXAMPLE, ROWS_EXAMPLE, SCHEMA, write_pipeline
from everfresh.tasks.config import Gate, PipelineConfig, load_config
from everfresh.tasks.errors import ConfigError


@pytest.fixture(params=["pictures", "rows"])
def example(request: pytest.FixtureRequest) -> PipelineConfig:
    return ROWS_EXAMPLE if request.param == "rows" else EXAMPLE


@pytest.fixture
def written(tmp_path: Path, example: PipelineConfig) -> Path:
    return write_pipeline(tmp_path / "pipeline.yaml", rows=example is ROWS_EXAMPLE)[0]


def descriptions(model: BaseModel) -> Iterator[str]:
    """What each field of a section and of its sections means."""
    for name, field in type(model).model_fields.items():
        if name != "kind":
            yield " ".join((field.description or "").split())
        value = getattr(model, name)
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, BaseModel):
                yield from descriptions(item)


def test_the_file_holds_exactly_the_defaults(written: Path, example: PipelineConfig) -> None:
    inbox = str(written.parent / "inbox")
    place = {"paths": [inbox]} if example is ROWS_EXAMPLE else {"path": inbox}
    expected = PipelineConfig.model_validate(
        example.model_dump() | {"store": str(written.parent / "store"), "source": example.source.model_dump() | place}
    )
    assert load_config(written) == expected


def test_every_field_is_explained(written: Path, example: PipelineConfig) -> None:
    lines = written.read_text("utf-8").splitlines()
    words = " ".join(line.strip().removeprefix("#").strip() for line in lines if line.lstrip().startswith("#"))
    for description in descriptions(example):
        assert description
        assert description in words


def test_no_line_is_wider_than_an_editor(written: Path) -> None:
    assert max(map(len, written.read_text("utf-8").splitlines())) <= 120


def test_the_schema_beside_it_is_named_and_fits(written: Path) -> None:
    text = written.read_text("utf-8")
    assert text.startswith(f"# yaml-language-server: $schema={SCHEMA}\n")
    schema = json.loads((written.parent / SCHEMA).read_text("utf-8"))
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    validator.validate(yaml.safe_load(text))
    wrong = yaml.safe_load(text)
    wrong["fine_tune"]["epoch"] = 3
    assert [error.message for error in validator.iter_errors(wrong)]


def test_a_file_that_is_there_is_kept(written: Path) -> None:
    written.write_text("mine", "utf-8")
    with pytest.raises(ConfigError, match=r"pipeline\.yaml: must not exist yet"):
        write_pipeline(written)
    assert written.read_text("utf-8") == "mine"
    write_pipeline(written, overwrite=True)
    assert load_config(written).name == "my-model"


def test_folders_are_made(tmp_path: Path) -> None:
    assert [p.name for p in write_pipeline(tmp_path / "new" / "deep" / "p.yaml")] == ["p.yaml", SCHEMA]


def test_the_gates_that_it_leaves_out_stand_there_to_be_taken_in(written: Path) -> None:
    """Without their `#` they are entries of the list, with their defaults."""
    lines = written.read_text("utf-8").splitlines()
    taken_in = [re.sub(r"^  #(- \{|   )", r"  \1", line) for line in lines]
    gates = yaml.safe_load("\n".join(taken_in))["gates"]
    known = {kind.model_fields["kind"].default: kind for kind in get_args(get_args(Gate)[0])}
    assert sorted(gate["kind"] for gate in gates) == sorted(known)
    for gate in gates:
        assert known[gate["kind"]].model_validate(gate) == known[gate["kind"]]()
