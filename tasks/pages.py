"""What all pages for people share: the look, pictures that need no other file, and words for numbers.

A page is one HTML file without a script: it fetches nothing, reads on a phone and prints. Text of others (labels, keys,
names of slices) is escaped by the template engine, and brought onto one line by :func:`short`.
"""

from __future__ import annotations

import base64
import io
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader

from everfresh.tasks.charts import DPI
from everfresh.tasks.errors import DataError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

BADGES = {"red": "#B23A00", "amber": "#8A5A00", "green": "#00684B", "grey": "#5A5A5A"}
"""Colours of a verdict, as HTML writes them; white letters are readable on each."""


@dataclass(frozen=True)
class Panel:
    """A drawing and what it shows, in words."""

    figure: Figure
    alt: str


def render(template: str, **values: Any) -> str:
    """A page; ``picture`` and ``thumbnail`` are filters of the template."""
    environment = Environment(loader=PackageLoader("everfresh.tasks"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(picture=_picture, thumbnail=_thumbnail)
    return environment.get_template(template).render(badges=BADGES, **values)


# --- pictures ------------------------------------------------------------------------------------------------------


def raster(drawn: Figure, scale: int) -> Image.Image:
    """A figure's pixels, at `scale` times its size. Letters that the font lacks show as boxes."""
    from PIL import Image

    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        drawn.savefig(out, format="png", dpi=DPI * scale, pil_kwargs={"compress_level": 1})
    with Image.open(out) as image:
        return image.convert("RGB")


def thumbnail(data: bytes, side: int) -> Image.Image | None:
    """The picture within a square: tiny ones enlarged with their pixels kept visible, large ones reduced."""
    from PIL import Image

    from everfresh.tasks.images import decode

    try:
        picture = decode(data)
    except DataError:
        return None
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)


def jpeg_uri(picture: Image.Image) -> str:
    """A photograph as a URI that a page shows without fetching anything."""
    out = io.BytesIO()
    picture.convert("RGB").save(out, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"


def _picture(figure: Figure) -> str:
    """A figure as a URI, at twice its size for sharp screens."""
    out = io.BytesIO()
    raster(figure, 2).quantize(64).save(out, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


def _thumbnail(data: bytes) -> str:
    """A sample's picture as a URI; empty where it cannot be read."""
    tile = thumbnail(data, 160)
    return "" if tile is None else jpeg_uri(tile)


# --- words ---------------------------------------------------------------------------------------------------------


def short(name: str, most: int = 24) -> str:
    """A name of others on one line; what is long loses its middle."""
    line = " ".join("".join(c if c.isprintable() else " " for c in name).split())
    return line if len(line) <= most else f"{line[: most // 2]}…{line[-(most - most // 2 - 1) :]}"


def percent(share: float) -> str:
    """A share as people say it."""
    return f"{share:.0%}".replace("%", "\u00a0%")  # a line never ends between the two


def p_words(p: float) -> str:
    """A p-value in two digits."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.1g}" if p < 0.1 else f"p = {p:.2f}".rstrip("0").rstrip(".")
