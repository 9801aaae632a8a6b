"""A pipeline file becomes a ``PipelineConfig``, or an error that names field, rule, value and remedy."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from yaml.error import MarkedYAMLError
from yaml.reader import ReaderError

from everfresh.tasks.config.operation import REFERENCE
from everfresh.tasks.config.sections import ImageFolder, LoggedPredictions, PipelineConfig, TableRows, TarShards
from everfresh.tasks.errors import ConfigError

SECRET_KEY = re.compile(r"(secret|password|passwd|access[_-]?key|api[_-]?key|token|credential)", re.IGNORECASE)
WHOLE_FILE = "pipeline"
LONGEST = 80
"""Characters of a value that an error repeats."""
SECRET_VALUE = re.compile(r"\b(AKIA|ASIA)[A-Z0-9]{16}\b|://[^/@\s]+:[^@\s]+@")


def load_config(path: str | Path) -> PipelineConfig:
    """Read and validate a pipeline file.

    ``${NAME}`` and ``${NAME:-default}`` in values are replaced from the environment; relative paths are
    taken from the file's own folder.

    Raises:
        ConfigError: the file is missing, no YAML, or breaks a rule; names field, rule, value and remedy.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such pipeline file. Write one with `everfresh init {path}`.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}). Give a UTF-8 YAML file.") from error
    try:
        raw = yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
        if not isinstance(raw, dict):
            raise ConfigError(f"{path}: must be a mapping of sections, got {type(raw).__name__}. See `everfresh init`.")
        raw = _expand(raw, str(path))
    except (yaml.YAMLError, ValueError, ArithmeticError) as error:  # whose text repeats the line, and what is secret in it
        raise ConfigError(f"{path}: must be valid YAML, got {_trouble(error, text)}. Mend that line.") from None
    except RecursionError:
        raise ConfigError(
            f"{path}: must be sections of plain values, got one within itself, or too deep. Write each value out."
        ) from None
    return parse_config(raw, base=path.parent, label=str(path))


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which has no words for a date or a number that is none, such as 2020-13-45."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, ArithmeticError, LookupError, AttributeError, TypeError):
            raise MarkedYAMLError(problem="found a number or date that is none", problem_mark=node.start_mark) from None


REPEATED = re.compile(r":?\s+(['\"])(?!\\?.\1|<).*", re.DOTALL)
"""What an error of PyYAML repeats of the file, and all behind it; a single character and the `<kinds>` of tokens stay."""


def _trouble(error: Exception, text: str) -> str:
    """Where the file is no YAML and why, with nothing that stands in it."""
    if isinstance(error, ReaderError):
        before = text[: error.position]
        line, column = before.count("\n") + 1, error.position - before.rfind("\n")
        return f"line {line}, column {column}: found a character that YAML does not allow, #x{ord(text[error.position]):04x}"
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return where + (REPEATED.sub("", problem) if problem else "what it does not allow")


def parse_config(raw: dict[str, Any], *, base: Path | None = None, label: str = "pipeline") -> PipelineConfig:
    """Validate a mapping as a pipeline; `base` is the folder that relative paths start from.

    Raises:
        ConfigError: a rule is broken; one line for each field.
    """
    secrets = list(_inline_secrets(raw))
    if secrets:
        raise ConfigError(
            f"{label}: {', '.join(secrets)} must not hold a credential. Remove it and let boto3 find the credentials: "
            "environment (AWS_ACCESS_KEY_ID, …), a profile (AWS_PROFILE) or the machine's role."
        )
    try:
        config = PipelineConfig.model_validate(raw)
    except ValidationError as error:
        lines = "\n".join(f"  {line}" for line in _explain(error, raw))
        raise ConfigError(f"{label}:\n{lines}") from None
    anchored = _anchored(config, base, label) if base is not None else config
    _store_stands_apart(anchored, label)
    return anchored


def _store_stands_apart(config: PipelineConfig, label: str) -> None:
    source = config.source
    store = f"{config.store.rstrip('/')}/{config.name}/"
    for path in (source.path,) if isinstance(source, ImageFolder | LoggedPredictions) else source.paths:
        folder = f"{path.removeprefix('file://').rstrip('/')}/"
        if store.removeprefix("file://").startswith(folder):
            raise ConfigError(
                f"{label}: store must stand outside the source, got {config.store} within {path}: the pipeline would take in "
                "its own pictures. Move one of them."
            )


def json_schema() -> str:
    """JSON schema of the pipeline file, for editors to complete and check it."""
    return json.dumps(PipelineConfig.model_json_schema(), indent=2) + "\n"


# What pydantic's kinds of errors mean in the file: the rule, and what to write instead.
WHOLE, NUMBER = ("must be a whole number", "Write one without a point"), ("must be a number", "Write one such as 0.05")
YES_NO, TEXT = ("must be true or false", "Write one of the two"), ("must be text", "Put it into quotes")
SECTION = ("must be a section", "Write its keys below it, each in a line of its own and indented")
RULES = {
    "int_type": WHOLE, "int_parsing": WHOLE, "int_from_float": WHOLE, "float_type": NUMBER, "float_parsing": NUMBER,
    "finite_number": NUMBER, "bool_type": YES_NO, "bool_parsing": YES_NO, "string_type": TEXT,
    "model_type": SECTION, "model_attributes_type": SECTION, "dict_type": SECTION, "union_tag_not_found": SECTION,
    "tuple_type": ("must be a list", "Write it as [a, b]"),
    "greater_than_equal": ("must be at least {ge}", "Raise it"), "greater_than": ("must be more than {gt}", "Raise it"),
    "less_than_equal": ("must be at most {le}", "Lower it"), "less_than": ("must be less than {lt}", "Lower it"),
    "literal_error": ("must be one of {expected}", "Choose one"),
    "union_tag_invalid": ("must be one of {expected_tags}", "Choose one"),
    "too_short": ("must hold at least {min_length}", "Add some"),
}  # fmt: skip
PATTERNS = {
    "name": ("must be lower case letters, digits and dashes", "It names folders and runs"),
    "model.architecture": (
        "must be a torchvision model such as resnet18, timm/<name> or package.module:callable",
        "Correct it",
    ),
    "fine_tune.device": ("must be auto, cpu, cuda, cuda:N or mps", "Choose one"),
    "s3.region": ("must be a region such as eu-west-1", "Correct it"),
}
"""What the patterns of single fields mean."""


def _explain(error: ValidationError, raw: dict[str, Any]) -> Iterator[str]:
    items = error.errors(include_url=False)
    for item in items:
        field, kind, where = _field(item["loc"], raw), item["type"], item["loc"]
        if kind == "too_short" and any(i is not item and i["loc"][: len(where)] == where for i in items):
            continue  # its entries are wrong, not too few
        if kind == "extra_forbidden":
            close = get_close_matches(str(where[-1]), _known_keys(), n=1, cutoff=0.65)
            meant = f" Did you mean {close[0]}?" if close else ""
            yield f"{field}: unknown key.{meant} Remove it or correct its spelling; `everfresh init` lists all keys."
        elif kind == "missing":
            yield f"{field}: is required. Add it; `everfresh init` shows an example."
        elif kind == "value_error":
            yield f"{'' if field == WHOLE_FILE else field + ': '}{item['ctx']['error']!s}."
        else:
            other = (item["msg"][0].lower() + item["msg"][1:], "Change it to fit")
            rule, remedy = RULES.get(kind, PATTERNS.get(field, other))
            context = {name: f"{value:g}" if isinstance(value, float) else value for name, value in item.get("ctx", {}).items()}
            if kind == "union_tag_invalid":
                field, item["input"] = f"{field}.kind", context["tag"]
            yield f"{field}: {rule.format_map(context).replace(chr(39), '')}, got {_shown(item['input'])}. {remedy}."


def _shown(value: Any) -> str:
    """A value as it stands in the file, cut where it is long."""
    if isinstance(value, dict | list | tuple):
        return f"{'keys' if isinstance(value, dict) else 'a list'} of {len(value)}" if value else "nothing in it"
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(text):,} characters)"


def _field(where: tuple[int | str, ...], raw: Any) -> str:
    """The field as the file has it: pydantic's location less the kinds of unions, which are no keys."""
    parts: list[str] = []
    for number, part in enumerate(where):
        listed = isinstance(raw, list | tuple) and isinstance(part, int) and part < len(raw)
        inside = listed or (isinstance(raw, dict) and part in raw)
        if inside or (number + 1 == len(where) and isinstance(raw, dict | list | tuple)):
            parts.append(str(part))
        if inside:
            raw = raw[part]
    return ".".join(parts) or WHOLE_FILE


@cache
def _known_keys() -> tuple[str, ...]:
    """All keys of all sections."""
    schema = PipelineConfig.model_json_schema()
    return tuple({key for part in (schema, *schema["$defs"].values()) for key in part.get("properties", ())})


def _inline_secrets(node: Any, path: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            here = f"{path}.{key}" if path else str(key)
            words = [word for word in re.findall(r"[\w-]+", str(key)) if SECRET_KEY.search(word)]
            if words and not isinstance(value, dict | list) and not REFERENCE.fullmatch(str(value)):
                yield here.removesuffix(str(key)) + words[0]  # `{password:hunter2}` is a key as a whole
            else:
                yield from _inline_secrets(value, here)
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _inline_secrets(value, f"{path}.{index}")
    elif isinstance(node, str) and SECRET_VALUE.search(node):
        yield path


VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def _expand(node: Any, label: str) -> Any:
    def value(match: re.Match[str]) -> str:
        name, default = match.groups()
        if (found := os.environ.get(name, default)) is None:
            raise ConfigError(
                f"{label}: the variable ${{{name}}} must be set, got nothing. "
                f"Run `export {name}=…`, or write a default as ${{{name}:-…}}."
            )
        return found

    if isinstance(node, dict):
        return {key: _expand(item, label) for key, item in node.items()}
    if isinstance(node, list):
        return [_expand(item, label) for item in node]
    return VARIABLE.sub(value, node) if isinstance(node, str) else node


def _anchored(config: PipelineConfig, base: Path, label: str) -> PipelineConfig:
    """The same config with relative local paths made absolute from `base`."""

    def anchor(path: str, field: str) -> str:
        if "://" in path:
            return path
        try:
            return str((base / Path(path).expanduser()).resolve())
        except (RuntimeError, ValueError, OSError) as error:
            words = "there is no home of that name" if path.startswith("~") else error
            raise ConfigError(f"{label}: {field} must be a path, got {_shown(path)} ({words}). Write it from / on.") from None

    source: ImageFolder | TarShards | TableRows | LoggedPredictions
    if isinstance(config.source, ImageFolder | LoggedPredictions):
        source = config.source.model_copy(update={"path": anchor(config.source.path, "source.path")})
    else:
        source = config.source.model_copy(update={"paths": tuple(anchor(p, "source.paths") for p in config.source.paths)})
    weights = config.model.weights
    if weights is not None and is_path(weights):
        weights = anchor(weights, "model.weights")
    model = config.model.model_copy(update={"weights": weights})
    drift = config.drift
    if drift.workspace is not None:
        drift = drift.model_copy(update={"workspace": anchor(drift.workspace, "drift.workspace")})
    return config.model_copy(update={"store": anchor(config.store, "store"), "source": source, "model": model, "drift": drift})


def is_path(weights: str) -> bool:
    """Whether `model.weights` names a file or a key rather than a name of published weights."""
    return "/" in weights or weights.endswith((".safetensors", ".pt", ".pth"))
