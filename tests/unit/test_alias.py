"""Aliases by name: each has a history of its own, and what holds a release back holds for all of them."""

from __future__ import annotations

import pytest
from support.fate import Fated
from support.releases import publish, put_release, release_id

from everfresh.tasks.alias import pin, promote, remove, restore, retire, retire_all, rollback, unpin
from everfresh.tasks.catalogue import Named, named
from everfresh.tasks.errors import DigestMismatch, ReleaseError
from everfresh.tasks.ledger import aliases, champion_moves, moves
from everfresh.tasks.records import AliasMove
from everfresh.tasks.store import FolderStore, Store


def three(store: Store) -> None:
    """v1, v2, v3, and a fourth release that never was champion."""
    for number in (1, 2, 3):
        publish(store, number)
    put_release(store, 4)


def state(move: AliasMove | None) -> tuple[int, str, str]:
    assert move is not None
    return move.seq, move.kind, move.label


def test_an_alias_of_any_name_has_its_own_history(store: Store) -> None:
    three(store)
    assert aliases(store).keys() == {"champion"}
    promote(store, "v2", alias="shadow", reason="try", by="ana")
    promote(store, release_id(4)[:8], alias="shadow", by="ana")
    promote(store, "shadow", alias="eu-canary")
    assert [(state(m), m.by) for m in moves(store, "shadow")] == [((1, "promote", "v2"), "ana"),
                                                                 ((2, "promote", release_id(4)[:12]), "ana")]  # fmt: skip
    assert {name: m.release for name, m in aliases(store).items()} == {
        "champion": release_id(3), "shadow": release_id(4), "eu-canary": release_id(4),
    }  # fmt: skip
    assert state(champion_moves(store).last()) == (3, "publish", "v3")
    remove(store, "shadow", reason="done")
    assert aliases(store).keys() == {"champion", "eu-canary"}
    promote(store, "v1", alias="shadow")
    assert state(moves(store, "shadow").last()) == (4, "promote", "v1")


def test_a_release_is_found_by_version_alias_and_id(folder_store: FolderStore) -> None:
    three(folder_store)
    for name in ("v2", release_id(2), release_id(2)[:8]):
        assert named(folder_store, name) == Named(release_id(2), 2)
    assert named(folder_store, "champion").label == "v3"
    assert named(folder_store, release_id(4)).label == release_id(4)[:12]
    for wrong in ("v9", "v0", "latest", "00000000", "V2", "../x", ""):
        with pytest.raises(ReleaseError, match=r"must be a version such as v3, an alias \(champion\) or how an id begins"):
            named(folder_store, wrong)


def test_an_id_that_begins_several_is_none(folder_store: FolderStore) -> None:
    for release in ("12345678aa", "12345678bb"):
        folder_store.put(f"releases/{release}/release.json", b"{}")
    with pytest.raises(ReleaseError, match="one id must begin with 12345678, got 2"):
        named(folder_store, "12345678")


@pytest.mark.parametrize("name", ["", "Shadow", "v3", "deadbeef", "a/b", "..", "3d", "a" * 64, "é"])
def test_an_alias_can_be_told_from_a_version_and_an_id(folder_store: FolderStore, name: str) -> None:
    three(folder_store)
    with pytest.raises(ReleaseError, match="alias: a name must be lower-case letters"):
        promote(folder_store, "v1", alias=name)


def test_a_person_may_promote_what_never_was_champion_and_it_gets_the_next_number(folder_store: FolderStore) -> None:
    three(folder_store)
    assert state(promote(folder_store, release_id(4), reason="ana's word")) == (4, "promote", "v4")
    assert state(promote(folder_store, "v1")) == (5, "promote", "v1")
    assert publish(folder_store, 5).label == "v5"


def test_a_promotion_is_undone_by_a_rollback(folder_store: FolderStore) -> None:
    three(folder_store)
    promote(folder_store, "v1")
    pin(folder_store)
    move = rollback(folder_store)
    assert (state(move), move.pinned, move.barred) == ((6, "rollback", "v3"), True, (release_id(1),))


def test_a_promotion_lifts_a_bar_but_no_pin(folder_store: FolderStore) -> None:
    three(folder_store)
    rollback(folder_store, by="ana")
    with pytest.raises(ReleaseError, match=r"must not be pinned, got v2, pinned since the rollback by ana. `everfresh unpin`"):
        promote(folder_store, "v3")
    unpin(folder_store)
    assert promote(folder_store, "v3").barred == ()


def test_only_whole_releases_are_promoted(folder_store: FolderStore) -> None:
    three(folder_store)
    folder_store.put(f"releases/{release_id(2)}/card.md", b"x")
    for alias in ("champion", "shadow"):
        with pytest.raises(DigestMismatch, match=r"card\.md"):
            promote(folder_store, "v2", alias=alias)
    folder_store.delete(f"releases/{release_id(1)}/release.json")
    with pytest.raises(ReleaseError, match="promote: the release of v1 must be in the store, got none"):
        promote(folder_store, "v1")
    assert (champion_moves(folder_store).last_seq(), aliases(folder_store).keys()) == (3, {"champion"})


def test_moves_that_cannot_be_say_why(folder_store: FolderStore) -> None:
    with pytest.raises(ReleaseError, match="an alias \\(none\\)"):
        promote(folder_store, "v1")
    put_release(folder_store, 4)
    with pytest.raises(ReleaseError, match="promote: there must be a champion, got none"):
        promote(folder_store, release_id(4))
    three(folder_store)
    promote(folder_store, "v1", alias="shadow")
    for words, act in {
        "v1 is shadow already": lambda: promote(folder_store, "v1", alias="shadow"),
        "v3 is champion already": lambda: promote(folder_store, "v3"),
        "the champion must stay": lambda: remove(folder_store, "champion"),
        "the alias must name a release, got challenger": lambda: remove(folder_store, "challenger"),
        "got v3, which is champion": lambda: retire(folder_store, "v3"),
        "got v1, which is shadow": lambda: retire(folder_store, "v1"),
        "restore: v2 is not retired": lambda: restore(folder_store, "v2"),
    }.items():
        with pytest.raises(ReleaseError, match=words):
            act()


def test_a_retired_release_comes_back_by_no_way_until_it_is_restored(store: Store) -> None:
    three(store)
    move = retire(store, "v2", reason="licence", by="ana")
    assert (state(move), move.retired, move.release) == ((4, "retire", "v3"), (release_id(2),), release_id(3))
    for act in (lambda: rollback(store, 2), lambda: promote(store, "v2"), lambda: promote(store, "v2", alias="shadow")):
        with pytest.raises(ReleaseError, match=r"must not be retired, got v2. `everfresh restore` takes that back"):
            act()
    with pytest.raises(ReleaseError, match="v2 is retired already"):
        retire(store, "v2")
    assert publish(store, 5).retired == (release_id(2),)
    assert rollback(store).label == "v3"
    assert rollback(store).label == "v1"  # v2 is passed over
    restore(store, "v2")
    assert rollback(store, 2).retired == ()


def test_retiring_several_leaves_out_what_an_alias_names_and_forgets_what_is_gone(folder_store: FolderStore) -> None:
    three(folder_store)
    promote(folder_store, "v1", alias="shadow")
    retire(folder_store, release_id(4))
    folder_store.delete(f"releases/{release_id(4)}/release.json")
    head = retire_all(folder_store, [release_id(n) for n in (1, 2, 3)], reason="retention")
    assert head.retired == (release_id(2),)


@pytest.mark.parametrize("operation", range(1, 30))
def test_no_alias_is_left_on_what_is_retired_while_it_moves(folder_store: FolderStore, operation: int) -> None:
    """Whoever comes second sees the other: a retirement looks at the aliases after it stands, a promotion at retirements."""
    three(folder_store)
    retired = []

    def meanwhile() -> None:
        retired.append(retire_all(FolderStore(folder_store.root), [release_id(1)], reason="retention").retired)

    try:
        promote(Fated(folder_store.root, operation, event=meanwhile), "v1", alias="shadow")
    except ReleaseError as error:
        assert "must not be retired" in str(error)  # noqa: PT017
    head, shadow = champion_moves(folder_store).last(), aliases(folder_store).get("shadow")
    assert head is not None
    assert (shadow is None) or release_id(1) not in head.retired
    assert retired != [()] or shadow is not None, "both gave way"


@pytest.mark.parametrize("operation", range(1, 24))
def test_a_retirement_gives_way_to_who_moves_there_meanwhile(folder_store: FolderStore, operation: int) -> None:
    three(folder_store)

    def meanwhile() -> None:
        try:
            promote(FolderStore(folder_store.root), "v1", alias="shadow")
        except ReleaseError as error:
            assert "must not be retired" in str(error)  # noqa: PT017

    try:
        retire(Fated(folder_store.root, operation, event=meanwhile), "v1")
    except ReleaseError as error:
        assert "shadow" in str(error)  # noqa: PT017
    head = champion_moves(folder_store).last()
    assert head is not None
    assert "shadow" not in aliases(folder_store) or release_id(1) not in head.retired
