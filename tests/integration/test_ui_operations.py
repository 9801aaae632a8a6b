"""The daily work in a real browser: schedules, *Custom run*, a suspended run that a person approves, pictures in both UIs.

With `EVERFRESH_SCREENSHOTS` set to a folder, what the tests saw is kept there: `make screenshots`.
"""

from __future__ import annotations

import io
import os
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.browser import browser_page
from support.cli import Everfresh
from support.operations import reaches, working
from support.prefect_server import PrefectServer
from support.stream import Pipeline

from everfresh.flows.look import history
from everfresh.tasks.approvals import waiting

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
]  # a worker starts a process for each run; `make screenshots` runs them too
WITHIN = 120_000
"""Milliseconds."""
Keep = Callable[[str], None]


@dataclass(frozen=True)
class Deployed:
    """A pipeline that asks before it publishes, deployed."""

    pipeline: Pipeline
    id: str


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    with browser_page(1000, WITHIN) as opened:
        yield opened


@pytest.fixture
def keep(page: Any) -> Keep:
    """Keeps a screenshot for the documentation where that is asked for."""

    def kept(name: str) -> None:
        if folder := os.environ.get("EVERFRESH_SCREENSHOTS"):
            page.wait_for_timeout(1_500)  # what glides into its place
            Image.open(io.BytesIO(page.screenshot())).save(Path(folder) / f"{name}.webp", quality=80, method=6)

    return kept


@pytest.fixture(scope="module")
def deployed(
    page: Any, played: Pipeline, server: PrefectServer, everfresh: Everfresh, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployed]:
    """Deployed as a user does it, with a schedule, and a real worker on a pool of its own."""
    folder = tmp_path_factory.mktemp("operated")
    name = f"digits-{uuid.uuid4().hex[:4]}"
    pipeline = played.copy(
        folder / "pipeline",
        name,
        drift={"report": False},
        evaluation={"report": False},
        policy={"ladder": ["head"]},
        gates=[{"kind": "floor", "minimum": 0.01}],
        approval={"ask": "before_publishing"},
        schedule={"retrain": "0 3 * * *"},
        deploy={"pool": f"cpu-{name}"},
    )
    done = everfresh("deploy", pipeline.file)
    assert done.returncode == 0, done.stderr
    [made] = server.call("deployments/filter", deployments={"name": {"any_": [name]}}, flows={"name": {"any_": ["retrain"]}})
    with working(server, f"cpu-{name}", folder):
        yield Deployed(pipeline, made["id"])


def field(page: Any, label: str) -> Any:
    """A field of a form that Prefect's UI makes of a schema."""
    exact = page.get_by_text(re.compile(rf"^{label}( \(Optional\))?$"))
    return page.locator(".schema-form-property").filter(has=exact).last


def write(page: Any, label: str, words: str) -> None:
    """Fill a field in and leave it: the form takes over what was typed only then, and may move under a click."""
    place = field(page, label).locator("textarea, input").first
    place.fill(words)
    place.press("Tab")


def choose(page: Any, label: str, option: str) -> None:
    """Pick one of a list; it opens by the keyboard, while a click by a program closes it again at once."""
    field(page, label).locator(".p-select-button__control").focus()
    page.keyboard.press("ArrowDown")
    page.get_by_role("option").filter(has_text=re.compile(f"^{option}$")).click()


def test_deployments_are_listed_with_their_schedules(page: Any, deployed: Deployed, server: PrefectServer, keep: Keep) -> None:
    page.goto(f"{server.ui}/deployments")
    row = page.get_by_role("row").filter(has_text=deployed.pipeline.name).filter(has_text="retrain")
    row.get_by_text("At 03:00 AM").first.wait_for()
    keep("ui-deployments")


def test_a_custom_run_is_filled_in_suspended_and_approved(
    page: Any, deployed: Deployed, server: PrefectServer, keep: Keep
) -> None:
    page.goto(f"{server.ui}/deployments/deployment/{deployed.id}/run")
    field(page, "Force").locator(".p-toggle__control").click()
    write(page, "Reason", "a new lens")
    choose(page, "Rung", "head")
    write(page, "First window", "2")
    keep("ui-custom-run")
    page.get_by_role("button", name="Submit").click()
    page.get_by_text("scheduled to start").first.wait_for()

    ours = {"deployment_id": {"any_": [deployed.id]}, "state": {"name": {"not_any_": ["Scheduled"]}}}
    run = reaches(server, "Suspended", **ours)
    [question] = waiting(deployed.pipeline.store)
    assert "waits for an answer before publishing" in run["name"]
    page.goto(f"{server.ui}/runs/flow-run/{run['id']}")
    page.get_by_role("button", name="Resume").click()
    page.get_by_text("May the head challenger").or_(page.get_by_text("may the head challenger")).first.wait_for()
    choose(page, "Answer", "approve")
    write(page, "Reason", "the gates look right")
    write(page, "Your name", "Ada")
    keep("ui-approval")
    page.get_by_role("button", name="Submit").click()

    reaches(server, "Completed", id={"any_": [run["id"]]})
    entry = history(deployed.pipeline.store)[0][-1]
    assert (entry.seq, entry.version, [t.rung for t in entry.tried]) == (2, 3, ["head"])
    assert [(a.by, a.reason, a.through) for a in entry.answers] == [("Ada", "the gates look right", "form")]
    assert (entry.request, entry.decision.reasons) == (question.request, ("forced by a person: a new lens",))
    page.reload()
    page.get_by_text("Completed").first.wait_for()
    keep("ui-run")


@pytest.mark.slow
def test_a_suspended_run_goes_on_after_an_answer_on_the_command_line(
    deployed: Deployed, server: PrefectServer, everfresh: Everfresh
) -> None:
    forced = server.call(f"deployments/{deployed.id}/create_flow_run", parameters={"force": True, "reason": "another"})
    reaches(server, "Suspended", id={"any_": [forced["id"]]})
    said = everfresh("approve", deployed.pipeline.file, "2", "--reject", "--reason", "not today", "--by", "Grace")
    assert (said.returncode, said.stderr) == (0, "")
    assert said.stdout == "window 2: Grace rejected the release: not today; the suspended run goes on\n"
    reaches(server, "Completed", id={"any_": [forced["id"]]})
    [entry] = [e for e in history(deployed.pipeline.store)[0] if e.answers and e.answers[0].by == "Grace"]
    assert (entry.version, entry.failed_gates, entry.decision.reasons) == (
        None, ("approval",), ("forced by a person: another",),
    )  # fmt: skip


@pytest.mark.parametrize("ui", ["", "/v2"])
def test_both_uis_show_the_table_and_the_picture_of_drift(
    page: Any, played: Pipeline, server: PrefectServer, keep: Keep, ui: str
) -> None:
    [artifact] = server.artifacts(f"{played.name}-drift")
    page.goto(f"{server.ui}{ui}/artifacts/artifact/{artifact['id']}")
    page.get_by_text("Drift alarm").first.wait_for()
    page.locator("table").get_by_text("effect (SD)").first.wait_for()
    picture = page.locator("img[src^='data:image/png']").first
    picture.wait_for(state="visible")
    assert picture.evaluate("async image => { await image.decode(); return image.naturalWidth }") > 0
    keep(f"ui-drift{ui.replace('/', '-')}")
