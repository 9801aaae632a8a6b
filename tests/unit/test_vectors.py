"""Rows as bytes, and as what a model is fed."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.consumer import consumer

from everfresh.tasks.errors import DataError
from everfresh.tasks.records import Feature
from everfresh.tasks.vectors import Value, encode, fitted, to_vector, values_of

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.one_of(st.none(), NUMBERS, st.text(max_size=8))
CONSUMER = consumer()
LOAD, HEAT = Feature(name="load"), Feature(name="heat", mean=10, std=4)
SITE = Feature(name="site", categories=("north", "south"))


@given(st.dictionaries(st.text(max_size=5), VALUES, max_size=6), st.randoms())
def test_a_row_comes_back_whole_whatever_the_order_of_its_columns(row: dict[str, Value], order: object) -> None:
    data = encode(row)
    assert values_of(data) == row
    names = list(row)
    order.shuffle(names)  # type: ignore[attr-defined]
    assert encode({name: row[name] for name in names}) == data


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_never_written(number: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode({"load": number})


def test_numbers_are_standardised_and_categories_one_hot_in_the_order_of_the_features() -> None:
    row = encode({"load": 2.5, "heat": 16.0, "site": "south", "unused": 1.0})
    assert to_vector(row, [SITE, HEAT, LOAD]).tolist() == [0, 1, 1.5, 2.5]


def test_what_is_missing_or_unknown_is_the_mean_or_no_category() -> None:
    row = encode({"load": None, "heat": None, "site": "east"})
    assert to_vector(row, [LOAD, HEAT, SITE]).tolist() == [0, 0, 0, 0]
    assert to_vector(encode({"site": None}), [SITE]).tolist() == [0, 0]


def test_a_column_that_was_not_named_when_the_row_came_in_is_told() -> None:
    with pytest.raises(DataError, match=r"names the column 'heat', which a row .* does not have.* load\. Name those"):
        to_vector(encode({"load": 1.0}), [HEAT])


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30))
def test_mean_and_std_are_those_of_the_numbers_that_are_there(numbers: list[float]) -> None:
    rows = [encode({"load": n, "site": "north"}) for n in numbers] + [encode({"load": None, "site": None})]
    load, site = fitted([LOAD, SITE], rows)
    assert site == SITE
    expected = torch.tensor(numbers, dtype=torch.float64)
    assert load.mean == pytest.approx(float(expected.mean()), rel=1e-9, abs=1e-6)
    if float(expected.std(correction=0)) > 1e-3:
        assert load.std == pytest.approx(float(expected.std(correction=0)), rel=1e-6)


def test_a_number_that_never_varies_or_never_comes_is_not_scaled() -> None:
    constant, absent = fitted([LOAD, HEAT], [encode({"load": 7.0, "heat": None})] * 3)
    assert (constant.mean, constant.std) == (7, 1)
    assert (absent.mean, absent.std) == (0, 1)


@given(st.fixed_dictionaries({"load": st.one_of(st.none(), NUMBERS), "heat": NUMBERS, "site": st.sampled_from(["north", "?"])}))
def test_the_consumer_of_the_documentation_makes_the_same_input(row: dict[str, Value]) -> None:
    features = [LOAD, HEAT, SITE]
    theirs = CONSUMER.row(encode(row), [f.model_dump(mode="json") for f in features])
    assert torch.equal(theirs, to_vector(encode(row), features))
