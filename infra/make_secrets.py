"""Write the secrets of `infra/compose.yaml`, each anew and at random, into files beside it that git ignores.

Files that stand there are never written over. Standard library only, so it runs before anything is
installed: ``python3 infra/make_secrets.py``.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from pathlib import Path

HERE = Path(__file__).parent
NAMES = ("server.env", "worker.env", "gpu-worker.env", "s3.env", "s3.json")


def contents(policies: dict[str, str]) -> dict[str, str]:
    """Each file's text; a password that two of them need is the same in both.

    Args:
        policies: of the store, by the name of the role that has it.
    """
    database, api, passphrase = (secrets.token_urlsafe(24) for _ in range(3))
    keys = {role: (f"EVERFRESH{role.upper()}", secrets.token_urlsafe(30)) for role in ("owner", *sorted(policies))}
    people = [
        {"name": role, "credentials": [{"accessKey": access, "secretKey": secret}]}
        | ({"policyNames": [role]} if role in policies else {"actions": ["Admin", "Read", "List", "Write"]})
        for role, (access, secret) in keys.items()
    ]
    s3 = {"identities": people, "policies": [{"name": n, "content": text} for n, text in sorted(policies.items())]}
    environments = {
        "server.env": {
            "POSTGRES_USER": "prefect",
            "POSTGRES_DB": "prefect",
            "POSTGRES_PASSWORD": database,
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://prefect:{database}@postgres:5432/prefect",
            "PREFECT_SERVER_API_AUTH_STRING": f"admin:{api}",
        },
        "worker.env": _worker(api, *keys["publisher"]),
        "gpu-worker.env": _worker(api, *keys["worker"]),
        "s3.env": {"WEED_S3_SSE_KEK_PASSPHRASE": passphrase},
    }
    texts = {name: "".join(f"{k}={v}\n" for k, v in values.items()) for name, values in environments.items()}
    return {**texts, "s3.json": json.dumps(s3, indent=1) + "\n"}


def _worker(api: str, access: str, secret: str) -> dict[str, str]:
    return {"PREFECT_API_AUTH_STRING": f"admin:{api}", "AWS_ACCESS_KEY_ID": access, "AWS_SECRET_ACCESS_KEY": secret}


def write(folder: Path) -> list[Path]:
    """Write all of them for their owner's eyes; none if any stands there, for they must fit each other.

    Raises:
        FileExistsError: one stands there.
    """
    paths = [folder / name for name in NAMES]
    if there := [path for path in paths if path.exists()]:
        raise FileExistsError(
            f"{there[0]} must not be written over: services use it. Delete all {len(NAMES)} files for new ones."
        )
    texts = contents({path.stem: path.read_text("utf-8") for path in (HERE / "policies").glob("*.json")})
    for path in paths:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(texts[path.name])
    return paths


if __name__ == "__main__":
    try:
        made = write(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
    except FileExistsError as error:
        sys.exit(str(error))
    sys.stdout.writelines(f"wrote {path}\n" for path in made)
