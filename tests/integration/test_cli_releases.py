"""Releases on the real console script, over a store of releases that nobody trained; no Prefect server is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from support.cli import SECRET, Everfresh
from support.releases import publish, put_release, release_id

from everfresh.tasks.alias import promote, remove, rollback
from everfresh.tasks.catalogue import release_ids
from everfresh.tasks.ledger import champion_moves
from everfresh.tasks.store import FolderStore

FILE = """
name: p
store: store
source: {kind: folder, path: inbox}
model: {classes: [a, b]}
"""


@pytest.fixture
def alone(tmp_path: Path) -> Everfresh:
    """The console script where Prefect was never used."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path / "home"), "AWS_SECRET_ACCESS_KEY": SECRET}
    return Everfresh(environment | {"EVERFRESH_CACHE": str(tmp_path / "cache")})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A pipeline with v1, v2, v3, and a release that never was champion."""
    (tmp_path / "pipeline.yaml").write_text(FILE)
    for number in (1, 2, 3):
        publish(store_of(tmp_path / "pipeline.yaml"), number)
    put_release(store_of(tmp_path / "pipeline.yaml"), 4)
    return tmp_path / "pipeline.yaml"


def store_of(file: Path) -> FolderStore:
    return FolderStore(file.parent / "store" / "p")


def said(done: subprocess.CompletedProcess[str], code: int = 0) -> Any:
    """What a command printed; of JSON the value."""
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout) if done.stdout.startswith(("[", "{")) else done.stdout + done.stderr


def test_a_table_of_releases_and_who_names_them(alone: Everfresh, file: Path) -> None:
    store = store_of(file)
    promote(store, release_id(4), alias="challenger", reason="try it", by="ana")
    promote(store, "v1", alias="shadow")
    remove(store, "shadow")
    rollback(store, 2, by="ana")
    facts = said(alone("releases", file, "--json"))
    assert [(f["version"], f["window"], f["rung"], f["aliases"], f["state"]) for f in facts] == [
        ("v1", 1, "head", [], []), ("v2", 2, "head", ["champion"], []), ("v3", 3, "head", [], ["barred"]),
        (None, 4, "head", ["challenger"], []),
    ]  # fmt: skip
    assert facts[3]["id"] == release_id(4)
    assert "challenger" in said(alone("releases", file))
    [status] = said(alone("status", file, "--json"))
    assert status["other_aliases"] == [f"challenger is {release_id(4)[:12]}, by ana: try it"]
    told = said(alone("history", file, "--json"))
    assert [m["kind"] for m in told["aliases"]["shadow"]] == ["promote", "remove"]
    assert f"promote challenger {release_id(4)[:12]} by ana: try it" in said(alone("history", file))


def test_aliases_are_moved_by_hand(alone: Everfresh, file: Path) -> None:
    assert said(alone("promote", file, "v1", "--alias", "shadow")) == f"promote: shadow is v1 ({release_id(1)[:12]})\n"
    assert said(alone("promote", file, release_id(4), "--reason", "mine", "--json"))["version"] == 4
    assert "which is shadow. Move it first" in said(alone("retire", file, "v1"), 1)
    assert said(alone("unalias", file, "shadow")) == "remove: shadow names no release\n"
    assert said(alone("retire", file, "v1", "--reason", "licence", "--json"))["retired"] == [release_id(1)]
    assert "retire v1 by" in said(alone("history", file))
    assert "must not be retired, got v1" in said(alone("rollback", file, "--to", "v1"), 1)
    assert said(alone("restore", file, "v1")).startswith("restore: the champion is v4 (")
    assert "a name must be lower-case letters" in said(alone("promote", file, "v1", "--alias", "v7"), 1)


def test_old_releases_are_shown_first_and_removed_on_demand(alone: Everfresh, file: Path) -> None:
    options = ("sweep", file, "--keep-releases", "2", "--older-than", "0")
    shown = said(alone(*options))
    assert "stays   v3: is champion\n" in shown
    assert "stays   v2: an ancestor of the champion\n" in shown
    assert f"goes    v1 ({release_id(1)[:12]}), " in shown
    assert shown.endswith("; `--delete` removes them\n")
    assert len(release_ids(store_of(file))) == 4
    objects = said(alone(*options, "--json"))
    assert {o["kind"] for o in objects} == {"release"}
    assert not objects[0]["deleted"]
    gone = said(alone(*options, "--delete"))
    assert f"removed v1 ({release_id(1)[:12]}), " in gone
    assert gone.splitlines()[-1] == shown.splitlines()[-1].removesuffix("; `--delete` removes them")
    assert release_ids(store_of(file)) == sorted([release_id(2), release_id(3), release_id(4)])
    head = champion_moves(store_of(file)).last()
    assert head is not None
    assert head.reason == "retention: keep the 2 newest"
    assert [f["version"] for f in said(alone("releases", file, "--json"))] == ["v2", "v3", None]
    assert "weights removed" in said(alone("releases", file, "--all"))


def test_the_rule_of_the_file_holds_where_no_option_is_given(alone: Everfresh, file: Path) -> None:
    assert said(alone("sweep", file, "--older-than", "0")) == "0 objects, 0 bytes\n"
    file.write_text(FILE + "retention: {keep_releases: 3}\n")
    assert "goes    v1" in said(alone("sweep", file, "--older-than", "0"))
    assert "stays   v1: was champion until " in said(alone("sweep", file))
    file.write_text(FILE + "retention: {keep_releases: 0}\n")
    assert "retention.keep_releases" in said(alone("sweep", file), 2)


def test_an_option_changes_one_rule_of_the_file_and_leaves_the_others(alone: Everfresh, file: Path) -> None:
    file.write_text(FILE.replace("name: p", "name: old") + "retention: {keep_releases: 3, keep_ancestors: 0}\n")
    store = FolderStore(file.parent / "store" / "old")
    for number in range(1, 6):
        publish(store, number, at=datetime(2026, 1, number, tzinfo=UTC))
    said(alone("sweep", file, "--keep-days", "1", "--older-than", "0", "--delete"))
    assert release_ids(store) == sorted(release_id(number) for number in (3, 4, 5))
    head = champion_moves(store).last()
    assert head is not None
    assert head.reason == "retention: keep the 3 newest and those of 1 days"
    said(alone("sweep", file, "--keep-releases", "2", "--older-than", "0", "--delete"))
    assert release_ids(store) == sorted(release_id(number) for number in (4, 5))


def test_a_release_is_verified_and_pulled(alone: Everfresh, file: Path, tmp_path: Path) -> None:
    assert said(alone("verify", file)) == f"ok   v3 ({release_id(3)[:12]})\n"
    assert [one["version"] for one in said(alone("verify", file, "--all", "--json"))] == [1, 2, 3, None]
    target = tmp_path / "model"
    words = said(alone("pull", file, "shadow", target), 1)
    assert words.startswith("everfresh: release: must be a version such as v3, an alias")
    assert said(alone("pull", file, "v2", target)).startswith(f"pull: v2 ({release_id(2)[:12]}) stands in {target}: 3 files, ")
    assert said(alone("pull", file, "champion", target), 1).startswith("everfresh: pull: the target must be absent or an empty")
    store_of(file).put(f"releases/{release_id(2)}/model.safetensors", b"x")
    store_of(file).delete(f"releases/{release_id(3)}/card.md")
    words = said(alone("verify", file, "--all"), 1)
    assert f"ok   v1 ({release_id(1)[:12]})\nFAIL v2 ({release_id(2)[:12]})\n     model.safetensors: " in words
    assert "     card.md: " in words
    assert "--all must stand alone" in said(alone("verify", file, "v2", "--all"), 2)


def test_two_releases_are_compared(alone: Everfresh, file: Path) -> None:
    words = said(alone("diff", file, "v1", "champion", "--no-weights"))
    assert words.splitlines()[0].startswith(f"v1 ({release_id(1)[:12]}) ")
    assert "lineage:\n  seed: 1 → 3\nconfig: equal\n" in words
    assert "weights: not compared" in words
    assert said(alone("diff", file, "v1", "v2", "--no-weights", "--json"))["lineage"] == {"seed": [1, 2]}


@pytest.mark.parametrize("command", ["rollback", "promote", "pin", "releases", "sweep", "verify"])
def test_a_command_on_releases_loads_neither_torch_nor_prefect(file: Path, tmp_path: Path, command: str) -> None:
    arguments = [command, str(file), *(["v1"] if command == "promote" else [])]
    code = f"""
import sys
sys.argv = ["everfresh", *{arguments!r}]
from everfresh.flows.cli import main
try:
    main()
finally:
    print(*(m for m in ("torch", "prefect", "boto3", "pandas", "evidently") if m in sys.modules), file=sys.stderr)
"""
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
    )
    assert (done.returncode, done.stderr.split()) == (0, []), done.stdout
