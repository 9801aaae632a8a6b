"""Gates that run the models: robustness, latency and size, on real pictures and real networks."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from support.loop import open_tick, second_window
from support.pictures import digit, encode
from torch import nn

from everfresh.tasks.config import Corruption, LatencyGate, RobustnessGate, SizeGate, parse_config
from everfresh.tasks.embeddings import Embedder
from everfresh.tasks.evaluate import evaluate
from everfresh.tasks.fine_tune import fine_tune
from everfresh.tasks.gates import Contender, Judged, Trial, compare, judge
from everfresh.tasks.gates.cost import Limit
from everfresh.tasks.gates.robustness import SEVERITIES, corrupted
from everfresh.tasks.images import to_tensor
from everfresh.tasks.inputs import prepare
from everfresh.tasks.records import ModelSpec, Part, Verdict
from everfresh.tasks.store import FolderStore
from everfresh.tasks.targets import Targets
from everfresh.tasks.views import View, ViewWriter

CORRUPTIONS: tuple[Corruption, ...] = get_args(Corruption)
SPEC = ModelSpec(
    architecture="", classes=("left", "right"), head="", native_head=True, embedding_dim=1, image_size=32, mean=(0.0,) * 3,
    std=(1.0,) * 3,
)  # fmt: skip


class Sides(nn.Module):
    """Says which half of the picture is brighter, whatever the light."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        grey = pixels.mean(dim=1)
        return torch.stack([grey[..., :16].mean(dim=(1, 2)), grey[..., 16:].mean(dim=(1, 2))], 1)


class Light(nn.Module):
    """Has learnt that pictures of `right` are brighter as a whole: right on clean pictures, blind in other light."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        grey = pixels.mean(dim=(1, 2, 3))
        return torch.stack([0.42 - grey, grey - 0.42], 1)


class Slow(nn.Module):
    """Takes so many milliseconds, and now and then, on a noisy machine, ten times as many."""

    def __init__(self, milliseconds: float, noisy: bool = False) -> None:
        super().__init__()
        self.seconds, self.noisy, self.passes = milliseconds / 1000, noisy, np.random.default_rng(0)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds * (10 if self.noisy and self.passes.random() < 0.2 else 1))
        return torch.zeros(len(pixels), 2)


def halves(folder: Path, count: int) -> tuple[View, list[bytes]]:
    """A view of pictures with a brighter half: `left` at 0.3 of white in the mean, `right` at 0.54."""
    rng, files = np.random.default_rng(0), []
    with ViewWriter(folder) as writer:
        for number in range(count):
            side = number % 2
            pixels = rng.normal(0.22 if side == 0 else 0.46, 0.02, (32, 32, 3))
            pixels[:, 16:] += 0.16 * side
            pixels[:, :16] += 0.16 * (1 - side)
            files.append(encode((pixels.clip(0, 1) * 255).astype(np.uint8)))
            label = SPEC.classes[side]
            fields: dict[str, Any] = {"key": f"{number}.png", "digest": str(number), "group": str(number), "label": label}
            writer.add(files[-1], **fields, split="holdout", timestamp=None)
        store = FolderStore(folder / "store")
        return View(store, writer.commit(store, Targets(SPEC.classes)).view), files


def contender(module: nn.Module, bytes_: int = 1000) -> Contender:
    embedder = Embedder(FolderStore(Path("/nowhere")), module, SPEC, "", "fp32")
    return Contender(embedder, Part(key="k", sha256="", size=bytes_))


def on_halves(folder: Path, challenger: nn.Module, champion: nn.Module | None, count: int = 120) -> Trial:
    view, files = halves(folder, count)
    inputs = prepare(torch.stack([to_tensor(data, 32) for data in files]), SPEC)
    window = Judged(
        np.arange(count) % 2,
        challenger(inputs),
        None if champion is None else champion(inputs),
        np.ones(count, dtype=bool),
        Targets(SPEC.classes),
        views=(view,),
        places=tuple((0, row) for row in range(count)),
    )
    return trial(challenger, champion, window)


def trial(
    challenger: nn.Module, champion: nn.Module | None, window: Judged | None = None, sizes: tuple[int, int] = (1, 1)
) -> Trial:
    none = Judged(np.zeros(0, np.int64), torch.zeros(0, 2), torch.zeros(0, 2), np.ones(0, dtype=bool), Targets(SPEC.classes))
    window = none if window is None else window
    theirs = None if champion is None else contender(champion, sizes[1])
    return Trial(window, compare(window, "s"), none, None, challenger=contender(challenger, sizes[0]), champion=theirs)


# --- robustness --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_a_corruption_is_the_same_for_the_same_seed_and_grows_with_its_severity(corruption: Corruption) -> None:
    texture = torch.randint(30, 60, (3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pictures = [to_tensor(digit(number, 64)[0], 64) // 2 + texture for number in range(8)]
    far = []
    for severity in range(1, 6):
        made = [corrupted(p, corruption, severity, 7) for p in pictures]
        assert all(torch.equal(m, corrupted(p, corruption, severity, 7)) for m, p in zip(made, pictures, strict=True))
        assert {(m.shape, m.dtype) for m in made} == {(pictures[0].shape, torch.uint8)}
        far.append(float(np.mean([(m.float() - p.float()).abs().mean() for m, p in zip(made, pictures, strict=True)])))
    assert all(more > 0.9 * less for less, more in pairwise(far))
    assert far[-1] > 1.1 * far[0] > 0.3
    assert len(SEVERITIES[corruption]) == 5
    assert torch.equal(corrupted(pictures[0], corruption, 5, 8), corrupted(pictures[0], corruption, 5, 7)) == (
        corruption != "noise"
    )


@pytest.mark.parametrize("side", [1, 2, 8, 33])
@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_a_corruption_takes_pictures_of_any_side(corruption: Corruption, side: int) -> None:
    made = corrupted(torch.full((3, side, side), 90, dtype=torch.uint8), corruption, 5, 0)
    assert made.shape == (3, side, side)


def test_drawing_noise_leaves_the_random_numbers_of_others_alone() -> None:
    state = torch.get_rng_state()
    corrupted(torch.zeros(3, 8, 8, dtype=torch.uint8), "noise", 3, 0)
    assert torch.equal(state, torch.get_rng_state())


def test_a_challenger_that_is_blind_in_other_light_fails_robustness_alone(tmp_path: Path) -> None:
    found = on_halves(tmp_path, Light(), Sides())
    assert found.here.gain is not None
    assert found.here.gain.value == 0  # no difference on clean pictures
    verdict = judge(RobustnessGate(), found)
    assert verdict.outcome == "failed"
    assert "brightness 2 drops by" in verdict.words or "darkness 2 drops by" in verdict.words
    assert "noise 2 drops" not in verdict.words
    assert verdict.numbers["champion, darkness 2"] == 1
    assert verdict.numbers["darkness 2"] < 0.6
    assert verdict.numbers["samples"] == 120
    assert "(power 80%)" in verdict.resolves
    assert judge(RobustnessGate(corruptions=("noise", "jpeg")), found).outcome == "passed"
    assert judge(RobustnessGate(minimum=0.9), found).outcome == "failed"
    assert judge(RobustnessGate(), found) == verdict


def test_a_robust_challenger_passes_also_against_one_that_is_not(tmp_path: Path) -> None:
    assert judge(RobustnessGate(minimum=0.9, max_drop=0.05), on_halves(tmp_path, Sides(), Light())).outcome == "passed"


def test_robustness_without_a_champion_has_its_floor(tmp_path: Path) -> None:
    found = on_halves(tmp_path, Light(), None)
    assert judge(RobustnessGate(), found).words == "robustness: there is no champion to compare with"
    assert judge(RobustnessGate(minimum=0.9), found).outcome == "failed"


def test_robustness_is_bounded_in_pictures_and_undecided_on_few(tmp_path: Path) -> None:
    found = on_halves(tmp_path, Sides(), Sides(), count=24)
    assert judge(RobustnessGate(max_samples=20), found).numbers["samples"] == 20
    verdict = judge(RobustnessGate(min_samples=25, too_few="fail"), found)
    assert (verdict.outcome, verdict.passed) == ("undecided", False)
    assert verdict.words == (
        "robustness: there are 24 window samples, and it needs 25, so it is undecided and counts as failed"
    )
    assert judge(RobustnessGate(scope="bank"), found).words == "robustness: there is no earlier hold-out yet"


def test_a_drop_of_robustness_that_could_not_be_tested_is_said(tmp_path: Path) -> None:
    found = on_halves(tmp_path, Sides(), Sides(), count=24)
    few = replace(found, window=replace(found.window, shared=np.arange(24) < 3))
    words = "max_drop could not be tested: both models know 3 of the samples, and it needs 20"
    assert judge(RobustnessGate(), few).words == f"robustness: {words}, so it is undecided and counts as passed"
    verdict = judge(RobustnessGate(minimum=0.1, max_drop=0.05, too_few="fail"), few)
    assert (verdict.outcome, verdict.passed) == ("undecided", False)
    assert f"; {words}, so it is undecided" in verdict.words
    blind = judge(RobustnessGate(minimum=0.95, max_drop=0.05), replace(few, challenger=contender(Light())))
    assert blind.outcome == "failed"
    assert blind.words.endswith(f"; {words}")


# --- latency -----------------------------------------------------------------------------------------------------


def test_a_challenger_twice_as_slow_fails_latency_and_an_equal_one_passes_on_a_noisy_machine() -> None:
    slow = judge(LatencyGate(), trial(Slow(4), Slow(2)))
    assert slow.outcome == "failed"
    assert slow.numbers["ratio"] == pytest.approx(2, rel=0.3)
    assert slow.numbers["ratio_low"] > 1.25
    equal = judge(LatencyGate(max_ratio=1.5), trial(Slow(2, noisy=True), Slow(2, noisy=True)))
    assert equal.outcome == "passed"
    assert equal.numbers["rounds"] <= 40


def test_the_words_of_latency_hold_times_rounds_and_limit() -> None:
    verdict = judge(LatencyGate(batch_size=3, max_ratio=1.25, max_ms=500), trial(Slow(2), Slow(6)))
    n = verdict.numbers
    assert verdict.words == (
        f"latency: {n['ms']:.3g} ms against the champion's {n['champion_ms']:.3g} ms for a batch of 3, "
        f"median of {n['rounds']:.0f} rounds; {n['ratio']:.3g} times the champion's [{n['ratio_low']:.3g}, "
        f"{n['ratio_high']:.3g}], may be 1.25; {n['time']:.3g} ms [{n['time_low']:.3g}, {n['time_high']:.3g}], may be 500"
    )
    assert verdict.resolves.startswith("ratios to ")
    assert (n["max_ratio"], n["max_time"], n["batch_size"]) == (1.25, 500, 3)


def test_a_limit_in_milliseconds_needs_no_champion() -> None:
    assert judge(LatencyGate(max_ms=2), trial(Slow(5), None)).outcome == "failed"
    assert judge(LatencyGate(), trial(Slow(5), None)).words == "latency: there is no champion to compare with"


@pytest.mark.parametrize(("too_few", "passed"), [("pass", True), ("fail", False)])
def test_a_median_near_its_limit_is_undecided(too_few: Any, passed: bool) -> None:
    """Just as many rounds above as below: more of them would not make it clear."""
    verdict = judge(LatencyGate(max_ms=15, rounds=10, too_few=too_few), trial(Jumping(6, 24), None))
    assert (verdict.outcome, verdict.passed) == ("undecided", passed)
    assert f"the rounds do not make it clear, so it is undecided and counts as {too_few}ed" in verdict.words
    assert verdict.numbers["rounds"] == 10


class Jumping(Slow):
    """Takes one time, then the other, in turns."""

    def __init__(self, first: float, second: float) -> None:
        super().__init__(first)
        self.times, self.count = (first / 1000, second / 1000), 0

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        time.sleep(self.times[self.count % 2])
        self.count += 1
        return torch.zeros(len(pixels), 2)


def test_medians_at_the_limit_are_taken_for_clear_no_more_often_than_declared() -> None:
    """Over all looks together; times with a median of one and a heavy tail."""
    rng, level, wrong = np.random.default_rng(0), 0.05 / 3, 0
    for _ in range(600):
        times = 1 + rng.standard_cauchy(40)
        sides = [Limit(times[:look], 1.0).side(level) for look in (10, 20, 40)]
        wrong += "beyond" in sides
    assert wrong / 600 <= 0.05


# --- size --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mine", "passed"), [(1100, True), (1101, False)])
def test_size_is_compared_to_the_byte(mine: int, passed: bool) -> None:
    verdict = judge(SizeGate(), trial(Sides(), Sides(), sizes=(mine, 1000)))
    assert verdict.passed == passed
    assert verdict.words == f"size: {mine:,} bytes; {mine / 1000:.3f} times the champion's 1,000, may be 1.1 times"
    assert verdict.numbers == {"bytes": mine, "champion_bytes": 1000, "ratio": mine / 1000, "max_ratio": 1.1}


def test_a_limit_in_megabytes_needs_no_champion() -> None:
    assert not judge(SizeGate(max_megabytes=1), trial(Sides(), None, sizes=(1_000_001, 0))).passed
    assert judge(SizeGate(max_megabytes=1), trial(Sides(), None, sizes=(1_000_000, 0))).passed
    assert judge(SizeGate(), trial(Sides(), None)).words == "size: 1 bytes; there is no champion to compare with"


# --- the whole ---------------------------------------------------------------------------------------------------


def test_all_gates_judge_a_real_challenger(tmp_path: Path) -> None:
    """Real digits, a real network refitted: what came of each gate stands in the record, in the order of the file."""
    store, config = second_window(tmp_path)
    kinds = ("floor", "better", "no_worse", "slices", "negative_flips", "calibration", "robustness", "latency", "size")
    changes: dict[str, dict[str, Any]] = {
        "slices": {"columns": ["label"], "min_samples": 5, "max_gap": 0.9, "max_drop": 0.05},
        "robustness": {"max_samples": 12, "min_samples": 10, "minimum": 0.01, "max_drop": 0.9},
        "latency": {"max_ratio": 20},
    }
    gates = [{"kind": kind, **changes.get(kind, {})} for kind in kinds]
    config = parse_config(config.model_dump(mode="json") | {"gates": gates})
    tick = open_tick(store, config)
    found = evaluate(store, config, tick, fine_tune(store, config, tick, "head"), against=1)
    said: dict[str, Verdict] = {v.gate: v for v in found.verdicts}
    assert tuple(said) == kinds
    assert {said[k].outcome for k in ("robustness", "latency", "size", "slices")} == {"passed"}
    assert said["calibration"].outcome == "undecided"
    assert said["robustness"].numbers["samples"] == 12
    assert said["slices"].numbers["slices"] == 3
    assert said["size"].numbers["ratio"] == 1
    assert all(v.words.startswith(f"{v.gate}: ") for v in found.verdicts)
    assert evaluate(store, config, tick, fine_tune(store, config, tick, "head"), against=1) == found
