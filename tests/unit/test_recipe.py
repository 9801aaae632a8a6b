"""The craft of training: each option does what it says, and a run that goes on from a checkpoint ends in the same bytes."""

from __future__ import annotations

import math
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.loop import arrive, open_tick, pipeline, second_window
from support.training import crash
from torch import nn
from torchvision.models import get_model

from everfresh.tasks import inputs, models
from everfresh.tasks.config import KeepConfig, PipelineConfig, parse_config
from everfresh.tasks.fine_tune import fine_tune
from everfresh.tasks.fine_tune import trainer as training
from everfresh.tasks.fine_tune.augment import Mix, policy
from everfresh.tasks.fine_tune.keep import Anchor, Average, Start, Teacher, between, copied, pull_back
from everfresh.tasks.fine_tune.objective import Objective
from everfresh.tasks.fine_tune.outcome import Outcome
from everfresh.tasks.fine_tune.pool import pool_of
from everfresh.tasks.fine_tune.recipe import (
    balanced,
    blocks,
    effective,
    fitting,
    frozen,
    groups,
    hold,
    rate,
    suggested,
)
from everfresh.tasks.fine_tune.trainer import Trainer
from everfresh.tasks.ledger import find
from everfresh.tasks.records import Candidate, Release, Tick, Training
from everfresh.tasks.store import FolderStore
from everfresh.tasks.targets import Targets
from everfresh.tasks.views import View

SHARE = st.floats(0, 1)
Later = Callable[..., tuple[FolderStore, PipelineConfig, Tick]]


def first(folder: Path, count: int = 36, **options: Any) -> tuple[FolderStore, PipelineConfig, Tick]:
    """A pipeline at its first window, with options of `fine_tune`."""
    config = pipeline(folder, fine_tune=options)
    arrive(config, count)
    store = FolderStore(folder / "store")
    return store, config, open_tick(store, config)


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline with a champion, at its second window."""
    folder = tmp_path_factory.mktemp("second")
    open_tick(*second_window(folder))
    return folder


@pytest.fixture
def later(second: Path, tmp_path: Path) -> Later:
    """A copy of it under a name, with options of `fine_tune`."""

    def made(name: str = "", **options: Any) -> tuple[FolderStore, PipelineConfig, Tick]:
        folder = tmp_path / (name or "later")
        shutil.copytree(second, folder)
        store, config = FolderStore(folder / "store"), pipeline(folder, fine_tune=options)
        return store, config, open_tick(store, config)

    return made


def changed(config: PipelineConfig, **options: Any) -> PipelineConfig:
    """The same pipeline with other options of `fine_tune`."""
    return parse_config(config.model_dump() | {"fine_tune": config.fine_tune.model_dump() | options})


def training_of(made: Candidate) -> Training:
    assert made.training is not None
    return made.training


def small() -> nn.Module:
    torch.manual_seed(0)
    return models.small_cnn(3)


SMALL = small()
HEAD = "13"
"""Path of the head of `small`."""


# --- blocks and rates --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "head", "count", "start", "end"),
    [
        ("resnet18", "fc", 10, "conv1", "layer4.1"),
        ("squeezenet1_1", "classifier", 10, "features.0", "features.12"),
        ("mobilenet_v3_small", "classifier.3", 15, "features.0", "classifier.0"),
        ("vit_b_32", "heads.head", 14, "conv_proj", "encoder.layers.encoder_layer_11"),
    ],
)
def test_blocks_go_from_the_input_to_the_head_and_hold_each_weight_once(
    name: str, head: str, count: int, start: str, end: str
) -> None:
    with torch.device("meta"):
        module = get_model(name, num_classes=3)
    parts = blocks(module, head)
    assert (len(parts), parts[0].name, parts[-2].name, parts[-1].name) == (count, start, end, head)
    weights = [id(p) for part in parts for p in part.weights]
    assert sorted(weights) == sorted(id(p) for p in module.parameters())


def test_norms_belong_to_the_layer_before_them() -> None:
    parts = blocks(small(), HEAD)
    assert [part.name for part in parts] == ["0", "4", "8", HEAD]
    assert [[p.ndim for p in part.weights] for part in parts] == [[4, 1, 1]] * 3 + [[2, 1]]


@given(st.floats(0.1, 1), st.floats(0, 1))
def test_each_weight_has_one_rate_that_falls_from_the_head_down(layer_decay: float, decay: float) -> None:
    module = SMALL
    made = groups(module, decay, layer_decay, HEAD)
    assert Counter(id(p) for g in made for p in g["params"]) == Counter(id(p) for p in module.parameters())
    for group in made:
        assert group["weight_decay"] == (decay if group["params"][0].ndim > 1 else 0)
        if layer_decay < 1:
            place = next(n for n, part in enumerate(blocks(module, HEAD)) if any(p is group["params"][0] for p in part.weights))
            assert group["share"] == pytest.approx(layer_decay ** (3 - place))
    assert layer_decay < 1 or [g["share"] for g in made] == [1, 1]


@given(st.integers(1, 5000), st.floats(0, 0.9))
def test_the_rate_rises_to_its_peak_and_falls_to_nothing(steps: int, warm_up: float) -> None:
    rates = [rate(0.5, step, steps, warm_up) for step in range(steps)]
    warm = max(1, int(steps * warm_up))
    assert rates[warm - 1] == max(rates) == 0.5
    assert rates[:warm] == sorted(rates[:warm])
    assert rates[warm:] == sorted(rates[warm:], reverse=True)
    assert rates[-1] > 0 or steps == 1


@given(st.integers(1, 300), st.integers(0, 30), SHARE, st.floats(0.01, 1), st.booleans())
def test_blocks_are_only_ever_let_go(steps: int, parts: int, share: float, until: float, gradually: bool) -> None:
    counts = [frozen(step, steps, parts, share, until, gradually=gradually) for step in range(steps)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == round(share * parts) <= parts
    assert not any(count for step, count in enumerate(counts) if step >= until * steps)


def test_what_is_frozen_does_not_move_by_a_bit() -> None:
    module = small()
    parts, before = blocks(module, HEAD), copied(module)
    optimizer = torch.optim.AdamW(groups(module, 0.1), lr=0.01)
    for _ in range(3):
        module.train()
        hold(parts, 2)
        optimizer.zero_grad()
        module(torch.randn(4, 3, 16, 16)).square().sum().backward()
        optimizer.step()
    moved = {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name.split(".")[0] for name in moved} == {"8", "9", HEAD}
    module.train()
    hold(parts, 0)
    assert module.training
    assert all(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize(("thaw", "expected"), [("at_once", [2, 2, 2, 2, 0, 0, 0, 0]), ("gradually", [2, 2, 1, 1, 0, 0, 0, 0])])
def test_a_training_thaws_as_it_was_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, thaw: str, expected: list[int]
) -> None:
    schedule = {"freeze": 0.7, "freeze_until": 0.5, "thaw": thaw}
    place = first(tmp_path, epochs=4, batch_size=9, schedule=schedule)
    step, counts = Trainer._step, []

    def counted(self: Trainer, *arguments: Any) -> None:
        before = copied(self.module)
        step(self, *arguments)
        after = self.module.state_dict()
        still = [torch.equal(before[f"{name}.weight"], after[f"{name}.weight"]) for name in ("0", "4", "8")]
        counts.append(sum(still))

    monkeypatch.setattr(Trainer, "_step", counted)
    fine_tune(*place, "pretrained")
    assert counts == expected


# --- samples ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(0, 9))
def test_a_balanced_epoch_takes_as_many_of_each_class(labels: list[int], seed: int) -> None:
    classes = torch.tensor(labels)
    torch.manual_seed(seed)
    rows = balanced(classes, len(labels))
    torch.manual_seed(seed)
    assert torch.equal(balanced(classes, len(labels)), rows)
    taken = Counter(classes[rows].tolist())
    assert set(taken) == set(labels)
    assert len(rows) == len(labels)
    assert max(taken.values()) - min(taken.values()) <= 1
    for label in taken:
        samples = [rows.tolist().count(row) for row, other in enumerate(labels) if other == label]
        assert max(samples) - min(samples) <= 1


@given(st.integers(1, 64), st.integers(2, 256), st.integers(1, 256))
def test_parts_of_a_batch_are_never_larger_than_those_of_a_whole_one(parts: int, samples: int, whole: int) -> None:
    whole = max(whole, samples)
    count = effective(parts, samples, whole)
    assert 1 <= count <= max(1, samples // 2)
    assert -(-samples // count) <= max(3, -(-whole // parts))


def test_accumulated_batches_make_one_step(tmp_path: Path) -> None:
    made = fine_tune(*first(tmp_path, epochs=2, batch_size=4, accumulate=3), "pretrained")
    assert made.trained_on == 18
    assert (training_of(made).steps, made.cost.samples) == (2 * 2, 36)


@pytest.mark.parametrize("kind", ["mixup", "cutmix", "either"])
def test_mixed_targets_say_what_was_mixed(kind: Any) -> None:
    pixels = torch.stack([torch.full((3, 8, 8), value, dtype=torch.uint8) for value in (0, 80, 200)])
    mixed, targets = Mix(kind, 1.0, 4)(pixels, torch.tensor([0, 1, 3]))
    expected = targets @ torch.tensor([0.0, 80, 0, 200])
    assert targets.shape == (3, 4)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(3))
    torch.testing.assert_close(mixed.mean(dim=(1, 2, 3)), expected)
    assert not torch.equal(mixed, pixels.float())


@pytest.mark.parametrize("kind", ["rand", "trivial"])
def test_a_policy_changes_a_picture_and_keeps_its_form(kind: Any) -> None:
    picture = torch.randint(0, 256, (3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    change = policy(kind)
    assert change is not None
    torch.manual_seed(0)
    made = [change(picture) for _ in range(8)]
    assert {(m.shape, m.dtype) for m in made} == {(picture.shape, torch.uint8)}
    assert any(not torch.equal(m, picture) for m in made)
    assert policy("none") is None


# --- rate and budget ------------------------------------------------------------------------------------------------------


def test_a_range_test_suggests_a_tenth_of_the_rate_of_the_lowest_loss() -> None:
    rates = [10.0 ** (n / 4 - 6) for n in range(24)]
    losses = [2 - math.exp(-((math.log10(r) + 2) ** 2)) for r in rates]
    assert suggested(rates, losses) == pytest.approx(1e-3, rel=0.8)
    assert suggested(rates, sorted(losses)) is None
    assert suggested(rates, [2 - 0.09 * (2 - loss) for loss in losses]) is None  # it fell by less than a twentieth
    assert suggested([1e-6, 1e-5], [0.0, 0.0]) is None
    assert suggested([], []) is None


def test_a_rate_that_was_found_is_the_same_again_and_kept_by_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "RANGE_STEPS", 20)
    options = {"learning_rate": "auto", "epochs": 2, "batch_size": 6, "checkpoint_every": 2}
    whole = fine_tune(*first(tmp_path / "whole", **options), "pretrained")
    assert 1e-6 < training_of(whole).learning_rate < 0.1
    killed = first(tmp_path / "killed", **options)
    step, find, found = Trainer._step, Trainer._find_rate, []

    def noted(self: Trainer, *arguments: Any) -> float:
        found.append(find(self, *arguments))
        return found[-1]

    monkeypatch.setattr(Trainer, "_find_rate", noted)
    crash(monkeypatch, 3)
    with pytest.raises(MemoryError):
        fine_tune(*killed, "pretrained")
    monkeypatch.setattr(Trainer, "_step", step)
    again = fine_tune(*killed, "pretrained")
    assert found == [training_of(whole).learning_rate]
    assert training_of(again) == training_of(whole)
    assert again.weights.sha256 == whole.weights.sha256


@given(st.integers(0, 1000), st.integers(1, 1000), st.lists(st.floats(1e-3, 10), min_size=1, max_size=9), st.floats(-5, 1e4))
def test_a_plan_fits_or_ends_at_once(done: int, left: int, durations: list[float], seconds: float) -> None:
    steps = done + left
    planned = fitting(done, steps, durations, seconds)
    each = sorted(durations)[len(durations) // 2]
    assert done < planned <= steps
    assert planned == done + 1 or (planned - done) * min(durations) <= max(0, seconds) * 1.1 + 1e-6
    assert len(durations) > 1 or planned != steps or left == 1 or left * each <= seconds * 1.1 + 1e-6


def test_a_budget_of_seconds_is_kept_and_the_rate_falls_to_nothing_within_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"epochs": 10_000, "batch_size": 6, "checkpoint_every": 50, "schedule": {"device_seconds": 0.7, "warm_up": 0}}
    place = first(tmp_path, **options)
    rates: list[float] = []
    step = Trainer._step

    def noted(self: Trainer, *arguments: Any) -> None:
        step(self, *arguments)
        rates.append(self.optimizer.param_groups[0]["lr"])

    monkeypatch.setattr(Trainer, "_step", noted)
    trainers: list[Trainer] = []
    run = Trainer.run

    def kept(self: Trainer, *arguments: Any) -> Any:
        trainers.append(self)
        return run(self, *arguments)

    monkeypatch.setattr(Trainer, "run", kept)
    made = training_of(fine_tune(*place, "pretrained"))
    assert made.shortened
    assert 1 < made.steps < 30_000
    assert rates[-1] < 0.2 * rates[0]
    assert trainers[0].progress.seconds < 10  # on busy cores a step may take far longer than those before it


def test_a_plan_that_was_shortened_is_kept_by_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = first(tmp_path, epochs=500, batch_size=6, schedule={"device_seconds": 15})
    step, steps = Trainer._step, []

    def noted(self: Trainer, pictures: Any, rows: Any, number: int, count: int) -> None:
        steps.append(count)
        if len(steps) == 8:
            raise MemoryError
        self.durations.clear()
        self.durations.append(1.0)  # as on a slow machine
        step(self, pictures, rows, number, count)

    monkeypatch.setattr(Trainer, "_step", noted)
    with pytest.raises(MemoryError):
        fine_tune(*place, "pretrained")
    assert steps[0] == 1500 > steps[-1]
    planned = steps[-1]
    fine_tune(*place, "pretrained")
    assert steps[8] == planned


# --- what was learnt ----------------------------------------------------------------------------------------------------


@given(SHARE, st.integers(0, 99))
def test_a_mixture_is_between_its_ends_and_exactly_them_at_the_ends(share: float, seed: int) -> None:
    torch.manual_seed(seed)
    one = copied(SMALL)
    two = {name: t + torch.randn_like(t) if t.is_floating_point() else t + 7 for name, t in one.items()}
    two["1.running_var"] *= 3
    for at, end in ((0.0, one), (1.0, two)):
        assert all(torch.equal(tensor, end[name]) for name, tensor in between(one, two, at).items())
    mixed = between(one, two, share)
    for name, tensor in mixed.items():
        low, high = torch.minimum(one[name], two[name]), torch.maximum(one[name], two[name])
        assert bool(((tensor >= low - 1e-6) & (tensor <= high + 1e-6)).all())
    torch.testing.assert_close(mixed["1.running_var"], (1 - share) * one["1.running_var"] + share * two["1.running_var"])


@given(SHARE)
def test_all_but_the_head_is_pulled_back_and_what_the_other_weights_lack_stays(share: float) -> None:
    torch.manual_seed(0)
    module, other = models.small_cnn(3), models.small_cnn(2).state_dict()
    head, lacking = "13", "0.weight"
    assert f"{head}.weight" in other
    before, found = copied(module), {n: t for n, t in other.items() if n != lacking}
    pull_back(module, found, share, head)
    now, mixed = module.state_dict(), between(before, other | {n: before[n] for n in before if n.startswith(head)}, share)
    for name, tensor in now.items():
        stays = name.startswith(f"{head}.") or name == lacking
        assert torch.equal(tensor, before[name] if stays else mixed[name]), name


@given(st.floats(0, 50), st.integers(0, 99))
def test_the_penalty_draws_to_the_start_with_twice_its_strength(strength: float, seed: int) -> None:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    anchor, start = Anchor(module, strength, without="1"), copied(module)
    for weight in module.parameters():
        weight.data += torch.randn_like(weight)
        weight.grad = torch.ones_like(weight)
    module[0].bias.grad = None  # frozen
    anchor.pull(module)
    assert module[0].bias.grad is None
    torch.testing.assert_close(module[0].weight.grad, 1 + 2 * strength * (module[0].weight.data - start["0.weight"]))
    torch.testing.assert_close(module[1].weight.grad, 1 + 2 * strength * module[1].weight.data)


def test_the_mean_of_the_weights_is_the_one_of_its_definition() -> None:
    module = small()
    average, expected = Average(module, 0.5), copied(module)
    for step in range(12):
        for tensor in module.state_dict().values():
            tensor.add_(1)
        average.update(module, step)
        decay = min(0.5, (1 + step) / (10 + step))
        for name, tensor in module.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * tensor if tensor.is_floating_point() else tensor.clone()
    torch.testing.assert_close(average.state, expected)


def test_a_teacher_speaks_of_the_classes_that_it_knows_alone() -> None:
    teacher = Teacher.of(nn.Flatten(), ("b", "gone", "a"), ("a", "new", "b"), 0.5, 2.0)
    seen = teacher.scores(torch.tensor([[1.0, 9.0, 3.0]]))
    assert seen.tolist() == [[1.0, 3.0]]
    same = torch.tensor([[3.0, -4.0, 1.0]])
    assert float(teacher.distance(same, seen)) == pytest.approx(0, abs=1e-7)
    other = torch.tensor([[1.0, -4.0, 3.0]], requires_grad=True)
    distance = teacher.distance(other, seen)
    distance.backward()
    p, q = ((s / 2).softmax(dim=0) for s in (torch.tensor([1.0, 3.0]), torch.tensor([3.0, 1.0])))
    assert distance.item() == pytest.approx(0.5 * 4 * float((p * (p / q).log()).sum()), rel=1e-5)
    assert other.grad is not None
    assert other.grad[0, 1] == 0


def weights_of(place: Any, made: Candidate) -> dict[str, torch.Tensor]:
    return models.load(place[0], made.spec, made.weights).state_dict()


def apart(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    return sum(float((one[name] - tensor).square().sum()) for name, tensor in two.items() if tensor.is_floating_point())


def test_what_is_kept_stays_nearer_to_the_start(later: Later) -> None:
    store, config, tick = place = later(learning_rate=0.02, epochs=3, augment="none")
    start = fine_tune(*place, "head")
    options = {"free": {}, "held": {"l2_sp": 20.0}, "taught": {"distill": 50.0}}
    made = {name: fine_tune(store, changed(config, keep=keep), tick, "full", start) for name, keep in options.items()}
    assert len({candidate.key for candidate in made.values()}) == 3
    before, moved = weights_of(place, start), {name: weights_of(place, candidate) for name, candidate in made.items()}
    assert apart(before, moved["held"]) < 0.5 * apart(before, moved["free"])
    view = View(store, tick.view)
    pictures = [inputs.decode(data, start.spec) for data in view.read(view.rows("train", Targets.of(start.spec)).tolist())]
    pixels = inputs.prepare(torch.stack(pictures), start.spec)
    with torch.no_grad():  # as in training: the statistics of batch norm are the batch's, of the start they are its own
        seen = models.load(store, start.spec, start.weights)(pixels)
        scores = {name: models.load(store, c.spec, c.weights).train()(pixels) for name, c in made.items()}
    teacher = Teacher.of(nn.Identity(), start.spec.classes, start.spec.classes, 1.0, 2.0)
    taught, free = (float(teacher.distance(scores[name], seen)) for name in ("taught", "free"))
    assert taught < 0.95 * free


def test_where_new_weights_are_worse_on_tune_the_mixture_is_the_start(later: Later) -> None:
    place = later(learning_rate=10.0, epochs=2, keep={"interpolate": [0.0, 0.5]})
    head = fine_tune(*place, "head")
    made = fine_tune(*place, "full", head)
    assert training_of(made).share == 0
    assert made.tune_accuracy == head.tune_accuracy
    before = weights_of(place, head)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights_of(place, made).items())


def test_one_share_is_taken_whatever_tune_says(later: Later) -> None:
    store, config, tick = place = later(epochs=1, keep={"interpolate": [0.25]})
    start = fine_tune(*place, "head")
    mixed_one = fine_tune(*place, "full", start)
    plain = fine_tune(store, changed(config, keep={}), tick, "full", start)
    assert training_of(mixed_one).share == 0.25
    before, after, mixed = (weights_of(place, c) for c in (start, plain, mixed_one))
    for name, tensor in mixed.items():
        torch.testing.assert_close(tensor, between(before, after, 0.25)[name])


def test_nothing_is_mixed_into_weights_that_started_at_random(tmp_path: Path) -> None:
    made = fine_tune(*first(tmp_path, epochs=1, keep={"interpolate": [0.5]}), "pretrained")
    assert training_of(made).share is None


def test_tune_ends_a_training_and_the_best_epoch_stays(tmp_path: Path) -> None:
    store, config, tick = first(tmp_path, 60)
    module, spec = models.start(config.model, 0)
    view = View(store, tick.view)
    pools = [pool_of(v, [], "tune", Targets.of(spec), 0, frozenset()) for v in (view, None)]
    outcome = Outcome(module, KeepConfig(), 2, Start())
    objective = Objective(Targets.of(spec), config.fine_tune, torch.zeros(0, dtype=torch.long))
    outcome.judge_by(*pools, spec, objective, "cpu")
    head = models.linear_head(module, spec)
    right = head.bias.detach().clone()
    wrong = torch.tensor([100.0, 0.0, 0.0])
    for epoch, bias in enumerate([wrong, right, wrong, wrong], 1):
        assert not outcome.over
        head.bias.data = bias
        outcome.judge(module, epoch)
    assert outcome.over
    assert (outcome.best_epoch, outcome.epoch) == (2, 4)
    other = Outcome(module, KeepConfig(), 2, Start())
    other.load(outcome.state())
    assert (other.over, other.best_epoch, other.best_score) == (True, 2, outcome.best_score)
    other.settle(module)
    assert torch.equal(models.linear_head(module, spec).bias, right)


def test_a_training_ends_early_and_counts_what_it_did(tmp_path: Path) -> None:
    place = first(tmp_path, 36, epochs=30, batch_size=9, learning_rate=0.05, schedule={"patience": 1})
    made = fine_tune(*place, "pretrained")
    best = training_of(made).best_epoch
    assert best is not None
    assert training_of(made).steps == 2 * (best + 1) < 60
    assert made.cost.samples == made.trained_on * (best + 1)


def test_without_tune_samples_a_training_goes_to_its_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = pipeline(tmp_path, window={"tune_fraction": 0.001}, fine_tune={"epochs": 3, "schedule": {"patience": 1}})
    arrive(config, 12)
    store = FolderStore(tmp_path / "store")
    made = fine_tune(store, config, open_tick(store, config), "pretrained")
    assert (made.tune_samples, training_of(made).best_epoch, made.cost.samples) == (0, None, 3 * made.trained_on)
    assert "there is no tune sample" in caplog.text


@pytest.mark.parametrize(
    ("rung", "random", "recalibrated"),
    [("full", True, False), ("full", True, True), ("pretrained", True, False), ("pretrained", False, False)],
)
def test_the_head_is_probed_first(
    later: Later, monkeypatch: pytest.MonkeyPatch, rung: Any, random: bool, recalibrated: bool
) -> None:
    store, config, tick = later(probe_first=True, epochs=1)
    release = find(store, f"releases/{tick.champion}/release.json", Release)
    assert release is not None
    if not random:  # the configured weights are the champion's own
        path = str(store.local(release.files["model.safetensors"]))
        config = config.model_copy(update={"model": config.model.model_copy(update={"weights": path})})
    place = (store, config, tick)
    begun = []
    run = Trainer.run

    def noted(self: Trainer, *arguments: Any) -> Any:
        begun.append(copied(self.module))
        return run(self, *arguments)

    monkeypatch.setattr(Trainer, "run", noted)
    head = fine_tune(*place, "head")
    weights = release.files["model.safetensors"]
    cooled = head.model_copy(update={"rung": "recalibrate", "key": "cooled", "spec": release.spec, "weights": weights})
    fine_tune(*place, rung, cooled if recalibrated else None)
    probed = all(torch.equal(begun[0][name], tensor) for name, tensor in weights_of(place, head).items())
    assert probed is (rung == "full" or not random)  # on random features there is nothing to probe


# --- resume --------------------------------------------------------------------------------------------------------------

ALL = {
    "epochs": 2, "replay_max_samples": 10, "batch_size": 4, "accumulate": 2,
    "learning_rate": 0.02, "layer_decay": 0.7, "clip_norm": 1.0,
    "augment": "crop", "policy": "trivial", "mix": {"kind": "either"}, "sampling": "balanced",
    "probe_first": True, "checkpoint_every": 2,
    "keep": {"ema": 0.9, "l2_sp": 0.1, "distill": 1.0, "interpolate": [0.5]},
    "schedule": {"warm_up": 0.3, "freeze": 0.5, "freeze_until": 0.6, "thaw": "gradually", "patience": 2},
}  # fmt: skip


def test_a_run_that_fails_leaves_no_thread_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = first(tmp_path)
    before = set(threading.enumerate())
    crash(monkeypatch, 1)
    with pytest.raises(MemoryError):
        fine_tune(*place, "pretrained")
    assert set(threading.enumerate()) <= before


def test_a_run_with_every_option_that_was_killed_ends_in_the_same_bytes(later: Later, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fine_tune(*later("whole", **ALL), "full")
    killed = later("killed", **ALL)
    step = Trainer._step
    for after in (3, 4):
        crash(monkeypatch, after)
        with pytest.raises(MemoryError):
            fine_tune(*killed, "full")
        monkeypatch.setattr(Trainer, "_step", step)
    made = fine_tune(*killed, "full")
    assert made.weights.sha256 == whole.weights.sha256
    assert training_of(made) == training_of(whole)
    assert training_of(made).share is not None
