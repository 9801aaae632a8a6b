"""`everfresh check`: labels that cannot be right are told before the first run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from support.loop import pipeline
from support.pictures import digits, table, write_folder

from everfresh.flows.check import Checked, check
from everfresh.tasks.config import PipelineConfig


def source(config: PipelineConfig) -> Checked:
    return next(line for line in check(config) if line.name == "source")


def with_table(folder: Path, labels: Sequence[str]) -> PipelineConfig:
    files = {key.split("/")[1]: data for key, data in digits(len(labels), classes=("zero", "one", "two")).items()}
    write_folder(folder / "inbox", files)
    rows = [{"key": key, "label": label} for key, label in zip([*files, "gone.png"], [*labels, labels[0]], strict=True)]
    (folder / "inbox" / "labels.csv").write_bytes(table(rows, "csv"))
    source = {"kind": "folder", "path": str(folder / "inbox"), "labels": {"kind": "sidecar", "path": "labels.csv"}}
    return pipeline(folder, source=source)


def test_a_table_of_labels_is_held_against_classes_and_files(tmp_path: Path) -> None:
    line = source(with_table(tmp_path, ["zero", "one", "cat"]))
    assert line.passed
    assert line.words == (
        "3 files, 4 rows of labels of which 1 have no file, 2 of 3 classes; not in model.classes, will wait as pending: cat"
    )


def test_labels_of_which_none_is_a_class_fail(tmp_path: Path) -> None:
    line = source(with_table(tmp_path, ["klass0", "klass1"]))
    assert not line.passed
    assert "labels must be among model.classes, got none that is" in line.words


@pytest.mark.parametrize(("classes", "passed"), [(("zero", "one"), True), (("nine",), False)])
def test_folders_are_labels_too(tmp_path: Path, classes: tuple[str, ...], *, passed: bool) -> None:
    config = pipeline(tmp_path)
    write_folder(tmp_path / "inbox", digits(4, classes=classes))
    assert source(config).passed is passed
