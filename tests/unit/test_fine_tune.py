"""Fine-tune: the same bytes every time, also after a crash; replay without a look at the hold-out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.loop import arrive, open_tick, pipeline, second_window

from everfresh.tasks import fine_tune as stage
from everfresh.tasks import ingest, journal, models
from everfresh.tasks.config import PipelineConfig
from everfresh.tasks.embeddings import Embedder
from everfresh.tasks.errors import DataError, TrainingError
from everfresh.tasks.fine_tune import _as_linear, _equal_share, _Trainer, fine_tune
from everfresh.tasks.ledger import find
from everfresh.tasks.records import Candidate, Release, Tick
from everfresh.tasks.store import FolderStore
from everfresh.tasks.views import View


@pytest.fixture
def later(tmp_path: Path) -> tuple[FolderStore, PipelineConfig, Tick]:
    """A pipeline with a champion, at its second window."""
    store, config = second_window(tmp_path)
    return store, config, open_tick(store, config)


def first(folder: Path, count: int = 24, **changes: Any) -> tuple[FolderStore, PipelineConfig, Tick]:
    """A pipeline without a champion, at its first window."""
    config = pipeline(folder, **changes)
    arrive(config, count)
    store = FolderStore(folder / "store")
    return store, config, open_tick(store, config)


def train(place: tuple[FolderStore, PipelineConfig, Tick], rung: Any, **options: Any) -> Candidate:
    return fine_tune(*place, rung, **options)


def with_model(config: PipelineConfig, **changes: Any) -> PipelineConfig:
    return config.model_copy(update={"model": config.model.model_copy(update=changes)})


def with_training(config: PipelineConfig, **changes: Any) -> PipelineConfig:
    return config.model_copy(update={"fine_tune": config.fine_tune.model_copy(update=changes)})


# --- the same bytes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rung", ["head", "full", "pretrained"])
def test_two_stores_end_in_the_same_weights(tmp_path: Path, rung: str) -> None:
    made = []
    for name in ("one", "two"):
        store, config = second_window(tmp_path / name)
        made.append(fine_tune(store, config, open_tick(store, config), rung))  # type: ignore[arg-type]
    assert made[0].weights.sha256 == made[1].weights.sha256
    assert (made[0].key, made[0].tune_accuracy, made[0].encoder) == (made[1].key, made[1].tune_accuracy, made[1].encoder)


def test_a_second_call_adopts_the_first(later: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = train(later, "full")
    monkeypatch.setattr(_Trainer, "run", None)
    assert train(later, "full") == made


def test_another_seed_request_or_setting_is_another_candidate(later: Any) -> None:
    store, config, tick = later
    keys = {
        train(later, "head").key,
        fine_tune(store, with_training(config, seed=1), tick, "head").key,
        fine_tune(store, with_training(config, replay_max_samples=3), tick, "head").key,
        fine_tune(store, config, tick.model_copy(update={"request": "f1"}), "head").key,
        fine_tune(store, config, tick.model_copy(update={"bank": ()}), "head").key,
    }
    assert len(keys) == 5


# --- crashes -------------------------------------------------------------------------------------------------


def crash(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """The first run dies after so many epochs."""
    epoch, done = _Trainer._epoch, []

    def dies(self: _Trainer, *arguments: Any) -> tuple[float, float]:
        if len(done) == after:
            done.append(0)
            raise KeyboardInterrupt
        done.append(0)
        return epoch(self, *arguments)

    monkeypatch.setattr(_Trainer, "_epoch", dies)


AUGMENTED = {"fine_tune": {"epochs": 4, "batch_size": 8, "learning_rate": 0.005, "augment": "crop_flip"}}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> str:
    return train(first(tmp_path_factory.mktemp("whole"), **AUGMENTED), "pretrained").weights.sha256


@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_a_run_that_was_killed_ends_in_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: str, after: int
) -> None:
    place = first(tmp_path, **AUGMENTED)
    crash(monkeypatch, after)
    with pytest.raises(KeyboardInterrupt):
        train(place, "pretrained")
    trained: list[int] = []
    epoch = _Trainer._epoch
    monkeypatch.setattr(_Trainer, "_epoch", lambda self, p, number: trained.append(number) or epoch(self, p, number))
    assert train(place, "pretrained").weights.sha256 == uninterrupted
    assert trained == list(range(after, 4))


def test_checkpoints_are_as_far_apart_as_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = first(tmp_path, fine_tune={"epochs": 4, "checkpoint_every": 2, "augment": "none"})
    train(place, "pretrained")
    kept = [i.key.rpartition("/")[2] for i in place[0].list("candidates") if "/checkpoint-" in i.key]
    assert len(kept) == 1
    assert kept[0].startswith("checkpoint-00002-")


@pytest.mark.parametrize("damage", ["truncated", "one byte", "empty"])
def test_a_damaged_checkpoint_falls_back_to_an_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    place = first(tmp_path, **AUGMENTED)
    crash(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        train(place, "pretrained")
    newest = sorted((tmp_path / "store").rglob("checkpoint-*"), key=lambda p: p.name)[-1]
    data = newest.read_bytes()
    middle = len(data) // 2
    broken = {"truncated": data[:middle], "empty": b"", "one byte": data[:middle] + b"\xff" + data[middle + 1 :]}
    assert broken["one byte"] != data
    newest.write_bytes(broken[damage])
    trained: list[int] = []
    epoch = _Trainer._epoch
    monkeypatch.setattr(_Trainer, "_epoch", lambda self, p, number: trained.append(number) or epoch(self, p, number))
    assert train(place, "pretrained").weights.sha256 == uninterrupted
    assert trained == [2, 3]
    assert "cannot be read" in caplog.text
    assert "trying an older one" in caplog.text


# --- what is trained on ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rung", ["head", "full"])
def test_only_training_samples_are_replayed(later: Any, monkeypatch: pytest.MonkeyPatch, rung: str) -> None:
    store, _, tick = later
    pools: list[tuple[str, Any]] = []
    pool = stage._pool

    def watched(window: Any, earlier: Any, split: Any, *rest: Any) -> Any:
        made = pool(window, earlier, split, *rest)
        pools.append((split, made))
        return made

    monkeypatch.setattr(stage, "_pool", watched)
    made = train(later, rung)
    for split, found in pools:
        assert {v.samples[int(r)].split for v, rows in found.parts for r in rows} == {split}
    (training,) = [p for split, p in pools if split == "train"]
    assert [v.window.view for v, _ in training.parts] == [tick.view, *made.replay]
    counts = [View(store, v).window.splits["train"] for v in (tick.view, *made.replay)]
    assert made.trained_on == len(training) == sum(counts)


def test_replay_is_bounded_and_can_be_off(later: Any) -> None:
    store, config, tick = later
    new = View(store, tick.view).window.splits["train"]
    assert fine_tune(store, with_training(config, replay_max_samples=5), tick, "head").trained_on == new + 5
    off = fine_tune(store, with_training(config, replay_max_samples=0), tick, "head")
    assert off.trained_on == new
    assert off.kept_accuracy is not None  # what was forgotten is measured all the same


@given(st.lists(st.integers(0, 5_000), max_size=12), st.integers(1, 5_000))
def test_an_equal_share_stays_within_the_bound(counts: list[int], most: int) -> None:
    cap = _equal_share(counts, most)
    total = sum(min(c, cap) for c in counts)
    assert total <= most or cap == 1
    assert cap >= 1
    assert total == sum(counts) or sum(min(c, cap + 1) for c in counts) > most  # and it is the largest


# --- the rungs -----------------------------------------------------------------------------------------------------


def test_a_refitted_head_changes_no_byte_of_the_backbone(later: Any) -> None:
    store, _, tick = later
    release = find(store, f"releases/{tick.champion}/release.json", Release)
    assert release is not None
    made = train(later, "head")
    before = Embedder.open(store, release.spec, release.files["model.safetensors"])
    after = Embedder.open(store, made.spec, made.weights)
    assert before.encoder == after.encoder == made.encoder
    assert made.weights.sha256 != release.files["model.safetensors"].sha256
    assert (made.start, made.device) == (release.id, "cpu")


def test_a_refitted_head_learns_the_new_window(later: Any) -> None:
    made = train(later, "head")
    assert made.tune_accuracy >= 0.5
    assert made.kept_accuracy is not None
    assert made.kept_accuracy >= 0.5
    assert made.cost.samples == made.trained_on


def test_full_goes_on_from_the_head_and_pretrained_from_the_start(later: Any) -> None:
    head = train(later, "head")
    full = train(later, "full", start=head)
    assert full.start == head.key
    assert full.encoder != head.encoder
    assert full.cost.samples == full.trained_on * 4
    assert train(later, "full").start == head.champion
    assert train(later, "full").key != full.key
    fresh = train(later, "pretrained", start=head)
    assert (fresh.start, fresh.key) == (None, train(later, "pretrained").key)


def test_an_event_file_is_kept(later: Any) -> None:
    store, _, _ = later
    made = train(later, "full")
    (name,) = made.files
    assert name.startswith("tensorboard/events")
    assert store.read(made.files[name])


@pytest.mark.parametrize("rung", ["head", "full"])
def test_a_class_that_is_added_later_is_learnt(later: Any, rung: str) -> None:
    store, config, _ = later
    arrive(config, 30, classes=("three",))
    config = with_model(config, classes=("three", "zero", "one", "two"))
    entry = ingest.ingest(store, config)
    assert entry is not None
    tick = journal.begin(store, journal.outlook(store, entry))
    made = fine_tune(store, config, tick, rung)  # type: ignore[arg-type]
    assert made.spec.classes == ("three", "zero", "one", "two")
    view = View(store, tick.view)
    _, scores = Embedder.open(store, made.spec, made.weights).scores(view, view.rows("train", ("three",)))
    assert (scores.argmax(dim=1) == 0).float().mean() > 0.8


def test_the_head_of_a_network_without_bias_is_refitted(tmp_path: Path) -> None:
    store, config, tick = first(tmp_path, 60)
    config = with_model(config, architecture="support.networks:without_bias", image_size=32)
    start = fine_tune(store, config, tick, "pretrained")
    made = fine_tune(store, config, tick, "head")
    module = models.load(store, made.spec, made.weights, code=made.spec.architecture)
    assert models.linear_head(module, made.spec).bias is None
    assert made.encoder != start.encoder


@pytest.mark.parametrize("bias", [True, False])
def test_a_class_that_was_never_seen_is_not_predicted(bias: bool) -> None:
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    labels = rng.choice([0, 2, 3], 60)
    features = rng.normal(size=(60, 5)) + 3 * np.eye(5)[labels]
    centre, scale = (features.mean(axis=0) if bias else np.zeros(5)), features.std(axis=0)
    fit = LogisticRegression(fit_intercept=bias).fit((features - centre) / scale, labels)
    weight, offset = _as_linear(fit, centre, scale, 4)
    scores = torch.from_numpy(features).float() @ weight.T + offset
    np.testing.assert_array_equal(scores.argmax(dim=1).numpy(), fit.predict((features - centre) / scale))
    assert bias or not offset[[0, 2, 3]].any()


def test_two_classes_of_the_regression_become_two_rows() -> None:
    from sklearn.linear_model import LogisticRegression

    features = np.random.default_rng(0).normal(size=(40, 3))
    labels = (features[:, 0] > 0).astype(int)
    fit = LogisticRegression().fit(features, labels)
    weight, bias = _as_linear(fit, np.zeros(3), np.ones(3), 2)
    scores = torch.from_numpy(features).float() @ weight.T + bias
    np.testing.assert_allclose(scores.softmax(dim=1).numpy(), fit.predict_proba(features), atol=1e-5)


# --- what cannot be trained ------------------------------------------------------------------------------------------


def test_one_class_alone_cannot_fit_a_head(tmp_path: Path) -> None:
    config = pipeline(tmp_path)
    arrive(config, 20, classes=("zero",))
    store = FolderStore(tmp_path / "store")
    with pytest.raises(DataError, match=r"at least two classes, got only 'zero'"):
        fine_tune(store, config, open_tick(store, config), "head")


def test_a_window_without_training_samples_is_refused(tmp_path: Path) -> None:
    config = pipeline(tmp_path)
    arrive(config, 20, classes=("nine",))
    store = FolderStore(tmp_path / "store")
    with pytest.raises(DataError, match=r"window 1 must have labelled training samples of model.classes, got none"):
        fine_tune(store, config, open_tick(store, config), "full")


def test_a_loss_that_is_not_finite_names_the_learning_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, config, tick = first(tmp_path)
    monkeypatch.setattr(stage, "normalise", lambda pixels, *_: pixels.float() * float("nan"))
    with pytest.raises(TrainingError, match=r"got nan in epoch 1, step 1\. Lower fine_tune.learning_rate \(now 0.005\)"):
        fine_tune(store, config, tick, "pretrained")


def test_a_window_of_one_training_sample_trains(tmp_path: Path) -> None:
    store, config, tick = first(tmp_path, 1, window={"holdout_fraction": 0.001, "tune_fraction": 0.001})
    made = fine_tune(store, config, tick, "pretrained")
    assert (made.trained_on, made.tune_samples, made.tune_accuracy, made.kept_accuracy) == (1, 0, 0.0, None)
