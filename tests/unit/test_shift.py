"""Shift and regimes: valid p-values, exact distances, columns of any kind, mixtures and seasons."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, ks_2samp

from everfresh.tasks.config import DriftConfig
from everfresh.tasks.drift import shift, space
from everfresh.tasks.drift.detect import agreement, judge, unusual
from everfresh.tasks.drift.frame import Frame, concatenate
from everfresh.tasks.drift.regimes import MIN_SAMPLES, compare_all, mixture, same_season
from everfresh.tasks.drift.shift import Deals, Shift, classifier_auc, compare, kolmogorov_smirnov, normal_scale

CLASSES = ("a", "b", "c")


def frame(count: int, seed: int = 0, *, move: float = 0.0, sites: tuple[str, ...] = ("x", "y"), sharp: float = 3.0) -> Frame:
    """A model of three classes on Gaussian embeddings; `move` shifts these, and all that follows from them."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    embeddings = rng.normal(size=(count, 6)) + 2 * np.eye(6)[labels] + move
    exponent = np.exp(sharp * embeddings[:, :3])
    probabilities = exponent / exponent.sum(axis=1, keepdims=True)
    return Frame(
        numerical={"brightness": rng.normal(size=count) + move, "confidence": probabilities.max(axis=1)},
        categorical={
            "prediction": np.array(CLASSES)[probabilities.argmax(axis=1)],
            "site": rng.choice(np.array(sites, dtype=np.str_), count),
        },
        probabilities=probabilities,
        embeddings=embeddings,
        classes=CLASSES,
        labels=labels,
        places=((None, 0),) * count,  # type: ignore[arg-type]
    )


def altered(sample: Frame, **changes: Any) -> Frame:
    return Frame(**{**vars(sample), **changes})


def measure(reference: Frame, current: Frame, *, permutations: int = 99, seed: int = 0, components: int = 3) -> Shift:
    return compare("r", reference, current, components=components, permutations=permutations, seed=seed)


# --- p-values ------------------------------------------------------------------------------------------------


def test_quiet_windows_alarm_no_more_often_than_declared() -> None:
    trials = 300
    values = np.array([measure(frame(25, 2 * i), frame(20, 2 * i + 1), seed=i).p_value for i in range(trials)])
    for level in (0.05, 0.1, 0.2, 0.5):
        alarms = int((values <= level).sum())
        assert binomtest(alarms, trials, level, "greater").pvalue > 1e-3, f"{alarms} of {trials} at {level}"
    assert (values <= 0.5).mean() > 0.4  # and it is not merely asleep


def test_correlated_columns_do_not_dull_it() -> None:
    """Twenty copies of one column count as one."""
    copies = {f"copy {i}": 1.0 * i for i in range(20)}
    one, many = frame(30, 1), frame(30, 2, move=0.4)
    more = [
        altered(f, numerical=f.numerical | {n: f.numerical["brightness"] * 2 + i for n, i in copies.items()})
        for f in (one, many)
    ]
    assert measure(*more, permutations=499).p_value == pytest.approx(measure(one, many, permutations=499).p_value, abs=0.03)


def test_a_p_value_is_never_zero_and_a_strong_shift_reaches_the_least() -> None:
    found = measure(frame(60), frame(50, 1, move=3.0), permutations=199)
    assert found.p_value == 1 / 200
    assert all(1 / 200 <= c.p_value <= 1 for c in found.columns)


def test_a_strong_shift_names_the_column_that_moved() -> None:
    quiet, moved = frame(60), frame(50, 1)
    moved = altered(moved, numerical=moved.numerical | {"brightness": moved.numerical["brightness"] + 4})
    first = measure(quiet, moved).columns[0]
    assert (first.name, first.kind, first.p_value) == ("brightness", "numerical", 0.01)
    assert first.effect == pytest.approx(4, abs=0.8)
    assert first.current_mean - first.reference_mean == pytest.approx(4, abs=0.5)  # type: ignore[operator]


def test_every_family_has_its_word_and_the_whole_is_no_bolder_than_the_boldest() -> None:
    found = measure(frame(60), frame(60, 1, move=0.6), permutations=199)
    names = [f.name for f in found.families]
    assert names == ["columns", "outputs", "components", "novelty", "joint", "classifier", "mmd"]
    assert found.p_value <= 0.01
    assert found.score == max(c.statistic for c in found.columns)


def test_many_weak_signs_add_up_where_none_alone_is_clear() -> None:
    """Twelve columns that move a little each, independently: the discriminant over all sees what no column shows."""
    rng = np.random.default_rng(0)

    def table(move: float) -> Frame:
        columns = {f"c{i}": rng.normal(move, 1, 150) for i in range(12)}
        return Frame(columns, {}, np.zeros((150, 0)), np.zeros((150, 0)), (), np.full(150, -1))

    found = compare("r", table(0), table(0.2), components=4, permutations=999, seed=0)
    families = {f.name: f.p_value for f in found.families}
    assert families["joint"] < families["columns"]
    assert found.p_value <= 0.01


@pytest.mark.parametrize("level", [0.05, 0.2])
def test_each_family_is_valid_alone(level: float) -> None:
    trials = 200
    found = [measure(frame(30, 2 * i + 9_000), frame(25, 2 * i + 9_001), seed=i) for i in range(trials)]
    for name in (f.name for f in found[0].families):
        alarms = sum(f.p_value <= level for shift in found for f in shift.families if f.name == name)
        assert binomtest(alarms, trials, level, "greater").pvalue > 1e-3, name


def test_the_normal_scale_makes_squares_look_normal() -> None:
    squares = np.random.default_rng(0).chisquare(3, (2, 20_000))
    scaled = normal_scale(squares)
    assert np.quantile(scaled, [0.05, 0.5, 0.95, 0.99]) == pytest.approx([-1.645, 0, 1.645, 2.326], abs=0.06)


@given(st.integers(2, 40), st.integers(1, 39), st.integers(0, 5))
def test_a_deal_has_as_many_rows_as_the_window_and_sums_what_it_holds(rows: int, current: int, seed: int) -> None:
    current = min(current, rows - 1)
    deals = Deals(rows - current, current, 9, np.random.default_rng(seed))
    assert (deals.inside.sum(axis=1) == current).all()
    assert deals.inside[0].tolist() == [0] * (rows - current) + [1] * current
    features = np.random.default_rng(seed).normal(size=(rows, 2)).astype(np.float32)
    spread = np.sqrt(current * (rows - current) / max(rows - 1, 1))
    expected = (deals.inside @ features).T / max(spread, 1e-12)
    np.testing.assert_allclose(deals.sums(features), expected, rtol=1e-4, atol=1e-4)


def test_the_classifier_tells_drift_from_chance_on_rows_that_it_has_not_seen() -> None:
    quiet, moved = frame(150, 1), frame(150, 2, move=1.0)
    assert classifier_auc(frame(150), quiet, 0) == pytest.approx(0.5, abs=0.1)
    assert (classifier_auc(frame(150), moved, 0) or 0) > 0.85
    assert classifier_auc(frame(150), moved, 0) == classifier_auc(frame(150), moved, 0)


def test_the_order_of_samples_does_not_change_a_distance() -> None:
    reference, current = frame(30), frame(25, 1, move=0.5)
    rng = np.random.default_rng(5)
    mixed = reference.take(rng.permutation(30)), current.take(rng.permutation(25))
    before = {c.name: c.statistic for c in measure(reference, current).columns}
    after = {c.name: c.statistic for c in measure(*mixed).columns}
    assert after == pytest.approx(before, abs=1e-6)


def test_a_seed_gives_the_same_result_again() -> None:
    assert measure(frame(30), frame(30, 1), seed=3).columns == measure(frame(30), frame(30, 1), seed=3).columns


# --- distances -------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:ks_2samp")  # of its own p-value, which is not looked at
@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=30),
    st.lists(st.integers(0, 6), min_size=1, max_size=30),
)
def test_the_distance_of_numbers_is_kolmogorov_smirnov_with_ties(ours: list[int], theirs: list[int]) -> None:
    found = kolmogorov_smirnov(np.sort(np.array(ours, float)), np.sort(np.array(theirs, float)))
    assert found == pytest.approx(ks_2samp(ours, theirs).statistic, abs=1e-12)


def test_deals_in_many_blocks_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = measure(frame(30), frame(30, 1))
    monkeypatch.setattr(shift, "CELLS", 700)
    parts = measure(frame(30), frame(30, 1))
    assert [(c.name, c.p_value) for c in parts.columns] == [(c.name, c.p_value) for c in whole.columns]
    assert parts.p_value == whole.p_value


def test_the_distance_of_categories_is_total_variation() -> None:
    ours, theirs = np.array(["cat", "cat", "dog", "cow"]), np.array(["dog", "dog", "dog", "emu"])
    column = shift._describe(shift.Column("animal", "columns", np.concatenate([ours, theirs])), 4, 1.0)
    assert column.statistic == pytest.approx((0.5 + 0.5 + 0.25 + 0.25) / 2)
    assert column.new_categories == ("emu",)


def test_missing_values_are_seen_and_told() -> None:
    whole, holes = frame(80), frame(80, 1)
    brightness = np.where(np.arange(80) % 3 == 0, np.nan, holes.numerical["brightness"])
    site = np.where(np.arange(80) % 2 == 0, "", holes.categorical["site"])
    holes = altered(
        holes, numerical=holes.numerical | {"brightness": brightness}, categorical=holes.categorical | {"site": site}
    )
    found = {c.name: c for c in measure(whole, holes, permutations=199).columns}
    assert (found["brightness"].missing, found["site"].missing) == ((0.0, pytest.approx(0.3375)), (0.0, 0.5))
    assert found["brightness"].p_value <= 0.02
    assert found["site"].p_value <= 0.02
    assert found["site"].new_categories == ()  # nothing is no category


def test_a_column_of_nothing_but_missing_values_is_harmless() -> None:
    pair = [altered(f, numerical=f.numerical | {"brightness": np.full(len(f), np.nan)}) for f in (frame(30), frame(30, 1))]
    brightness = next(c for c in measure(*pair).columns if c.name == "brightness")
    assert (brightness.statistic, brightness.p_value, brightness.missing) == (0, 1, (1, 1))


def test_a_category_that_is_new_is_seen() -> None:
    found = measure(frame(60), frame(60, 1, sites=("y", "z")), permutations=499)
    site = next(c for c in found.columns if c.name == "site")
    assert (site.kind, site.p_value) == ("categorical", 1 / 500)
    assert site.statistic == site.effect == pytest.approx(0.5, abs=0.15)


def test_a_slice_that_came_later_is_left_out_and_a_lost_one_is_missing() -> None:
    plain = [altered(f, categorical={"prediction": f.categorical["prediction"]}) for f in (frame(30), frame(30, 1))]
    assert "site" not in {c.name for c in measure(plain[0], frame(30, 1)).columns}
    site = next(c for c in measure(frame(30), plain[1], permutations=199).columns if c.name == "site")
    assert (site.missing, site.p_value, site.statistic) == ((0, 1), 1 / 200, 1)


def test_the_rare_ones_of_ten_thousand_categories_are_one() -> None:
    found = shift._indicators(np.array([f"id {i}" for i in range(10_000)] + ["often"] * 50))
    assert found.shape == (10_050, shift.MOST_CATEGORIES)
    assert found[-1, 0] > 0


@pytest.mark.parametrize("small", [0, 100])
@pytest.mark.parametrize("shape", [(40, 6), (6, 40), (6, 6)])
def test_the_components_are_the_principal_ones(shape: tuple[int, int], small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(space, "SMALL", small)
    rows = np.random.default_rng(0).normal(size=shape) * np.arange(1, shape[1] + 1)
    left, spread, _ = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    found = space.Space(rows, 3).leading
    np.testing.assert_allclose(np.abs(found), np.abs((left * spread)[:, :3]), atol=1e-3)


def test_directions_beyond_the_rank_of_the_embedding_are_left_out() -> None:
    pair = [altered(f, embeddings=f.embeddings[:, :2] @ np.ones((2, 6))) for f in (frame(30), frame(25, 1))]
    names = [c.name for c in measure(*pair, components=4).columns]
    assert [n for n in names if n.startswith("embedding")] == ["embedding 1"]


def test_constant_columns_are_harmless() -> None:
    pair = [
        altered(
            f,
            numerical=f.numerical | {"brightness": np.full(len(f), 0.3)},
            categorical={"prediction": np.full(len(f), "a")},
            embeddings=np.full((len(f), 6), 0.1),
        )
        for f in (frame(30), frame(25, 1))
    ]
    found = measure(*pair)
    still = [c for c in found.columns if c.name in {"brightness", "prediction"}]
    assert [(c.statistic, c.p_value) for c in still] == [(0, 1)] * 2
    assert not any(c.name.startswith("embedding") for c in found.columns)
    assert found.p_value > 0.01


@pytest.mark.parametrize("components", [0, 2, 50])
def test_so_many_components_of_the_embedding_are_tested(components: int) -> None:
    names = [c.name for c in measure(frame(30), frame(25, 1), components=components).columns]
    assert sum(n.startswith("embedding") for n in names) == min(components, 6)


def test_a_small_effect_is_no_alarm_however_sure() -> None:
    found = measure(frame(400), frame(400, 1))
    tiny = tuple(c.model_copy(update={"statistic": 0.02}) for c in found.columns)
    sure = replace(found, p_value=0.001, columns=tiny)
    reports = [judge(sure, frame(400, 1), DriftConfig(min_effect=floor), 0, labelled=np.arange(0)) for floor in (0.01, 0.2)]
    assert [r.exceeds for r in reports] == [True, False]
    assert all(r.score == max(0.02, 2 * (r.auc or 0.5) - 1) < 0.2 for r in reports)


def test_labels_that_turned_alarm_on_samples_that_did_not_move() -> None:
    turned = frame(200, 1)
    turned = altered(turned, labels=(turned.labels + 1) % 3)
    found = judge(measure(frame(200), turned, permutations=999), turned, DriftConfig(), 0, labelled=np.arange(200))
    assert (found.moved, found.exceeds) == (False, True)
    assert found.families[-1].name == "concept"
    assert found.p_value == pytest.approx(0.001 / 0.2)


# --- mixtures and small components -----------------------------------------------------------------------------


def regimes() -> dict[str, Frame]:
    return {"photo": frame(200, 1), "painting": frame(200, 2, move=4)}


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_a_mixture_of_known_regimes_is_quiet_where_each_alone_alarms(share: float) -> None:
    first = int(160 * share)
    current = concatenate([frame(first, 3), frame(160 - first, 4, move=4)])
    found = {s.name: s.p_value for s in compare_all(regimes(), current, DriftConfig(), seed=0)}
    assert found["photo"] == found["painting"] == 0.001
    assert found["mixture"] > 0.05


def test_what_is_neither_regime_nor_mixture_alarms() -> None:
    current = frame(60, 3, move=-4)
    assert max(s.p_value for s in compare_all(regimes(), current, DriftConfig(), seed=0)) == 0.001


def test_a_mixture_has_the_shares_that_fit_the_window() -> None:
    mixed = mixture(regimes(), concatenate([frame(15, 3), frame(45, 4, move=4)]), seed=0)
    assert mixed is not None
    assert (mixed.embeddings.mean(axis=1) > 2.5).mean() == pytest.approx(0.75, abs=0.06)
    assert len(mixed) >= 200


def test_one_component_is_no_mixture() -> None:
    assert mixture({"photo": frame(30)}, frame(30, 1), 0) is None
    assert mixture(regimes(), frame(60, 3), 0) is None


def test_a_component_too_small_to_test_does_not_hide_drift() -> None:
    tiny = frame(MIN_SAMPLES - 1, 9)
    found = compare_all({"photo": frame(80, 1), "tiny": tiny}, frame(60, 3, move=4), DriftConfig(), seed=0)
    assert max(s.p_value for s in found) == 0.001


def test_a_regime_far_smaller_than_the_window_is_heard_only_where_there_is_no_better() -> None:
    dozen = frame(12, 9)
    both = compare_all({"photo": frame(200, 1), "dozen": dozen}, frame(300, 3, move=0.5), DriftConfig(), seed=0)
    assert "dozen" not in {s.name for s in both}
    assert max(s.p_value for s in both) == 0.001
    (alone,) = compare_all({"dozen": dozen}, frame(300, 3), DriftConfig(), seed=0)
    assert alone.p_value > 0.01
    small = compare_all({"photo": frame(200, 1), "dozen": dozen}, frame(40, 3), DriftConfig(), seed=0)
    assert {"photo", "dozen"} <= {s.name for s in small}


@pytest.mark.parametrize(("reference", "current"), [(MIN_SAMPLES - 1, 60), (60, MIN_SAMPLES - 1), (60, 0)])
def test_with_too_few_samples_nothing_is_tested(reference: int, current: int) -> None:
    (found,) = compare_all({"photo": frame(reference)}, frame(current, 1, move=5), DriftConfig(), seed=0)
    assert (found.p_value, found.columns, found.score) == (1.0, (), 0)


# --- seasons ---------------------------------------------------------------------------------------------------


def hourly(values: Frame, hours: list[int]) -> Frame:
    start = np.datetime64("2026-03-02T00:00:00", "s")  # a Monday
    return altered(values, times=start + np.resize(np.array(hours), len(values)) * np.timedelta64(3600, "s"))


def test_a_window_of_nights_is_compared_with_nights() -> None:
    night, day = frame(60, 1, move=3), frame(60, 2)
    reference = concatenate([hourly(night, [2, 3]), hourly(day, [12, 13])])
    window = hourly(frame(40, 3, move=3), [2, 3])
    assert compare_all({"all": reference}, window, DriftConfig(), 0)[0].p_value == 0.001
    config = DriftConfig(seasonal=("hour",))
    assert compare_all({"all": reference}, window, config, 0)[0].p_value > 0.01
    mixed = hourly(frame(40, 3), [2, 12, 12, 12])
    kept = same_season(reference, mixed, ("hour",))
    assert kept.times is not None
    assert np.mean([t.astype(object).hour == 2 for t in kept.times]) == pytest.approx(0.25, abs=0.02)


def test_weekdays_are_told_apart() -> None:
    reference = hourly(frame(70), [24 * day for day in range(7)])
    kept = same_season(reference, hourly(frame(20, 1), [24 * 5, 24 * 12]), ("weekday",))
    assert kept.times is not None
    assert {t.astype(object).weekday() for t in kept.times} == {5}


@pytest.mark.parametrize("times", [None, np.full(30, np.datetime64("NaT", "s"))])
def test_without_times_or_with_seasons_unknown_to_it_the_whole_reference_serves(times: Any) -> None:
    window = altered(frame(30), times=times)
    reference = hourly(frame(60, 1), [1, 2])
    assert same_season(reference, window, ("hour",)) is reference
    assert same_season(reference, hourly(frame(30), [5]), ("hour",)) is reference


# --- labels and unusual samples ----------------------------------------------------------------------------------


def test_labels_agree_with_the_champion_and_their_neighbours_unless_shuffled() -> None:
    right = frame(120)
    shuffled = altered(right, labels=np.random.default_rng(0).permutation(right.labels))
    good, bad = agreement(right), agreement(shuffled)
    assert good is not None
    assert bad is not None
    assert good.champion.value == right.correct.mean()
    assert good.neighbours > 0.6 > 0.5 > bad.neighbours
    assert bad.champion.high < 0.6
    assert bad.chance == pytest.approx(1 / 3, abs=0.03)


def test_too_few_labels_say_nothing() -> None:
    sample = frame(40)
    few = altered(sample, labels=np.where(np.arange(40) < MIN_SAMPLES - 1, sample.labels, -1))
    assert agreement(few) is None


def test_the_most_unusual_sample_is_found() -> None:
    odd = frame(20, 1)
    odd.embeddings[7] += 50
    strange, typical = unusual(frame(40), odd, 3)
    assert strange[0] == 7
    assert len(strange) == len(typical) == 3
