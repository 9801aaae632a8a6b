"""What a step is fed: the same bytes whoever makes them and wherever the run goes on; pixels as Pillow reads them."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.loop import arrive, pipeline
from support.pictures import noise

from everfresh.tasks import images, ingest, models
from everfresh.tasks.config import PipelineConfig
from everfresh.tasks.errors import DataError, StoreError
from everfresh.tasks.fine_tune.input import AHEAD, Batches, Feed, Pictures, crops, cut, seeded, workers_of
from everfresh.tasks.fine_tune.pool import Pool
from everfresh.tasks.store import FolderStore
from everfresh.tasks.targets import Targets
from everfresh.tasks.views import View


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PipelineConfig:
    folder = tmp_path_factory.mktemp("input")
    made = pipeline(folder)
    arrive(made, 30)
    return made


@pytest.fixture
def pool(config: PipelineConfig) -> Pool:
    store = FolderStore(Path(config.store))
    if (entry := ingest.ingest(store, config)) is None:
        (view,) = {i.key.split("/")[1] for i in store.list("windows")}
        return pool_of(View(store, view), config)
    return pool_of(View(store, entry.view), config)


def pool_of(view: View, config: PipelineConfig) -> Pool:
    targets = Targets.wanted(config.model)
    return Pool(((view, view.rows(None, targets)),), targets)


def fed(pool: Pool, config: PipelineConfig, workers: int, *, done: int = 0, how: Any = "crop_flip", keep: int = 0) -> list[Any]:
    """All that a run is fed after its first `done` steps: three epochs in batches of 7."""
    pictures = Pictures(pool, models.start(config.model, 0)[1], keep)
    return list(Feed(pictures, Batches(len(pictures), 7, 3, 5), how, workers)(done))


def same(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(sum(one, ()), sum(other, ()), strict=True))


def test_batches_are_the_same_bytes_whoever_makes_them(pool: Pool, config: PipelineConfig) -> None:
    whole = fed(pool, config, 0)
    assert len(whole) == 15
    assert {tuple(batch.shape) for batch, _ in whole} == {(7, 3, 16, 16), (2, 3, 16, 16)}
    for workers in (1, 2, 5):
        assert same(fed(pool, config, workers), whole)
    assert same(fed(pool, config, 2, keep=1 << 30), whole)


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("done", [1, 4, 5, 13, 15])
def test_a_run_that_goes_on_is_fed_the_rest(pool: Pool, config: PipelineConfig, workers: int, done: int) -> None:
    assert same(fed(pool, config, workers, done=done), fed(pool, config, 0)[done:])


def test_epochs_differ_in_order_and_crops(pool: Pool, config: PipelineConfig) -> None:
    whole = fed(pool, config, 1)
    first, second = (torch.cat([b for b, _ in whole[i : i + 5]]) for i in (0, 5))
    assert not torch.equal(first, second)
    plain = fed(pool, config, 1, how="none")
    keys = [{t.numpy().tobytes() for b, _ in plain[i : i + 5] for t in b} for i in (0, 5)]
    assert keys[0] == keys[1]  # the same pictures
    cut_ones = {t.numpy().tobytes() for b, _ in whole for t in b}
    assert len(cut_ones - keys[0]) > 60  # of 90: some crops of so small a picture are all of it


def test_without_augmentation_a_picture_is_what_the_gates_see(pool: Pool, config: PipelineConfig) -> None:
    view, rows = pool.parts[0]
    expected = {images.to_tensor(data, 16).numpy().tobytes() for data in view.read(rows.tolist())}
    assert {t.numpy().tobytes() for batch, _ in fed(pool, config, 2, how="none") for t in batch} == expected


def test_neither_order_nor_crops_touch_the_common_generator(pool: Pool, config: PipelineConfig) -> None:
    pictures = Pictures(pool, models.start(config.model, 0)[1])
    torch.manual_seed(3)
    before = torch.get_rng_state()
    list(Feed(pictures, Batches(len(pictures), 7, 3, 5), "crop_flip", 1)(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_pool_larger_than_the_bound_is_decoded_anew_and_never_held(pool: Pool, config: PipelineConfig) -> None:
    spec = models.start(config.model, 0)[1]
    size = sum(3 * s.width * s.height for s in (pool.parts[0][0].samples[int(r)] for r in pool.parts[0][1]))
    assert Pictures(pool, spec, size).kept == {}
    large = Pictures(pool, spec, size - 1)
    assert large.kept is None
    feed = Feed(large, Batches(len(large), 4, 2, 0), "crop", 2)
    made: list[int] = []
    fill = Pictures.fill

    def counted(self: Pictures, batch: torch.Tensor, plan: Any, start: int, end: int) -> None:
        fill(self, batch, plan, start, end)
        made.append(end - start)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pictures, "fill", counted)
        batches = feed(0)
        for number, _ in enumerate(itertools.islice(batches, 9), 1):
            assert sum(made) <= 4 * (number + AHEAD)  # not the whole pool ahead of the training
        batches.close()


def test_shards_are_fetched_once_and_none_is_asked_for_by_picture(
    pool: Pool, config: PipelineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    local = FolderStore.local

    def noted(self: FolderStore, part: Any) -> Path:
        asked.append(part.key)
        return local(self, part)

    monkeypatch.setattr(FolderStore, "local", noted)
    monkeypatch.setattr(FolderStore, "get", None)
    Pictures(pool, models.start(config.model, 0)[1])
    assert sorted(asked) == sorted({s.key for s in pool.parts[0][0].window.shards})


@pytest.mark.parametrize("workers", [0, 2])
def test_what_a_worker_cannot_read_ends_the_training(
    pool: Pool, config: PipelineConfig, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(self: Pictures, index: int) -> torch.Tensor:
        raise StoreError("the shard is gone")

    monkeypatch.setattr(Pictures, "decoded", gone)
    with pytest.raises(StoreError, match="is gone"):
        fed(pool, config, workers)


def test_workers_are_those_asked_for_or_one_beside_a_cpu() -> None:
    assert workers_of(0, "cuda") == 0
    assert workers_of(7, "cpu") == 7
    assert workers_of(None, "cpu") == 1
    assert workers_of(None, "cuda:0") >= 1


# --- crops -----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**31), st.integers(1, 300))
def test_crops_lie_within_the_square_and_keep_their_area_and_ratio(seed: int, count: int) -> None:
    top, left, height, width = crops(count, seeded(seed)).T
    assert top.min() >= 0
    assert left.min() >= 0
    assert (top + height).max() <= 1 + 1e-6
    assert (left + width).max() <= 1 + 1e-6
    assert 0.69 <= (height * width).min() <= (height * width).max() <= 1
    assert 0.849 <= (width / height).min() <= (width / height).max() <= 1.181


def test_crops_are_spread_as_those_of_torchvision() -> None:
    from scipy.stats import ks_2samp
    from torchvision.transforms import v2

    ours = crops(2_000, seeded("spread")) * 500
    torch.manual_seed(0)
    theirs = v2.RandomResizedCrop(500, scale=(0.7, 1.0), ratio=(0.85, 1.18), antialias=True)
    picture = torch.zeros(3, 500, 500)
    drawn = [theirs.make_params([picture]) for _ in range(2_000)]
    for column, name in enumerate(("top", "left", "height", "width")):
        assert ks_2samp(ours[:, column].round().numpy(), [d[name] for d in drawn]).pvalue > 0.001


@given(st.integers(4, 60), st.integers(4, 60), st.integers(8, 32), st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_a_cut_is_what_torchvision_cuts_from_the_centred_square(height: int, width: int, size: int, draw: list[float]) -> None:
    from torchvision.transforms.v2 import functional as F

    side = min(height, width)
    high, wide = (0.5 + 0.5 * d for d in draw[:2])
    box = [draw[2] * (1 - high), draw[3] * (1 - wide), high, wide]
    picture = torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    top, left = ((whole - side) // 2 + round(share * side) for whole, share in ((height, box[0]), (width, box[1])))
    rows, columns = round(high * side), round(wide * side)
    top, left = min(top, height - rows), min(left, width - columns)
    expected = F.resized_crop(picture, top, left, rows, columns, [size, size], antialias=True)
    assert torch.equal(cut(picture, box, size), expected)


# --- decoding --------------------------------------------------------------------------------------------------------


def jpeg(mode: str, size: tuple[int, int], seed: int = 0, **options: Any) -> bytes:
    shape = (size[1] // 4 + 1, size[0] // 4 + 1, {"L": 1, "RGB": 3, "CMYK": 4}[mode])
    values = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(values.squeeze(), mode).resize(size).save(sink, "JPEG", **options)
    return sink.getvalue()


def turned(orientation: int, *, xmp: bool = False) -> bytes:
    exif = Image.Exif()
    exif[0x010F] = "maker"
    if not xmp:
        exif[0x0112] = orientation
    packet = f"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta tiff:Orientation='{orientation}'/>".encode()
    return jpeg("RGB", (40, 24), exif=exif, **({"xmp": packet.partition(b"\0")[2]} if xmp else {}))


def as_pillow_reads(data: bytes) -> np.ndarray:
    return np.asarray(images.decode(data)).transpose(2, 0, 1)


WAYS: list[dict[str, Any]] = [
    {}, {"subsampling": 0, "quality": 95}, {"subsampling": 1}, {"quality": 10}, {"progressive": True},
    {"optimize": True}, {"restart_marker_rows": 1}, {"comment": b"\xff\xd8\xff"},
]  # fmt: skip


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("size", [(64, 64), (33, 65), (101, 17), (300, 240)])
def test_a_jpeg_has_the_pixels_that_pillow_reads(mode: str, size: tuple[int, int]) -> None:
    for number, how in enumerate(WAYS):
        data = jpeg(mode, size, number, **how)
        assert images._is_upright_jpeg(data) == (mode != "CMYK")
        np.testing.assert_array_equal(images.pixels(data).numpy(), as_pillow_reads(data))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("xmp", [False, True])
def test_a_turned_jpeg_is_set_upright(orientation: int, xmp: bool) -> None:
    data = turned(orientation, xmp=xmp)
    assert images._is_upright_jpeg(data) == (orientation == 1 and not xmp)
    np.testing.assert_array_equal(images.pixels(data).numpy(), as_pillow_reads(data))


@pytest.mark.parametrize("form", ["png", "gif", "bmp", "tiff", "webp"])
def test_other_formats_have_the_pixels_that_pillow_reads(form: str) -> None:
    data = noise(0, 24, form)
    np.testing.assert_array_equal(images.pixels(data).numpy(), as_pillow_reads(data))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4), st.floats(0.2, 1))
def test_damaged_jpegs_have_pillows_pixels_or_are_refused(cuts: list[tuple[float, int]], keep: float) -> None:
    data = bytearray(jpeg("RGB", (32, 32)))
    data = data[: max(1, int(len(data) * keep))]
    for where, value in cuts:
        data[int(where * (len(data) - 1))] = value
    try:
        expected = as_pillow_reads(bytes(data))
    except DataError:
        expected = None
    try:
        found = images.pixels(bytes(data))
    except DataError:
        assert expected is None
    else:  # Pillow may refuse what libjpeg reads; ingest does, so that no such picture is ever trained on
        assert expected is None or np.array_equal(found.numpy(), expected)


def test_a_jpeg_that_says_it_is_huge_is_refused_before_it_is_unpacked() -> None:
    data = bytearray(jpeg("RGB", (32, 32)))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = (60_000).to_bytes(2) * 2
    with pytest.raises(DataError, match=r"more than 64,000,000( pixels)?"):
        images.pixels(bytes(data))
