"""What counts as a picture, what is measured of it, and what the model gets to see."""

from __future__ import annotations

import contextlib
import hashlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.pictures import animated_gif, digit, encode, noise, png_header

from everfresh.tasks.errors import DataError
from everfresh.tasks.images import MAX_PIXELS, Picture, decode, examine, normalise, to_tensor


def flat(value: int, side: int = 8) -> np.ndarray:
    return np.full((side, side, 3), value, dtype=np.uint8)


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, form, **options)
    return sink.getvalue()


# --- what is refused -------------------------------------------------------------------------------------

REFUSED = {
    "empty": (b"", "is empty"),
    "text": (b"not a picture at all", "not a picture in a known format"),
    "truncated jpeg": (noise(0, 64, "jpeg")[:-400], "cannot be decoded"),
    "truncated png": (noise(0, 64)[:-400], "cannot be decoded"),
    "animation": (animated_gif(), "holds 3 pictures"),
    "bomb": (png_header(60_000, 60_000), f"more than {MAX_PIXELS:,}"),
    "large": (png_header(9_000, 9_000), f"more than {MAX_PIXELS:,}"),
    "very large": (png_header(10_000, 10_000), f"more than {MAX_PIXELS:,}"),
    "thread": (encode(np.zeros((1, 2_000, 3), np.uint8)), "2000 × 1 pixels"),
    "single pixel": (encode(flat(9, 1)), "1 × 1 pixels, fewer than 4 a side"),
    "wrong checksum": (noise(0)[:-17] + b"?" + noise(0)[-16:], "cannot be decoded"),
    "PostScript": (saved(Image.new("RGB", (8, 8)), "EPS"), "not a picture in a known format"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_usable_picture_is_refused_with_the_reason(name: str) -> None:
    data, reason = REFUSED[name]
    with pytest.raises(DataError, match=reason):
        decode(data)


@settings(max_examples=300, deadline=None)
@given(
    form=st.sampled_from(["png", "jpeg", "gif", "bmp", "tiff", "webp"]),
    cuts=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8),
    keep=st.floats(0.05, 1),
)
def test_damaged_bytes_are_a_picture_or_a_data_error_never_a_crash(
    form: str, cuts: list[tuple[float, int]], keep: float
) -> None:
    data = bytearray(noise(1, 24, form))
    data = data[: max(1, int(len(data) * keep))]
    for where, value in cuts:
        data[int(where * (len(data) - 1))] = value
    with contextlib.suppress(DataError):
        examine(bytes(data))


# --- what becomes RGB ------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["png", "jpeg", "gif", "bmp", "tiff", "webp"])
def test_each_format_is_read(form: str) -> None:
    image = decode(encode(flat(200, 16), form))
    assert (image.mode, image.size) == ("RGB", (16, 16))
    assert abs(int(np.asarray(image).mean()) - 200) <= 2


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    pixels = np.asarray(decode(encode(values)))[..., 0].ravel()
    assert pixels[0] == 0
    assert pixels[-1] == 255
    assert pixels[32] == 130


@pytest.mark.parametrize("top", [1, 255])
def test_real_numbers_from_0_to_1_or_to_255_are_seen(top: int) -> None:
    values = np.linspace(0, top, 64, dtype=np.float32).reshape(8, 8)
    pixels = np.asarray(decode(encode(values, "tiff")))[..., 0].ravel()
    assert (pixels[0], pixels[32], pixels[-1]) == (0, 130, 255)


def test_real_numbers_that_are_not_finite_do_not_warn() -> None:
    values = np.full((8, 8), 100.0, dtype=np.float32)
    values[0, :3] = np.nan, np.inf, -np.inf
    assert np.asarray(decode(encode(values, "tiff")))[4, 4, 0] == 100


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_becomes_white(mode: str) -> None:
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0)).convert(mode)
    options = {"transparency": 0} if mode == "P" else {}
    assert np.asarray(decode(saved(image, "PNG", **options)))[4, 4].tolist() == [255, 255, 255]


@pytest.mark.parametrize("mode", ["1", "L", "CMYK", "YCbCr"])
def test_other_colour_spaces_become_rgb(mode: str) -> None:
    image = Image.new("RGB", (8, 8), "white").convert(mode)
    assert np.asarray(decode(saved(image, "TIFF"))).min() >= 250


def test_a_picture_stands_upright_as_its_exif_says() -> None:
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90°
    turned = decode(saved(Image.fromarray(pixels), "PNG", exif=exif))
    assert turned.size == (8, 16)
    assert np.asarray(turned)[0, 0, 0] == 255
    assert np.asarray(turned)[15, 0, 0] == 0


def test_a_camera_picture_with_a_preview_in_it_is_one_picture() -> None:
    first, second = Image.fromarray(flat(50, 16)), Image.fromarray(flat(200, 16))
    image = decode(saved(first, "MPO", save_all=True, append_images=[second]))
    assert abs(int(np.asarray(image).mean()) - 50) <= 2


# --- what is measured ------------------------------------------------------------------------------------


def test_what_is_measured_of_known_pictures() -> None:
    black, white = examine(encode(flat(0))), examine(encode(flat(255)))
    assert (black.brightness, white.brightness) == (0.0, 1.0)
    assert black.contrast == black.sharpness == black.colourfulness == 0.0
    board = np.kron(np.indices((8, 8)).sum(0) % 2, np.ones((8, 8)))[..., None].repeat(3, 2) * 255
    checked = examine(encode(board.astype(np.uint8)))
    assert checked.contrast == pytest.approx(0.5)
    assert checked.sharpness > 0.1
    assert examine(noise(0)).colourfulness > 0.2
    assert (checked.width, checked.height) == (64, 64)


def test_the_digest_is_of_the_bytes() -> None:
    data = noise(3)
    assert examine(data).digest == hashlib.sha256(data).hexdigest()


def test_nearly_equal_pictures_share_a_group_and_others_do_not() -> None:
    original, _ = digit(0, 64)
    pixels = np.asarray(decode(original))
    same = [encode(pixels, "jpeg", quality=90), encode(pixels, "bmp")]
    same.append(saved(Image.fromarray(pixels).resize((128, 128), Image.Resampling.BILINEAR), "PNG"))
    group = examine(original).group
    assert [examine(data).group for data in same] == [group] * 3
    assert len({examine(noise(seed)).group for seed in range(50)}) == 50


def test_examining_is_deterministic() -> None:
    assert examine(noise(5)) == examine(noise(5))
    assert isinstance(examine(noise(5)), Picture)


# --- what the model sees ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(32, 32), (32, 64), (64, 32), (16, 16), (33, 47)])
def test_the_input_is_a_square_of_the_asked_size(shape: tuple[int, int]) -> None:
    tensor = to_tensor(encode(np.zeros((*shape, 3), np.uint8)), 32)
    assert tuple(tensor.shape) == (3, 32, 32)
    assert str(tensor.dtype) == "torch.uint8"


def test_the_input_equals_torchvisions_preset() -> None:
    import torch
    from torchvision.transforms import v2

    data = encode(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    steps = v2.Compose([v2.PILToTensor(), v2.Resize(32, antialias=True), v2.CenterCrop(32)])
    assert torch.equal(to_tensor(data, 32), steps(Image.open(io.BytesIO(data))))


def test_the_centre_is_kept() -> None:
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:20] = 255
    assert to_tensor(encode(pixels), 10).min() == 255


def test_normalising_subtracts_the_mean_and_divides_by_std() -> None:
    import torch

    made = normalise(torch.full((2, 3, 4, 4), 255, dtype=torch.uint8), (0.5, 0.5, 0.0), (0.5, 0.25, 1.0))
    assert made[0, :, 0, 0].tolist() == [1.0, 2.0, 1.0]
    assert made.dtype == torch.float32
