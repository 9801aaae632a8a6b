"""What may be believed of a release: signed, whole, its own, and never executed."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import subprocess
import sys
import zipfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.keys import pair
from support.loop import arrive, pipeline, release_of, run_window
from support.releases import put_release, release_id

from everfresh.flows.check import check
from everfresh.tasks import models, signing
from everfresh.tasks.catalogue import Named
from everfresh.tasks.errors import ConfigError, DigestMismatch, EverfreshError, ModelError, ReleaseError
from everfresh.tasks.exports import export, opened
from everfresh.tasks.ledger import champion_moves
from everfresh.tasks.pull import problems, pull
from everfresh.tasks.records import Part, Release
from everfresh.tasks.releases import find_release, sign_release
from everfresh.tasks.serving import load_champion
from everfresh.tasks.signing import SIGNATURE, SIGNING_KEY, VERIFYING_KEY, sign, verify
from everfresh.tasks.store import FolderStore, OverlayStore, Store
from everfresh.tasks.sweep import debris


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return pair(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def verifying(keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every load asks for a signature, and releases made here get one."""
    monkeypatch.setenv(SIGNING_KEY, str(keys[0]))
    monkeypatch.setenv(VERIFYING_KEY, str(keys[1]))


def upstream(folder: Path, public: Path) -> subprocess.CompletedProcess[str]:
    """What the library's own command says of a folder."""
    command = [str(Path(sys.executable).with_name("model_signing")), "verify", "key", str(folder)]
    command += ["--signature", str(folder / SIGNATURE), "--public_key", str(public)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.usefixtures("verifying")
def test_the_library_s_own_command_accepts_what_was_pulled_and_nothing_else(
    store: Store, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    release = put_release(store, 1)
    assert sign_release(store, release.id)
    assert find_release(store, release.id) == release
    folder = tmp_path / "pulled"
    pull(store, Named(release.id, 0), folder)
    accepted = upstream(folder, keys[1])
    assert (accepted.returncode, accepted.stdout.strip()) == (0, "Verification succeeded")
    (folder / "card.md").write_bytes(b"another card")
    refused = upstream(folder, keys[1])
    assert refused.returncode == 1
    assert "card.md" in refused.stderr


@pytest.mark.usefixtures("verifying")
def test_a_signature_that_holds_stays_and_another_is_replaced(folder_store: FolderStore, tmp_path: Path) -> None:
    release = put_release(folder_store, 1)
    place = f"releases/{release.id}/{SIGNATURE}"
    folder_store.put(place, b"planted before")
    assert sign_release(folder_store, release.id)
    first = folder_store.get(place)
    assert sign_release(folder_store, release.id)
    assert folder_store.get(place) == first
    folder_store.put(place, sign(release.id, {"a": "0" * 64}, pair(tmp_path, "other")[0]))
    assert sign_release(folder_store, release.id)
    assert find_release(folder_store, release.id) == release


@pytest.mark.usefixtures("verifying")
def test_a_signature_is_no_debris_while_its_release_stands(folder_store: FolderStore) -> None:
    release = put_release(folder_store, 1)
    sign_release(folder_store, release.id)
    assert debris(folder_store, timedelta(0)) == []
    folder_store.delete(f"releases/{release.id}/release.json")
    assert f"releases/{release.id}/{SIGNATURE}" in {item.key for item in debris(folder_store, timedelta(0))}


def test_without_keys_nothing_is_signed_or_asked_for(folder_store: FolderStore) -> None:
    release = put_release(folder_store, 1)
    assert not sign_release(folder_store, release.id)
    assert find_release(folder_store, release.id) == release
    assert find_release(folder_store, release_id(2)) is None


@pytest.mark.usefixtures("verifying")
@pytest.mark.parametrize(
    ("signature", "said"),
    [
        (None, "got none"),
        (b"no bundle", r"got one that does not hold \("),
        ("other key", r"got one that does not hold \(Key mismatch"),
        ("other files", r"got one that does not hold \(Signature mismatch.*card\.md"),
    ],
)
def test_a_missing_or_wrong_signature_is_refused(
    folder_store: FolderStore, keys: tuple[Path, Path], tmp_path: Path, signature: Any, said: str
) -> None:
    release, other = put_release(folder_store, 1), put_release(folder_store, 2)
    for one in (release, other):
        sign_release(folder_store, one.id)
    place = f"releases/{release.id}/{SIGNATURE}"
    match signature:
        case None:
            folder_store.delete(place)
        case bytes():
            folder_store.put(place, signature)
        case "other key":
            folder_store.put(place, sign(release.id, {"a": "0" * 64}, pair(tmp_path, "other")[0]))
        case "other files":
            folder_store.put(place, folder_store.get(f"releases/{other.id}/{SIGNATURE}"))
    with pytest.raises(ReleaseError, match=rf"{release.id} must have a signature model\.sig .*{said}.*Do not load it"):
        find_release(folder_store, release.id)
    assert find_release(folder_store, other.id) == other


@pytest.mark.usefixtures("verifying")
def test_a_record_that_names_another_file_no_longer_fits_its_signature(folder_store: FolderStore) -> None:
    """Somebody who may write to the store changes a file and the record with it: digests agree, the signature does not."""
    release = put_release(folder_store, 1)
    sign_release(folder_store, release.id)
    part = folder_store.keep(f"releases/{release.id}/model.safetensors", b"worse weights")
    changed = release.model_copy(update={"files": release.files | {"model.safetensors": part}})
    folder_store.put(f"releases/{release.id}/release.json", changed.to_bytes())
    with pytest.raises(
        ReleaseError, match=r"Signature mismatch: .+Hash mismatch for .model\.safetensors.*release\.json.*Do not load"
    ):
        find_release(folder_store, release.id)


@pytest.mark.usefixtures("verifying")
@pytest.mark.parametrize("pipeline", ["other", "mine/replays/x"])
def test_a_signed_release_of_another_pipeline_or_a_replay_is_refused(tmp_path: Path, pipeline: str) -> None:
    """Whoever may write to the bucket copies a whole signed folder from elsewhere."""
    store, elsewhere = FolderStore(tmp_path / "mine"), FolderStore(tmp_path / pipeline)
    release = put_release(elsewhere, 1, pipeline=pipeline)
    assert sign_release(elsewhere, release.id)
    assert find_release(elsewhere, release.id) == release
    for item in elsewhere.list("releases"):
        store.put(item.key, elsewhere.get(item.key))
    with pytest.raises(ReleaseError, match=rf"signed as a release of {pipeline}\. Do not load it"):
        find_release(store, release.id)


@pytest.mark.usefixtures("verifying")
def test_a_replay_neither_signs_nor_asks_for_signatures(tmp_path: Path) -> None:
    config = pipeline(tmp_path, name="store", gates=[{"kind": "floor", "minimum": 0}])
    live = FolderStore(tmp_path / "store")
    arrive(config, 60)
    assert run_window(live, config).move is not None
    store = OverlayStore(live, live.sub("replays/x"), ("stream", "windows", "quarantine", "embeddings"))
    move = run_window(store, config, replay="x").move
    assert move is not None
    release = release_of(store, move)
    assert release.pipeline == "store/replays/x"
    assert SIGNATURE not in {item.key.rsplit("/", 1)[1] for item in store.list("releases")}
    assert find_release(store, release.id) == release
    with pytest.raises(ReleaseError, match="got none"):
        find_release(live.sub("replays/x"), release.id)


@pytest.mark.usefixtures("verifying")
def test_a_folder_that_was_pulled_before_gets_the_signature_made_since(
    folder_store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, folder = put_release(folder_store, 1), tmp_path / "pulled"
    with monkeypatch.context() as before:
        before.delenv(VERIFYING_KEY)
        pull(folder_store, Named(release.id, 0), folder)
    assert not (folder / SIGNATURE).exists()
    sign_release(folder_store, release.id)
    pull(folder_store, Named(release.id, 0), folder)
    assert (folder / SIGNATURE).read_bytes() == folder_store.get(f"releases/{release.id}/{SIGNATURE}")


@pytest.mark.usefixtures("verifying")
def test_what_was_verified_is_what_is_pulled(folder_store: FolderStore, tmp_path: Path) -> None:
    """Record and signature change once they have been read."""
    release = put_release(folder_store, 1)
    sign_release(folder_store, release.id)

    class Changing(FolderStore):
        def get(self, key: str) -> bytes:
            data = super().get(key)
            self.put(key, b"changed")
            return data

    pull(Changing(folder_store.root), Named(release.id, 0), tmp_path / "pulled")
    assert Release.from_bytes((tmp_path / "pulled/release.json").read_bytes()) == release
    assert (tmp_path / "pulled" / SIGNATURE).read_bytes() != b"changed"


def test_keys_that_cannot_be_used_are_named(folder_store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = put_release(folder_store, 1)
    for variable, ask in ((SIGNING_KEY, sign_release), (VERIFYING_KEY, find_release)):
        monkeypatch.setenv(variable, str(tmp_path / "none.pem"))
        with pytest.raises(ConfigError, match=rf"{variable} must be the path of a PEM file, got .*none\.pem, which is none"):
            ask(folder_store, release.id)
        (tmp_path / "bad.pem").write_text("-----BEGIN NOTHING-----")
        monkeypatch.setenv(variable, str(tmp_path / "bad.pem"))
        folder_store.put(f"releases/{release.id}/{SIGNATURE}", b"{}")
        with pytest.raises(ConfigError, match=rf"{variable} must be a PEM file of a (private|public) key on P-256"):
            ask(folder_store, release.id)
        monkeypatch.delenv(variable)


def test_check_tells_what_the_keys_do(keys: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (signing.asked(), signing.tried()) == (False, "")
    monkeypatch.setenv(SIGNING_KEY, str(keys[0]))
    assert signing.tried() == f"releases are signed with {keys[0]}"
    monkeypatch.setenv(VERIFYING_KEY, str(keys[1]))
    assert signing.tried() == f"releases are signed with {keys[0]}, refused unless signed for {keys[1]}"
    monkeypatch.setenv(VERIFYING_KEY, str(pair(tmp_path, "other")[1]))
    with pytest.raises(ReleaseError, match=r"got one that does not hold \(Key mismatch"):
        signing.tried()
    (line,) = [line for line in check(pipeline(tmp_path)) if line.name == "signing"]
    assert not line.passed


NAMES = st.text("abcdefgh.-_é ", min_size=1, max_size=12).filter(lambda n: n.strip(". ") and n != SIGNATURE)
FILES = st.dictionaries(NAMES, st.binary(min_size=32, max_size=32).map(bytes.hex), min_size=1, max_size=6)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(FILES, FILES)
def test_a_signature_holds_for_just_these_files(keys: tuple[Path, Path], files: dict[str, str], others: dict[str, str]) -> None:
    signature = sign("r", files, keys[0])
    verify("r", files, signature, keys[1])
    if files != others:
        with pytest.raises(ReleaseError, match="does not hold"):
            verify("r", others, signature, keys[1])


# --- the record ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("../card.md", "releases/{id}/../card.md"),
        ("card.md", "releases/{id}/../x/card.md"),
        ("card.md", "/etc/passwd"),
        ("/etc/cron.d/x", "releases/{id}//etc/cron.d/x"),
        ("a/b", "releases/{id}/a/b"),
        ("..\\x", "releases/{id}/..\\x"),
        ("card.md", "releases/other/card.md"),
    ],
)
def test_a_path_outside_the_folder_is_refused(folder_store: FolderStore, name: str, key: str) -> None:
    release = put_release(folder_store, 1)
    part = Part(key=key.format(id=release.id), sha256="0" * 64, size=1)
    bad = release.model_copy(update={"files": release.files | {name: part}})
    folder_store.put(f"releases/{release.id}/release.json", bad.to_bytes())
    with pytest.raises(ReleaseError, match="must name files of its own folder alone, got"):
        find_release(folder_store, release.id)


def test_another_releases_record_is_refused(folder_store: FolderStore) -> None:
    release, other = put_release(folder_store, 1), put_release(folder_store, 2)
    folder_store.put(f"releases/{release.id}/release.json", folder_store.get(f"releases/{other.id}/release.json"))
    with pytest.raises(ReleaseError, match=rf"must be the record of the release {release.id}, got that of {other.id}"):
        find_release(folder_store, release.id)


# --- the files -----------------------------------------------------------------------------------------------


class Runs:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.trace,))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline with a champion."""
    folder = tmp_path_factory.mktemp("published")
    config = pipeline(folder, gates=[{"kind": "floor", "minimum": 0}])
    arrive(config, 60)
    assert run_window(FolderStore(folder / "store"), config).move is not None
    return folder / "store"


@pytest.fixture
def champion(published: Path, tmp_path: Path) -> tuple[FolderStore, Release]:
    """A store of its own with that champion's release."""
    shutil.copytree(published, tmp_path / "store")
    store = FolderStore(tmp_path / "store")
    head = champion_moves(store).last()
    assert head is not None
    return store, release_of(store, head)


def test_a_pickle_in_place_of_weights_is_refused_and_never_run(champion: tuple[FolderStore, Release], tmp_path: Path) -> None:
    store, release = champion
    trace = tmp_path / "ran"
    torch.save({"weight": torch.zeros(1), "bad": Runs(trace)}, tmp_path / "evil.pt")
    for data in (pickle.dumps(Runs(trace)), (tmp_path / "evil.pt").read_bytes()):
        part = store.keep(f"releases/{release.id}/model.safetensors", data)
        with pytest.raises(DigestMismatch, match=r"model\.safetensors must have SHA-256"):
            load_champion(store.root)
        told = release.model_copy(update={"files": release.files | {"model.safetensors": part}})
        store.put(f"releases/{release.id}/release.json", told.to_bytes())
        with pytest.raises(ModelError, match=r"must be a safetensors file, got one that is none .*Nothing of it was run"):
            load_champion(store.root)
        store.put(f"releases/{release.id}/release.json", release.to_bytes())
    assert not trace.exists()


def test_a_pickle_inside_an_archive_of_torch_export_is_refused_and_never_run(tmp_path: Path) -> None:
    config = pipeline(tmp_path, model={"architecture": "support.networks:plain", "image_size": 8})
    module, spec = models.start(config.model, 0)
    (path,) = export(module, spec, ("pt2",), tmp_path)
    trace, evil = tmp_path / "ran", io.BytesIO()
    torch.save(Runs(trace), evil)

    def rewritten(change: Any) -> Path:
        target = tmp_path / "evil" / "model.pt2"
        target.parent.mkdir(exist_ok=True)
        with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as sink:
            for name in source.namelist():
                sink.writestr(name, change(name, source.read(name)))
        return target

    def in_a_weight(name: str, data: bytes) -> bytes:
        if name.endswith("weights_config.json"):
            told = json.loads(data)
            next(iter(told["config"].values()))["use_pickle"] = True
            return json.dumps(told).encode()
        return evil.getvalue() if name.endswith("weight_0") else data

    def in_a_sample(name: str, data: bytes) -> bytes:
        return evil.getvalue() if name.endswith("sample_inputs/model.pt") else data

    for change in (in_a_weight, in_a_sample):
        with pytest.raises(ModelError, match=r"must hold tensors and JSON alone, got .*which torch\.export\.load would"):
            opened(rewritten(change), "pt2")
    opened(rewritten(lambda _, data: data), "pt2")
    (tmp_path / "evil/model.pt2").write_bytes(pickle.dumps(Runs(trace)))
    with pytest.raises(ModelError, match=r"must be an archive of torch\.export"):
        opened(tmp_path / "evil/model.pt2", "pt2")
    assert not trace.exists()


def test_one_byte_of_any_file_is_noticed(champion: tuple[FolderStore, Release]) -> None:
    store, release = champion
    for part in release.files.values():
        whole = store.get(part.key)
        store.put(part.key, whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(DigestMismatch, match="must have SHA-256"):
            store.read(part)
        store.put(part.key, whole)


def test_another_releases_weights_are_noticed(champion: tuple[FolderStore, Release]) -> None:
    store, release = champion
    place = release.files["model.safetensors"].key
    module, _ = models.start(pipeline(store.root.parent).model, 99)
    models.save(module, store.root.parent / "other.safetensors")
    store.put_file(place, store.root.parent / "other.safetensors")
    with pytest.raises(DigestMismatch, match="changed or damaged"):
        load_champion(store.root)


@pytest.mark.usefixtures("verifying")
def test_a_pipeline_signs_what_it_publishes_and_loads_nothing_else(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    config = pipeline(tmp_path, name="store", gates=[{"kind": "floor", "minimum": 0}], policy={"ladder": ["head"]})
    store = FolderStore(tmp_path / "store")
    arrive(config, 60)
    first = run_window(store, config)
    assert first.move is not None
    release = release_of(store, first.move)
    pull(store, Named(release.id, 1), tmp_path / "pulled")
    assert upstream(tmp_path / "pulled", keys[1]).returncode == 0
    assert load_champion(store.root).release == release.id
    store.delete(f"releases/{release.id}/{SIGNATURE}")
    with pytest.raises(ReleaseError, match=r"got none\. Do not load it"):
        load_champion(store.root)
    with pytest.raises(ReleaseError, match=r"got none\. Do not load it"):
        pull(store, Named(release.id, 1), tmp_path / "again")
    assert ["got none" in words for words in problems(store, Named(release.id, 1))] == [True]
    arrive(config, 60, start=100)
    with pytest.raises(ReleaseError, match=r"got none\. Do not load it"):
        run_window(store, config)


def test_what_nobody_here_could_load_does_not_go_live(
    tmp_path: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signatures are asked for, but there is no key to make one; once there is, the rerun goes on."""
    config = pipeline(tmp_path, name="store", gates=[{"kind": "floor", "minimum": 0}])
    store = FolderStore(tmp_path / "store")
    arrive(config, 60)
    monkeypatch.setenv(VERIFYING_KEY, str(keys[1]))
    with pytest.raises(EverfreshError, match=r"must have a signature model\.sig"):
        run_window(store, config)
    assert champion_moves(store).last_seq() == 0
    monkeypatch.setenv(SIGNING_KEY, str(keys[0]))
    assert run_window(store, config).move is not None
