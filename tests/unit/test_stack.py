"""What the local stack decides before it starts anything."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from everfresh.flows import stack
from everfresh.tasks.errors import ConfigError, EverfreshError


def test_a_port_that_is_taken_or_whose_pair_is_taken_gives_way() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = holder.getsockname()[1]
        (other,) = stack._ports([taken])
        assert other != taken
        (beside,) = stack._ports([taken - 10_000], also=10_000) if taken > 11_024 else (0,)
        assert beside != taken - 10_000


def test_a_free_port_is_kept_and_no_port_is_given_twice() -> None:
    (free,) = stack._ports([0])
    assert stack._ports([free]) == [free]
    assert len(set(stack._ports([free, free, free]))) == 3


def test_keys_and_ports_are_those_of_the_last_time(tmp_path: Path) -> None:
    first, second = stack._plan(tmp_path), stack._plan(tmp_path)
    assert first.environment == second.environment
    assert (first.ui, first.s3) == (second.ui, second.s3)
    assert (tmp_path / "kept.json").stat().st_mode & 0o077 == 0, "the keys are for their owner's eyes only"


def test_nothing_that_the_machine_says_of_prefect_or_aws_reaches_the_stack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_KEY", "of-somebody-else")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of-somebody-else")
    environment = stack._environment(stack._plan(tmp_path))
    assert "of-somebody-else" not in environment.values()
    assert environment["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"


@pytest.mark.parametrize("given", ["postgres://u@h:1/d", "postgresql://u@h:1/d", "postgresql+asyncpg://u@h:1/d"])
def test_postgres_is_reached_by_the_driver_that_prefect_has(given: str) -> None:
    assert stack._database(given) == {"PREFECT_SERVER_DATABASE_CONNECTION_URL": "postgresql+asyncpg://u@h:1/d"}


@pytest.mark.parametrize("given", ["mysql://u@h/d", "localhost:5432", ""])
def test_another_database_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match=r"--postgres must be postgresql://"):
        stack._database(given)


def test_the_password_of_a_database_that_is_refused_is_not_shown() -> None:
    with pytest.raises(ConfigError, match=r"got 'mysql\+pymysql://h/d'\. Correct it"):
        stack._database("mysql+pymysql://me:hunter2@h/d")


def test_a_folder_of_before_there_was_a_password_gets_one(tmp_path: Path) -> None:
    keys = {"AWS_ACCESS_KEY_ID": "everfresh", "AWS_SECRET_ACCESS_KEY": "of-the-last-time"}
    (tmp_path / "kept.json").write_text(json.dumps({"keys": keys}))
    made = stack._plan(tmp_path)
    assert made.environment["AWS_SECRET_ACCESS_KEY"] == "of-the-last-time"
    assert len(made.password) > 30
    assert stack._plan(tmp_path).password == made.password


def test_a_folder_holds_one_stack(tmp_path: Path) -> None:
    with stack._alone(tmp_path), pytest.raises(EverfreshError, match="one that runs already"), stack._alone(tmp_path):
        pass
    with stack._alone(tmp_path):
        pass


def test_a_stack_that_does_not_run_says_how_to_start_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="make up"):
        stack.read_stack(tmp_path)
    left = stack.Stack(pid=2**22 + 1, api="a", ui="u", s3="s", pools={}, logs="l", environment={})  # no process has that number
    (tmp_path / "stack.json").write_text(left.model_dump_json())
    with pytest.raises(ConfigError, match="got no stack that runs"):
        stack.read_stack(tmp_path)
