"""The real console script: what people type, what they read, and the exit code their scripts see."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from jsonschema import Draft202012Validator
from support.cli import SCRIPT, SECRET, Everfresh
from support.pictures import digits, write_folder
from support.prefect_server import PrefectServer
from support.stream import AGED, Pipeline, make_pipeline
from typer.main import get_command

from everfresh.flows.cli import app

GROUP = get_command(app)
COMMANDS = sorted(GROUP.commands)


def parsed(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def sentence(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The error that a person reads: one paragraph on stderr, no traceback, nothing on stdout."""
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("everfresh: ")
    assert "Traceback" not in done.stderr
    return done.stderr.removeprefix("everfresh: ")


def test_every_command_explains_itself() -> None:
    installed = subprocess.run([SCRIPT, "--help"], capture_output=True, text=True, check=True)
    assert len(COMMANDS) > 25
    for command in COMMANDS:
        told = CliRunner().invoke(GROUP, [command, "--help"], prog_name="everfresh")
        assert told.exit_code == 0
        assert f"Usage: everfresh {command}" in told.stdout
        assert command in installed.stdout


STORE_PROMISES = ("reach", "write", "read", "race", "bytes", "clock", "delete")


def test_init_writes_a_file_that_check_accepts(everfresh: Everfresh, tmp_path: Path) -> None:
    path = tmp_path / "new" / "pipeline.yaml"
    assert everfresh("init", path).stdout.splitlines() == [
        f"wrote {path}", f"wrote {path.parent / 'pipeline.schema.json'}",
    ]  # fmt: skip
    schema = json.loads((path.parent / "pipeline.schema.json").read_text("utf-8"))
    Draft202012Validator(schema).validate(yaml.safe_load(path.read_text("utf-8")))
    assert "must not exist yet" in sentence(everfresh("init", path), 2)
    assert everfresh("init", path, "--force").returncode == 0

    text = path.read_text("utf-8").replace("resnet50", "resnet18").replace("weights: DEFAULT", "weights: null")
    path.write_text(text.replace('["cat", "dog"]', "[zero, one]"), "utf-8")
    failed = everfresh("check", path)
    assert failed.returncode == 1
    assert "FAIL source" in failed.stdout
    write_folder(path.parent / "inbox", digits(6, classes=("zero", "one")))
    lines = parsed(everfresh("check", path, "--json"))
    assert [(line["check"], line["passed"]) for line in lines] == [
        ("config", True), *((f"store {name}", True) for name in STORE_PROMISES),
        ("source", True), ("classes", True), ("weights", True), ("device", True), ("champion", True), ("gates", True),
        ("prefect", True),
    ]  # fmt: skip
    assert {"6 files", "2 of 2 classes"} <= {line["words"] for line in lines}


def test_an_empty_pipeline_has_a_status_a_history_and_nothing_to_do(everfresh: Everfresh, tmp_path: Path) -> None:
    empty = make_pipeline(tmp_path / "p", "empty")
    [facts] = parsed(everfresh("status", empty.file, "--json"))
    assert (facts["champion"], facts["windows"], facts["last_window"]) == (None, 0, None)
    assert parsed(everfresh("history", empty.file, "--json")) == {"ticks": [], "moves": []}
    assert everfresh("history", empty.file).stdout == "no tick yet: `everfresh run` makes the first\n"
    assert everfresh("run", empty.file).stdout == "nothing to do: nothing is new in the source\n"
    assert parsed(everfresh("run", empty.file, "--json")) == []
    assert "there must be a champion, got none" in sentence(everfresh("rollback", empty.file), 1)


def test_what_was_played_is_told(everfresh: Everfresh, played: Pipeline) -> None:
    [facts] = parsed(everfresh("status", played.file, "--json"))
    assert (facts["champion"], facts["windows"], facts["windows_waiting"], facts["drift_alarm"]) == ("v2", 2, 0, True)
    told = parsed(everfresh("history", played.file, "--json"))
    assert [t["version"] for t in told["ticks"]] == [1, 2]
    assert [m["kind"] for m in told["moves"]] == ["publish", "publish"]
    assert "v2" in everfresh("status", played.file).stdout
    assert "ALARM" in everfresh("history", played.file).stdout


def test_wrong_use_is_code_2_and_names_the_remedy(everfresh: Everfresh, pipeline: Pipeline) -> None:
    assert "--to must be a version such as v3, got 'latest'" in sentence(
        everfresh("rollback", pipeline.file, "--to", "latest"), 2
    )
    assert "--rung, --reason, --trust-labels and --windows must go with --force" in sentence(
        everfresh("run", pipeline.file, "--rung", "head"), 2
    )
    assert "--rung must be recalibrate, head, full or pretrained, got 'tail'" in sentence(
        everfresh("run", pipeline.file, "--force", "--rung", "tail"), 2
    )
    assert everfresh("run", pipeline.file, "--nonsense").returncode == 2
    pipeline.rewrite(fine_tune={"epoch": 3})
    words = sentence(everfresh("run", pipeline.file), 2)
    assert "fine_tune.epoch: unknown key" in words
    assert "Traceback" in everfresh("--debug", "run", pipeline.file).stderr


def test_a_challenger_that_a_gate_rejects_is_code_3(everfresh: Everfresh, pipeline: Pipeline) -> None:
    pipeline.rewrite(gates=[{"kind": "floor", "minimum": 0.999}])
    done = everfresh("run", pipeline.file, "--force", "--reason", "try", "--rung", "head", "--json")
    assert done.returncode == 3
    [entry] = json.loads(done.stdout)
    assert (entry["failed_gates"], entry["version"], entry["champion_version"]) == (["floor"], None, 2)
    assert done.stderr == ""


def test_champions_are_moved_by_hand(everfresh: Everfresh, pipeline: Pipeline, server: PrefectServer) -> None:
    def moved(*arguments: str) -> tuple[str, int, bool]:
        move = parsed(everfresh(arguments[0], pipeline.file, *arguments[1:], "--json"))
        return move["kind"], move["version"], move["pinned"]

    assert moved("pin", "--reason", "audit") == ("pin", 2, True)
    assert moved("unpin") == ("unpin", 2, False)
    assert moved("rollback", "--to", "v1", "--reason", "sevens") == ("rollback", 1, True)
    [event] = server.events(pipeline.name, "everfresh.champion.rolled-back")
    assert (event["payload"]["version"], event["payload"]["reason"]) == (1, "sevens")
    assert "v1 is champion already" in sentence(everfresh("rollback", pipeline.file, "--to", "v1"), 1)
    assert everfresh("unpin", pipeline.file).stdout.startswith("unpin: the champion is v1 (")
    assert moved("promote", "v1", "--alias", "shadow") == ("promote", 1, False)
    assert moved("promote", "v2", "--reason", "sevens are well") == ("promote", 2, False)
    [event] = server.events(pipeline.name, "everfresh.champion.promoted")
    assert (event["payload"]["version"], event["payload"]["reason"]) == (2, "sevens are well")


def test_a_rollback_needs_no_prefect_server(everfresh: Everfresh, pipeline: Pipeline) -> None:
    done = everfresh("rollback", pipeline.file, PREFECT_API_URL="http://127.0.0.1:9/api")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("rollback: the champion is v1, pinned")


def test_monitor_and_replay_leave_the_champion_alone(everfresh: Everfresh, pipeline: Pipeline) -> None:
    pipeline.arrives(3, AGED)
    assert parsed(everfresh("monitor", pipeline.file, "--json"))["reference_samples"] > 0
    done = everfresh("replay", pipeline.file, "--last", "1", "--json")
    assert [e["seq"] for e in parsed(done)] == [1]
    assert "should it be interrupted, --name" in done.stderr
    [facts] = parsed(everfresh("status", pipeline.file, "--json"))
    assert (facts["champion"], facts["windows_waiting"]) == ("v2", 1)


def test_a_store_that_cannot_be_written_is_code_1(everfresh: Everfresh, pipeline: Pipeline) -> None:
    pipeline.rewrite(store="/proc/nowhere")
    assert "store: cannot write /proc/nowhere" in sentence(everfresh("run", pipeline.file), 1)


def test_an_unreachable_prefect_server_is_named(everfresh: Everfresh, pipeline: Pipeline) -> None:
    done = everfresh("check", pipeline.file, PREFECT_API_URL="http://127.0.0.1:9/api")
    assert done.returncode == 1
    words = "PREFECT_API_URL must lead to a Prefect server, got http://127.0.0.1:9/api"
    assert f"FAIL prefect: {words}" in done.stdout
    done = everfresh("run", pipeline.file, PREFECT_API_URL="http://me:hunter2@127.0.0.1:9/api", PREFECT_CLIENT_MAX_RETRIES="0")
    assert (done.returncode, done.stderr.count("\n"), "hunter2" in done.stderr) == (1, 1, False)
    assert done.stderr.startswith(f"everfresh: {words} (")
    assert "Start one with `prefect server start`, or unset it." in done.stderr


def test_secrets_of_the_environment_never_reach_the_store(played: Pipeline) -> None:
    assert [key for key, data in played.bytes_of().items() if SECRET.encode() in data] == []


def test_a_credential_in_the_file_is_refused_without_repeating_it(everfresh: Everfresh, pipeline: Pipeline) -> None:
    pipeline.rewrite(aws_secret_access_key=SECRET)
    assert "aws_secret_access_key must not hold a credential" in sentence(everfresh("check", pipeline.file), 2)


@pytest.mark.parametrize("command", ["run", "monitor", "replay", "status", "history", "check", "rollback", "pin"])
def test_a_missing_file_is_code_2(everfresh: Everfresh, command: str, tmp_path: Path) -> None:
    assert "no such pipeline file" in sentence(everfresh(command, tmp_path / "none.yaml"), 2)
