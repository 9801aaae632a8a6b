"""Fine-tune: the same bytes every time, also after a crash; replay without a look at the hold-out."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.loop import arrive, open_tick, pipeline, run_window, second_window
from support.pictures import digits, write_folder
from support.tasks import leaning, slants
from support.training import crash

from everfresh.tasks import ingest, inputs, journal, models, publish
from everfresh.tasks.architectures import build, source_digest
from everfresh.tasks.config import PipelineConfig
from everfresh.tasks.embeddings import Embedder
from everfresh.tasks.errors import AccessRefused, DataError, DeviceError, RungUnfit, StoreError, TrainingError
from everfresh.tasks.fine_tune import fine_tune, stage
from everfresh.tasks.fine_tune import trainer as training
from everfresh.tasks.fine_tune.checkpoint import Checkpoints
from everfresh.tasks.fine_tune.head import as_linear, refit_head
from everfresh.tasks.fine_tune.input import Batches
from everfresh.tasks.fine_tune.interrupt import stoppable
from everfresh.tasks.fine_tune.keep import Start, State
from everfresh.tasks.fine_tune.objective import Objective
from everfresh.tasks.fine_tune.trainer import Trainer
from everfresh.tasks.ledger import find
from everfresh.tasks.records import Candidate, Release, Tick
from everfresh.tasks.store import FolderStore
from everfresh.tasks.targets import Targets
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
    monkeypatch.setattr(Trainer, "run", None)
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


def test_another_source_of_a_network_of_ones_own_is_another_candidate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path / "code")
    (tmp_path / "code").mkdir()
    source = tmp_path / "code/network_of_mine.py"
    source.write_text("from support.networks import plain\n")
    place = first(tmp_path, model={"architecture": "network_of_mine:plain", "image_size": 16})
    made = train(place, "full")
    assert train(place, "full") == made
    source.write_text("from support.networks import plain\nDROPOUT = 0.5\n")
    assert train(place, "full").key != made.key


def test_code_that_raises_where_its_source_is_looked_for_is_left_to_whoever_builds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_of_mine").mkdir()
    (tmp_path / "broken_of_mine/__init__.py").write_text("raise RuntimeError('no')")
    assert source_digest("broken_of_mine.net:make") is source_digest("nowhere.net:make") is source_digest("resnet18") is None


# --- crashes -------------------------------------------------------------------------------------------------

AUGMENTED = {"fine_tune": {"epochs": 4, "batch_size": 5, "learning_rate": 0.005, "augment": "crop_flip", "checkpoint_every": 2}}
STEPS = 16  # 18 training samples: 4 steps an epoch, so that a checkpoint falls into the middle of one and onto its end


def watch(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the steps that are done from now on."""
    trained: list[int] = []
    step = Trainer._step

    def noted(self: Trainer, pictures: Any, rows: Any, number: int, steps: int) -> None:
        trained.append(number)
        step(self, pictures, rows, number, steps)

    monkeypatch.setattr(Trainer, "_step", noted)
    return trained


def tell_to_stop(monkeypatch: pytest.MonkeyPatch, after: int, number: signal.Signals) -> None:
    """This process gets the signal at the end of that step."""
    step = Trainer._step

    def told(self: Trainer, pictures: Any, rows: Any, at: int, steps: int) -> None:
        step(self, pictures, rows, at, steps)
        if at == after:
            signal.raise_signal(number)

    monkeypatch.setattr(Trainer, "_step", told)


def checkpoints(store: FolderStore) -> list[int]:
    """Steps after which checkpoints stand in the store."""
    names = [i.key.rpartition("/")[2] for i in store.list("candidates") if "/checkpoint-" in i.key]
    return sorted(int(name.split("-")[1]) for name in names)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> str:
    return train(first(tmp_path_factory.mktemp("whole"), 36, **AUGMENTED), "pretrained").weights.sha256


@pytest.mark.parametrize("after", [0, 1, 2, 3, 4, 7, 11, 14, 15])
def test_a_run_that_was_killed_ends_in_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: str, after: int
) -> None:
    place = first(tmp_path, 36, **AUGMENTED)
    crash(monkeypatch, after)
    with pytest.raises(MemoryError):
        train(place, "pretrained")
    trained = watch(monkeypatch)
    made = train(place, "pretrained")
    assert made.weights.sha256 == uninterrupted
    assert trained == list(range(after // 2 * 2, STEPS))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_told_to_stop_keeps_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: str, number: signal.Signals
) -> None:
    place = first(tmp_path, 36, **AUGMENTED)
    step = Trainer._step
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]

    tell_to_stop(monkeypatch, 4, number)
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit):
        train(place, "pretrained")
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert checkpoints(place[0]) == [4, 5]
    monkeypatch.setattr(Trainer, "_step", step)
    trained = watch(monkeypatch)
    assert train(place, "pretrained").weights.sha256 == uninterrupted
    assert trained == list(range(5, STEPS))


def test_a_stop_in_the_last_step_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: str) -> None:
    place = first(tmp_path, 36, **AUGMENTED)
    tell = Trainer._tell

    def told(self: Trainer, writer: Any, epoch: int) -> None:
        tell(self, writer, epoch)
        if epoch == 4:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Trainer, "_tell", told)
    with pytest.raises(KeyboardInterrupt):
        train(place, "pretrained")
    monkeypatch.setattr(Trainer, "_tell", tell)
    trained = watch(monkeypatch)
    assert train(place, "pretrained").weights.sha256 == uninterrupted
    assert trained == []


def test_a_stop_is_not_swallowed_by_a_failure_on_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = first(tmp_path, 36, **AUGMENTED)
    step = Trainer._step

    def told(self: Trainer, *arguments: Any) -> None:
        step(self, *arguments)
        signal.raise_signal(signal.SIGTERM)

    def refuses(*_: Any) -> None:
        raise StoreError("the store is out of reach")

    monkeypatch.setattr(Trainer, "_step", told)
    monkeypatch.setattr(Checkpoints, "save", refuses)
    with pytest.raises(SystemExit, match="143"):
        train(place, "pretrained")


def test_a_second_signal_ends_at_once() -> None:
    stops = []

    def told_twice() -> None:
        with stoppable() as stop:
            for number in (signal.SIGTERM, signal.SIGINT):
                stops.append(stop.asked)
                signal.raise_signal(number)
            pytest.fail("the second one must end it")

    with pytest.raises(KeyboardInterrupt):
        told_twice()
    assert stops == [None, signal.SIGTERM]


def test_a_handler_that_only_takes_note_does_not_let_half_a_training_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: noted.append(number))
    try:
        with pytest.raises(SystemExit, match="143"), stoppable():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert noted == [signal.SIGTERM]


def test_only_the_newest_two_checkpoints_are_kept(tmp_path: Path) -> None:
    place = first(tmp_path, 36, **AUGMENTED)
    train(place, "pretrained")
    assert checkpoints(place[0]) == [12, 14]  # the last step needs none


def test_an_old_checkpoint_that_cannot_be_removed_ends_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: str
) -> None:
    delete = FolderStore.delete

    def refused(self: FolderStore, key: str) -> None:
        if "/checkpoint-" in key:
            raise AccessRefused(f"{key} may not be deleted")
        delete(self, key)

    monkeypatch.setattr(FolderStore, "delete", refused)
    place = first(tmp_path, 36, **AUGMENTED)
    assert train(place, "pretrained").weights.sha256 == uninterrupted
    assert len(checkpoints(place[0])) == 7


def test_a_store_out_of_reach_is_no_damaged_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = first(tmp_path, 36, **AUGMENTED)
    crash(monkeypatch, 11)
    with pytest.raises(MemoryError):
        train(place, "pretrained")
    fetch = FolderStore.fetch

    def unreachable(self: FolderStore, key: str, target: Path) -> None:
        if "/checkpoint-" in key:
            raise StoreError("the store is out of reach")
        fetch(self, key, target)

    monkeypatch.setattr(FolderStore, "fetch", unreachable)
    trained = watch(monkeypatch)
    with pytest.raises(StoreError, match="out of reach"):
        train(place, "pretrained")
    assert trained == []


def test_the_cost_counts_what_a_killed_run_has_spent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = first(tmp_path, 36, **AUGMENTED)
    crash(monkeypatch, 12)
    with pytest.raises(MemoryError):
        train(place, "pretrained")
    spent = []
    load = Checkpoints.load

    def noted(self: Checkpoints, *arguments: Any) -> Any:
        found = load(self, *arguments)
        spent.append(found.seconds)
        found.seconds = 1000.0
        return found

    monkeypatch.setattr(Checkpoints, "load", noted)
    made = train(place, "pretrained")
    assert 0 < spent[0] < 60
    assert made.cost.device_seconds > 1000


@pytest.mark.parametrize("damage", ["truncated", "one byte", "empty"])
def test_a_damaged_checkpoint_falls_back_to_an_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    place = first(tmp_path, 36, **AUGMENTED)
    crash(monkeypatch, 11)
    with pytest.raises(MemoryError):
        train(place, "pretrained")
    newest = sorted((tmp_path / "store").rglob("checkpoint-*"), key=lambda p: p.name)[-1]
    data = newest.read_bytes()
    middle = len(data) // 2
    broken = {"truncated": data[:middle], "empty": b"", "one byte": data[:middle] + b"\xff" + data[middle + 1 :]}
    assert broken["one byte"] != data
    newest.write_bytes(broken[damage])
    trained = watch(monkeypatch)
    assert train(place, "pretrained").weights.sha256 == uninterrupted
    assert trained == list(range(8, STEPS))
    assert "cannot be read" in caplog.text
    assert "trying an older one" in caplog.text


@given(st.integers(1, 200), st.integers(2, 50), st.integers(1, 4), st.integers(0, 9), st.data())
def test_a_resumed_order_is_the_rest_of_the_whole_one(
    samples: int, size: int, epochs: int, seed: int, data: st.DataObject
) -> None:
    batches = Batches(samples, size, epochs, seed)
    whole = [rows.tolist() for rows in batches.rows(0)]
    assert len(whole) == batches.steps == batches.each * epochs
    done = data.draw(st.integers(0, batches.steps))
    assert [rows.tolist() for rows in batches.rows(done)] == whole[done:]
    assert all(len(rows) > 1 for rows in whole)
    for epoch in range(epochs):
        seen = [row for rows in whole[epoch * batches.each : (epoch + 1) * batches.each] for row in rows]
        left_out = 1 if samples > 1 and samples % size == 1 else 0
        assert len(set(seen)) == samples - left_out


# --- a loss that is not finite -------------------------------------------------------------------------------------


def poison(monkeypatch: pytest.MonkeyPatch, when: Any) -> None:
    """Pictures turn into NaN in some steps: ``when(step, scale)``."""
    step = Trainer._step

    def poisoned(self: Trainer, pictures: Any, rows: Any, number: int, steps: int) -> None:
        sick = when(number, self.progress.scale)
        monkeypatch.setattr(training, "prepare", (lambda pixels, *_: pixels.float() * float("nan")) if sick else inputs.prepare)
        step(self, pictures, rows, number, steps)

    monkeypatch.setattr(Trainer, "_step", poisoned)


def test_a_stop_changes_nothing_about_where_a_run_goes_back_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sick(step: int, scale: float) -> bool:
        return step == 7 and scale == 1

    made = []
    step = Trainer._step
    for name in ("whole", "stopped"):
        place = first(tmp_path / name, 36, **AUGMENTED)
        monkeypatch.setattr(Trainer, "_step", step)
        if name == "stopped":
            tell_to_stop(monkeypatch, 6, signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                train(place, "pretrained")
            monkeypatch.setattr(Trainer, "_step", step)
            assert checkpoints(place[0]) == [6, 7]
        poison(monkeypatch, sick)
        made.append(train(place, "pretrained").weights.sha256)
    assert made[0] == made[1]


def test_a_run_that_was_stopped_before_its_first_checkpoint_goes_back_to_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, made = Trainer._step, []
    for name in ("whole", "stopped"):
        place = first(tmp_path / name, 36, fine_tune=AUGMENTED["fine_tune"] | {"epochs": 2, "checkpoint_every": 100})
        monkeypatch.setattr(Trainer, "_step", step)
        if name == "stopped":
            tell_to_stop(monkeypatch, 2, signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                train(place, "pretrained")
            monkeypatch.setattr(Trainer, "_step", step)
            assert checkpoints(place[0]) == [3]
        poison(monkeypatch, lambda step, scale: step == 5 and scale == 1)
        made.append(train(place, "pretrained").weights.sha256)
    assert made[0] == made[1]


@pytest.mark.parametrize(("at", "again"), [(0, 0), (1, 0), (7, 6)])
def test_after_a_loss_that_is_not_finite_it_goes_back_once_at_a_lower_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, at: int, again: int
) -> None:
    place = first(tmp_path, 36, **AUGMENTED)
    poison(monkeypatch, lambda step, scale: step == at and scale == 1)
    trained = watch(monkeypatch)
    made = train(place, "pretrained")
    assert trained == [*range(at + 1), *range(again, STEPS)]
    assert "going back, at a tenth of the learning rate" in caplog.text
    assert all(t.isfinite().all() for t in models.load(place[0], made.spec, made.weights).state_dict().values())


@pytest.mark.parametrize(("given", "now"), [(0.005, "0.005"), ("auto", r"auto, which found [\d.e-]+")])
def test_a_loss_that_stays_not_finite_names_the_learning_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: Any, now: str
) -> None:
    place = first(tmp_path, fine_tune={"learning_rate": given})
    poison(monkeypatch, lambda *_: True)
    with pytest.raises(TrainingError, match=rf"got nan in epoch 1, step 1, at a tenth of the rate too.*\(now {now}\)"):
        train(place, "pretrained")


@pytest.mark.parametrize("what", ["weights", "buffers"])
@pytest.mark.parametrize(("at", "again"), [(5, 4), (STEPS - 1, STEPS - 2)])
def test_a_model_that_is_not_finite_becomes_no_checkpoint_and_no_candidate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, at: int, again: int
) -> None:
    place = first(tmp_path, 36, **AUGMENTED)
    step = Trainer._step

    def breaks(self: Trainer, pictures: Any, rows: Any, number: int, steps: int) -> None:
        step(self, pictures, rows, number, steps)
        if number == at and self.progress.scale == 1:
            with torch.no_grad():
                tensors = self.module.parameters() if what == "weights" else (b for b in self.module.buffers() if b.ndim)
                next(tensors).fill_(float("inf"))

    monkeypatch.setattr(Trainer, "_step", breaks)
    trained = watch(monkeypatch)
    train(place, "pretrained")
    assert trained == [*range(at + 1), *range(again, STEPS)]


def test_weights_that_are_not_finite_are_not_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = AUGMENTED["fine_tune"] | {"epochs": 2, "checkpoint_every": 100, "schedule": {"patience": 1}}
    step = Trainer._step

    def breaks(self: Trainer, pictures: Any, rows: Any, number: int, steps: int) -> None:
        step(self, pictures, rows, number, steps)
        if number == 3 and self.progress.scale == 1:
            with torch.no_grad():
                next(self.module.parameters()).fill_(float("nan"))

    monkeypatch.setattr(Trainer, "_step", breaks)
    trained = watch(monkeypatch)
    train(first(tmp_path, 36, fine_tune=options), "pretrained")
    assert trained == [*range(4), *range(8)]


# --- memory and gradients --------------------------------------------------------------------------------------------


def memory_for(monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    """The device runs out of memory with more pictures than that; the sizes that were tried."""
    tried: list[int] = []

    def measured(pixels: torch.Tensor, *rest: Any) -> torch.Tensor:
        tried.append(len(pixels))
        if len(pixels) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")  # there is no device here that could
        return inputs.prepare(pixels, *rest)

    monkeypatch.setattr(training, "prepare", measured)
    return tried


def test_out_of_memory_the_batch_is_taken_in_parts_and_learnt_from_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    place = first(tmp_path, 36, fine_tune={"epochs": 2, "batch_size": 8, "augment": "none", "checkpoint_every": 2})
    tried = memory_for(monkeypatch, 3)
    made = train(place, "pretrained")
    assert tried == [8, 4, *[2] * 4, *[2] * 4, 2, *[2] * 9]
    assert made.cost.samples == 36
    assert "each batch is taken in 4 parts from here on" in caplog.text


def test_where_two_pictures_do_not_fit_the_error_says_what_to_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory_for(monkeypatch, 1)
    with pytest.raises(DeviceError, match=r"two samples of 3 × 16 × 16 must fit .* choose a smaller .* model.image_size"):
        train(first(tmp_path, 36), "pretrained")


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_pool_that_is_smaller_than_a_batch_is_taken_in_parts_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulate: int
) -> None:
    tried = memory_for(monkeypatch, 5)
    options = {"epochs": 1, "batch_size": 64, "accumulate": accumulate, "augment": "none"}
    made = train(first(tmp_path, 18, fine_tune=options), "pretrained")
    assert (made.trained_on, tried) == (6, [6, 3, 3])


def test_gradients_of_parts_are_those_of_the_whole(tmp_path: Path) -> None:
    store, config, _ = first(tmp_path)
    config = with_training(with_model(config, architecture="support.networks:plain", image_size=28), batch_size=7)
    module, spec = models.start(config.model, 0)
    objective = Objective(Targets.of(spec), config.fine_tune, torch.zeros(0, dtype=torch.long))
    trainer = Trainer(store, module, spec, config, "pretrained", "candidates/k", "candidates/k/attempts/a", objective)
    pixels = torch.randint(0, 256, (7, 3, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    seen = []
    for parts in (1, 2, 3):
        trainer.progress.parts = parts
        sums = trainer._gradients(pixels, labels, labels)
        assert sums is not None
        seen.append([sums, *(p.grad.clone() for p in trainer.module.parameters() if p.grad is not None)])
    for other in seen[1:]:
        for whole, part in zip(seen[0], other, strict=True):
            torch.testing.assert_close(part, whole, rtol=1e-4, atol=1e-6)


def test_long_gradients_are_shortened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[float] = []
    adamw = torch.optim.AdamW.step

    def measured(self: torch.optim.AdamW, *rest: Any) -> Any:
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        lengths.append(float(torch.linalg.vector_norm(torch.cat([g.flatten() for g in gradients]))))
        return adamw(self, *rest)

    monkeypatch.setattr(torch.optim.AdamW, "step", measured)
    train(first(tmp_path / "free"), "pretrained")
    free, lengths[:] = list(lengths), []
    train(first(tmp_path / "clipped", fine_tune={"epochs": 1, "clip_norm": 0.01}), "pretrained")
    assert max(free) > 0.1
    assert max(lengths) <= 0.0101


# --- what is trained on ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rung", ["head", "full"])
def test_only_training_samples_are_replayed(later: Any, monkeypatch: pytest.MonkeyPatch, rung: str) -> None:
    store, _, tick = later
    pools: list[tuple[str, Any]] = []
    pool = stage.pool_of

    def watched(window: Any, earlier: Any, split: Any, *rest: Any) -> Any:
        made = pool(window, earlier, split, *rest)
        pools.append((split, made))
        return made

    monkeypatch.setattr(stage, "pool_of", watched)
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


def test_the_full_rung_can_be_bounded_alone(later: Any) -> None:
    store, config, tick = later
    new = View(store, tick.view).window.splits["train"]
    config = with_training(config, full_epochs=1, full_replay=0.5)
    made = fine_tune(store, config, tick, "full")
    assert (made.trained_on, made.cost.samples) == (new + round(new / 2), new + round(new / 2))
    assert fine_tune(store, config, tick, "head").trained_on > made.trained_on


def test_a_bounded_full_rung_ends_with_a_head_that_was_refitted_on_everything(later: Any) -> None:
    store, config, tick = later
    config = with_training(config, full_epochs=1, full_replay=0.0)
    made = fine_tune(store, config, tick, "full")
    module = models.load(store, made.spec, made.weights)
    released = models.linear_head(module, made.spec).weight.clone()
    train, tune, kept = stage._pools(store, config, tick, "head", Targets.wanted(config.model))
    assert len(train) > made.trained_on
    refit_head(stage._embedder(store, config, module, made.spec), train, tune, kept, config.fine_tune.seed)
    assert torch.equal(models.linear_head(module, made.spec).weight, released)


def test_the_full_rung_has_a_rate_of_its_own_if_it_is_given_one(later: Any) -> None:
    store, config, tick = later
    third = fine_tune(store, with_training(config, learning_rate=0.003), tick, "full")
    own = fine_tune(store, with_training(config, learning_rate=0.003, full_learning_rate=0.002), tick, "full")
    assert third.training is not None
    assert third.training.learning_rate == pytest.approx(0.001)
    assert own.training is not None
    assert own.training.learning_rate == 0.002


def test_version_1_takes_all_epochs_whatever_the_full_rung_takes_later(tmp_path: Path) -> None:
    made = train(first(tmp_path, fine_tune={"epochs": 3, "full_epochs": 1}), "full")
    assert made.cost.samples == 3 * made.trained_on


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


@pytest.mark.parametrize(("name", "value"), [("image_size", 40), ("mean", (0.1, 0.2, 0.3)), ("std", (0.5, 0.5, 0.5))])
def test_pictures_in_another_form_than_the_champions_take_a_fresh_start(later: Any, name: str, value: Any) -> None:
    store, config, tick = later
    config = with_model(config, **{name: value})
    words = rf"model\.{name} must be that of the champion, .* --rung pretrained"
    dearer = config.policy.model_copy(update={"ladder": ("head", "full", "pretrained")})
    for rung in ("head", "full"):
        with pytest.raises(TrainingError, match=words) as failed:
            fine_tune(store, config, tick, rung)  # type: ignore[arg-type]
        assert not isinstance(failed.value, RungUnfit)  # nobody would hear of it
        with pytest.raises(RungUnfit, match=words):  # the ladder goes on
            fine_tune(store, config.model_copy(update={"policy": dearer}), tick, rung)  # type: ignore[arg-type]
    assert getattr(fine_tune(store, config, tick, "pretrained").spec, name) == value


@pytest.mark.parametrize("probed", [False, True])
def test_a_head_that_was_drawn_anew_counts_as_no_learnt_one_and_is_not_mixed_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, probed: bool
) -> None:
    """An adopted network's own convolution gives way to a linear head, with other classes or without."""
    begun: list[Start] = []
    monkeypatch.setattr(stage, "Start", lambda *args: begun.append(Start(*args)) or begun[-1])
    for number, classes in enumerate([("zero", "one"), ("zero", "one", "two")]):
        folder = tmp_path / str(number)
        config = pipeline(
            folder,
            model={"architecture": "support.networks:Convolutional", "classes": ("zero", "one")},
            fine_tune={"probe_first": probed, "keep": {"interpolate": [0.5]}},
        )
        module = build(config.model.architecture, 2)
        folder.mkdir()
        models.save(module, folder / "mine.safetensors")
        store = FolderStore(folder / "store")
        window = ingest.freeze(store, config, str(write_folder(folder / "reference", digits(8, classes=("zero", "one")))))
        publish.adopt(store, config, str(folder / "mine.safetensors"), window)
        config = with_model(config, classes=classes)
        arrive(config, 24)
        made = fine_tune(store, config, open_tick(store, config), "full")
        assert made.training is not None
        assert made.training.share is None
    assert [(start.body, start.head, start.mixed) for start in begun] == [(True, probed, False)] * 2


def test_a_fresh_start_is_not_mixed_with_what_it_started_from(later: Any, tmp_path: Path) -> None:
    store, config, tick = later
    models.save(models.small_cnn(3), tmp_path / "w.safetensors")
    config = with_model(config, weights=str(tmp_path / "w.safetensors"))
    config = with_training(config, keep=config.fine_tune.keep.model_copy(update={"interpolate": (0.5,)}), epochs=1)
    for rung, share in (("pretrained", None), ("full", 0.5)):
        made = fine_tune(store, config, tick, rung)  # type: ignore[arg-type]
        assert made.training is not None
        assert made.training.share == share


def test_what_a_pulled_back_start_is_mixed_with_predicts_as_the_champion_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the units of the training, which of a regression are not those of the targets."""
    seen: list[State] = []
    entered = stage._entered
    monkeypatch.setattr(stage, "_entered", lambda *args: seen.append(entered(*args)) or seen[-1])
    weights = tmp_path / "start.safetensors"
    torch.manual_seed(0)
    models.save(models.small_cnn(1), weights)
    config = slants(
        tmp_path,
        model={"weights": str(weights)},
        fine_tune={"full_epochs": 1, "keep": {"pull_back": 0.5, "interpolate": [0.0]}},
        gates=[{"kind": "floor", "minimum": 0}],
    )
    store = FolderStore(tmp_path / "store")
    leaning(config, 120, start=0)
    assert run_window(store, config).move is not None
    leaning(config, 40, start=120)
    tick = open_tick(store, config)
    release = find(store, f"releases/{tick.champion}/release.json", Release)
    assert release is not None
    made = fine_tune(store, config, tick, "full")
    assert len(seen) == 1
    before = models.load(store, release.spec, release.files["model.safetensors"]).state_dict()
    for name, tensor in models.load(store, made.spec, made.weights).state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=1e-4, atol=1e-4)


def test_a_file_tells_whether_its_head_has_learnt(tmp_path: Path) -> None:
    config = pipeline(tmp_path, model={"architecture": "support.networks:plain"}).model
    assert not models.begin(config, 0)[2]
    for outputs, kept in ((len(config.classes), True), (len(config.classes) + 2, False)):
        models.save(build(config.architecture, outputs), tmp_path / "w.safetensors")
        assert models.begin(config.model_copy(update={"weights": str(tmp_path / "w.safetensors")}), 0)[2] is kept


def test_an_event_file_is_kept(later: Any) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    store, _, _ = later
    made = train(later, "full")
    (name,) = made.files
    assert name.startswith("tensorboard/events")
    events = EventAccumulator(str(store.local(made.files[name])), size_guidance={"images": 0, "histograms": 0}).Reload()
    tags = events.Tags()
    assert set(tags["scalars"]) == {
        "train/loss", "train/accuracy", "train/learning_rate", "speed/share_waiting_for_data", "speed/images_per_second",
    }  # fmt: skip
    assert [s.step for s in events.Scalars("train/loss")] == [1, 2, 3, 4]
    (picture,) = {i.encoded_image_string[:4] for i in events.Images("train/pictures")}
    assert picture == b"\x89PNG"
    assert len(tags["histograms"]) == sum(1 for _ in models.load(store, made.spec, made.weights).parameters())
    assert 0 < made.cost.waiting < 1
    assert made.cost.images_per_second > 0


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
    weight, offset = as_linear(fit, centre, scale, 4)
    scores = torch.from_numpy(features).float() @ weight.T + offset
    np.testing.assert_array_equal(scores.argmax(dim=1).numpy(), fit.predict((features - centre) / scale))
    assert bias or not offset[[0, 2, 3]].any()


def test_two_classes_of_the_regression_become_two_rows() -> None:
    from sklearn.linear_model import LogisticRegression

    features = np.random.default_rng(0).normal(size=(40, 3))
    labels = (features[:, 0] > 0).astype(int)
    fit = LogisticRegression().fit(features, labels)
    weight, bias = as_linear(fit, np.zeros(3), np.ones(3), 2)
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


def test_a_window_of_one_training_sample_trains(tmp_path: Path) -> None:
    store, config, tick = first(tmp_path, 1, window={"holdout_fraction": 0.001, "tune_fraction": 0.001})
    made = fine_tune(store, config, tick, "pretrained")
    assert (made.trained_on, made.tune_samples, made.tune_accuracy, made.kept_accuracy) == (1, 0, 0.0, None)
