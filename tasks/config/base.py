"""What every section of the pipeline file is."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict

Task = Literal["single_label", "multi_label", "regression"]


_Value = TypeVar("_Value", str, int)


def unique(values: tuple[_Value, ...]) -> tuple[_Value, ...]:
    """The values, if none stands there twice."""
    repeated = sorted({v for v in values if values.count(v) > 1})
    if repeated:
        what = "name" if isinstance(repeated[0], str) else "number"
        raise ValueError(f"must not repeat a {what}, got {', '.join(map(str, repeated))} more than once. Name each once")
    return values


Names = Annotated[tuple[str, ...], AfterValidator(unique)]


class Section(BaseModel):
    """One section of the file: frozen, unknown keys forbidden."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
