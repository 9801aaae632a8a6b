"""Bytes of a picture: checked and measured once at ingest, decoded and transformed for the model.

Every picture becomes RGB, upright as its EXIF says, at most ``MAX_PIXELS`` large; its header is judged before any
pixel is unpacked, so a small file of a huge picture costs nothing. What is measured are the properties of Evidently's
and Deepchecks' image suites: brightness, contrast, sharpness, colourfulness (Hasler & Süsstrunk 2003) and shape.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from everfresh.tasks.errors import DataError

if TYPE_CHECKING:
    import torch

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
"""Pillow's readers that may see a file; among the others is one that hands PostScript to Ghostscript."""
MAX_PIXELS = 64_000_000
MIN_SIDE = 4
"""Smaller ones are what trackers and failed downloads leave; they show nothing."""
MAX_ASPECT = 50
"""A thread of a picture would become huge when its shorter side is resized to the model's input."""


@dataclass(frozen=True, slots=True)
class Picture:
    """What ingest keeps of one picture beside its bytes."""

    digest: str
    """SHA-256 of the bytes."""
    group: str
    """Equal for equal and for most nearly equal pictures: the 64-bit difference hash of the pixels."""
    width: int
    height: int
    brightness: float
    """Mean luminance, 0…1."""
    contrast: float
    """Standard deviation of luminance, 0…0.5."""
    sharpness: float
    """Mean absolute luminance step between neighbouring pixels at 64 px, 0…1."""
    colourfulness: float
    """Hasler-Süsstrunk colourfulness, 0 for grey."""


def decode(data: bytes) -> Image.Image:
    """The picture as upright RGB.

    Raises:
        DataError: not a whole, single, bounded picture; says which.
    """
    if not data:
        raise DataError("is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"has {image.width} × {image.height} pixels, more than {MAX_PIXELS:,}")
            if max(image.size) > MAX_ASPECT * min(image.size):
                raise DataError(f"has {image.width} × {image.height} pixels, longer than {MAX_ASPECT} times its width")
            if min(image.size) < MIN_SIDE:
                raise DataError(f"has {image.width} × {image.height} pixels, fewer than {MIN_SIDE} a side")
            if image.format != "MPO" and (frames := getattr(image, "n_frames", 1)) > 1:  # cameras put a preview into an MPO
                raise DataError(f"holds {frames} pictures (animated, or several pages)")
            if image.format == "PNG":
                Image.open(io.BytesIO(data), formats=FORMATS).verify()  # loading passes over wrong checksums
            image.load()
            return upright(image)
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError("is not a picture in a known format") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError(f"has more than {MAX_PIXELS:,} pixels") from None
    except Exception as error:  # damaged bytes make Pillow's readers raise many kinds, struct.error and IndexError too
        raise DataError(f"cannot be decoded ({str(error) or type(error).__name__})") from None


def upright(image: Image.Image) -> Image.Image:
    """An opened picture as RGB and upright; it is turned in place where its EXIF says so."""
    ImageOps.exif_transpose(image, in_place=True)  # each copy of a large picture would be a quarter of a gigabyte
    return _rgb(image)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":  # 16 or 32 bits a channel: scale, do not clip
        values = np.nan_to_num(np.array(image, dtype=np.float32), copy=False, posinf=0, neginf=0)
        most = values.max(initial=0)
        top = 65535.0 if most > 255 else 1.0 if image.mode == "F" and most <= 1 else 255.0  # real numbers are often 0…1
        values *= 255 / top
        return Image.fromarray(np.rint(values, out=values).clip(0, 255, out=values).astype(np.uint8)).convert("RGB")
    if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def examine(data: bytes) -> Picture:
    """Decode once, check and measure.

    Raises:
        DataError: the bytes are not a usable picture.
    """
    image = decode(data)
    grey = image.convert("L")
    counts, levels = np.array(grey.histogram()), np.arange(256) / 255
    brightness = float(counts @ levels / counts.sum())
    small = np.asarray(grey.resize((64, 64), Image.Resampling.BILINEAR), dtype=np.float32) / 255
    return Picture(
        digest=hashlib.sha256(data).hexdigest(),
        group=_difference_hash(grey),
        width=image.width,
        height=image.height,
        brightness=brightness,
        contrast=float(np.sqrt(counts @ (levels - brightness) ** 2 / counts.sum())),
        sharpness=float((np.abs(np.diff(small, axis=0)).mean() + np.abs(np.diff(small, axis=1)).mean()) / 2),
        colourfulness=_colourfulness(image),
    )


def _colourfulness(image: Image.Image) -> float:
    thumbnail = np.asarray(image.resize((64, 64), Image.Resampling.BILINEAR), dtype=np.float32)
    red, green, blue = thumbnail[..., 0], thumbnail[..., 1], thumbnail[..., 2]
    rg, yb = red - green, (red + green) / 2 - blue
    return float(np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean())) / 255


def _difference_hash(grey: Image.Image) -> str:
    """64 bits: is each of 9 × 8 cells brighter than its left neighbour? Survives most, not all, rescaling and recompression."""
    cells = np.asarray(grey.resize((9, 8), Image.Resampling.LANCZOS), dtype=np.int16)
    bits: NDArray[np.uint8] = np.packbits(cells[:, 1:] > cells[:, :-1])
    return bits.tobytes().hex()


def pixels(data: bytes) -> torch.Tensor:
    """The picture as upright RGB, (3, H, W) uint8: the pixels of :func:`decode`.

    JPEGs in grey or colour go through torchvision's reader, in half of Pillow's time and without holding other threads up;
    both stand on libjpeg-turbo, so the pixels are the same. All others go through Pillow, as do these where torchvision has
    no reader any more (0.29 calls its own deprecated; the operator behind it says so to nobody).

    Raises:
        DataError: not a whole, single, bounded picture; says which.
    """
    import torch
    from torchvision.io import ImageReadMode
    from torchvision.transforms.v2 import functional as F

    read: torch.Tensor
    if _is_upright_jpeg(data):
        with contextlib.suppress(RuntimeError, AttributeError):  # Pillow finds the words for it, or reads it
            coded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            read = torch.ops.image.decode_jpeg(coded, ImageReadMode.RGB.value, False)
            return read
    read = F.pil_to_tensor(decode(data))
    return read


def _is_upright_jpeg(data: bytes) -> bool:
    """Whether the segments before the picture are those of a bounded JPEG in grey or colour that need not be turned."""
    at = 2 if data.startswith(b"\xff\xd8\xff") else len(data)
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4])
        if marker == 0xE1 and _turns(data[at + 4 : at + 2 + length]):
            return False
        if 0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC}:  # the frame's header
            bits, channels = data[at + 4], data[at + 9]
            height, width = int.from_bytes(data[at + 5 : at + 7]), int.from_bytes(data[at + 7 : at + 9])
            return bits == 8 and channels in {1, 3} and 0 < height * width <= MAX_PIXELS
        at += 2 + length
    return False


def _turns(segment: bytes) -> bool:
    """Whether a segment of metadata may say that the picture does not stand upright."""
    if not segment.startswith(b"Exif\0\0"):
        return b"rientation" in segment  # XMP's
    try:
        exif = Image.Exif()
        exif.load(segment)
        return bool(exif.get(0x0112, 1) != 1)
    except Exception:  # as in `decode`
        return True


def to_tensor(data: bytes, size: int) -> torch.Tensor:
    """The picture as the model's input before normalisation: (3, size, size) uint8.

    The shorter side is resized with antialiasing, the centre cut out: the steps of torchvision's presets, on
    tensors, so that a consumer with torchvision alone gets the same numbers.
    """
    return framed(pixels(data), size)


def framed(picture: torch.Tensor, size: int) -> torch.Tensor:
    """The centre of a picture (3, H, W), its shorter side resized to `size`: (3, size, size)."""
    from torchvision.transforms.v2 import functional as F

    if picture.shape[-2:] != (size, size):
        picture = F.center_crop(F.resize(picture, [size], antialias=True), [size, size])
    return picture


def normalise(pixels: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """(N, 3, S, S) uint8 to float32 with the given mean and std."""
    from torchvision.transforms.v2 import functional as F

    normalised: torch.Tensor = F.normalize(pixels.float() / 255, list(mean), list(std))
    return normalised
