"""Real pictures, damaged in every way that arrives in practice; each says what must become of it.

    cd tests && python -m support.mutate FOLDER

writes the files under ``FOLDER`` and prints a table of what was made. A file is ``quarantined`` with a reason, or
``taken`` as the digit that it shows, or ``either``: damage that a decoder may repair, or cannot see.
"""

from __future__ import annotations

import io
import json
import random
import struct
import sys
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from support.pictures import digit, encode, png_header, write_folder

FORMS = {"png": "png", "jpeg": "jpg", "gif": "gif", "bmp": "bmp", "webp": "webp", "tiff": "tif"}
"""Each format and its suffix."""
SHOWN = 4
"""The digit that all mutants are made of: a one, which no turn or flip leaves as it is."""
UNREADABLE = "cannot be decoded"
UNKNOWN = "is not a picture in a known format"
BROKEN = f"{UNREADABLE}|{UNKNOWN}"
HUGE = r"pixels, more than [\d,]+|has more than [\d,]+ pixels"


@dataclass(frozen=True)
class Mutant:
    """A file, and what must become of it."""

    name: str
    """``family/what.suffix``"""
    data: bytes
    outcome: Literal["quarantined", "taken", "either"]
    reason: str = ""
    """Pattern of the reason, if it must be in quarantine."""


def mutants(seed: int = 0) -> list[Mutant]:
    """All of them; the same under the same seed."""
    rng = random.Random(seed)
    families = [cut(), hollow(), renamed(rng), foreign(), bombs(), tiny(), animated(), around(rng)]
    families += [png_chunks(rng), jpeg_segments(rng), headers(), flipped(rng), odd_but_good(rng)]
    return [mutant for family in families for mutant in family]


@cache
def picture() -> Image.Image:
    """The digit that all are made of."""
    return Image.open(io.BytesIO(digit(SHOWN)[0])).convert("RGB")


def saved(form: str, image: Image.Image | None = None, **options: object) -> bytes:
    """The digit, or another picture, in a format."""
    sink = io.BytesIO()
    (image or picture()).save(sink, form, **options)
    return sink.getvalue()


def bad(name: str, data: bytes, reason: str = BROKEN) -> Mutant:
    """A mutant that must go into quarantine."""
    return Mutant(name, data, "quarantined", reason)


def good(name: str, data: bytes) -> Mutant:
    """A mutant that must be taken in."""
    return Mutant(name, data, "taken")


def patched(data: bytes, at: int, new: bytes) -> bytes:
    """The same with some bytes replaced."""
    return data[:at] + new + data[at + len(new) :]


# --- what half a transfer leaves -------------------------------------------------------------------------


def cut() -> Iterator[Mutant]:
    """The transfer ended early."""
    for form, suffix in FORMS.items():
        whole = saved(form)
        for percent in (1, 5, 20, 35, 50, 65, 80, 90):
            yield bad(f"cut/{percent}.{suffix}", whole[: max(1, len(whole) * percent // 100)])


def hollow() -> Iterator[Mutant]:
    """The file was made as long as it should become, and never or half filled."""
    for form, suffix in FORMS.items():
        whole = saved(form)
        half = len(whole) // 2
        yield bad(f"hollow/empty.{suffix}", b"", r"is empty \(0 bytes\)")
        yield bad(f"hollow/zeros.{suffix}", bytes(len(whole)))
        yield bad(f"hollow/first-half.{suffix}", bytes(half) + whole[half:])
        unseen = Mutant(f"hollow/second-half.{suffix}", whole[:half] + bytes(len(whole) - half), "either")
        yield bad(unseen.name, unseen.data) if form == "png" else unseen  # the others have no checksum


# --- what was never a picture of ours --------------------------------------------------------------------


def renamed(rng: random.Random) -> Iterator[Mutant]:
    """Something else under a picture's name."""
    archive, ball = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("1.png", saved("png"))
    with tarfile.open(fileobj=ball, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("1.png"))
    contents = {
        "words": b"these are words",
        "line": b"\n",
        "utf16": "a picture".encode("utf-16"),
        "json": json.dumps({"error": "not found"}).encode(),
        "html": b"<!DOCTYPE html><html><body><h1>404</h1></body></html>",
        "s3-error": b'<?xml version="1.0"?><Error><Code>SlowDown</Code></Error>',
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="32" height="32"/>',
        "csv": b"key,label\n1.png,cat\n",
        "lfs-pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n",
        "data-uri": b"data:image/png;base64,iVBORw0KGgo=",
        "zip": archive.getvalue(),
        "tar": ball.getvalue(),
        "gzip": zlib.compress(saved("png"), wbits=31),
        "pdf": saved("pdf"),
        "mp4": b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41",
        "elf": b"\x7fELF\2\1\1" + bytes(57),
        "pickle": b"\x80\4\x95\x0b\0\0\0\0\0\0\0\x8c\7builtins\x94.",
        "apple-double": b"\0\5\x16\7\0\2\0\0Mac OS X        ",
        "random": rng.randbytes(500),
    }
    for what, data in contents.items():
        for suffix in ("jpg", "png", "tif"):
            yield bad(f"renamed/{what}.{suffix}", data, UNKNOWN)


def foreign() -> Iterator[Mutant]:
    """Pictures of formats that are not ours; one of them is a program for Ghostscript."""
    for form in ("eps", "ppm", "pcx", "tga", "ico", "icns", "sgi", "dds", "avif", "jpeg2000"):
        yield bad(f"foreign/{form}.png", saved(form), UNKNOWN)


# --- what would become huge, and what is next to nothing -------------------------------------------------


def resized_header(form: str, width: int, height: int) -> bytes:
    """The digit with another size in its header."""
    data = saved(form)
    match form:
        case "png":
            return data[:8] + chunk(b"IHDR", struct.pack(">II", width, height) + data[24:29]) + data[33:]
        case "jpeg":
            return patched(data, data.index(b"\xff\xc0") + 5, struct.pack(">HH", height, width))
        case "gif":
            data = patched(data, 6, struct.pack("<HH", width, height))
            return patched(data, data.index(b",\0\0\0\0") + 5, struct.pack("<HH", width, height))
        case "bmp":
            return patched(data, 18, struct.pack("<ii", width, height))
        case "webp":
            return patched(data, data.index(b"\x9d\x01\x2a") + 3, struct.pack("<HH", width & 0x3FFF, height & 0x3FFF))
        case _:
            return tiff({256: width, 257: height})


def tiff(changes: dict[int, int], next_ifd: int = 0, pixels: bytes | None = None) -> bytes:
    """The digit as a grey TIFF whose tags are these; the strip comes last."""
    body = np.asarray(picture().convert("L")).tobytes() if pixels is None else pixels
    tags = {256: 32, 257: 32, 258: 8, 259: 1, 262: 1, 273: 0, 277: 1, 278: 32, 279: len(body)}
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    tags |= changes
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", next_ifd) + body


def bombs() -> Iterator[Mutant]:
    """Small files of huge pictures."""
    for form, suffix in FORMS.items():
        most = 16_383 if form == "webp" else 60_000
        yield bad(f"bombs/header-square.{suffix}", resized_header(form, most, most), HUGE)
        yield bad(f"bombs/header-wide.{suffix}", resized_header(form, most, 8_000), HUGE)
    yield bad("bombs/header-alone.png", png_header(60_000, 60_000), HUGE)
    for side in (8_100, 9_500, 20_000):  # just over our limit, over Pillow's first and over its second
        yield bad(f"bombs/real-{side}.png", flat_png(side, side), HUGE)
    yield bad("bombs/real-deflate.tif", deflated_tiff(20_000), HUGE)
    frame = patched(saved("gif"), saved("gif").index(b",\0\0\0\0") + 5, struct.pack("<HH", 60_000, 60_000))
    yield bad("bombs/frame-beyond-canvas.gif", frame, HUGE)
    zeros = zlib.compress(bytes(20 << 20), 1)
    for kind, head in {b"zTXt": b"x\0\0", b"iTXt": b"x\0\1\0\0\0", b"iCCP": b"x\0\0"}.items():
        whole = saved("png")
        yield bad(f"bombs/{kind.decode()}.png", whole[:33] + chunk(kind, head + zeros) + whole[33:])


def flat_png(width: int, height: int) -> bytes:
    """A real, whole PNG of black: one bit a pixel, and a thousandth of that compressed."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((1 + (width + 7) // 8) * height), 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def deflated_tiff(side: int) -> bytes:
    """A real, whole TIFF of black."""
    return tiff({256: side, 257: side, 258: 1, 259: 8, 278: side}, pixels=zlib.compress(bytes(side * side // 8), 1))


def tiny() -> Iterator[Mutant]:
    """Single pixels and threads."""
    for form, suffix in FORMS.items():
        for width, height in ((1, 1), (3, 2), (2_000, 1), (1, 2_000), (1_020, 20)):
            reason = "longer than 50 times" if max(width, height) > 50 else "fewer than 4 a side"
            data = saved(form, picture().resize((width, height)))
            yield bad(f"tiny/{width}x{height}.{suffix}", data, rf"has {width} × {height} pixels, {reason}")


def animated() -> Iterator[Mutant]:
    """Several pictures in one file."""
    for form, suffix in {"gif": "gif", "png": "png", "webp": "webp", "tiff": "tif"}.items():
        for count in (2, 3, 12):
            frames = [picture().rotate(10 * n) for n in range(count)]
            data = saved(form, frames[0], save_all=True, append_images=frames[1:])
            yield bad(f"animated/{count}.{suffix}", data, rf"holds {count} pictures")


# --- what came off or got in on the way ------------------------------------------------------------------


def around(rng: random.Random) -> Iterator[Mutant]:
    """Something before, after, or in between."""
    for form, suffix in FORMS.items():
        whole = saved(form)
        yield good(f"around/garbage-after.{suffix}", whole + rng.randbytes(300))
        yield good(f"around/zeros-after.{suffix}", whole + bytes(4096))
        yield bad(f"around/garbage-before.{suffix}", b"\r\n\r\n" + whole)
        yield bad(f"around/byte-order-mark.{suffix}", b"\xef\xbb\xbf" + whole)
        yield bad(f"around/first-byte-gone.{suffix}", whole[1:])
        yield bad(f"around/reversed.{suffix}", whole[::-1])
        yield Mutant(f"around/as-text.{suffix}", whole.decode("utf-8", "replace").encode(), "either")
        yield Mutant(f"around/line-ends.{suffix}", whole.replace(b"\n", b"\r\n"), "either")


def chunk(kind: bytes, body: bytes) -> bytes:
    """A PNG chunk with its checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_chunks(rng: random.Random) -> Iterator[Mutant]:
    """PNG chunks left out, in a wrong order, or with wrong contents."""
    signature, whole = b"\x89PNG\r\n\x1a\n", saved("png")
    header, pixels, end = whole[16:29], whole[41:-16], chunk(b"IEND", b"")
    first, data = chunk(b"IHDR", header), chunk(b"IDAT", pixels)
    for what, body in {
        "no-header": data + end,
        "no-pixels": first + end,
        "nothing": b"",
        "no-end-no-pixels": first,
        "pixels-first": data + first + end,
        "few-pixels": first + chunk(b"IDAT", zlib.compress(bytes(500))) + end,
        "empty-pixels": first + chunk(b"IDAT", b"") + end,
        "random-pixels": first + chunk(b"IDAT", rng.randbytes(len(pixels))) + end,
        "raw-pixels": first + chunk(b"IDAT", zlib.decompress(pixels)) + end,
        "header-checksum": first[:-1] + bytes([first[-1] ^ 1]) + data + end,
        "header-short": chunk(b"IHDR", header[:9]) + data + end,
        "chunk-too-long": first + struct.pack(">I", 0x7FFFFFFF) + data[4:] + end,
        "chunk-name": first + chunk(b"ID\0T", pixels) + end,
        "no-palette": chunk(b"IHDR", header[:9] + b"\3" + header[10:]) + chunk(b"IDAT", b"") + end,
    }.items():
        yield bad(f"png/{what}.png", signature + body)
    for what, at, value in (("depth", 8, 5), ("colour", 9, 7), ("filter", 11, 9)):
        changed = chunk(b"IHDR", patched(header, at, bytes([value])))
        yield bad(f"png/{what}.png", signature + changed + data + end)
    for width, height in ((0, 0), (0, 32), (32, 0)):
        changed = chunk(b"IHDR", struct.pack(">II", width, height) + header[8:])
        yield bad(f"png/{width}x{height}.png", signature + changed + data + end, f"{BROKEN}|fewer|longer")
    pieces = b"".join(chunk(b"IDAT", pixels[n : n + 7]) for n in range(0, len(pixels), 7))
    yield good("png/many-pieces.png", signature + first + pieces + end)
    yield good("png/unknown-chunk.png", signature + first + chunk(b"abCd", rng.randbytes(50)) + data + end)
    yield bad("png/no-end.png", signature + first + data)
    yield good("png/text-after.png", signature + first + data + chunk(b"tEXt", b"Comment\0late") + end)


def jpeg_segments(rng: random.Random) -> Iterator[Mutant]:
    """JPEG segments left out, in a wrong order, or with wrong contents."""
    whole = saved("jpeg")
    parts: list[tuple[int, bytes]] = []
    at = 2
    while whole[at + 1] != 0xDA:
        length = 2 + int.from_bytes(whole[at + 2 : at + 4])
        parts.append((whole[at + 1], whole[at : at + length]))
        at += length
    scan = whole[at:]

    def joined(segments: list[tuple[int, bytes]], tail: bytes = scan) -> bytes:
        return whole[:2] + b"".join(body for _, body in segments) + tail

    for what, marker in (("tables", 0xDB), ("frame", 0xC0)):
        yield bad(f"jpeg/no-{what}.jpg", joined([p for p in parts if p[0] != marker]))
    yield bad("jpeg/no-scan.jpg", joined(parts, b"\xff\xd9"))
    yield bad("jpeg/nothing.jpg", whole[:2] + b"\xff\xd9")
    yield bad("jpeg/two-starts-alone.jpg", whole[:2] * 2)
    yield bad("jpeg/scan-first.jpg", joined([], scan + b"".join(body for _, body in parts)))
    frame = next(body for marker, body in parts if marker == 0xC0)
    for what, changed in {
        "precision": patched(frame, 4, b"\x07"),
        "no-components": patched(frame, 9, b"\0"),
        "wrong-components": patched(frame, 9, b"\7"),
        "lossless": patched(frame, 1, b"\xc3"),
        "hierarchical": patched(frame, 1, b"\xc5"),
        "sampling": patched(frame, 11, b"\x77"),
        "short": frame[:2] + b"\0\4" + frame[4:6],
    }.items():
        yield bad(f"jpeg/frame-{what}.jpg", joined([(m, changed if m == 0xC0 else body) for m, body in parts]))
    for width, height in ((0, 0), (0, 32)):
        yield bad(f"jpeg/{width}x{height}.jpg", resized_header("jpeg", width, height), f"{BROKEN}|fewer|longer")
    exif = b"Exif\0\0"
    for what, body in {
        "empty": b"",
        "random": rng.randbytes(200),
        "cut": b"MM\0*\0\0\0\x08\0\xff",
        "wild-offset": b"II*\0\xff\xff\xff\x7f",
        "turn-99": b"MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\x63\0\0\0\0\0\0",
        "loop": b"MM\0*\0\0\0\x08\0\1\x87\x69\0\4\0\0\0\1\0\0\0\x08\0\0\0\x08",
        "huge": rng.randbytes(65_000),
    }.items():
        yield good(
            f"jpeg/exif-{what}.jpg",
            joined([(0xE1, b"\xff\xe1" + struct.pack(">H", len(exif + body) + 2) + exif + body), *parts]),
        )
    comment = (0xFE, b"\xff\xfe\xff\xff" + rng.randbytes(65_533))
    yield good("jpeg/comments.jpg", joined([*parts[:1], *[comment] * 20, *parts[1:]]))
    yield good("jpeg/tables-late.jpg", joined([p for p in parts if p[0] == 0xC0] + [p for p in parts if p[0] != 0xC0]))


def headers() -> Iterator[Mutant]:
    """Fields of BMP, GIF, WebP and TIFF headers that lie."""
    bmp, gif, webp = saved("bmp"), saved("gif"), saved("webp")
    for what, at, new in (
        ("depth", 28, b"\x07"),
        ("compression", 30, b"\x63"),
        ("header-size", 14, b"\x05"),
        ("pixels-beyond-end", 10, b"\xff\xff\xff\x7f"),
        ("width-negative", 18, b"\xff\xff\xff\xff"),
    ):
        yield bad(f"header/{what}.bmp", patched(bmp, at, new), f"{BROKEN}|{HUGE}")
    for width, height in ((0, 0), (0, 32), (33, 32)):
        yield bad(f"header/{width}x{height}.bmp", resized_header("bmp", width, height), f"{BROKEN}|fewer|longer")
    start = gif.index(b",\0\0\0\0")
    yield bad("header/version.gif", patched(gif, 3, b"99z"))
    yield bad("header/no-picture.gif", gif[:start] + b";")
    yield bad("header/code-size.gif", patched(gif, start + 10, b"\x0d"))
    yield bad("header/unknown-block.gif", patched(gif, start, b"?"))
    yield bad("header/0x0.gif", resized_header("gif", 0, 0), f"{BROKEN}|fewer")
    yield bad("header/kind.webp", patched(webp, 8, b"WAVE"))
    yield bad("header/first-chunk.webp", patched(webp, 12, b"JUNK"))
    yield bad("header/frame-mark.webp", patched(webp, webp.index(b"\x9d\x01\x2a"), b"\0\0\0"))
    yield bad("header/chunk-too-long.webp", patched(webp, 16, b"\xff\xff\xff\x7f"))
    yield bad("header/0x0.webp", resized_header("webp", 0, 0), f"{BROKEN}|fewer")
    for what, changes in {
        "compression": {259: 9_999},
        "depth": {258: 17},
        "colours": {262: 99},
        "strip-beyond-end": {273: 0x7FFFFFFF},
        "channels": {277: 99},
        "0x0": {256: 0, 257: 0},
        "0x32": {256: 0},
        "taller": {257: 40, 278: 40},
        "deflate-raw": {259: 8},
        "lzw-raw": {259: 5},
        "jpeg-raw": {259: 7},
    }.items():
        yield bad(f"header/{what}.tif", tiff(changes), f"{BROKEN}|fewer|longer")
    yield bad("header/no-directory.tif", b"II*\0\xff\xff\xff\x7f" + saved("tiff")[8:])
    yield bad("header/byte-order.tif", b"MM" + tiff({})[2:])
    yield good("header/directory-loop.tif", tiff({}, next_ifd=8))
    yield good("header/plain.tif", tiff({}))
    upside_down = np.asarray(picture())[::-1]
    yield good("header/top-down.bmp", patched(encode(upside_down, "bmp"), 22, struct.pack("<i", -32)))


def flipped(rng: random.Random) -> Iterator[Mutant]:
    """Some bytes are others: a decoder may see it or not."""
    for form, suffix in FORMS.items():
        for number in range(12):
            data = bytearray(saved(form))
            for _ in range(1 + number % 4):
                data[rng.randrange(min(len(data), 64 if number < 6 else len(data)))] ^= 1 << rng.randrange(8)
            yield Mutant(f"flipped/{number}.{suffix}", bytes(data), "either")


# --- what looks odd and is good --------------------------------------------------------------------------


def odd_but_good(rng: random.Random) -> Iterator[Mutant]:
    """Pictures that must be taken in, upright and in colour."""
    image, grey = picture(), picture().convert("L")
    values = np.asarray(grey)
    for turn, back in enumerate((None, 0, 3, 1, 5, 2, 6, 4), 1):  # Pillow's transpositions that undo each orientation
        exif = Image.Exif()
        exif[0x0112] = turn
        undone = image if back is None else image.transpose(Image.Transpose(back))
        yield good(f"good/turned-{turn}.jpg", saved("jpeg", undone, exif=exif))
    yield good("good/cmyk.jpg", saved("jpeg", image.convert("CMYK")))
    yield good("good/cmyk.tif", saved("tiff", image.convert("CMYK")))
    yield good("good/progressive.jpg", saved("jpeg", progressive=True))
    yield good("good/grey.jpg", saved("jpeg", grey))
    yield good("good/preview.jpg", saved("mpo", image, save_all=True, append_images=[image.rotate(90)]))
    yield good("good/bad-profile.jpg", saved("jpeg", icc_profile=rng.randbytes(3_000)))
    yield good("good/16-bit.png", encode(values.astype(np.uint16) * 257))
    yield good("good/16-bit.tif", encode(values.astype(np.uint16) * 257, "tiff"))
    yield good("good/32-bit.tif", encode(values.astype(np.int32) * 257, "tiff"))
    yield good("good/float-255.tif", encode(values.astype(np.float32), "tiff"))
    yield good("good/float-1.tif", encode(values.astype(np.float32) / 255, "tiff"))
    holes = values.astype(np.float32)
    holes[0, :3] = np.nan, np.inf, -np.inf
    yield good("good/float-not-finite.tif", encode(holes, "tiff"))
    yield good("good/palette.png", saved("png", image.quantize(64)))
    yield good("good/palette-transparent.png", saved("png", image.quantize(64), transparency=bytes([255] * 64)))
    yield good("good/palette-transparent.gif", saved("gif", image.quantize(64), transparency=255))
    yield good("good/opaque.png", saved("png", image.convert("RGBA")))
    yield good("good/grey-opaque.png", saved("png", image.convert("LA")))
    yield good("good/lossless.webp", saved("webp", lossless=True))
    yield good("good/opaque.webp", saved("webp", image.convert("RGBA")))
    yield good("good/few-colours.png", saved("png", image.quantize(16)))
    for packing in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits"):
        yield good(f"good/{packing}.tif", saved("tiff", compression=packing))


def shows_the_digit(image: Image.Image) -> bool:
    """Is this the digit that the mutants are made of, the right way up?"""
    found = np.asarray(image.convert("L").resize((32, 32)), dtype=float)
    return bool(np.abs(found - np.asarray(picture().convert("L"), dtype=float)).mean() < 12)


def main(folder: str) -> None:
    """Write all mutants into a folder and print what they are."""
    made = mutants()
    write_folder(Path(folder), {mutant.name: mutant.data for mutant in made})
    for mutant in made:
        print(f"{mutant.outcome:12} {len(mutant.data):>9,} bytes  {mutant.name:38} {mutant.reason}")  # noqa: T201
    print(", ".join(f"{count} {outcome}" for outcome, count in Counter(m.outcome for m in made).items()))  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1])
