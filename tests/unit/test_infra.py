"""`infra/`: what the validators of `make lint` catch, that secrets fit each other, and that nothing there sends telemetry."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from everfresh.flows.stack import _plan, _s3

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"infra_{name}", INFRA / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


lint, make_secrets = script("lint"), script("make_secrets")


def edited(path: Path, folder: Path, edit: Callable[[str], str]) -> Path:
    """A file of `infra/` with a mistake in it."""
    before = path.read_text("utf-8")
    after = edit(before)
    assert after != before
    (folder / path.name).write_text(after, "utf-8")
    return folder / path.name


@pytest.mark.parametrize(
    ("file", "before", "after", "told"),
    [
        ("images/cpu.Dockerfile", "USER 10001:10001\n", "", "must have USER"),
        ("images/cpu.Dockerfile", "WORKDIR /src", "WORKDIR src", "DL3000"),
        ("images/cuda.Dockerfile", "HEALTHCHECK", "# HEALTHCHECK", "must have HEALTHCHECK"),
        ("images/cpu.Dockerfile", "COPY infra/work_pools /opt", "COPY infra/work_pools /srv", "must have COPY"),
        ("images/cuda.Dockerfile", "gpu-process.json", "cuda-process.json", "must be one of work_pools/"),
        ("compose.yaml", "condition: service_healthy", "condition: service_fine", "service_fine|condition"),
        ("compose.yaml", "    ports: [", "    prots: [", "prots"),
        ("compose.yaml", '"127.0.0.1:8333:8333"', '"8333:8333"', "must be on loopback"),
        ("compose.yaml", "redis:8.2.2-bookworm", "redis:latest", "must have a fixed tag"),
        ("compose.yaml", "cache:/home/everfresh/cache", "cache:/home/everfresh/other", "must be on folders of the image"),
        ("compose.yaml", "everfresh:0.1.0-cpu\n    command", "everfresh:1-cpu\n    command", "got everfresh:1-cpu"),
        ("compose.yaml", "work_pools/cpu-process.json", "work_pools/cpu.json", "must be one of work_pools/"),
        ("kubernetes/server.yaml", "replicas: 2", "replica: 2", "replica"),
        ("kubernetes/worker.yaml", "image: everfresh:0.1.0-cpu", "image: everfresh-cpu:latest", "got everfresh-cpu:latest"),
        ("work_pools/gpu-docker.json", "everfresh:0.1.0-cuda", "everfresh-cuda:latest", "got everfresh-cuda:latest"),
        ("work_pools/cpu-kubernetes.json", '"default": "everfresh",', '"default": "default",', "must be of kubernetes/"),
        ("work_pools/gpu-kubernetes.json", "everfresh-job", "everfresh-jobs", "must be of kubernetes/"),
        ("kubernetes/worker.yaml", "verbs: [get", "verb: [get", "verb"),
        ("policies/reader.json", '"s3:ListBucket"', '"s3:ListBuckets"', "listbuckets"),
        ("policies/worker.json", '"Effect": "Deny"', '"Efect": "Deny"', "Efect|Effect"),
        ("policies/publisher.json", '"s3:PutObject"', '"s3:*"', "must name its actions"),
    ],
)  # fmt: skip
def test_a_mistake_is_caught(file: str, before: str, after: str, told: str, tmp_path: Path) -> None:
    wrong = edited(INFRA / file, tmp_path, lambda text: text.replace(before, after))
    pattern = next(p for p in lint.KINDS if (INFRA / file) in INFRA.glob(p))
    found = list(lint.KINDS[pattern](wrong))
    assert any(word in line for line in found for word in told.split("|")), found


def test_secrets_fit_each_other_and_are_for_their_owner_alone(tmp_path: Path) -> None:
    made = make_secrets.write(tmp_path)
    assert {stat.S_IMODE(path.stat().st_mode) for path in made} == {0o600}
    values = {p.name: dict(line.split("=", 1) for line in p.read_text().splitlines()) for p in made if p.suffix == ".env"}
    server = values["server.env"]
    assert f":{server['POSTGRES_PASSWORD']}@" in server["PREFECT_SERVER_DATABASE_CONNECTION_URL"]
    s3 = json.loads((tmp_path / "s3.json").read_text())
    known = {c["accessKey"]: (c["secretKey"], one.get("policyNames")) for one in s3["identities"] for c in one["credentials"]}
    for name, role in (("worker.env", "publisher"), ("gpu-worker.env", "worker")):
        assert known[values[name]["AWS_ACCESS_KEY_ID"]] == (values[name]["AWS_SECRET_ACCESS_KEY"], [role])
        assert values[name]["PREFECT_API_AUTH_STRING"] == server["PREFECT_SERVER_API_AUTH_STRING"]
    assert {p["name"]: json.loads(p["content"]) for p in s3["policies"]} == {
        path.stem: json.loads(path.read_text()) for path in (INFRA / "policies").glob("*.json")
    }
    with pytest.raises(FileExistsError, match=r"server\.env must not be written over"):
        make_secrets.write(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    assert {p.read_text() for p in make_secrets.write(other)} & {p.read_text() for p in made} == set()


def test_what_git_ignores_is_what_the_script_writes() -> None:
    ignored = (ROOT / ".gitignore").read_text().split()
    assert {"infra/*.env", "infra/s3.json"} <= set(ignored)
    assert all(name.endswith(".env") or name == "s3.json" for name in make_secrets.NAMES)
    assert list(INFRA.glob("*.example")) == []


def test_every_service_of_the_compose_file_is_told_not_to_send_telemetry() -> None:
    services = yaml.safe_load((INFRA / "compose.yaml").read_text())["services"]
    for name in ("migrate", "server", "services", "worker", "gpu-worker", "seaweedfs"):
        assert services[name]["environment"]["DO_NOT_TRACK"] == "1", name
        assert services[name]["environment"]["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false", name
    assert "-master.telemetry=false" in services["seaweedfs"]["command"]


def test_nothing_sends_telemetry_unless_it_is_asked_for(tmp_path: Path) -> None:
    """The CLI, the images, the manifests, the Makefile and the local stack; Ray is no part yet."""
    code = "from everfresh.flows.cli import app; import os, sys\ntry: app(['compare', '--help'])\nexcept SystemExit: pass\n"
    code += "print(os.environ['DO_NOT_TRACK'], os.environ['PREFECT_SERVER_ANALYTICS_ENABLED'])"
    quiet = {"DO_NOT_TRACK", "PREFECT_SERVER_ANALYTICS_ENABLED"}
    bare = {name: value for name, value in os.environ.items() if name not in quiet}
    said = subprocess.run([sys.executable, "-c", code], env=bare, capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-1] == "1 false"
    for file in ("images/cpu.Dockerfile", "images/cuda.Dockerfile", "kubernetes/server.yaml", "../Makefile"):
        text = (INFRA / file).read_text().replace('"', "")
        assert all(any(f"{name}{sign}{value}" in text for sign in ("=", ": ", " := ")) for name, value in
                   (("DO_NOT_TRACK", "1"), ("PREFECT_SERVER_ANALYTICS_ENABLED", "false"))), file  # fmt: skip
    stack = _plan(tmp_path)
    assert (stack.environment["DO_NOT_TRACK"], stack.environment["PREFECT_SERVER_ANALYTICS_ENABLED"]) == ("1", "false")
    assert "-master.telemetry=false" in _s3(tmp_path, "weed", stack).command


def test_a_folder_that_was_emptied_does_not_pass(tmp_path: Path) -> None:
    shutil.copytree(INFRA / "policies", tmp_path / "policies")
    for path in (tmp_path / "policies").glob("*.json"):
        path.unlink()
    assert [line for line in lint.problems(tmp_path) if "policies" in line]
