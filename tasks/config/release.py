"""What a release holds beside the weights, and what its card says."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator

from everfresh.tasks.config.base import Section, unique

Export = Literal["pt2", "onnx"]
"""Formats that need no code of the network."""


class ReleaseConfig(Section):
    """What the rest of the company loads."""

    formats: Annotated[tuple[Export, ...], AfterValidator(unique)] = ("pt2", "onnx")
    """Files that need no code of the network, beside `model.safetensors`: `pt2` (torch.export) and `onnx`; they take pictures
    as uint8, or rows as numbers, and make scores. Each is loaded in a fresh process before it goes live; `[]` for none."""
    intended_use: str = ""
    """For the card: what the model is meant for, and what not."""
    limits: str = ""
    """For the card: what is known not to work."""
    owner: str = ""
    """For the card: whom to ask."""
    license: str = ""
    """For the card: terms under which the weights may be used."""
