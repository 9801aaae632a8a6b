"""Real small pictures of a few classes: scikit-learn's handwritten digits, enlarged."""

from __future__ import annotations

import csv
import io
import struct
import tarfile
import zlib
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    data = load_digits()
    return data.images, data.target


def encode(pixels: np.ndarray, form: str = "png", **options: object) -> bytes:
    """Pixels (H, W) or (H, W, 3) of uint8 as the bytes of a picture."""
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, form, **options)
    return sink.getvalue()


def digit(number: int, side: int = 32, form: str = "png") -> tuple[bytes, str]:
    """The `number`-th handwritten digit as a picture and the name of its class; there are 1797."""
    images, targets = _digits()
    pixels = (images[number] * 15.9375).astype(np.uint8)  # 0…16 to 0…255
    large = Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR).convert("RGB")
    return encode(np.asarray(large), form), DIGITS[targets[number]]


def digits(count: int, *, start: int = 0, classes: Sequence[str] = DIGITS, side: int = 32) -> dict[str, bytes]:
    """`count` pictures by key `class/number.png`, of these classes only."""
    found: dict[str, bytes] = {}
    for number in range(start, len(_digits()[1])):
        if len(found) == count:
            break
        if DIGITS[_digits()[1][number]] in classes:
            data, label = digit(number, side)
            found[f"{label}/{number:04d}.png"] = data
    return found


def noise(seed: int, side: int = 16, form: str = "png") -> bytes:
    """A picture of coloured noise; each seed gives another one."""
    return encode(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8), form)


def animated_gif() -> bytes:
    """A GIF of three frames."""
    frames = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (0, 128, 255)]
    sink = io.BytesIO()
    frames[0].save(sink, "GIF", save_all=True, append_images=frames[1:])
    return sink.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds nothing: what a decompression bomb looks like before it is opened."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 10) + b"IDAT" + b"\0" * 14


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    """Write files by key under a folder."""
    for key, data in files.items():
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_tar(path: Path, files: dict[str, bytes] | Iterable[tuple[str, bytes]], mode: str = "w") -> Path:
    """Write files by key into a tar archive, in that order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for key, data in files.items() if isinstance(files, dict) else files:
            info = tarfile.TarInfo(key)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def table(rows: Sequence[dict[str, object]], kind: str) -> bytes:
    """Rows as the bytes of a csv, jsonl or parquet file."""
    import json

    import pyarrow as pa
    import pyarrow.parquet as pq

    if kind == "jsonl":
        return "".join(json.dumps(row, default=str) + "\n" for row in rows).encode()
    if kind == "parquet":
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(list(rows)), sink)
        return sink.getvalue()
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
