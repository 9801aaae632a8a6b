"""What is between two releases."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from support.loop import run_window, second_window
from support.releases import publish

from everfresh.tasks.catalogue import named
from everfresh.tasks.config import RetentionConfig
from everfresh.tasks.difference import _unequal, difference, weights_apart
from everfresh.tasks.retention import carry_out, plan
from everfresh.tasks.store import FolderStore


def saved(path: Path, **tensors: object) -> Path:
    save_file({name.replace("_", "."): np.array(value, dtype=np.float32) for name, value in tensors.items()}, path)
    return path


def test_weights_are_apart_by_layer(tmp_path: Path) -> None:
    one = saved(tmp_path / "one", a_weight=[3, 4], a_bias=[0], b_weight=[1, 0], c_weight=[0, 0], d_weight=[1], e_weight=[1])
    other = saved(
        tmp_path / "other", a_weight=[3, 4], a_bias=[0], b_weight=[1, 2], c_weight=[1, 0], d_weight=[1, 1], f_weight=[1]
    )
    found = weights_apart(one, other)
    assert list(found["layers"].items()) == [("c", None), ("b", 2.0), ("a", 0.0)]
    assert (found["only_in_one"], found["only_in_other"], found["other_shape"]) == (["e.weight"], ["f.weight"], ["d.weight"])
    assert found["overall"] == pytest.approx((5 / 26) ** 0.5)
    assert set(weights_apart(one, one)["layers"].values()) == {0.0}


trees = st.integers() | st.none() | st.dictionaries(st.sampled_from("ab"), st.integers() | st.lists(st.integers(), max_size=2))


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.sampled_from("ab"), trees), st.dictionaries(st.sampled_from("ab"), trees))
def test_only_what_is_unequal_is_told_and_the_other_way_round_the_same(
    one: dict[str, object], other: dict[str, object]
) -> None:
    assert _unequal(one, one) == {}
    assert {name: pair[::-1] for name, pair in _unequal(other, one).items()} == _unequal(one, other)


def test_of_two_versions_lineage_data_gain_and_weights(tmp_path: Path) -> None:
    store, config = second_window(tmp_path)
    made = run_window(store, config)
    assert made.evaluation is not None
    found = difference(store, named(store, "v1"), named(store, "v2"))
    assert [(r["name"], r["window"], r["rung"]) for r in found["releases"]] == [("v1", 1, "pretrained"), ("v2", 2, "head")]
    assert found["lineage"]["rung"] == ["pretrained", "head"]
    assert found["data"]["windows"] == [1, 2]
    assert found["data"]["only_in_other"] == [made.tick.view]
    assert all(after > before for before, after in found["data"]["classes"].values())
    gain = made.evaluation.window.gain
    assert gain is not None
    assert found["gain"]["window"] == [gain.low, gain.value, gain.high]
    layers = found["weights"]["layers"]
    assert layers  # the head alone was refitted
    assert sum(change > 0 for change in layers.values()) == 1
    back = difference(store, named(store, "v2"), named(store, "v1"), weights=False)
    assert back["gain"]["window"] == [-gain.high, -gain.value, -gain.low]
    assert back["weights"] is None


def test_a_release_whose_weights_went_is_still_compared(folder_store: FolderStore) -> None:
    publish(folder_store, 1)
    publish(folder_store, 2)
    carry_out(folder_store, plan(folder_store, RetentionConfig(keep_releases=1, keep_ancestors=0), timedelta(0)))
    found = difference(folder_store, named(folder_store, "v1"), named(folder_store, "v2"))
    assert [r["name"] for r in found["releases"]] == ["v1", "v2"]
    assert (found["weights"], found["gain"]) == (None, None)


def test_comparing_loads_no_torch() -> None:
    heavy = ("torch", "prefect", "boto3", "numpy")
    code = f"import sys, everfresh.tasks.difference; print(*(m for m in {heavy} if m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == []
