"""What people see in the browser: the run, the artifacts of drift and evaluation, the page of an evaluation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.browser import browser_page
from support.prefect_server import PrefectServer
from support.stream import Pipeline

from everfresh.tasks.journal import scheduled
from everfresh.tasks.ledger import find
from everfresh.tasks.records import Evaluation

WITHIN = 60_000
"""Milliseconds."""


def the_run(played: Pipeline, server: PrefectServer) -> Any:
    """The flow run of the second window."""
    named = {"name": {"like_": f"{played.name} · window 2 · drift "}}
    [run] = server.call("flow_runs/filter", flow_runs=named)
    return run


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    with browser_page(1400, WITHIN) as opened:
        yield opened


def test_the_run_page_names_the_run(page: Any, played: Pipeline, server: PrefectServer, tmp_path: Path) -> None:
    run = the_run(played, server)
    page.goto(f"{server.ui}/runs/flow-run/{run['id']}")
    page.get_by_text(run["name"], exact=True).first.wait_for()
    page.get_by_text("Completed").first.wait_for()
    page.get_by_text(re.compile("window 2: released v2")).first.wait_for()  # its last line says what it did
    page.screenshot(path=tmp_path / "run.png")


def test_the_log_of_a_run_tells_each_step_in_a_sentence(played: Pipeline, server: PrefectServer) -> None:
    told = server.logs(the_run(played, server)["id"])
    [rung] = [t.rung for e in scheduled(played.store) if e.version == 2 for t in e.tried if t.failed_gates is not None]
    for words in (
        "window 2: 90 samples",
        "drift alarm: p ≤ 0.0062 against",
        "retrain: drift",
        f"{rung} passed better: ",
    ):
        assert [line for line in told if line.startswith(words)], (words, told)


def test_the_drift_artifact_shows_its_picture(page: Any, played: Pipeline, server: PrefectServer, tmp_path: Path) -> None:
    [artifact] = server.artifacts(f"{played.name}-drift")
    page.goto(f"{server.ui}/artifacts/artifact/{artifact['id']}")
    page.get_by_text("Drift alarm").first.wait_for()
    picture = page.locator("img[src^='data:image/png']").first
    picture.wait_for(state="visible")
    assert page.locator("img[src^='data:image/png']").count() == 1
    assert picture.evaluate("async image => { await image.decode(); return image.naturalWidth }") > 0
    page.screenshot(path=tmp_path / "drift.png", full_page=True)


def test_the_evaluation_artifact_shows_the_verdict_and_its_picture(
    page: Any, played: Pipeline, server: PrefectServer, tmp_path: Path
) -> None:
    [newest, _] = server.artifacts(f"{played.name}-evaluation")
    page.goto(f"{server.ui}/artifacts/artifact/{newest['id']}")
    page.get_by_text("passes all").first.wait_for()
    page.get_by_text("can tell").first.wait_for()
    picture = page.locator("img[src^='data:image/png']").first
    picture.wait_for(state="visible")
    assert picture.evaluate("async image => { await image.decode(); return image.naturalWidth }") > 0
    page.screenshot(path=tmp_path / "evaluation.png", full_page=True)


@pytest.mark.parametrize("width", [1000, 390])
def test_the_page_of_an_evaluation_fetches_nothing_and_fits(page: Any, played: Pipeline, width: int, tmp_path: Path) -> None:
    [proof] = [e.evaluation for e in scheduled(played.store) if e.version == 2]
    report = find(played.store, f"evaluations/{proof}/record.json", Evaluation).files["report.html"]
    (tmp_path / "report.html").write_bytes(played.store.read(report))
    fetched: list[str] = []
    page.on("request", lambda request: fetched.append(request.url))
    page.set_viewport_size({"width": width, "height": 900})
    page.goto((tmp_path / "report.html").as_uri())
    assert [url for url in fetched if not url.startswith(("file:", "data:"))] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    images = page.locator("img")
    assert images.count() > 3
    assert all(images.nth(i).evaluate("image => image.complete && image.naturalWidth") for i in range(images.count()))
    page.screenshot(path=tmp_path / "page.png", full_page=True)
