"""The page of an evaluation: its numbers are the record's, anybody can open it, and its failure fails no verdict."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import f1_score
from support.drifted import HOSTILE
from support.loop import run_window, second_window
from support.tables import pipeline as tables
from support.tables import table, write
from support.tasks import AGED, attributed, leaning, sets, slants
from torch import nn

from everfresh.tasks.evaluation_page import flips as flips_module
from everfresh.tasks.evaluation_page import looks, page
from everfresh.tasks.evaluation_page.drawings import ROWS, VALUES, shown_slices
from everfresh.tasks.evaluation_page.numbers import calibration, flips, metrics, slice_rows
from everfresh.tasks.evaluation_page.words import sentence
from everfresh.tasks.gates import Judged, Trial, compare
from everfresh.tasks.records import Candidate, Cost, Evaluation, ModelSpec, Part, Verdict
from everfresh.tasks.store import FolderStore
from everfresh.tasks.targets import Targets

ON = {"evaluation": {"report": True}}


class Tags(HTMLParser):
    """All tags with their attributes, the text, and the cells of each row."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.rows, self.inside = "", [[]], False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.inside = True

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.rows[-1] and self.inside:
            self.rows[-1][-1] += data

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ("td", "th")


def judged(right: Sequence[int], before: Sequence[int] | None = None, **columns: Sequence[str]) -> Judged:
    """Samples of two classes in turn, which the models get right (1) or wrong (0)."""
    labels = np.arange(len(right)) % 2

    def scores(hits: Sequence[int]) -> torch.Tensor:
        said = np.where(np.array(hits, dtype=bool), labels, 1 - labels)
        return torch.from_numpy(np.eye(2, dtype=np.float32)[said].reshape(-1, 2) * 2)

    return Judged(
        labels=labels,
        challenger=scores(right),
        champion=None if before is None else scores(before),
        shared=np.ones(len(right), dtype=bool),
        targets=Targets(("cat", "dog")),
        columns={name: np.array(values, dtype=np.str_) for name, values in columns.items()},
    )


def spec(**changes: Any) -> ModelSpec:
    return ModelSpec(
        **{
            "architecture": "support.networks:plain", "classes": ("cat", "dog"), "head": "4", "native_head": False,
            "embedding_dim": 8, "image_size": 16, "mean": (0.5,) * 3, "std": (0.5,) * 3, **changes,
        }
    )  # fmt: skip


def candidate(**changes: Any) -> Candidate:
    fields = {
        "key": "c1", "rung": "head", "view": "v", "replay": (), "champion": "r", "start": "r", "request": "", "spec": spec(),
        "encoder": "", "weights": Part(key="w", sha256="0" * 64, size=1), "trained_on": 9, "tune_accuracy": 0.8,
        "tune_samples": 20, "kept_accuracy": None, "champion_accuracy": 0.5, "cost": Cost(seconds=3, device_seconds=2.5),
        "device": "cpu",
    }  # fmt: skip
    return Candidate(**fields | changes)


def written(trial: Trial, folder: Path, *verdicts: Verdict, **changes: Any) -> tuple[Tags, dict[str, Path]]:
    """The page of a trial without pictures."""
    evaluation = Evaluation(
        key="e", candidate="c1", champion="r", champion_move=1, window=trial.here, bank=trial.there, bank_views=(),
        verdicts=verdicts, passed=all(v.passed for v in verdicts),
    )  # fmt: skip
    options = {"pipeline": "pets", "seq": 3, "version": 2, "tried": [candidate()]} | changes
    files = page.write_page(evaluation, trial, folder / "new", **options)
    return Tags(files[page.PAGE].read_text("utf-8")), files


def trial(window: Judged, bank: Judged | None = None) -> Trial:
    bank = bank or judged([], [] if window.champion is not None else None)
    return Trial(window, compare(window, "s"), bank, compare(bank, "s") if len(bank.labels) else None)


# --- numbers -----------------------------------------------------------------------------------------------------


def test_scores_are_those_of_the_record_within_their_intervals() -> None:
    rng = np.random.default_rng(0)
    window = judged(rng.integers(0, 2, 200), rng.integers(0, 2, 200))
    here = compare(window, "s")
    found = {m.name: m for m in metrics(window, here, "s")}
    assert set(found) == {"accuracy", "precision", "recall", "f1", "loss", "ece"}
    for name in ("accuracy", "precision", "recall", "f1", "loss"):
        assert found[name].challenger.value == pytest.approx(here.challenger.get(name))
        assert found[name].champion is not None
        assert here.champion is not None
        assert found[name].champion.value == pytest.approx(here.champion.get(name))
        assert 0 < found[name].challenger.width < 0.3
        assert found[name].challenger.low <= found[name].challenger.value <= found[name].challenger.high
    assert found["accuracy"].difference == here.gain


def test_resampled_scores_are_what_scikit_learn_makes_of_the_same_draws() -> None:
    from everfresh.tasks.evaluation_page.numbers import _of_decisions

    rng = np.random.default_rng(1)
    truth, said = rng.integers(0, 3, 40), rng.integers(0, 3, 40)
    counts = rng.multinomial(40, np.full(40, 1 / 40), 5)
    found = _of_decisions(counts.astype(np.float32), truth[:, None] == np.arange(3), said[:, None] == np.arange(3), micro=True)
    for draw, macro, micro in zip(counts, found["f1"], found["micro_f1"], strict=True):
        rows = np.repeat(np.arange(40), draw)
        assert macro == pytest.approx(f1_score(truth[rows], said[rows], average="macro"), abs=1e-6)
        assert micro == pytest.approx(f1_score(truth[rows], said[rows], average="micro"), abs=1e-6)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=60))
@settings(max_examples=60, deadline=None)
def test_calibration_counts_every_sample_once_and_errs_at_most_by_one(pairs: list[tuple[float, bool]]) -> None:
    found = calibration(np.array([p for p, _ in pairs]), np.array([r for _, r in pairs], dtype=bool))
    assert found.samples.sum() == len(pairs)
    assert 0 <= found.error <= 1
    assert len(found.confidence) == len(found.accuracy) == len(found.samples)


def test_a_model_that_knows_what_it_knows_has_no_calibration_error() -> None:
    assert calibration(np.full(10, 0.8), np.array([1] * 8 + [0] * 2, dtype=bool)).error == pytest.approx(0)
    assert calibration(np.full(10, 0.9), np.array([1] * 4 + [0] * 6, dtype=bool)).error == pytest.approx(0.5)


def test_a_slice_that_chance_does_not_explain_is_flagged_and_stands_first() -> None:
    right = [1] * 90 + [0] * 10 + [1] * 50 + [0] * 50
    found = slice_rows(judged(right, right, hour=["am", "pm"] * 100, site=["north"] * 100 + ["south"] * 100, one=["x"] * 200))
    assert [(row.column, row.value, row.flagged) for row in found] == [
        ("site", "south", True), ("site", "north", False), ("hour", "am", False), ("hour", "pm", False),
    ]  # fmt: skip
    assert (found[0].challenger.value, found[0].others, found[0].samples) == (0.5, 0.9, 100)


def test_quiet_slices_are_flagged_about_as_seldom_as_declared() -> None:
    rng = np.random.default_rng(2)
    flagged = 0
    for _ in range(200):
        window = judged(rng.random(120) < 0.8, site=rng.choice(list("abcde"), 120), hour=rng.choice(list("xyz"), 120))
        flagged += any(row.flagged for row in slice_rows(window))
    assert flagged <= 0.05 * 200 + 3 * np.sqrt(200 * 0.05 * 0.95)


def test_many_slices_are_bounded_and_the_flagged_ones_stay() -> None:
    right = np.ones(600, dtype=int)
    right[:40] = 0
    columns = {f"c{n}": [f"v{i % 20}" for i in range(600)] for n in range(9)}
    rows = slice_rows(judged(right, camera=["bad"] * 40 + [f"good{i % 30}" for i in range(560)], **columns))
    groups = shown_slices(rows)
    assert sum(map(len, groups)) <= ROWS
    assert max(map(len, groups)) <= VALUES
    assert groups[0][0].value == "bad"


def test_flips_are_those_that_only_one_model_gets_right_the_surest_mistakes_first() -> None:
    window = judged([1, 0, 0, 1, 0], [1, 1, 1, 0, 0])
    window.challenger[2] *= 3  # surer than at 1
    lost, won = flips(window)
    assert (lost.tolist(), won.tolist()) == ([2, 1], [3])
    assert [rows.tolist() for rows in flips(judged([1, 0]))] == [[], []]


# --- what a model looks at ---------------------------------------------------------------------------------------


class Corner(nn.Module):
    """Class 0 is light at the upper left, class 1 at the lower right."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.AvgPool2d(4), nn.ReLU())
        self.head = nn.Linear(16, 2, bias=False)
        with torch.no_grad():
            self.head.weight.zero_()
            self.head.weight[0, 0] = self.head.weight[1, 15] = 1

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(pixels).mean(dim=1).flatten(1))


class Tokens(Corner):
    """The same by tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed = nn.Identity()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.head(self.mixed(self.body(pixels).mean(dim=1).flatten(1)[:, None])[:, 0])


def test_pixels_are_lit_where_a_network_of_tokens_looked() -> None:
    pictures = torch.full((2, 3, 16, 16), 255, dtype=torch.uint8)
    warmth = looks.heat(Tokens().eval(), spec(), pictures, [0, 1])
    assert warmth.shape == (2, 16, 16)
    assert warmth[0, :4, :4].mean() > 0.9 > 0.1 > warmth[0, 8:, 8:].mean()
    assert warmth[1, -4:, -4:].mean() > 0.9 > 0.1 > warmth[1, :8, :8].mean()


@pytest.mark.parametrize("name", ["squeezenet1_1", "resnet18", "vit_b_16"])
def test_networks_of_torchvision_can_be_asked_and_stay_as_they_are(name: str) -> None:
    import torchvision

    size = 224 if name.startswith("vit") else 64
    module = getattr(torchvision.models, name)(num_classes=2).eval()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    pictures = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    warmth = looks.heat(module, spec(image_size=size), pictures, [1])
    assert warmth.shape == (1, size, size)
    assert warmth.min() >= 0
    assert warmth.max() <= 1
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
    assert not any(hook for child in module.modules() for hook in (child._forward_hooks, child._backward_hooks))
    assert all(p.grad is None for p in module.parameters())


def test_reasons_of_a_linear_model_are_weight_times_value() -> None:
    from everfresh.tasks.records import Feature

    module = nn.Sequential(nn.Linear(3, 2, bias=False))
    with torch.no_grad():
        module[0].weight[:] = torch.tensor([[1.0, 0.0, 0.0], [2.0, -1.0, 5.0]])
    features = (Feature(name="load"), Feature(name="site", categories=("north", "south")))
    [found] = looks.reasons(module, spec(features=features), torch.tensor([[0.5, 1.0, 0.0]]), [1])
    assert found == pytest.approx({"load": 1.0, "site": -1.0})


# --- the page ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unfair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tags, dict[str, Path]]:
    right = [1] * 90 + [0] * 10 + [1] * 50 + [0] * 50
    window = judged(right, [1] * 120 + [0] * 80, site=["north"] * 100 + ["south"] * 100)
    verdicts = (
        Verdict(gate="floor", passed=True, numbers={"value": 0.7}, words="floor: accuracy 70.0%", resolves="to 63 %"),
        Verdict(gate="better", passed=False, numbers={"gain": 0.1}, words="better: a little"),
        Verdict(gate="no_worse", passed=True, outcome="undecided", numbers={}, words="no_worse: too few"),
    )
    tried = [candidate(key="c0", rung="recalibrate", champion_accuracy=None), candidate()]
    return written(trial(window, judged([1, 0], [0, 1])), tmp_path_factory.mktemp("page"), *verdicts, tried=tried)


class TestPage:
    def test_the_verdict_and_whom_it_fails_stand_first(self, unfair: tuple[Tags, dict[str, Path]]) -> None:
        text = " ".join(unfair[0].text.split())
        head = text[text.index("Everfresh · pets") : text.index("Gates gate")]
        assert "Rejected" in head
        assert "The challenger (head) is rejected by better and v2 stays: it is right on 70 %" in text
        assert "Worse beyond chance for site = south: 50 % right, all others 90 % (−40 points, 100 samples" in text
        assert text.index("Worse beyond chance") < text.index("what it found") < text.index("Scores on")

    def test_each_gate_has_its_row_with_outcome_numbers_and_what_it_can_tell(self, unfair: tuple[Tags, Any]) -> None:
        rows = [row for row in unfair[0].rows if row and row[0].startswith(("✔", "✘", "?"))]
        assert rows == [
            ["✔ floorpassed", "accuracy 70.0%value 0.7", "to 63 %"],
            ["✘ betterfailed", "a littlegain 0.1", ""],
            ["? no_worseundecided", "too few", ""],
        ]

    def test_scores_stand_side_by_side_with_intervals(self, unfair: tuple[Tags, Any]) -> None:
        accuracy, f1 = (next(row for row in unfair[0].rows if row and row[0] == name) for name in ("accuracy", "F1"))
        assert accuracy[1:3] == ["70.0% (63.3% … 75.9%)", "60.0% (53.1% … 66.5%)"]
        assert re.fullmatch(r"\+10\.0 \([+−][\d.]+ … \+[\d.]+\)", accuracy[3])
        assert re.fullmatch(r"70\.\d% \([\d.]+% … [\d.]+%\)", f1[1])

    def test_costs_of_each_rung_and_what_they_bought(self, unfair: tuple[Tags, Any]) -> None:
        [first, last] = [row for row in unfair[0].rows if row and row[0] in ("recalibrate", "head")]
        assert first == ["recalibrate", "2.5", "cpu", "80.0%", "–", "–", "–"]
        assert last[:5] == ["head", "2.5", "cpu", "80.0%", "+30.0"]
        assert last[5].startswith("+10.0 (")
        assert last[6] == "11 / 31"  # those of the bank are flips too

    def test_nothing_is_fetched_and_every_picture_has_words(self, unfair: tuple[Tags, dict[str, Path]]) -> None:
        tags, files = unfair
        assert {tag for tag, _ in tags.tags} & {"script", "link", "iframe"} == set()
        assert not re.search(r'(src|href)="(http|//)', files[page.PAGE].read_text("utf-8"))
        images = [at for tag, at in tags.tags if tag == "img"]
        assert images
        assert all(at["alt"] and (at["src"] or "").startswith("data:image/") for at in images)
        assert "site south 50\u00a0% (worse beyond chance)" in (images[0]["alt"] or "")

    def test_the_flagged_slice_is_red_in_the_picture(self, unfair: tuple[Tags, dict[str, Path]]) -> None:
        with Image.open(unfair[1][page.SLICES]) as image:
            pixels = np.asarray(image.convert("RGB")).reshape(-1, 3).tolist()
        colours = {tuple(p) for p in pixels}
        assert (0xD5, 0x5E, 0x00) in colours
        assert (0xFB, 0xE9, 0xDF) in colours

    def test_equal_evaluations_give_equal_bytes(self, tmp_path: Path) -> None:
        window = judged([1, 0] * 20, [0, 1] * 20, site=["a", "b"] * 20)
        first, second = (written(trial(window), tmp_path / name)[1] for name in "ab")
        assert {n: p.read_bytes() for n, p in first.items()} == {n: p.read_bytes() for n, p in second.items()}

    def test_hostile_names_are_text(self, tmp_path: Path) -> None:
        window = judged([1] * 30 + [0] * 30, [1] * 60, **{HOSTILE: [HOSTILE] * 30 + ["犬 $a_$"] * 30})
        verdict = Verdict(gate=HOSTILE, passed=False, numbers={HOSTILE: 1.0}, words=f"{HOSTILE}: {HOSTILE}", resolves=HOSTILE)
        tags, _ = written(trial(window), tmp_path, verdict, pipeline=HOSTILE)
        assert "script" not in {tag for tag, _ in tags.tags}
        assert "<script>" in tags.text

    @pytest.mark.parametrize("champion", [False, True])
    def test_little_to_show_is_a_page_too(self, champion: bool, tmp_path: Path) -> None:
        none: list[int] = []
        tags, files = written(trial(judged(none, none if champion else None)), tmp_path, version=2 if champion else None)
        assert set(files) == {page.PAGE}
        assert "none was asked" in tags.text
        one, _ = written(trial(judged([1], [0] if champion else None)), tmp_path, version=2 if champion else None)
        assert "100.0%" in one.text

    def test_a_first_model_has_nobody_beside_it(self, tmp_path: Path) -> None:
        tags, _ = written(trial(judged([1, 1, 0, 1])), tmp_path, version=None)
        assert "head against no champion" in tags.text
        assert next(row for row in tags.rows if row and row[0] == "accuracy")[2:] == ["–", "–"]
        assert "flips:" not in tags.text


def test_the_sentence_says_what_passes() -> None:
    made = trial(judged([1, 1, 0, 1], [1, 0, 0, 0]))
    evaluation = Evaluation(
        key="e", candidate="c", champion=None, champion_move=0, window=made.here, bank=None, bank_views=(), passed=True,
        verdicts=(Verdict(gate="floor", passed=True, numbers={}, words=""),) * 2,
    )  # fmt: skip
    assert sentence(evaluation, "full", 4).replace("\u00a0", " ") == (
        "The challenger (full) passes all 2 gates and may go live: it is right on 75 % of this window's hold-out, v4 on 25 % "
        "(+50 points)."
    )


# --- in the loop -------------------------------------------------------------------------------------------------


def made(store: FolderStore, config: Any) -> tuple[Evaluation, Tags]:
    """The evaluation of the next window, and its page."""
    evaluation = run_window(store, config).evaluation
    assert evaluation is not None
    part = evaluation.files[page.PAGE]
    assert part.size < 2_000_000
    return evaluation, Tags(store.read(part).decode())


def test_pictures_flips_and_what_was_looked_at_stand_on_the_page(tmp_path: Path) -> None:
    store, config = second_window(tmp_path, **ON)
    evaluation, tags = made(store, config)
    assert {"report.html", "slices.png", "confusion.png"} == set(evaluation.files)
    alts = [at["alt"] or "" for tag, at in tags.tags if tag == "img"]
    assert sum(alt.startswith("where the champion looked") for alt in alts) > 0
    assert f"{evaluation.window.challenger.accuracy:.1%}" in tags.text
    assert "flips: " in tags.text
    kept = json.loads(store.get(f"evaluations/{evaluation.key}/record.json"))
    assert kept["files"][page.PAGE]["sha256"] == evaluation.files[page.PAGE].sha256


def test_it_can_be_switched_off(tmp_path: Path) -> None:
    store, config = second_window(tmp_path, evaluation={"report": False})
    evaluation = run_window(store, config).evaluation
    assert evaluation is not None
    assert set(evaluation.files) == {"confusion.png"}


@pytest.mark.parametrize("part", ["render", "heat"])
def test_a_page_that_cannot_be_made_fails_no_verdict(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("somebody's network")

    monkeypatch.setattr(page if part == "render" else flips_module, part, broken)
    store, config = second_window(tmp_path, **ON)
    evaluation = run_window(store, config).evaluation
    assert evaluation is not None
    assert evaluation.verdicts
    if part == "render":
        assert set(evaluation.files) == {"confusion.png"}
        assert "could not be made; its verdict stands" in caplog.text
    else:  # the page stands without what the models looked at
        assert page.PAGE in evaluation.files
        assert "where the champion looked" not in store.read(evaluation.files[page.PAGE]).decode()


def test_sets_and_values_have_pages_too(tmp_path: Path) -> None:
    trigger = {"triggers": [{"kind": "new_samples", "count": 1}], "ladder": ["head"]}
    config = sets(tmp_path / "sets", policy=trigger, **ON)
    store = FolderStore(tmp_path / "sets" / "store")
    attributed(config, 60, start=0)
    made(store, config)
    attributed(config, 60, start=300, aged=True)
    evaluation, tags = made(store, config)
    assert "micro f1" in tags.text
    assert "classes.png" in evaluation.files
    config = slants(tmp_path / "slants", policy=trigger, **ON)
    store = FolderStore(tmp_path / "slants" / "store")
    leaning(config, 60, start=0)
    made(store, config)
    leaning(config, 60, start=300, scanner=AGED)
    evaluation, tags = made(store, config)
    mae = next(row for row in tags.rows if row and row[0] == "MAE")
    assert mae[1].startswith(f"{evaluation.window.challenger.metrics['mae']:.3g} (")
    assert "ECE" not in tags.text


def test_rows_have_reasons_and_no_pictures(tmp_path: Path) -> None:
    trigger = {"triggers": [{"kind": "new_samples", "count": 1}]}
    config = tables(tmp_path, policy=trigger, **ON)
    store = FolderStore(tmp_path / "store")
    write(tmp_path / "inbox" / "a.parquet", table(120))
    made(store, config)
    write(tmp_path / "inbox" / "b.parquet", table(120, 1, start=120, moved=True))
    _, tags = made(store, config)
    assert re.search(r"challenger: (yes|no) \d+% \((load|heat|site) [+−]", " ".join(tags.text.split()))
    assert not [at for tag, at in tags.tags if tag == "img" and "looked" in (at["alt"] or "")]
