"""What cannot be trained is told in one sentence, or trained all the same in the way that stands here."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support import networks
from support.loop import CLASSES, SIDE, open_tick, pipeline, release_of, run_window, second_window
from support.pictures import digits, noise, write_folder

from everfresh.tasks import models
from everfresh.tasks.config import PipelineConfig
from everfresh.tasks.errors import DeviceError, ModelError
from everfresh.tasks.fine_tune import fine_tune
from everfresh.tasks.images import examine
from everfresh.tasks.records import Tick
from everfresh.tasks.store import FolderStore, S3Store
from everfresh.tasks.views import View, split_of

PLAIN = "support.networks:plain"
SHORT = {"epochs": 1, "batch_size": 2}


def small(folder: Path, architecture: str = PLAIN, **changes: Any) -> PipelineConfig:
    sections: dict[str, Any] = {
        "model": {"architecture": architecture},
        "fine_tune": SHORT,
        "gates": [{"kind": "floor", "minimum": 0}],
    }
    for name, change in changes.items():
        sections[name] = {**sections.get(name, {}), **change}
    return pipeline(folder, **sections)


def of_split(split: str, count: int, label: str) -> dict[str, bytes]:
    """Digits of a class that the split of these pipelines puts there."""
    window = pipeline(Path()).window
    share = window.seed, window.holdout_fraction, window.tune_fraction
    found = digits(400, classes=(label,), side=SIDE).items()
    right = [(key, data) for key, data in found if split_of(examine(data).group, *share) == split]
    assert len(right) >= count
    return dict(right[:count])


def begin(config: PipelineConfig, files: dict[str, bytes]) -> tuple[FolderStore, Tick]:
    write_folder(Path(config.source.path), files)  # type: ignore[union-attr]
    store = FolderStore(Path(config.store))
    return store, open_tick(store, config)


PAIR = of_split("train", 4, "zero") | of_split("train", 4, "one")


# --- networks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "raises",
            "must return a torch.nn.Module for a number of classes, got ValueError: no. Call it with 3 where you can see ",
        ),
        ("no_module", "must return a torch.nn.Module, got int. Return the network itself."),
        (
            "no_layers",
            "must end in a named linear layer, or a convolution inside a named block, got neither. Use a classifier.",
        ),
        (
            "body_alone",
            "must end in a named linear layer, or a convolution inside a named block, got neither. Use a classifier.",
        ),
        ("fails_always", "must take inputs (N, 3, 16, 16), got RuntimeError: "),
        ("too_many_scores", "of shape (2, 3) for two samples, got (2, 3, 3). Return the scores alone, in that order."),
        (
            "fails_forwards",
            "must learn from inputs of shape (2, 3, 16, 16), got ZeroDivisionError: of mine. Take a step with it ",
        ),
        ("fails_backwards", "must learn from inputs of shape (2, 3, 16, 16), got KeyError: 'of mine'. Take a step with it "),
    ],
)
def test_a_network_that_cannot_be_trained_is_named_with_its_own_error(tmp_path: Path, name: str, message: str) -> None:
    config = small(tmp_path, f"support.networks:{name}")
    store, tick = begin(config, PAIR)
    with pytest.raises(ModelError) as caught:
        fine_tune(store, config, tick, "pretrained")
    assert str(caught.value).startswith("model.architecture")
    assert message in str(caught.value)
    if "got" in message and "Error" in message:
        assert type(caught.value.__cause__).__name__ in message


# --- weights ---------------------------------------------------------------------------------------------


def broken(folder: Path, kind: str) -> Path:
    torch.manual_seed(0)
    state, path = networks.plain(3).state_dict(), folder / "weights.pth"
    if kind == "folder":
        path.mkdir()
    elif kind == "page":
        path.write_text("<!DOCTYPE html><html>Sign in</html>")
    elif kind == "pointer":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    elif kind == "empty":
        path.touch()
    else:
        changed = {
            "extra": state | {"6.weight": torch.zeros(1), "7.weight": torch.zeros(1)},
            "missing": {n: t for n, t in state.items() if not n.startswith("0")},
            "other": networks.Pooled(3).state_dict(),
            "nan": state | {"0.bias": torch.full((8,), torch.nan)},
        }[kind]
        torch.save(changed, path)
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("folder", "must be a file that exists, got {path}, a folder. Put it there or correct the path."),
        ("empty", "must be a state dict, got {path}, an empty file. Copy it again."),
        ("page", "must be a state dict, got {path}, a web page. Download the file itself, not the page that shows it."),
        ("pointer", "must be a state dict, got {path}, a pointer of Git LFS. Get the file with `git lfs pull`."),
        ("nan", " {path}: 0.bias has values that are not finite. Use a checkpoint from before that."),
        ("extra", "do not fit model.architecture: 2 tensors unknown, first 6.weight. Name the architecture that they were "),
        ("missing", "do not fit model.architecture: 2 tensors missing, first 0.weight. Name the architecture that they were "),
        ("other", f"do not fit model.architecture {PLAIN}: no head at '4'. Name the architecture that they were trained with."),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, kind: str, message: str) -> None:
    path = broken(tmp_path, kind)
    config = small(tmp_path, model={"weights": str(path)})
    store, tick = begin(config, PAIR)
    with pytest.raises(ModelError) as caught:
        fine_tune(store, config, tick, "pretrained")
    assert str(caught.value).startswith("model.weights")
    assert message.format(path=path) in str(caught.value)


def test_weights_in_half_precision_are_trained_in_single(tmp_path: Path) -> None:
    state = {n: t.half() for n, t in networks.plain(3).state_dict().items()}
    save_file(state, tmp_path / "half.safetensors")
    config = small(tmp_path, model={"weights": str(tmp_path / "half.safetensors")})
    module, _ = models.start(config.model, 0)
    assert all(t.dtype == torch.float32 and torch.equal(t, state[n].float()) for n, t in module.state_dict().items())
    store, tick = begin(config, PAIR)
    assert fine_tune(store, config, tick, "pretrained").trained_on == len(PAIR)


@pytest.mark.parametrize("architecture", [PLAIN, "support.networks:Convolutional"], ids=["linear", "pooled linear"])
def test_an_earlier_release_of_another_pipeline_is_a_start_for_more_classes(
    tmp_path: Path, s3_store: S3Store, architecture: str
) -> None:
    """By its address in a folder, in `file://`, and in S3; the head that Everfresh put there is found and replaced."""
    config = small(tmp_path / "first", architecture)
    store, _ = begin(config, PAIR | of_split("holdout", 2, "zero"))
    move = run_window(store, config).move
    assert move is not None
    release = release_of(store, move)
    key = f"releases/{move.release}/model.safetensors"
    s3_store.put_file(key, store.root / key)
    places = [str(store.root / key), f"file://{store.root / key}", s3_store.url(key)]
    later = [small(tmp_path / "later", architecture, model={"weights": p, "classes": (*CLASSES, "four")}) for p in places]
    made = [models.start(c.model, 0, c.s3) for c in later]
    trained = models.load(store, release.spec, release.files["model.safetensors"], code=architecture).state_dict()
    for module, spec in made:
        assert models.linear_head(module, spec).out_features == 4
        kept = {n: t for n, t in module.state_dict().items() if not n.startswith(spec.head)}
        assert kept
        assert all(torch.equal(t, trained[n]) for n, t in kept.items())


# --- labels and samples ----------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "tune", "holdout"])
def test_a_class_with_one_sample_is_trained_tuned_or_judged_with_what_there_is(tmp_path: Path, split: str) -> None:
    """In hold-out or tune alone, nothing was learnt of it: the head never predicts it."""
    lone = of_split(split, 1, "two")
    config = small(tmp_path, policy={"bootstrap": "pretrained", "ladder": ["head", "full"]})
    store, tick = begin(config, PAIR | of_split("holdout", 3, "zero") | of_split("tune", 3, "one") | lone)
    head = fine_tune(store, config, tick, "head")
    full = fine_tune(store, config, tick, "full", head)
    counts = Counter(s.label for s in View(store, tick.view).samples if s.split == "train")
    assert counts["two"] == (split == "train")
    assert head.trained_on == full.trained_on == len(PAIR) + (split == "train")
    module = models.load(store, head.spec, head.weights, code=PLAIN)
    _, scores = models.embed(module, head.spec, PAIR.values())
    if split != "train":
        assert (scores.argmax(1) != CLASSES.index("two")).all()
    made = run_window(store, config)
    assert made.entry.samples == len(PAIR) + 7


@pytest.mark.parametrize("value", ["NaN", "null", '""', '"  "'])
def test_a_label_that_is_no_value_is_no_label(tmp_path: Path, value: str) -> None:
    """NaN, null or an empty cell: the sample waits for its label, is in the window, and trains nothing."""
    labels = {"kind": "sidecar", "path": "labels.jsonl"}
    config = small(tmp_path, source={"kind": "folder", "path": str(tmp_path / "inbox"), "labels": labels})
    files = {key.replace("/", "-"): data for key, data in PAIR.items()}
    rows = [json.dumps({"key": key, "label": key.split("-")[0]}) for key in sorted(files)]
    rows[0] = f'{{"key": "{min(files)}", "label": {value}}}'
    store, tick = begin(config, {**files, "labels.jsonl": "\n".join(rows).encode()})
    assert Counter(s.label for s in View(store, tick.view).samples)[None] == 1
    assert fine_tune(store, config, tick, "pretrained").trained_on == len(PAIR) - 1


@pytest.mark.parametrize("samples", [1, 2, 3, 5])
def test_batch_norm_gets_two_samples_or_more_of_each_batch(tmp_path: Path, samples: int) -> None:
    """Of a pool of one the sample is taken twice; a last batch of one is left out of its epoch."""
    config = small(tmp_path, "support.networks:normed")
    store, tick = begin(config, dict(list(PAIR.items())[:samples]))
    made = fine_tune(store, config, tick, "pretrained")
    assert made.trained_on == samples


def test_a_picture_of_one_pixel_is_set_aside_and_the_others_train(tmp_path: Path) -> None:
    config = small(tmp_path)
    store, tick = begin(config, {**PAIR, "two/dot.png": noise(1, 1), "two/line.png": noise(2, 1)})
    rows = [json.loads(r) for r in store.get(f"quarantine/{tick.view}/quarantine.jsonl").decode().splitlines()]
    assert {row["key"] for row in rows} == {"two/dot.png", "two/line.png"}
    assert all("1 × 1" in row["reason"] for row in rows)
    assert fine_tune(store, config, tick, "pretrained").trained_on == len(PAIR)


# --- devices ---------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("wanted", ["cuda", "cuda:7", "mps"])
def test_a_gpu_that_is_not_there_is_told_before_anything_is_trained(tmp_path: Path, wanted: str) -> None:
    store, config = second_window(tmp_path, fine_tune={"device": wanted})
    tick = open_tick(store, config)
    with pytest.raises(
        DeviceError,
        match=rf"^fine_tune\.device must be there, got {wanted} where there is cpu \(torch .*\)\. Run it where there is one, "
        r"or set fine_tune\.device to auto\.$",
    ):
        fine_tune(store, config, tick, "full")
    assert fine_tune(store, config, tick, "head").device == "cpu"  # which needs none


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_auto_trains_on_the_cpu_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "everfresh")
    made = []
    for wanted in ("auto", "cpu"):
        config = small(tmp_path / wanted, fine_tune={"device": wanted})
        store, tick = begin(config, PAIR)
        made.append(fine_tune(store, config, tick, "pretrained"))
    assert [m.device for m in made] == ["cpu", "cpu"]
    assert made[0].weights.sha256 == made[1].weights.sha256
    assert caplog.text.count("fine_tune.device auto: there is no GPU here, so this trains on the CPU") == 1
