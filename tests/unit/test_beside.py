import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everfresh.tasks.drift.beside import Differences, differences
from everfresh.tasks.records import ColumnDrift

RNG = np.random.default_rng(0)


def ours(name, p_value, kind="numerical"):
    return ColumnDrift(name=name, kind=kind, statistic=0.2, effect=0.2, p_value=p_value)


def tables(rows=500, move=0.0, columns=("a", "b", "c")):
    first = pd.DataFrame({name: RNG.normal(size=rows) for name in columns})
    second = pd.DataFrame({name: RNG.normal(size=rows) + move for name in columns})
    return first, second


def test_where_both_agree_there_is_no_reason():
    found = differences(*tables(move=1.0), [ours(n, 0.001) for n in "abc"], 0.01)
    assert [d.reason for d in found.columns] == ["", "", ""]
    assert found.drifted
    assert found.theirs
    assert found.differing == ()
    assert "3 drifted and Evidently's defaults 3" in found.words


def test_columns_that_only_one_side_has_are_left_out():
    found = differences(*tables(), [ours("a", 0.5), ours("P(dog)", 0.001)], 0.01)
    assert [d.column for d in found.columns] == ["a"]


def test_an_uncorrected_test_is_told_from_a_corrected_one():
    first = pd.DataFrame({"a": np.arange(200.0), "b": np.arange(200.0)})
    second = pd.DataFrame({"a": np.arange(200.0) + 30, "b": np.arange(200.0)})  # p = 0.02
    found = differences(first, second, [ours("a", 0.06), ours("b", 1.0)], 0.01)
    assert [d.column for d in found.differing] == ["a"]
    assert "not corrected for 2 columns" in found.differing[0].reason
    assert "our rate of 0.01" in found.differing[0].reason


def test_a_distance_with_a_fixed_threshold_is_told_from_a_test():
    found = differences(*tables(rows=5000, move=0.06), [ours(n, 0.001) for n in "abc"], 0.01)
    assert all(d.method.startswith("Wasserstein") and not d.theirs and d.score < 0.1 for d in found.columns)
    assert all("fixed threshold" in d.reason and "5,000" in d.reason and "below 0.1" in d.reason for d in found.columns)
    assert not found.theirs
    first, second = tables(rows=1500)
    quiet = differences(first, second.iloc[:60], [ours(n, 0.4) for n in "abc"], 0.01)
    assert all(("above 0.1, within chance all the same" in d.reason) == d.theirs for d in quiet.columns)
    assert any(d.theirs for d in quiet.columns)  # 60 rows lie 0.1 SD away by chance alone


def test_a_test_that_sees_less_is_named():
    first, second = tables()
    found = differences(first, second, [ours("a", 0.001)], 0.01)
    assert "K-S" in found.columns[0].reason
    assert found.drifted


def test_categories_are_asked_about_as_categories():
    first = pd.DataFrame({"k": np.array(["x", "y", "z"] * 100, dtype=object), "two": np.array(["n", "m"] * 150, dtype=object)})
    found = differences(first, first[:50], [ours("k", 1.0, "categorical"), ours("two", 1.0, "categorical")], 0.05)
    assert [d.method for d in found.columns] == ["chi-square p_value", "Z-test p_value"]


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=3, max_size=30),
    st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=3, max_size=30),
    st.floats(0, 1),
)
def test_any_numbers_give_a_record_that_reads_back(first, second, p_value):
    for values in (first, second):
        values.append(1.0)  # the report leaves out columns without a finite value
    found = differences(pd.DataFrame({"a": first}), pd.DataFrame({"a": second}), [ours("a", p_value)], 0.01)
    assert Differences.from_bytes(found.to_bytes()) == found
    assert bool(found.differing) == (found.columns[0].drifted != found.columns[0].theirs)


def test_the_artifact_shows_where_the_two_differ(tmp_path, monkeypatch):
    from types import SimpleNamespace

    from everfresh.flows import artifacts
    from everfresh.tasks.config import DriftConfig
    from everfresh.tasks.store import FolderStore

    store = FolderStore(tmp_path)
    monkeypatch.setattr(artifacts, "open_pipeline", lambda config, tick: store)
    first = pd.DataFrame({"a": np.arange(200.0), "b": np.arange(200.0)})
    second = pd.DataFrame({"a": np.arange(200.0) + 30, "b": np.arange(200.0)})
    for p_value, lines in ((0.06, 3), (0.001, 0)):
        found = differences(first, second, [ours("a", p_value), ours("b", 1.0)], 0.01)
        (tmp_path / "found.json").write_bytes(found.to_bytes())
        part = store.keep_file(f"drift/{lines}/differences.json", tmp_path / "found.json")
        drift = SimpleNamespace(files={"differences.json": part})
        shown = artifacts._beside(SimpleNamespace(drift=DriftConfig()), None, drift)
        assert shown[0].startswith("Of 2 columns we find")
        assert [len(table.splitlines()) for table in shown[1:]] == ([lines] if lines else [])
    assert artifacts._beside(SimpleNamespace(drift=DriftConfig()), None, SimpleNamespace(files={})) == []
