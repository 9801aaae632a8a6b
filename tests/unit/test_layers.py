"""The import rule: layers point one way, heavy libraries live where they are used, nothing is a pickle."""

from __future__ import annotations

import ast
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from support.pickles import find_pickles

from everfresh.tasks.store import Store

ROOT = Path(__file__).parents[2]
TASKS, FLOWS = ROOT / "tasks", ROOT / "flows"
STAGES = {"ingest", "drift", "decide", "fine_tune", "evaluate", "publish"}
RECORDS = {"config", "errors", "records"}
SEAM = "steps"
# What only some modules may import, as paths relative to the project that start with one of these.
OWNERS = {
    "boto3": ("tasks/store/s3.py",),
    "botocore": ("tasks/store/s3.py",),
    "evidently": ("tasks/drift/",),
    "prefect": ("tasks/steps.py", "flows/"),
    "typer": ("flows/",),
}


def files(*folders: Path) -> list[Path]:
    return sorted(path for folder in folders for path in folder.rglob("*.py") if "templates" not in path.parts)


def name_of(path: Path) -> str:
    """`tasks/drift/detect.py` is part of the module `drift`."""
    parts = path.relative_to(TASKS).parts
    return parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Every module that a file imports anywhere, types included; `from package import module` counts as both."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            if node.level:
                found.add("a relative import")
    return found


def own(path: Path) -> set[str]:
    """Modules of `tasks` that a file imports."""
    return {name.split(".")[2] for name in imports(path) if name.startswith("everfresh.tasks.")}


def label(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", [p for p in files(TASKS) if name_of(p) in RECORDS], ids=label)
def test_records_need_the_standard_library_and_pydantic_only(path: Path) -> None:
    allowed = {"pydantic", "everfresh"} | ({"yaml"} if name_of(path) == "config" else set())
    roots = {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names)
    assert roots <= allowed
    assert own(path) <= RECORDS


HELPERS = [p for p in files(TASKS) if name_of(p) not in STAGES | RECORDS | {SEAM, "__init__"}]


@pytest.mark.parametrize("path", HELPERS, ids=label)
def test_a_helper_knows_no_stage_and_no_seam(path: Path) -> None:
    assert own(path) & (STAGES | {SEAM}) == set()


@pytest.mark.parametrize("path", [p for p in files(TASKS) if name_of(p) in STAGES], ids=label)
def test_a_stage_knows_no_other_stage_and_no_seam(path: Path) -> None:
    assert own(path) & (STAGES - {name_of(path)} | {SEAM}) == set()


@pytest.mark.parametrize("path", files(TASKS), ids=label)
def test_tasks_know_no_flow(path: Path) -> None:
    assert [name for name in imports(path) if name.startswith("everfresh.flows")] == []


@pytest.mark.parametrize("path", files(TASKS, FLOWS), ids=label)
def test_nothing_imports_deployments_infra_tests_or_a_relative_module(path: Path) -> None:
    roots = {name.split(".")[0] for name in imports(path)}
    assert roots & {"deployments", "infra", "tests", "support", "tasks", "flows", "benchmarks", "a relative import"} == set()


@pytest.mark.parametrize("path", files(TASKS, FLOWS), ids=label)
@pytest.mark.parametrize("library", OWNERS)
def test_a_library_is_imported_only_where_it_belongs(path: Path, library: str) -> None:
    if not label(path).startswith(OWNERS[library]):
        assert [name for name in imports(path) if name.split(".")[0] == library] == []


@pytest.mark.parametrize(
    "module",
    ["config", "errors", "records", "store", "ledger", "images", "views", "ingest", "decide", "journal", "alias", "serving"],
)
def test_a_module_loads_no_heavy_library(module: str) -> None:
    heavy = "torch torchvision evidently boto3 prefect pandas matplotlib sklearn scipy pyarrow"
    code = f"import sys, everfresh.tasks.{module}; print(*(m for m in {heavy.split()} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_tick_with_nothing_to_do_loads_no_heavy_library(tmp_path: Path) -> None:
    (tmp_path / "inbox").mkdir()
    code = f"""
import sys
from everfresh.tasks.config import parse_config
from everfresh.tasks.ingest import ingest
from everfresh.tasks.store import open_store
config = parse_config({{"name": "p", "store": {str(tmp_path / "store")!r}, "model": {{"classes": ["a", "b"]}},
                       "source": {{"kind": "folder", "path": {str(tmp_path / "inbox")!r}}}}})
print(ingest(open_store(config.store), config), *(m for m in ("torch", "evidently", "boto3", "prefect") if m in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["None"]


def test_pickles_are_found_in_a_store(store: Store, tmp_path: Path) -> None:
    import numpy as np
    import torch
    from safetensors.torch import save

    torch.save({"weight": torch.zeros(2)}, tmp_path / "model.pt")
    bad = {f"bad/{protocol}": pickle.dumps({"a": [1, "b"]}, protocol) for protocol in range(6)}
    bad["bad/torch"] = (tmp_path / "model.pt").read_bytes()
    good = {
        "json": b'{"a": 1.5}', "list": b"[1.0, 2.0]\n", "text": b"cat. dog.", "empty": b"", "zeros": b"\0" * 600,
        "weights": save({"weight": torch.zeros(2)}), "floats": np.linspace(0, 1, 50).tobytes(),
    }  # fmt: skip
    for key, data in {**bad, **good}.items():
        store.put(key, data)
    assert find_pickles(store) == sorted(bad)
