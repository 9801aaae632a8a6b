"""What a service is asked about: bytes, opened pictures, tensors or rows, as a model is fed them and as a log keeps them."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from everfresh.tasks.errors import DataError
from everfresh.tasks.vectors import as_kept, encode, to_vector

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from everfresh.tasks.records import ModelSpec

Sample: TypeAlias = "bytes | Image.Image | Tensor | Mapping[str, Any]"
"""Bytes of a picture or of a row, an opened picture, a picture as (3, H, W) uint8, or a row as values by column."""


FAST = 1
"""How hard PNG is packed, 0…9: a request waits for it."""


def as_input(sample: Sample, spec: ModelSpec) -> Tensor:
    """One sample as the model is fed it before normalisation: (3, S, S) uint8, or (D,) float32 of a row.

    Raises:
        DataError: it is no such sample.
    """
    import torch
    from PIL import Image
    from torchvision.transforms.v2.functional import pil_to_tensor

    from everfresh.tasks.images import framed, to_tensor, upright

    if spec.features:
        if isinstance(sample, Mapping | bytes | bytearray | memoryview):
            return to_vector(as_kept(as_bytes(sample), spec.features), spec.features)
    elif isinstance(sample, bytes | bytearray | memoryview):
        return to_tensor(bytes(sample), spec.image_size)
    elif isinstance(sample, Image.Image):
        return framed(pil_to_tensor(upright(sample.copy())), spec.image_size)  # the caller's stays as it is
    elif isinstance(sample, torch.Tensor) and sample.dtype == torch.uint8 and sample.ndim == 3 and sample.shape[0] == 3:
        return framed(sample, spec.image_size)
    wanted = "its bytes or values by column" if spec.features else "its bytes, a PIL picture, or a uint8 tensor (3, H, W)"
    raise DataError(f"must be {wanted}, got {_kind(sample)}")


def as_bytes(sample: Sample) -> bytes:
    """One sample as a log keeps it: bytes as they are, pictures as PNG, rows as JSON.

    Raises:
        DataError: it is no sample.
    """
    if isinstance(sample, bytes | bytearray | memoryview):
        return bytes(sample)
    if isinstance(sample, Mapping):
        return _row_bytes(sample)
    from PIL import Image

    if not isinstance(sample, Image.Image):
        try:
            sample = Image.fromarray(sample.movedim(0, -1).contiguous().cpu().numpy())
        except (AttributeError, TypeError, ValueError, IndexError):
            raise DataError(
                f"must be bytes, a PIL picture, a uint8 tensor (3, H, W) or values by column, got {_kind(sample)}"
            ) from None
    sink = io.BytesIO()
    sample.save(sink, "PNG", compress_level=FAST)
    return sink.getvalue()


def raw_size(sample: Sample) -> int:
    """About the bytes of a sample before it is encoded, and so at most afterwards; 0 of what costs nothing to encode."""
    if isinstance(sample, bytes | bytearray | memoryview):
        return len(sample)
    picture: Any = sample
    if hasattr(picture, "getbands"):
        return int(picture.width * picture.height * len(picture.getbands()))
    return int(getattr(picture, "nbytes", 0))


def _row_bytes(row: Mapping[str, Any]) -> bytes:
    try:
        return encode({str(name): _value(name, value) for name, value in row.items()})
    except UnicodeEncodeError:
        raise DataError("must have names and texts in UTF-8, got half of a character in one of them") from None


def _value(name: str, value: Any) -> float | str | None:
    """A value as JSON has it; numbers of numpy and torch are numbers, and whole ones and truths stay what they are."""
    try:
        value = value.item() if hasattr(value, "item") else value
        if value is None or isinstance(value, str | bool):
            return value
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise DataError(f"must have a number or a text in {name}, got {type(value).__name__}") from None
    if math.isinf(number):
        raise DataError(f"must have a finite number in {name}, got {number}")
    if isinstance(value, int):
        return value
    return None if math.isnan(number) else number + 0.0  # one zero


def _kind(sample: Any) -> str:
    shape = f" {sample.dtype} {tuple(sample.shape)}" if hasattr(sample, "shape") and hasattr(sample, "dtype") else ""
    return type(sample).__name__ + shape
