"""Validate everything in `infra/`, each kind of file with the validator of its field: ``python infra/lint.py``.

Dockerfiles go through hadolint, the compose file through ``docker-compose config`` with secrets as `make_secrets.py` writes
them, Kubernetes manifests and the jobs of Kubernetes pools through the strict schemas of Kubernetes, policies through
cfn-lint, which knows every action of S3, and work pools through Prefect's own model of them. What one file names of another
must be there: images, templates, namespace and service account. A kind of which nothing is found fails: a folder that was
renamed must not pass by silence.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

HERE = Path(__file__).parent
TEMPLATES = "/opt/everfresh/work_pools"
"""Where the images have `work_pools/`."""
Found = Iterator[str]
"""What is wrong, a line each."""


def program(name: str, *arguments: object) -> Found:
    """What a validator of this environment says, if it does not pass."""
    command = [str(Path(sys.executable).with_name(name)), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        yield (done.stdout + done.stderr).strip()


def built() -> dict[str, Path]:
    """The Dockerfile of each image that is built here, by the tag that compose gives it."""
    services = yaml.safe_load((HERE / "compose.yaml").read_text("utf-8"))["services"].values()
    return {service["image"]: HERE.parent / service["build"]["dockerfile"] for service in services if "build" in service}


def accounts() -> set[tuple[str, str]]:
    """Namespace and name of the service accounts of the manifests."""
    texts = [path.read_text("utf-8") for path in (HERE / "kubernetes").glob("*.yaml")]
    found = [resource for text in texts for resource in yaml.safe_load_all(text) if resource["kind"] == "ServiceAccount"]
    return {(one["metadata"]["namespace"], one["metadata"]["name"]) for one in found}


def names(value: Any, path: Path) -> Found:
    """Images and templates of Everfresh that are named somewhere in a file, and are not there."""
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from names(inner, path)
    if isinstance(value, str) and re.fullmatch(r"everfresh[\w.-]*:[\w.-]+", value) and value not in built():
        yield f"{path}: an image must be one that compose builds, got {value}. Name one of {', '.join(built())}."
    if isinstance(value, str) and value.startswith(f"{TEMPLATES}/") and not (HERE / "work_pools" / Path(value).name).exists():
        yield f"{path}: a template must be one of work_pools/, got {value}. Correct its name."


def dockerfile(path: Path) -> Found:
    """By hadolint, with its mildest rules on; and that nobody runs as root, with a health check and a fixed base."""
    yield from program("hadolint", "--failure-threshold", "style", path)
    stages = path.read_text("utf-8").split("\nFROM ")
    yield from names(re.findall(rf"{TEMPLATES}/[\w.-]+", stages[-1]), path)
    for rule in ("USER 1", "HEALTHCHECK", f"COPY infra/work_pools {TEMPLATES}\n"):
        if f"\n{rule}" not in stages[-1]:
            yield f"{path}: the last stage must have {rule.strip()}, got none. Add it."


def compose(path: Path) -> Found:
    """By compose itself; and that images have tags, ports are on loopback and services say how they are."""
    with TemporaryDirectory() as folder:
        shutil.copy(path, folder)
        subprocess.run([sys.executable, HERE / "make_secrets.py", folder], check=True, stdout=subprocess.DEVNULL)
        arguments = ["-f", Path(folder) / path.name, "--profile", "*", "config", "--quiet"]
        yield from program("docker-compose", *arguments)
    document = yaml.safe_load(path.read_text("utf-8"))
    yield from names(document, path)
    for name, service in document["services"].items():
        yield from mounts(path, name, service, document["volumes"])
        image = service["image"].rpartition("/")[2]
        if ":" not in image or image.endswith(":latest"):
            yield f"{path}: {name}.image must have a fixed tag, got {service['image']}. Name a version."
        if open_to_all := [port for port in service.get("ports", ()) if not str(port).startswith("127.0.0.1:")]:
            yield f"{path}: {name}.ports must be on loopback, got {open_to_all}. Write 127.0.0.1: before them."
        if "healthcheck" not in service and "everfresh" not in image:  # whose Dockerfile has one
            yield f"{path}: {name} must have a healthcheck, got none. Add one."


def mounts(path: Path, name: str, service: dict[str, Any], volumes: dict[str, Any]) -> Found:
    """That the user of our images owns what is mounted to be written: where the image has no folder Docker makes root's."""
    recipe = built().get(service["image"])
    for source, target, *mode in (volume.split(":") for volume in service.get("volumes", ())):
        if recipe is None or source not in volumes or mode == ["ro"]:
            continue
        if not re.search(rf"install -d -o 10001 -g 10001 .*{target}(\s|$)", recipe.read_text("utf-8")):
            yield f"{path}: {name}.volumes must be on folders of the image, got {target}. Make it in {recipe.name}."


def manifest(path: Path) -> Found:
    """By the strict schemas of Kubernetes."""
    for resource in yaml.safe_load_all(path.read_text("utf-8")):
        yield from strictly(resource, path)
        yield from names(resource, path)


def strictly(resource: dict[str, Any], path: Path) -> Found:
    """What Kubernetes would refuse of a resource, or silently ignore."""
    import kubernetes_validate

    try:
        kubernetes_validate.validate(resource, kubernetes_validate.latest_version(), strict=True)
    except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
        yield f"{path}: {resource.get('kind')}: {error}"


def policy(path: Path) -> Found:
    """By cfn-lint, as a managed policy; warnings count, for they tell of actions that do not exist."""
    from cfnlint.api import lint
    from cfnlint.config import ManualArgs

    document = json.loads(path.read_text("utf-8"))
    resource = {"Type": "AWS::IAM::ManagedPolicy", "Properties": {"PolicyDocument": document}}
    settings = ManualArgs(include_checks=["I", "W", "E"], regions=["us-east-1"])
    for match in lint(json.dumps({"Resources": {"Policy": resource}}), config=settings):
        yield f"{path}: {match.message[:200]}"
    for statement in document["Statement"]:
        if statement.get("Effect") == "Allow" and any("*" in action for action in statement["Action"]):
            yield f"{path}: {statement['Sid']} must name its actions, got {statement['Action']}. Write them out."


def work_pool(path: Path) -> Found:
    """By Prefect's own model of a pool; what a Kubernetes pool makes of its defaults also as a job."""
    from prefect.server.schemas.actions import WorkPoolCreate
    from prefect.utilities.templating import apply_values

    template = json.loads(path.read_text("utf-8"))
    kind = path.stem.split("-")[-1]
    try:
        WorkPoolCreate(name=path.stem, type=kind, base_job_template=template)
    except ValueError as error:
        yield f"{path}: {error}"
        return
    yield from names(template, path)
    declared = template["variables"]["properties"]
    if kind == "kubernetes":
        here = (declared["namespace"].get("default"), declared["service_account_name"].get("default"))
        if here not in accounts():
            yield f"{path}: namespace and service_account_name must be of kubernetes/, got {here}. Name one of {accounts()}."
        values = {name: variable["default"] for name, variable in declared.items() if "default" in variable}
        job = apply_values(template["job_configuration"], values, remove_notset=True)["job_manifest"]
        yield from strictly(_without_placeholders(job), path)


def _without_placeholders(value: Any) -> Any:
    """A job as it is once a worker has put in what differs from run to run."""
    if isinstance(value, dict):
        return {key: _without_placeholders(inner) for key, inner in value.items() if not _is_placeholder(inner)}
    return [_without_placeholders(inner) for inner in value] if isinstance(value, list) else value


def _is_placeholder(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("{{")


KINDS: dict[str, Callable[[Path], Found]] = {
    "images/*.Dockerfile": dockerfile,
    "compose.yaml": compose,
    "kubernetes/*.yaml": manifest,
    "policies/*.json": policy,
    "work_pools/*.json": work_pool,
}


def problems(root: Path = HERE) -> Iterator[str]:
    """All that is wrong."""
    for pattern, validate in KINDS.items():
        paths = sorted(root.glob(pattern))
        if not paths:
            yield f"{root / pattern} must be there, got no such file. Correct the pattern in {Path(__file__).name}."
        for path in paths:
            yield from validate(path)


if __name__ == "__main__":
    wrong = list(problems())
    sys.stdout.writelines(f"{line}\n" for line in wrong or ["infra: everything passes its validator"])
    sys.exit(bool(wrong))
