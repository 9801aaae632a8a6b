"""The flow that clears up: what `everfresh sweep --delete` does, on a schedule."""

from __future__ import annotations

import pytest
from support.stream import Pipeline

from everfresh.flows.sweep import sweep
from everfresh.tasks.ledger import champion_moves

LEFT = ("candidates/half/checkpoint-00002-abc", "releases/half/model.safetensors")
"""Objects that no record names."""


@pytest.fixture
def cluttered(pipeline: Pipeline) -> Pipeline:
    """A pipeline with nothing to clear up but what a run that died has left just now."""
    sweep(pipeline.config, older_than_hours=0)
    for key in LEFT:
        pipeline.store.put(key, b"left by a run that died")
    return pipeline


def test_what_may_be_under_way_stays_without_being_told_so(cluttered: Pipeline) -> None:
    before = cluttered.bytes_of()
    assert sweep(cluttered.config) == 0
    assert cluttered.bytes_of() == before


def test_it_only_counts_when_told_not_to_delete(cluttered: Pipeline) -> None:
    before = cluttered.bytes_of()
    assert sweep(cluttered.config, older_than_hours=0, delete=False) == len(LEFT)
    assert cluttered.bytes_of() == before


def test_what_no_record_names_goes_and_all_else_stays(cluttered: Pipeline) -> None:
    before = cluttered.bytes_of()
    assert sweep(cluttered.config, older_than_hours=0) == len(LEFT)
    assert cluttered.bytes_of() == {key: data for key, data in before.items() if key not in LEFT}
    assert sweep(cluttered.config, older_than_hours=0) == 0


def test_releases_go_as_the_file_says_and_the_champion_stays(pipeline: Pipeline) -> None:
    assert len(weights(pipeline)) == 2
    pipeline.rewrite(retention={"keep_releases": 1, "keep_ancestors": 1})
    sweep(pipeline.config, older_than_hours=0)
    assert len(weights(pipeline)) == 2, "the champion was made from the other"
    pipeline.rewrite(retention={"keep_ancestors": 0})
    assert sweep(pipeline.config, older_than_hours=0) > 0
    champion = champion_moves(pipeline.store).last()
    assert champion is not None
    assert weights(pipeline) == [f"releases/{champion.release}/model.safetensors"]


def weights(pipeline: Pipeline) -> list[str]:
    return [key for key in pipeline.bytes_of("releases") if key.endswith("/model.safetensors")]
