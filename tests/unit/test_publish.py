"""Publish: a release is whole before anybody can see it, and there is one champion."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support import consumer
from support.keys import pair
from support.loop import Outcome, arrive, open_tick, pipeline, release_of, run_window, second_window
from support.pictures import digits, write_folder

from everfresh.tasks import decide, drift, evaluate, fine_tune, ingest, journal
from everfresh.tasks.alias import pin, rollback, unpin
from everfresh.tasks.architectures import build
from everfresh.tasks.config import PipelineConfig, ServesGate
from everfresh.tasks.difference import _proofs
from everfresh.tasks.embeddings import Embedder
from everfresh.tasks.errors import ChampionMoved, DataError, DigestMismatch, ReleaseError, StoreError
from everfresh.tasks.images import normalise, to_tensor
from everfresh.tasks.ledger import Log, champion_moves, find, settle
from everfresh.tasks.publish import adopt, publish
from everfresh.tasks.records import AliasMove, Candidate, Evaluation, ModelSpec, Part, Reference, Release, Tick
from everfresh.tasks.signing import SIGNATURE, SIGNING_KEY
from everfresh.tasks.store import FolderStore, Store
from everfresh.tasks.views import View


class Proven:
    """A challenger that has passed every gate and waits to be published."""

    def __init__(self, store: Store, config: PipelineConfig, tick: Tick, challenger: Candidate, proof: Evaluation) -> None:
        self.store, self.config, self.tick, self.challenger, self.proof = store, config, tick, challenger, proof
        window = journal.window_of(store, tick.view)
        self.bank = decide.bank_after(tick, window, None, "trusted")

    def publish(self, store: Store | None = None, proof: Evaluation | None = None) -> AliasMove:
        return publish(store or self.store, self.config, self.tick, self.challenger, proof or self.proof, self.bank)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Proven]:
    """A store whose second window has a proven challenger."""
    folder = tmp_path_factory.mktemp("prepared")
    store, config = second_window(folder)
    tick = open_tick(store, config)
    challenger = fine_tune.fine_tune(store, config, tick, "head")
    proof = evaluate.evaluate(store, config, tick, challenger, against=1)
    assert proof.passed
    return folder / "store", Proven(store, config, tick, challenger, proof)


def copied(prepared: tuple[Path, Proven], store: Store) -> Proven:
    """The proven challenger in a store of its own."""
    folder, proven = prepared
    if isinstance(store, FolderStore):
        shutil.copytree(folder, store.root)
    else:
        for item in proven.store.list():
            store.put(item.key, proven.store.get(item.key))
    return Proven(store, proven.config, proven.tick, proven.challenger, proven.proof)


@pytest.fixture
def proven(prepared: tuple[Path, Proven], store: Store) -> Proven:
    return copied(prepared, store)


@pytest.fixture
def here(prepared: tuple[Path, Proven], folder_store: FolderStore) -> Proven:
    return copied(prepared, folder_store)


def champion(store: Store) -> AliasMove:
    """The champion, after every byte of its release has been verified."""
    head = champion_moves(store).last()
    assert head is not None
    for part in release_of(store, head).files.values():
        store.read(part)
    return head


class Faulty(FolderStore):
    """Something happens before the n-th write."""

    def __init__(self, root: Path, at: int, event: Callable[[], object]) -> None:
        super().__init__(root)
        self.at, self.event, self.written = at, event, [""]

    def _count(self, key: str) -> None:
        self.written.append(key)
        if len(self.written) - 1 == self.at:
            self.event()

    def put(self, key: str, data: bytes) -> None:
        self._count(key)
        super().put(key, data)

    def create(self, key: str, data: bytes) -> bool:
        self._count(key)
        return super().create(key, data)

    def put_file(self, key: str, path: Path) -> Part:
        self._count(key)
        return super().put_file(key, path)


WRITES = 17
"""Store writes of one publication; `test_a_release_record_is_written_last` holds it."""


# --- publish -------------------------------------------------------------------------------------------------


def test_a_proven_challenger_becomes_champion(proven: Proven) -> None:
    before = champion(proven.store)
    move = proven.publish()
    assert champion(proven.store) == move
    assert (move.seq, move.version, move.kind, move.release) == (2, 2, "publish", proven.challenger.key)
    assert (before.seq, before.version) == (1, 1)
    release = release_of(proven.store, move)
    assert set(release.files) == {
        "model.safetensors", "config.json", "metrics.json", "verdicts.json", "lineage.json", "holdout.jsonl", "card.md",
    }  # fmt: skip
    assert release.files["model.safetensors"].sha256 == proven.challenger.weights.sha256
    card = proven.store.get(release.files["card.md"].key).decode()
    table = next(part for part in card.split("\n\n") if part.startswith("| | on |")).splitlines()
    assert {line.count("|") for line in table} == {8}  # one table: head, rule and a row for each set of samples
    assert len(table) >= 3
    assert "Nobody has said" in card
    assert "| slice of its hold-out | samples | accuracy | 95 % |\n|---|---|---|---|\n| label = " in card
    assert "Hold-out by class: zero " in card
    lineage = json.loads(proven.store.get(release.files["lineage.json"].key))
    assert lineage["parent"] == before.release
    assert lineage["recipe"] == proven.challenger.recipe
    assert (release.parent, release.seq, release.evaluation) == (before.release, 2, proven.proof.key)
    reference = find(proven.store, f"references/{release.reference}/record.json", Reference)
    assert reference is not None
    assert {v for c in reference.components for v in c.views} == {b.view for b in proven.bank}
    assert {s for c in reference.components for s in c.splits} == {"holdout"}


def test_publishing_again_gives_the_same_move(proven: Proven) -> None:
    move = proven.publish()
    assert proven.publish() == move
    assert champion_moves(proven.store).last_seq() == 2


def test_a_challenger_proven_against_an_earlier_champion_is_refused(proven: Proven) -> None:
    pin(proven.store)
    with pytest.raises(ChampionMoved, match=r"must still be that of move 1, got a later move"):
        proven.publish()
    assert champion(proven.store).version == 1


def test_what_did_not_pass_or_is_another_candidate_is_refused(here: Proven) -> None:
    failed = here.proof.model_copy(update={"passed": False})
    other = here.proof.model_copy(update={"candidate": "another"})
    for proof in (failed, other):
        with pytest.raises(ReleaseError, match=r"must be of this candidate and passed, got failed gates \[\]"):
            here.publish(proof=proof)


def test_a_release_record_is_written_last_and_then_the_move(here: Proven, folder_store: FolderStore) -> None:
    faulty = Faulty(folder_store.root, 0, lambda: None)
    here.publish(faulty)
    written = faulty.written[1:]
    assert len(written) == WRITES
    record = written.index(f"releases/{here.challenger.key}/release.json")
    assert not [k for k in written[record + 1 :] if k.startswith(("releases/", "references/"))]
    assert written[-2:] == ["aliases/champion/00000002.json", "aliases/champion.json"]


def test_a_champion_that_moves_while_the_model_is_written_leaves_no_proof_behind(
    here: Proven, folder_store: FolderStore
) -> None:
    """The challenger is proven again, against the new one: its release tells that proof."""
    faulty = Faulty(folder_store.root, 1, lambda: pin(folder_store))
    with pytest.raises(ChampionMoved, match=r"must still be that of move 1, got a later move"):
        here.publish(faulty)
    keys = {item.key.rsplit("/", 1)[1] for item in folder_store.list(f"releases/{here.challenger.key}")}
    assert keys == {"model.safetensors", "config.json", "holdout.jsonl"}
    unpin(folder_store)
    later = evaluate.evaluate(folder_store, here.config, here.tick, here.challenger, against=3)
    move = here.publish(proof=later)
    assert release_of(folder_store, move).evaluation == move.evaluation == later.key != here.proof.key
    assert pin(folder_store).evaluation == ""


def test_a_move_says_which_proof_it_was_made_by(here: Proven, folder_store: FolderStore) -> None:
    """The champion moves once the release stands: its files keep the first proof, the move has the one that counts."""
    faulty = Faulty(folder_store.root, WRITES - 1, lambda: pin(folder_store))
    with pytest.raises(ChampionMoved):
        here.publish(faulty)
    unpin(folder_store)
    later = evaluate.evaluate(folder_store, here.config, here.tick, here.challenger, against=3)
    move = here.publish(proof=later)
    release = release_of(folder_store, move)
    assert (release.evaluation, move.evaluation) == (here.proof.key, later.key)
    assert [proof.key for proof in _proofs(folder_store, release)] == [later.key, here.proof.key]


class Crash(Exception):
    """The process dies here."""


@pytest.mark.parametrize("at", range(1, WRITES + 1))
def test_a_crash_leaves_a_whole_champion_and_a_rerun_completes(here: Proven, folder_store: FolderStore, at: int) -> None:
    def dies() -> None:
        raise Crash

    with pytest.raises(Crash):
        here.publish(Faulty(folder_store.root, at, dies))
    assert champion(folder_store).version == (2 if at == WRITES else 1)  # before the last write the move is made
    move = here.publish()
    assert champion(folder_store) == move
    assert (move.seq, champion_moves(folder_store).last_seq()) == (2, 2)


@pytest.mark.parametrize("at", range(1, WRITES + 1))
def test_another_run_that_publishes_in_between_damages_nothing(here: Proven, folder_store: FolderStore, at: int) -> None:
    """The same challenger, evaluated twice with other words: the record that stands names the bytes that stand."""
    verdict = here.proof.verdicts[0].model_copy(update={"words": "other words"})
    scores = here.proof.window.model_copy(update={"champion": None})
    other = here.proof.model_copy(update={"key": "other", "verdicts": (verdict,), "window": scores})
    moves = []
    slow = Faulty(folder_store.root, at, lambda: moves.append(here.publish(proof=other)))
    moves.append(here.publish(slow))
    assert [champion(folder_store)] * 2 == moves
    assert moves[0].seq == 2


def test_a_record_that_somebody_planted_never_goes_live(
    here: Proven, folder_store: FolderStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whoever can write to the store puts a release in place of the challenger, before it is published and signed."""
    private, _ = pair(tmp_path)
    monkeypatch.setenv(SIGNING_KEY, str(private))
    place = f"releases/{here.challenger.key}"
    before = release_of(folder_store, champion(folder_store))
    files = {n: folder_store.keep(f"{place}/{n}", folder_store.read(part)) for n, part in before.files.items()}
    planted = before.model_copy(update={"id": here.challenger.key, "files": files})
    folder_store.put(f"{place}/release.json", planted.to_bytes())
    with pytest.raises(ReleaseError, match=r"must be the record of this very model, got one with another"):
        here.publish()
    assert champion(folder_store).seq == 1
    assert not folder_store.exists(f"{place}/{SIGNATURE}")


def test_the_record_of_another_pipeline_never_goes_live(here: Proven, folder_store: FolderStore) -> None:
    """Planted while the files of the model are written, with the move that would have it believed to be another run's."""
    elsewhere = FolderStore(folder_store.root.with_name("elsewhere"))
    shutil.copytree(folder_store.root, elsewhere.root)
    true = release_of(elsewhere, here.publish(elsewhere))

    def plant() -> None:
        shutil.copytree(elsewhere.root / "releases" / true.id, folder_store.root / "releases" / true.id, dirs_exist_ok=True)
        other = true.model_copy(update={"pipeline": "other"})
        folder_store.put(f"releases/{true.id}/release.json", other.to_bytes())
        pin(folder_store)

    with pytest.raises(ReleaseError, match=r"must be the record of this very model, got one with another pipeline"):
        here.publish(Faulty(folder_store.root, 3, plant))


def test_a_planted_file_is_written_over(here: Proven, folder_store: FolderStore) -> None:
    folder_store.put(f"releases/{here.challenger.key}/config.json", b"{}")
    release = release_of(folder_store, here.publish())
    assert json.loads(folder_store.read(release.files["config.json"]))["classes"] == list(release.spec.classes)


# --- the consumer --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["resnet18", "squeezenet1_1"])
def test_plain_torch_reproduces_the_recorded_accuracy(tmp_path: Path, architecture: str) -> None:
    config = pipeline(
        tmp_path,
        model={"architecture": architecture, "weights": None, "classes": ("zero", "one", "two"), "image_size": 48},
        gates=[{"kind": "floor", "minimum": 0}],
    )
    store = FolderStore(tmp_path / "store")
    arrive(config, 24)
    tick = open_tick(store, config)
    challenger = fine_tune.fine_tune(store, config, tick, "head")
    proof = evaluate.evaluate(store, config, tick, challenger, against=0)
    move = publish(
        store, config, tick, challenger, proof, decide.bank_after(tick, journal.window_of(store, tick.view), None, "trusted")
    )
    accuracy, as_recorded = consumer.score(tmp_path / "store", move.release)
    assert accuracy == release_of(store, move).accuracy
    assert as_recorded == 1


def test_the_consumer_knows_nothing_of_everfresh() -> None:
    for script in consumer.SCRIPTS:
        text = script.read_text()
        assert "import everfresh" not in text
        assert "from everfresh" not in text


SPEC = ModelSpec(
    architecture="resnet18", classes=("a", "b"), head="fc", native_head=False, embedding_dim=512, image_size=32,
    mean=(0, 0, 0), std=(1, 1, 1),
)  # fmt: skip


# --- rollback, pin -------------------------------------------------------------------------------------------


def versions(store: Store, count: int) -> None:
    """A history of publications, as far as rollback looks at it."""
    moves = champion_moves(store)
    for seq in range(1, count + 1):
        release = Release(
            id=f"r{seq}", spec=SPEC, files={"model.safetensors": store.keep(f"releases/r{seq}/model.safetensors", b"w")},
            evaluation="", holdout_view="", bank=(), reference="", parent=None, rung="head", seq=seq, accuracy=1,
            created_at=store.now(),
        )  # fmt: skip
        settle(store, f"releases/r{seq}/release.json", release)
        move = AliasMove(
            seq=seq, id=str(seq), kind="publish", release=f"r{seq}", version=seq, by="x", reason="", at=store.now()
        )  # fmt: skip
        assert moves.append(seq, move)


def test_a_rollback_to_a_release_that_is_not_whole_is_refused(folder_store: FolderStore) -> None:
    versions(folder_store, 3)
    folder_store.put("releases/r2/model.safetensors", b"x")
    with pytest.raises(DigestMismatch, match=r"releases/r2/model.safetensors"):
        rollback(folder_store)
    folder_store.delete("releases/r1/release.json")
    with pytest.raises(ReleaseError, match=r"the release of v1 must be in the store.*Nothing was changed"):
        rollback(folder_store, 1)
    assert champion_moves(folder_store).last_seq() == 3


def state(move: AliasMove) -> tuple[int, int, str, bool, tuple[str, ...]]:
    return move.seq, move.version, move.kind, move.pinned, move.barred


def test_a_rollback_goes_to_the_champion_before_bars_and_pins(store: Store) -> None:
    versions(store, 3)
    move = rollback(store, reason="odd cats", by="ana")
    assert state(move) == (4, 2, "rollback", True, ("r3",))
    assert (move.release, move.by, move.reason) == ("r2", "ana", "odd cats")
    assert champion_moves(store).last() == move


def test_rollbacks_in_a_row_go_further_back_and_never_forward(folder_store: FolderStore) -> None:
    versions(folder_store, 3)
    assert state(rollback(folder_store)) == (4, 2, "rollback", True, ("r3",))
    assert state(rollback(folder_store)) == (5, 1, "rollback", True, ("r3", "r2"))
    with pytest.raises(ReleaseError, match=r"there must be a champion before v1, got none. Nothing was changed."):
        rollback(folder_store)
    assert champion_moves(folder_store).last_seq() == 5


def test_a_rollback_to_the_first_leaves_no_earlier_one(folder_store: FolderStore) -> None:
    versions(folder_store, 3)
    rollback(folder_store, 1)
    with pytest.raises(ReleaseError, match=r"before v1, got none"):  # v2 came later
        rollback(folder_store)


def test_a_rollback_to_a_version_frees_it_again(folder_store: FolderStore) -> None:
    versions(folder_store, 3)
    assert state(rollback(folder_store, 1)) == (4, 1, "rollback", True, ("r3",))
    assert state(rollback(folder_store, 3)) == (5, 3, "rollback", True, ("r1",))


@pytest.mark.parametrize(
    ("count", "to", "message"),
    [
        (0, None, "rollback: there must be a champion, got none. Run a first window or `everfresh adopt`."),
        (1, None, "rollback: there must be a champion before v1, got none. Nothing was changed."),
        (2, 7, "rollback: version must be one of v1, v2, got v7. See `everfresh history`."),
        (2, 2, "rollback: v2 is champion already. Nothing was changed."),
    ],
)
def test_a_rollback_that_cannot_be_says_why(folder_store: FolderStore, count: int, to: int | None, message: str) -> None:
    versions(folder_store, count)
    with pytest.raises(ReleaseError) as caught:
        rollback(folder_store, to)
    assert str(caught.value) == message
    assert champion_moves(folder_store).last_seq() == count


def test_pin_and_unpin_keep_the_champion(store: Store) -> None:
    versions(store, 2)
    assert state(pin(store, reason="holiday")) == (3, 2, "pin", True, ())
    assert state(unpin(store)) == (4, 2, "unpin", False, ())
    rollback(store)
    assert state(unpin(store)) == (6, 1, "unpin", False, ("r2",))


def test_a_release_that_was_rolled_back_is_barred_for_the_next(here: Proven) -> None:
    here.publish()
    rollback(here.store)
    free = unpin(here.store)
    again = evaluate.evaluate(here.store, here.config, here.tick, here.challenger, against=free.seq)
    assert again.failed_gates == ("barred",)


def test_racing_moves_leave_no_gap_and_one_winner_each(store: Store) -> None:
    versions(store, 2)

    refused = []

    def one(number: int) -> list[AliasMove]:
        made = []
        for _ in range(3):
            try:
                made.append((pin, unpin, rollback)[number % 3](store, by=str(number)))
            except ReleaseError as error:
                refused.append(str(error))
        return made

    with ThreadPoolExecutor(8) as pool:
        made = [move for group in pool.map(one, range(8)) for move in group]
    history = list(champion_moves(store))
    assert [m.seq for m in history] == list(range(1, len(made) + 3))
    assert sorted(m.id for m in history[2:]) == sorted(m.id for m in made)
    reasons = (
        r"rollback: there must be a champion before v1|rollback: v\d is champion already|pin: .* Look, and pin again|unpin: "
    )
    assert [words for words in refused if not re.match(reasons, words)] == []
    assert champion_moves(store).last_seq() == len(history)


def test_of_eight_publications_and_rollbacks_at_once_each_move_is_one_persons(proven: Proven) -> None:
    def one(number: int) -> AliasMove | None:
        try:
            return proven.publish() if number % 2 else pin(proven.store, by=str(number))
        except ChampionMoved as error:
            lost.append(str(error))
            return None

    lost: list[str] = []
    with ThreadPoolExecutor(8) as pool:
        made = [move for move in pool.map(one, range(8)) if move]
    words = (
        "publish: the champion must still be that of move 1, got a later move. "
        "The challenger is evaluated against the new champion."
    )
    assert set(lost) <= {words}
    assert len(made) + len(lost) == 8
    history = list(champion_moves(proven.store))
    assert [m.seq for m in history] == list(range(1, len(history) + 1))
    assert {m.id for m in history[1:]} == {m.id for m in made}
    assert sum(m.kind == "publish" for m in history) <= 2
    champion(proven.store)


# --- adopt ---------------------------------------------------------------------------------------------------


def running(folder: Path, architecture: str = "squeezenet1_1") -> tuple[FolderStore, PipelineConfig, torch.nn.Module, str]:
    """A model that runs elsewhere, and its weights in a file."""
    config = pipeline(
        folder, model={"architecture": architecture, "weights": None, "classes": ("zero", "one", "two"), "image_size": 48}
    )
    torch.manual_seed(3)
    module = build(architecture, 3).eval()
    save_file(dict(module.state_dict()), folder / "running.safetensors")
    return FolderStore(folder / "store"), config, module, str(folder / "running.safetensors")


def test_an_adopted_model_is_version_one_and_predicts_as_before(tmp_path: Path) -> None:
    store, config, module, weights = running(tmp_path)
    reference = ingest.freeze(
        store, config, str(write_folder(tmp_path / "reference", digits(12, classes=config.model.classes)))
    )
    move = adopt(store, config, weights, reference)
    assert state(move) == (1, 1, "adopt", False, ())
    assert champion(store) == move
    release = release_of(store, move)
    assert (release.rung, release.parent, release.evaluation) == ("adopted", None, "")
    view = View(store, reference.view)
    rows = view.rows("holdout")
    assert len(rows) == 12
    _, scores = Embedder.open(store, release.spec, release.files["model.safetensors"]).scores(view, rows)
    pixels = torch.stack([to_tensor(data, 48) for data in view.read(rows.tolist())])
    with torch.no_grad():
        torch.testing.assert_close(scores, module(normalise(pixels, release.spec.mean, release.spec.std)))
    accuracy, as_recorded = consumer.score(tmp_path / "store", move.release)
    assert (accuracy, as_recorded) == (release.accuracy, 1)


def test_an_adopted_model_is_asked_by_a_fresh_process_too(tmp_path: Path) -> None:
    store, config, _, weights = running(tmp_path)
    config = config.model_copy(update={"gates": (ServesGate(),)})
    reference = ingest.freeze(store, config, str(write_folder(tmp_path / "reference", digits(4, classes=config.model.classes))))
    release = release_of(store, adopt(store, config, weights, reference))
    (verdict,) = json.loads(store.read(release.files["verdicts.json"]))
    assert (verdict["gate"], verdict["passed"]) == ("serves", True)


def test_a_pipeline_with_a_champion_adopts_nothing(tmp_path: Path) -> None:
    store, config, _, weights = running(tmp_path)
    reference = ingest.freeze(store, config, str(write_folder(tmp_path / "reference", digits(4, classes=config.model.classes))))
    adopt(store, config, weights, reference)
    with pytest.raises(ReleaseError, match=r"adopt: the pipeline digits must have no champion yet, got v1"):
        adopt(store, config, weights, reference)


def test_samples_with_other_labels_are_no_reference(tmp_path: Path) -> None:
    store, config, _, weights = running(tmp_path)
    reference = ingest.freeze(store, config, str(write_folder(tmp_path / "reference", digits(4, classes=("nine",)))))
    with pytest.raises(DataError, match=r"got 4 samples with the labels \['nine'\]"):
        adopt(store, config, weights, reference)
    assert champion_moves(store).last() is None


def test_what_is_adopted_is_watched_and_replaced_like_any_other(tmp_path: Path) -> None:
    store, config, _, weights = running(tmp_path, "everfresh.tasks.models:small_cnn")
    folder = write_folder(tmp_path / "reference", digits(30, classes=config.model.classes))
    adopt(store, config, weights, ingest.freeze(store, config, str(folder)))
    arrive(config, 60, start=200)
    policy = config.policy.model_copy(
        update={"triggers": pipeline(tmp_path, policy={"triggers": [{"kind": "new_samples", "count": 1}]}).policy.triggers}
    )
    ran: Outcome = run_window(store, config.model_copy(update={"policy": policy}))
    assert ran.drift is not None
    assert ran.drift.nearest == "adopted"
    assert ran.tried[0].champion == champion_moves(store).entry(1).release  # type: ignore[union-attr]
    assert ran.move is not None
    assert ran.move.version == 2


def test_a_release_takes_no_drift_stage_to_be_read(here: Proven) -> None:
    """The reference that a publication writes is what the next window is measured against."""
    here.publish()
    decision = decide.Decision(action="nothing", reasons=("x",))
    entry = journal.sum_up(here.store, here.tick, None, decision, (), None, None, "trusted", here.bank)
    journal.end(here.store, here.tick, entry)
    arrive(here.config, 30, start=600)
    tick = open_tick(here.store, here.config)
    report = drift.detect(here.store, here.config, tick)
    release = find(here.store, f"releases/{here.challenger.key}/release.json", Release)
    assert release is not None
    assert report.reference == release.reference


def meanwhile(monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    """Somebody publishes v3 between a person's look at the champion, v2, and the person's move."""
    append, left = Log.append, [1]

    def late(self: Log[AliasMove], seq: int, entry: AliasMove) -> bool:
        if left:
            left.pop()
            head = champion_moves(store).last()
            assert head is not None
            v3 = head.model_copy(update={"seq": seq, "id": "late", "kind": "publish", "version": seq, "release": f"r{seq}"})
            assert append(self, seq, v3)
        return append(self, seq, entry)

    monkeypatch.setattr(Log, "append", late)


def test_a_rollback_leaves_also_what_was_published_meanwhile(
    folder_store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions(folder_store, 2)
    meanwhile(monkeypatch, folder_store)
    assert state(rollback(folder_store)) == (4, 1, "rollback", True, ("r2", "r3"))


def test_a_pin_does_not_keep_what_the_person_has_not_seen(folder_store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    versions(folder_store, 2)
    meanwhile(monkeypatch, folder_store)
    with pytest.raises(ReleaseError, match=r"pin: the champion must still be v2, got v3 meanwhile. Look, and pin again"):
        pin(folder_store)


def test_a_first_release_is_refused_by_a_store_that_writes_over_objects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, store = pipeline(tmp_path), FolderStore(tmp_path / "store")
    arrive(config, 60)
    monkeypatch.setattr(FolderStore, "create", lambda self, key, data: self.put(key, data) or True)
    with pytest.raises(StoreError, match=r"must refuse to write over an object"):
        run_window(store, config)
    assert champion_moves(store).last() is None
