"""A service's champion: the right release answers, moves are followed, and nothing that goes wrong ends the answers."""

from __future__ import annotations

import io
import json
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support import tables
from support.keys import pair
from support.pictures import encode
from support.proxy import Proxy, always, running_proxy
from support.s3 import READER_KEY, READER_SECRET, environment
from support.served import CODE, SIDE, check, odds, pictures, publish, write_release
from support.small import in_memory

from everfresh.tasks import alias
from everfresh.tasks.config import S3Config
from everfresh.tasks.errors import AccessRefused, DataError, ModelError, ReleaseError, StoreError
from everfresh.tasks.ingest import ingest
from everfresh.tasks.ledger import champion_moves, moves
from everfresh.tasks.records import AliasMove, Feature, ModelSpec, Part, Release
from everfresh.tasks.releases import sign_release
from everfresh.tasks.serving import Champion, load_champion
from everfresh.tasks.serving.samples import as_bytes, as_input
from everfresh.tasks.store import FolderStore, S3Store, Store, cache_folder, open_store
from everfresh.tasks.vectors import to_vector
from everfresh.tasks.views import View


def opened(store: Store) -> Champion:
    return load_champion(store.url(""), code=CODE, min_interval=0)


def test_every_answer_names_its_release(store: Store) -> None:
    publish(store, 7)
    answers = opened(store).predict(pictures(5))
    check(answers)
    assert len(answers) == 5
    first = answers[0]
    assert (first.label, first.version, first.release) == ("zero", 7, "release-007")
    assert first.probabilities == pytest.approx({"zero": odds(7), "one": (1 - odds(7)) / 2, "two": (1 - odds(7)) / 2}, rel=1e-5)
    assert first.confidence == pytest.approx(odds(7), rel=1e-5)
    assert [p.label for p in answers] == [p.label for p in answers[:]] == ["zero"] * 5


def test_bytes_pictures_and_tensors_are_the_same_sample(folder_store: FolderStore) -> None:
    publish(folder_store, 1)
    champion = opened(folder_store)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    tensor = torch.from_numpy(pixels).movedim(-1, 0)
    forms = [encode(pixels), Image.fromarray(pixels), tensor]
    spec = champion._model.spec
    inputs = [as_input(form, spec) for form in forms]
    assert inputs[0].shape == (3, SIDE, SIDE)
    assert all(torch.equal(inputs[0], other) for other in inputs[1:])
    assert len(champion.predict(torch.stack([tensor] * 3))) == 3
    decoded = [np.asarray(Image.open(io.BytesIO(as_bytes(form)))) for form in forms]
    assert all(np.array_equal(pixels, other) for other in decoded)


def test_a_callers_picture_stays_as_it_is(folder_store: FolderStore) -> None:
    publish(folder_store, 1)
    turned = Image.new("RGB", (20, 10))
    turned.getexif()[0x0112] = 6
    opened(folder_store).predict([turned])
    assert turned.size == (20, 10)


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        (b"nothing", "sample 1 is not a picture"),
        ({"a": 1.0}, r"sample 1 must be its bytes, a PIL picture, or a uint8 tensor \(3, H, W\), got dict"),
        (torch.zeros(3, 8, 8), r"got Tensor torch.float32 \(3, 8, 8\)"),
        (7, "got int"),
    ],
)
def test_what_is_no_sample_is_named(folder_store: FolderStore, sample: object, words: str) -> None:
    publish(folder_store, 1)
    with pytest.raises(DataError, match=words):
        opened(folder_store).predict([pictures(1)[0], sample])  # type: ignore[list-item]


@given(st.dictionaries(st.text(), st.none() | st.text() | st.floats(allow_infinity=False) | st.integers(-9, 9)))
def test_a_row_is_kept_whole(row: dict[str, object]) -> None:
    kept = json.loads(as_bytes(row))
    assert kept == {name: None if value != value else value for name, value in row.items()}


def row_spec(*features: Feature) -> ModelSpec:
    return ModelSpec(
        architecture="support.tables:mlp", classes=("no", "yes"), head="2", native_head=False, embedding_dim=16,
        image_size=8, mean=(0, 0, 0), std=(1, 1, 1), features=features,
    )  # fmt: skip


def test_a_row_is_fed_alike_as_values_and_as_bytes() -> None:
    spec = row_spec(Feature(name="load", mean=100, std=20), Feature(name="site", categories=("north", "south")))
    row = {"load": np.float32(120), "site": "south", "more": None}
    assert as_input(row, spec).tolist() == as_input(as_bytes(row), spec).tolist() == [1.0, 0.0, 1.0]
    assert as_input({"load": float("nan"), "site": None}, spec).tolist() == [0.0, 0.0, 0.0]
    with pytest.raises(DataError, match="its bytes or values by column, got Tensor"):
        as_input(torch.zeros(3), spec)


CELLS: list[tuple[object, object]] = [
    (1, 1), (1.0, 1.0), (2, np.int64(2)), (None, None), (float("nan"), float("nan")), (-0.0, np.float32(-0.0)), ("nan", "nan"),
    (" a  b ", " a  b "), (True, True), (False, np.bool_(False)), (1.5, torch.tensor(1.5)), ("1.0", "1.0"), (1 << 60, 1 << 60),
]  # fmt: skip
"""Values as they stand in a table, and as a service has them."""


@pytest.mark.parametrize(("stands", "has"), CELLS, ids=str)
def test_a_row_is_fed_to_a_service_as_to_training(tmp_path: Path, stands: object, has: object) -> None:
    column = {"name": "it", "categories": ["1", "1.0", "a b", "True", "False", "nan", str(1 << 60)]}
    number = not isinstance(stands, str)
    features: list[Any] = [column, *(["number"] if number else [])]
    table = pa.table({"it": [stands], "broken": ["yes"], **({"number": [stands]} if number else {})})
    tables.write(tmp_path / "inbox" / "t.parquet", table)
    made = {"timestamp_column": None, "slice_columns": [], "missing": "impute"}
    config = tables.pipeline(tmp_path, source=made, model={"features": features})
    view = View(store := FolderStore(tmp_path / "store"), ingest(store, config).view)  # type: ignore[union-attr]
    (trained,) = view.read(view.rows())
    spec = row_spec(*(Feature(name=f.name, categories=f.categories) for f in config.model.features))
    fed = to_vector(trained, spec.features).tolist()
    row = {"it": has, "number": has, "more": 3}
    assert as_input(row, spec).tolist() == as_input(as_bytes(row), spec).tolist() == fed
    if type(stands) is type(has):
        assert as_input(json.dumps(row).encode(), spec).tolist() == fed


@pytest.mark.parametrize(
    "sample", [b"no", b"[1]", b"\xff", b"[" * 9_999, b'{"load": "x"}', b"{}", {"load": "\ud800"}, {"load": [1]}]
)
def test_what_is_no_row_is_told_as_no_sample(sample: object) -> None:
    with pytest.raises(DataError):
        as_input(sample, row_spec(Feature(name="load")))  # type: ignore[arg-type]


def test_nothing_is_asked_of_an_alias_that_names_nothing(store: Store) -> None:
    with pytest.raises(ReleaseError, match=r"the alias champion at .* must name a release, got none"):
        opened(store)


def test_code_that_the_service_does_not_name_is_not_run(folder_store: FolderStore) -> None:
    publish(folder_store, 1)
    with pytest.raises(ModelError, match=r"'support.networks:plain', code of a package that"):
        load_champion(folder_store.url(""))


def test_moves_are_followed(store: Store) -> None:
    publish(store, 1)
    champion = opened(store)
    assert not champion.refresh()
    publish(store, 2)
    publish(store, 3)
    assert champion.version == 1
    assert champion.refresh()
    assert (champion.version, champion.swaps) == (3, 1)
    alias.rollback(store, to=1)
    alias.unpin(store)
    assert champion.refresh()
    check(champion.predict(pictures()))
    assert champion.version == 1
    alias.pin(store)
    assert not champion.refresh()
    assert champion.last_error is None


steps = st.lists(st.sampled_from(["publish", "rollback", "pin", "unpin", "break", "mend", "look", "look"]), max_size=12)


@settings(max_examples=25, deadline=None)
@given(steps)
def test_after_a_look_the_champion_answers_or_the_last_good_one(history: list[str]) -> None:
    with in_memory() as folder:
        store, number, broken, good = FolderStore(Path(folder)), 1, False, 1
        publish(store, 1)
        champion = opened(store)
        for step in history:
            head = champion_moves(store).last()
            assert head is not None
            match step:
                case "publish" if not head.pinned:
                    number += 1
                    publish(store, number)
                case "rollback" | "pin" | "unpin":
                    with suppress(ReleaseError, StoreError):  # nothing to go back to, not pinned, or broken
                        getattr(alias, step)(store)
                case "break" if not broken:
                    (Path(folder) / "releases").rename(Path(folder) / "away")
                    broken = True
                case "mend" if broken and not (Path(folder) / "releases").exists():
                    (Path(folder) / "away").rename(Path(folder) / "releases")
                    broken = False
                case "look":
                    champion.refresh()
                    whole = (Path(folder) / f"releases/{head.release}/release.json").exists()
                    good = head.version if whole or head.version == good else good
                    assert champion.version == good
                    assert (champion.stale_since is None) == (head.version == good)
            check(champion.predict(pictures(1)))


def test_another_alias_is_followed_too(store: Store) -> None:
    publish(store, 1)
    key = write_release(store, 2).id
    name_it(store, "shadow", key)
    champion, shadow = opened(store), load_champion(store.url(""), alias="shadow", code=CODE, min_interval=0)
    assert (champion.version, shadow.version, shadow.release) == (1, 0, key)
    assert not champion.refresh()
    name_it(store, "shadow", "release-001")
    assert shadow.refresh()
    assert shadow.release == "release-001"
    alias.remove(store, "shadow")
    assert not shadow.refresh()
    assert "the alias shadow at" in (shadow.last_error or "")
    assert len(shadow.predict(pictures())) == 4
    with pytest.raises(ReleaseError, match=r"the alias shadow at .* got none"):
        load_champion(store.url(""), alias="shadow", code=CODE)


def name_it(store: Store, name: str, release: str) -> None:
    """Let an alias name a release, as `everfresh promote` does."""
    log = moves(store, name)
    move = AliasMove(
        seq=log.last_seq() + 1, id=release, kind="promote", release=release, version=0, by="", reason="", at=store.now()
    )
    assert log.append(move.seq, move)


def test_an_exported_release_needs_no_code_and_says_the_same(store: Store) -> None:
    publish(store, 5, formats=("pt2",))
    champion = load_champion(store.url(""), file="model.pt2", min_interval=0)
    answers = champion.predict(pictures())
    check(answers)
    assert np.allclose(answers.probabilities, opened(store).predict(pictures()).probabilities, atol=1e-6)
    publish(store, 6)
    assert not champion.refresh()
    assert "must name model.pt2, got model.safetensors" in (champion.last_error or "")
    assert champion.version == 5


def test_a_look_is_one_small_request(s3_endpoint: str, s3_store: S3Store) -> None:
    for number in (1, 2, 3):
        publish(s3_store, number)
    with running_proxy(s3_endpoint) as proxy:
        champion = through(proxy, s3_store)
        with proxy.injecting(lambda _request: None):
            assert not champion.refresh()
            assert [(r.method, r.path.rsplit("/", 2)[-2:]) for r in proxy.seen] == [("GET", ["champion", "00000004.json"])]


def through(proxy: Proxy, store: S3Store, **options: float) -> Champion:
    """The champion of a store as a service behind a proxy sees it."""
    s3 = S3Config(endpoint=proxy.endpoint, connect_timeout=1, read_timeout=1, max_attempts=1)
    return load_champion(store.url(""), code=CODE, s3=s3, **{"min_interval": 0, **options})


def test_who_may_only_read_and_list_can_serve(s3_endpoint: str, s3_store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(s3_store, 1)
    with monkeypatch.context() as reader:
        for name, value in environment(s3_endpoint, READER_KEY, READER_SECRET).items():
            reader.setenv(name, value)
        reader.setattr("boto3.DEFAULT_SESSION", None)
        s3 = S3Config(connect_timeout=9)  # a client of its own
        with pytest.raises(AccessRefused):
            open_store(s3_store.url(""), s3).put("x", b"")
        champion = load_champion(s3_store.url(""), code=CODE, s3=s3, min_interval=0)
    publish(s3_store, 2)
    assert champion.refresh()
    check(champion.predict(pictures()))


def test_looks_are_not_more_frequent_than_asked(store: Store) -> None:
    publish(store, 1)
    champion = load_champion(store.url(""), code=CODE, min_interval=60)
    publish(store, 2)
    assert not champion.refresh()


def test_the_last_good_model_answers_while_the_store_is_down(s3_endpoint: str, s3_store: S3Store) -> None:
    publish(s3_store, 1)
    with running_proxy(s3_endpoint) as proxy:
        champion = through(proxy, s3_store)
        publish(s3_store, 2)
        with proxy.injecting(always("reset")):
            assert not champion.refresh()
            assert not champion.refresh()
        check(champion.predict(pictures()))
        assert (champion.version, champion.failures) == (1, 2)
        assert champion.stale_since is not None
        assert "StoreError" in (champion.last_error or "")
        assert champion.refresh()
        assert (champion.version, champion.failures, champion.stale_since, champion.last_error) == (2, 0, None, None)


def test_failures_make_looks_rarer(s3_endpoint: str, s3_store: S3Store) -> None:
    publish(s3_store, 1)
    with running_proxy(s3_endpoint) as proxy:
        champion = through(proxy, s3_store, min_interval=0.1)
        time.sleep(0.1)
        with proxy.injecting(always("reset")):
            until = time.monotonic() + 1.0
            while time.monotonic() < until:
                champion.refresh()
        assert 2 <= champion.failures <= 4  # after 0.1, 0.2, 0.4 … s


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("weights", "must have SHA-256"),
        ("missing", "ObjectMissing"),
        ("record", "must be a Release in JSON"),
        ("architecture", "ModelError"),
        ("scores", "must give 3 finite scores a sample, got (2, 3) of two, 0 of them finite"),
    ],
)
def test_a_broken_release_never_answers(store: Store, broken: str, words: str) -> None:
    publish(store, 1)
    champion = opened(store)
    key = f"releases/{publish(store, 2).release}"
    match broken:
        case "weights":
            store.put(f"{key}/model.safetensors", b"other bytes")
        case "missing":
            store.delete(f"{key}/model.safetensors")
        case "record":
            store.put(f"{key}/release.json", b"{}")
        case "architecture":
            store.put(f"{key}/release.json", store.get(f"{key}/release.json").replace(b"networks:plain", b"networks:raises"))
        case "scores":
            from safetensors.torch import load, save

            state = load(store.get(f"{key}/model.safetensors"))
            part = store.keep(f"{key}/model.safetensors", save({name: t * float("nan") for name, t in state.items()}))
            whole = Release.from_bytes(store.get(f"{key}/release.json"))
            store.put(f"{key}/release.json", whole.model_copy(update={"files": {"model.safetensors": part}}).to_bytes())
    assert not champion.refresh()
    check(champion.predict(pictures()))
    assert champion.version == 1
    assert words in (champion.last_error or "")
    publish(store, 4)
    assert champion.refresh()
    assert champion.version == 4


def test_only_a_signed_release_answers_where_a_key_says_so(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = pair(tmp_path)
    publish(store, 1)
    monkeypatch.setenv("EVERFRESH_VERIFYING_KEY", str(public))
    with pytest.raises(ReleaseError, match="sign"):
        opened(store)
    monkeypatch.setenv("EVERFRESH_SIGNING_KEY", str(private))
    assert sign_release(store, "release-001")
    champion = opened(store)
    publish(store, 2)
    assert not champion.refresh()
    assert "sign" in (champion.last_error or "")
    check(champion.predict(pictures()))
    assert sign_release(store, "release-002")
    assert champion.refresh()
    assert champion.version == 2


def test_it_refreshes_itself_until_it_is_closed(folder_store: FolderStore) -> None:
    publish(folder_store, 1)
    with opened(folder_store).refresh_every(0.02) as champion:
        publish(folder_store, 2)
        until = time.monotonic() + 30
        while champion.version != 2 and time.monotonic() < until:
            time.sleep(0.01)
        assert champion.version == 2
    publish(folder_store, 3)
    time.sleep(0.1)
    assert champion.version == 2


def in_a_fork(work: Callable[[], object]) -> str:
    """What some work says in a fork of this process."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        with suppress(BaseException):
            try:
                words = str(work())
            except ReleaseError as error:
                words = f"ReleaseError: {error}"
            os.write(writing, words.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as said:
        words = said.read()
    os.waitpid(child, 0)
    return words


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_champion_answers_only_where_it_was_loaded(s3_store: S3Store) -> None:
    publish(s3_store, 1)
    champion = opened(s3_store)
    uses: list[Callable[[], object]] = [
        lambda: champion.predict([]), champion.refresh, lambda: champion.refresh_every(1),
    ]  # fmt: skip
    for use in uses:
        assert re.match(r"ReleaseError: .* Call load_champion in each worker, after the fork", in_a_fork(use))
    assert len(champion.predict([])) == 0
    mine = id(s3_store._client)
    assert in_a_fork(lambda: id(s3_store._client) != mine and s3_store.exists("releases/release-001/release.json")) == "True"


def test_weights_are_kept_once_and_the_oldest_go(s3_store: S3Store) -> None:
    publish(s3_store, 1)
    size = len(s3_store.get("releases/release-001/model.safetensors"))
    champion = load_champion(s3_store.url(""), code=CODE, min_interval=0, cache_bytes=2 * size + 10)
    models = cache_folder() / "models"
    digests = [_digest(s3_store, 1)]
    for number in (2, 3, 4):
        publish(s3_store, number)
        assert champion.refresh()
        digests.append(_digest(s3_store, number))
        time.sleep(0.01)
    assert {path.name for path in models.iterdir()} == set(digests[-2:])
    (models / digests[-1]).write_bytes(b"damaged")
    load_champion(s3_store.url(""), code=CODE)
    assert (models / digests[-1]).stat().st_size == size


def _digest(store: Store, number: int) -> str:
    release = json.loads(store.get(f"releases/release-{number:03d}/release.json"))
    return Part(**release["files"]["model.safetensors"]).sha256
