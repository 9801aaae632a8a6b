"""Any table: what its columns are tested as, the sample and the counters of one pass, and the verdict."""

from __future__ import annotations

import datetime
import decimal
import json

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everfresh.tasks.config import DriftConfig
from everfresh.tasks.drift import columns, quality
from everfresh.tasks.drift.columns import OTHER, THERE, frames_of
from everfresh.tasks.drift.table import compare_tables, frame_of
from everfresh.tasks.errors import DataError

FAST = DriftConfig(permutations=199)


def orders(rows, seed, **changes):
    """A shop's orders, as a table of every kind of column."""
    rng = np.random.default_rng(seed)
    made = {
        "price": rng.lognormal(3, 1, rows),
        "items": rng.integers(1, 6, rows),
        "paid": rng.random(rows) < 0.9,
        "country": pa.array(rng.choice(["de", "fr", "it"], rows)).dictionary_encode(),
        "at": pa.array(np.datetime64("2026-01-01", "s") + np.arange(rows).astype("timedelta64[m]")),
        "id": [f"order {n}" for n in rng.integers(0, 1 << 40, rows)],
    }
    return pa.table(made | changes)


class TestColumns:
    def test_each_kind_is_tested_as_what_it_is(self):
        frame = frame_of(orders(300, 0))
        assert set(frame.numerical) == {"price", "items"}
        assert set(frame.categorical) == {"paid", "country", "at", "id"}
        assert set(frame.categorical["paid"]) == {"true", "false"}
        assert set(frame.categorical["id"]) == {THERE}
        assert set(frame.categorical["at"]) == {THERE}
        assert frame.probabilities.shape == (300, 0)
        assert frame.embeddings.shape == (300, 0)
        assert len(frame) == 300

    def test_why_values_are_left_out_is_said(self):
        left_out = frames_of(orders(300, 0), orders(300, 1))[2]
        assert left_out == {
            "at": "a point in time, which moves by itself",
            "id": "600 different values in 600 rows, like an id",
        }

    def test_missing_values_of_every_kind_are_kept(self):
        table = pa.table(
            {
                "a": pa.array([1.0, None, np.nan, np.inf]),
                "b": ["x", None, "", "y"],
                "c": [True, None, False, True],
                "d": pa.array([1, None, 2, 3]),
                "e": pa.array([None, None, None, None]),
                "f": pa.array([datetime.date(2026, 1, 1), None, None, None]),
            }
        )
        frame = frame_of(table)
        assert np.isnan(frame.numerical["a"]).tolist() == [False, True, True, True]
        assert np.isnan(frame.numerical["d"]).tolist() == [False, True, False, False]
        assert frame.categorical["b"].tolist() == ["x", "", "", "y"]
        assert frame.categorical["c"].tolist() == ["true", "", "false", "true"]
        assert frame.categorical["e"].tolist() == [""] * 4
        assert frame.categorical["f"].tolist() == [THERE, "", "", ""]

    def test_codes_are_the_same_in_every_type_of_number(self):
        whole, real = pa.table({"store": [1, 2, 30]}), pa.table({"store": [1.0, None, 30.0]})
        first, second, _ = frames_of(whole, real, categorical=["store"])
        assert first.categorical["store"].tolist() == ["1", "2", "30"]
        assert second.categorical["store"].tolist() == ["1", "", "30"]

    def test_decimals_are_numbers_and_vectors_an_embedding(self):
        table = pa.table(
            {
                "price": [decimal.Decimal("1.50"), decimal.Decimal("2.25")],
                "vector": pa.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], pa.list_(pa.float32(), 3)),
                "more": [[7], [8]],
            }
        )
        frame = frame_of(table)
        assert frame.numerical["price"].tolist() == [1.5, 2.25]
        assert frame.embeddings.tolist() == [[1, 2, 3, 7], [4, 5, 6, 8]]
        sliced = frame_of(table.slice(1))
        assert sliced.embeddings.tolist() == [[4, 5, 6, 8]]

    def test_rare_categories_of_many_are_one(self):
        values = [f"k{n}" for n in range(200) for _ in range(3 + (n < 40))]
        found = frame_of(pa.table({"k": values})).categorical["k"]
        assert len(set(found)) == columns.MAX_CATEGORIES
        assert OTHER in found
        assert {f"k{n}" for n in range(40)} <= set(found)

    def test_ids_are_read_off_both_tables_together(self):
        few = pa.table({"k": [f"k{n % 3}" for n in range(400)]})
        many = pa.table({"k": [f"id{n}" for n in range(400)]})
        for pair in ((few, many), (many, few)):
            first, second, left_out = frames_of(*pair)
            assert set(first.categorical["k"]) | set(second.categorical["k"]) == {THERE}
            assert "k" in left_out

    @pytest.mark.parametrize(
        ("reference", "current", "options", "message"),
        [
            ({"a": [1]}, {"b": [1]}, {}, "got 'a' in the reference only and 'b' in the current table only"),
            ({"a": [1], "b": [1]}, {"a": [1]}, {}, "got 'b' in the reference only"),
            (
                {"a": [1]},
                {"a": ["x"]},
                {},
                r"'a' must be of one kind in both tables, got number \(int64\) .* and text \(string\)",
            ),
            ({"a": [True]}, {"a": [1]}, {}, "got truth"),
            ({"a": [{"x": 1}]}, {"a": [{"x": 1}]}, {}, r"'a' must hold numbers, .* got struct.*--ignore a"),
            ({"a": [["x"]]}, {"a": [["x"]]}, {}, "got list"),
            ({"a": [b"x"]}, {"a": [b"x"]}, {}, "got binary"),
            ({"a": [1]}, {"a": [1]}, {"ignore": ["z"]}, "must be there, got 'z'. The reference has 'a'"),
            ({"a": [1]}, {"a": [1]}, {"categorical": ["z"]}, "must be there, got 'z'"),
            ({"a": [1]}, {"a": [1]}, {"ignore": ["a"]}, "must be a column to compare"),
            ({"a": [[1.0], [1.0, 2.0]]}, {"a": [[1.0]]}, {}, "'a' must all be there and of one length"),
            ({"a": [[1.0], None]}, {"a": [[1.0]]}, {}, "'a' must all be there"),
            ({"a": [[float("nan")]]}, {"a": [[1.0]]}, {}, "'a' must be finite"),
        ],
    )
    def test_what_cannot_be_compared_is_refused_with_its_name(self, reference, current, options, message):
        with pytest.raises(DataError, match=message):
            frames_of(pa.table(reference), pa.table(current), **options)

    def test_two_columns_of_one_name_are_refused(self):
        twice = pa.table([pa.array([1]), pa.array([2])], names=["a", "a"])
        with pytest.raises(DataError, match="got 'a' twice"):
            frame_of(twice)

    def test_ignored_columns_may_differ(self):
        first, second, _ = frames_of(pa.table({"a": [1], "b": [{}]}), pa.table({"a": [1.5], "c": [1]}), ignore=["b", "c"])
        assert set(first.numerical) == set(second.numerical) == {"a"}

    @settings(max_examples=60, deadline=None)
    @given(st.data())
    def test_any_values_make_a_frame_that_keeps_rows_and_gaps(self, data):
        rows = data.draw(st.integers(0, 30))
        kinds = {
            "n": (st.floats(), pa.float64()), "i": (st.integers(-(2**63), 2**63 - 1), pa.int64()),
            "u": (st.integers(0, 2**64 - 1), pa.uint64()), "s": (st.text(), pa.string()), "b": (st.booleans(), pa.bool_()),
            "t": (st.datetimes(), pa.timestamp("us")), "d": (st.dates(), pa.date32()), "c": (st.times(), pa.time64("us")),
        }  # fmt: skip
        table = pa.table(
            {
                name: pa.array(data.draw(st.lists(st.none() | values, min_size=rows, max_size=rows)), type_)
                for name, (values, type_) in kinds.items()
            }
        )
        frame = frame_of(table, categorical=["u"])
        assert len(frame) == rows
        for name in kinds:
            values = table.column(name).to_pylist()
            if name in frame.numerical:
                gone = [v is None or not np.isfinite(v) for v in values]
                assert np.isnan(frame.numerical[name]).tolist() == gone
            else:
                assert (frame.categorical[name] == "").tolist() == [v is None or v == "" for v in values]


class TestOnePass:
    @settings(max_examples=60, deadline=None)
    @given(st.integers(0, 400), st.integers(1, 60), st.integers(0, 5), st.lists(st.integers(1, 90), min_size=1, max_size=8))
    def test_the_sample_depends_on_seed_and_order_alone(self, rows, most, seed, cuts):
        table = pa.table({"row": np.arange(rows)})
        whole, cut = quality.Reservoir(most, seed), quality.Reservoir(most, seed)
        whole.add(table)
        start = 0
        while start < rows:
            for size in cuts:
                cut.add(table.slice(start, size))
                start += size
        first = whole.table().column("row").to_pylist()
        assert first == sorted(set(first))
        assert len(first) == min(rows, most)
        assert (cut.table().column("row").to_pylist() if rows else []) == first

    def test_every_row_is_as_likely(self):
        table = pa.table({"row": np.arange(100)})
        counts = np.zeros(100)
        for seed in range(2000):
            kept = quality.Reservoir(10, seed)
            for start in range(0, 100, 7):
                kept.add(table.slice(start, 7))
            counts[kept.table().column("row").to_numpy()] += 1
        expected = 200
        assert ((counts - expected) ** 2 / (expected * 0.9)).sum() < 148  # chi-square of 99 degrees, p = 0.001

    def test_counters_are_of_all_rows(self):
        reference = pa.table({"x": [0.0, 10.0, None], "k": ["a", "b", ""], "t": [True, None, False]})
        current = pa.table(
            {
                "x": [-1.0, 11.0, 12.0, np.nan, np.inf, -np.inf, None, 5.0],
                "k": ["a", "new", "new", "other", None, "", "b", "a"],
                "t": [True] * 8,
            }
        )
        drift = compare_tables(reference, current, FAST)
        x, k, t = drift.quality
        assert (x.missing, x.infinite, x.below, x.above) == ((1, 2), (0, 2), 1, 2)
        assert (k.missing, k.new, k.new_values) == ((1, 2), 3, ("new", "other"))
        assert (t.missing, t.new) == ((1, 0), 0)
        assert drift.rows == (3, 8)

    def test_too_many_texts_have_no_new_ones(self, monkeypatch):
        monkeypatch.setattr(quality, "MOST_VALUES", 5)
        names = [f"k{n}" for n in range(6)]
        assert compare_tables(pa.table({"k": names}), pa.table({"k": ["new"]}), FAST).quality[0].new == 0

    @settings(max_examples=30, deadline=None)
    @given(st.lists(st.none() | st.floats(), max_size=60), st.lists(st.none() | st.floats(), min_size=1, max_size=60))
    def test_counters_agree_with_counting(self, first, second):
        tables = [pa.table({"x": pa.array(values, pa.float64())}) for values in (first, second)]
        found = compare_tables(*tables, FAST).quality[0]
        gone = [sum(v is None or np.isnan(v) for v in values) for values in (first, second)]
        finite = [[v for v in values if v is not None and np.isfinite(v)] for values in (first, second)]
        low, high = (min(finite[0]), max(finite[0])) if finite[0] else (-np.inf, np.inf)
        assert found.missing == tuple(gone)
        assert found.infinite == tuple(len(v) - g - len(f) for v, g, f in zip((first, second), gone, finite, strict=True))
        assert (found.below, found.above) == (sum(v < low for v in finite[1]), sum(v > high for v in finite[1]))


def written(folder, kind, table):
    """The table as a file of that kind."""
    path = folder / f"{len(list(folder.iterdir()))}{kind}"
    if kind == ".parquet":
        pq.write_table(table, path, row_group_size=700)
    elif kind in {".csv", ".tsv"}:
        pa.csv.write_csv(table, path, pa.csv.WriteOptions(delimiter="," if kind == ".csv" else "\t"))
    elif kind == ".jsonl":
        path.write_text("".join(json.dumps(row, default=str) + "\n" for row in table.to_pylist()))
    else:
        path.mkdir()
        for part in range(3):
            pq.write_table(table.slice(part * 600, 600 if part < 2 else None), path / f"{part}.parquet")
    return path


class TestCompare:
    @pytest.mark.parametrize("kind", [".parquet", ".csv", ".tsv", ".jsonl", "folder"])
    def test_files_of_every_kind_give_the_same(self, kind, tmp_path):
        first, second = (orders(2000, seed).drop_columns(["at"]) for seed in (0, 1))
        config = DriftConfig(permutations=199, max_samples=500)
        expected = compare_tables(first, second, config)
        found = compare_tables(written(tmp_path, kind, first), written(tmp_path, kind, second), config)
        assert found.rows == (2000, 2000)
        assert found.report.current_samples == 500
        assert [(c.name, c.p_value) for c in found.report.columns] == [(c.name, c.p_value) for c in expected.report.columns]
        assert found.quality == expected.quality

    def test_two_samples_of_one_shop_are_quiet(self):
        drift = compare_tables(orders(1000, 0), orders(500, 1), FAST)
        assert not drift.report.alarm
        assert drift.report.words.startswith("table looks like table: p ")

    @pytest.mark.parametrize(
        ("change", "column"),
        [
            ({"price": np.random.default_rng(2).lognormal(3.5, 1, 500)}, "price"),
            ({"country": np.random.default_rng(2).choice(["de", "fr", "it", "es"], 500)}, "country"),
            ({"items": np.full(500, 3)}, "items"),
            ({"paid": np.random.default_rng(2).random(500) < 0.6}, "paid"),
            ({"id": pa.array([None if n % 2 else f"order {n}" for n in range(500)], pa.string())}, "id"),
        ],
    )
    def test_what_moved_is_found_and_named(self, change, column):
        report = compare_tables(orders(1000, 0), orders(500, 1, **change), FAST).report
        assert report.alarm
        assert report.columns[0].name == column
        assert column in report.words
        assert "differs from" in report.words

    def test_an_embedding_is_tested_as_a_whole(self):
        rng = np.random.default_rng(0)
        first, second = rng.normal(size=(400, 32)), rng.normal(size=(200, 32)) + 0.4
        tables = [pa.table({"v": pa.FixedSizeListArray.from_arrays(rows.ravel(), 32)}) for rows in (first, second)]
        assert compare_tables(*tables, FAST).report.alarm

    def test_an_effect_too_small_to_matter_is_quiet(self):
        rng = np.random.default_rng(0)
        first, second = (pa.table({"x": rng.normal(size=4000) + move}) for move in (0, 0.1))
        assert compare_tables(first, second, FAST).report.alarm is (
            compare_tables(first, second, FAST).report.score >= FAST.min_effect
        )
        loose = DriftConfig(permutations=199, min_effect=0.5)
        report = compare_tables(first, second, loose).report
        assert not report.alarm
        assert "too little to matter" in report.words

    @pytest.mark.parametrize("rows", [0, 1, 9])
    def test_few_rows_are_not_tested(self, rows):
        drift = compare_tables(orders(100, 0), orders(rows, 1), FAST)
        assert not drift.report.tested
        assert not drift.report.alarm
        assert "at least 10 rows" in drift.report.words

    def test_the_seed_decides(self):
        first, second = orders(1000, 0), orders(1000, 1)
        config = DriftConfig(permutations=199, max_samples=200)
        assert compare_tables(first, second, config, 5) == compare_tables(first, second, config, 5)
        assert (
            compare_tables(first, second, config, 5).report.p_value != compare_tables(first, second, config, 6).report.p_value
        )

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("a.parquet", b"no parquet", "must be readable as what its name says"),
            ("a.csv", b"x,y\n1,2\n3\n", "must be readable as what its name says, got: .*Expected 2 columns"),
            ("a.csv", b"", "must be readable"),
            ("a.jsonl", b'{"x": 1}\n{"x": ', "must be readable"),
            ("a.txt", b"x", r"must be named for what it is \(.parquet, .*got '.txt'"),
        ],
    )
    def test_a_file_that_cannot_be_read_is_told(self, name, content, message, tmp_path):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=message):
            compare_tables(tmp_path / name, tmp_path / name, FAST)

    def test_a_file_that_is_not_there_is_told(self, tmp_path):
        with pytest.raises(DataError, match="got nothing there"):
            compare_tables(tmp_path / "a.parquet", tmp_path / "a.parquet", FAST)

    def test_a_type_that_changes_in_the_middle_of_a_file_is_told(self, tmp_path):
        path = tmp_path / "a.csv"
        path.write_text("x\n" + "1\n" * 5_000_000 + "no number\n")
        with pytest.raises(DataError, match="write it as Parquet, which knows the types"):
            compare_tables(path, path, FAST)
