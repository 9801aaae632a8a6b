"""Reports as snapshots of an Evidently workspace, so that the UI a team has already shows our windows.

A workspace is a folder that ``evidently ui --workspace FOLDER`` serves. The project bears the pipeline's name; where
there is one of that name it is used, else it is made under an id that follows from the name, so that two runs at the
same time make one. A snapshot's id follows from project and run: a rerun finds it there.

Nothing here may stop the loop: what goes wrong with somebody's UI is a warning.
"""

from __future__ import annotations

import logging
import tempfile
import uuid
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

SPACE = uuid.UUID("2f1f1c64-8a3d-4c8e-9d0e-6a4a3a1f5b7e")
"""Names our ids, so that they are nobody else's."""


def keep(snapshot: Any, folder: Path, project: str, run: str) -> bool:
    """Add one report to a workspace, once.

    Args:
        snapshot: what Evidently's ``Report.run`` returned.
        folder: the workspace; made if it is not there.
        project: name of the project; made if it is not there, found again if it is.
        run: what the snapshot is of; the same run is kept once.

    Returns:
        Whether it is in the workspace now; if not, a warning says why.
    """
    try:
        _keep(snapshot, folder, project, run)
    except Exception as error:  # a broken workspace breaks in ways of its own, and none may end a tick
        logger.warning(
            "drift.workspace: Evidently must be able to write to %s, got %s: %s. The window goes on without its snapshot.",
            folder,
            type(error).__name__,
            " ".join(str(error).split()),
        )
        return False
    return True


def _keep(snapshot: Any, folder: Path, project: str, run: str) -> None:
    from everfresh.tasks.drift.report import quietly

    with quietly():
        from evidently.ui.workspace import Workspace

        workspace = Workspace(str(folder))
        found = _project(workspace, project)
        number = uuid.uuid5(found.id, run)
        if (folder / str(found.id) / "snapshots").is_dir() and number in workspace.list_runs(found.id):
            return
        with tempfile.TemporaryDirectory(prefix=".everfresh-", dir=folder) as aside:  # a run that dies leaves no half snapshot
            state = type(workspace.state)(aside)
            state.write_snapshot(found.id, number, snapshot.to_snapshot_model())  # `add_run` would take a new id each time
            place = Path(str(found.id)) / "snapshots"
            (folder / place).mkdir(exist_ok=True)
            (Path(aside) / place / f"{number}.json").replace(folder / place / f"{number}.json")


def _project(workspace: Any, name: str) -> Any:
    """The project of that name, or a new one with a panel to begin with."""
    from evidently.sdk.models import DashboardPanelPlot, PanelMetric, ProjectModel

    if known := sorted(workspace.search_project(name), key=lambda p: str(p.id)):
        return known[0]
    model = ProjectModel(id=uuid.uuid5(SPACE, name), name=name, description="Drift reports of Everfresh, one a window")
    made = workspace.add_project(model)
    share = PanelMetric(metric="DriftedColumnsCount", metric_labels={"value_type": "share"}, legend="share")
    made.dashboard.add_panel(
        DashboardPanelPlot(
            title="Drifted columns",
            subtitle="Share of the readable columns, at the declared rate for all together",
            size="full",
            values=[share],
            plot_params={"plot_type": "line"},
        )
    )
    return made
