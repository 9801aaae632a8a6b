"""Whatever a file is called and wherever a link leads: it is taken once, or set aside, and nothing else is touched."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.pictures import noise, write_folder, write_tar
from support.windows import pictures, pipeline, quarantined, taken

from everfresh.tasks.errors import SourceError
from everfresh.tasks.ingest import ingest
from everfresh.tasks.ledger import stream
from everfresh.tasks.store import FolderStore, S3Store
from everfresh.tasks.views import View

ODD = [
    "caf\u00e9.png", "cafe\u0301.png",  # the same name composed and decomposed are two files
    "A.png", "a.png", "back\\slash.png", "[red]markup.png", "%2e%2e%2fx.png", " .png", "'quoted\".png", "\u202egnp.exe.png",
    "\U0001f600.png", "\ufeffmark.png", "x" * 200 + ".png",
]  # fmt: skip
CONTROL = ["new\nline.png", "tab\t.png", "\x1b[31mred.png", "bell\a.png", "return\r.png", "line\u2028.png"]
"""A folder may hold these; not every S3 server lists them."""


def test_every_name_is_taken_or_set_aside_once(folder_store: FolderStore, tmp_path: Path) -> None:
    good = {f"cat/{name}": noise(number) for number, name in enumerate(ODD + CONTROL)}
    bad = {f"dog/{name}": b"no picture" for name in ODD + CONTROL}
    config = pipeline(write_folder(tmp_path / "inbox", good | bad))
    entry = ingest(folder_store, config)
    assert entry is not None
    view = View(folder_store, entry.view)
    assert dict(zip(taken(folder_store, entry), view.read(view.rows()), strict=True)) == good
    rows = folder_store.get(f"quarantine/{entry.view}/quarantine.jsonl").split(b"\n")[:-1]
    assert sorted(json.loads(row)["key"] for row in rows) == sorted(bad)  # one line each, also of a name with a line's end
    assert all(row.decode().isprintable() for row in rows)
    assert ingest(folder_store, config) is None


def test_odd_names_and_long_ones_are_read_from_s3(s3_store: S3Store) -> None:
    long = "/".join(["d" * 140] * 6 + ["cat", "a" * 140 + ".png"])
    assert len(long) > 990
    good = {long: noise(99)} | {f"cat/{name}": noise(number) for number, name in enumerate(ODD) if "\\" not in name}
    for key, data in good.items():
        s3_store.put(f"in/{key}", data)
    config = pipeline({"kind": "folder", "path": s3_store.url("in")})
    entry = ingest(s3_store, config)
    assert sorted(taken(s3_store, entry)) == sorted(good)
    assert ingest(s3_store, config) is None


@pytest.mark.parametrize("odd", ["cat//2.png", "/2.png", "cat/../2.png", "../2.png", "./2.png"])
@pytest.mark.parametrize("order", ["key", "modified", "shuffled"])
def test_a_key_that_is_no_path_as_s3_allows_is_set_aside_and_the_others_go_on(
    folder_store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, odd: str, order: str
) -> None:
    inbox, original = write_folder(tmp_path / "inbox", pictures("cat/1.png", "cat/2.png", "dog/3.png")), FolderStore.list

    def listed(store: FolderStore, *arguments: str, **named: str) -> Any:  # the server of the tests allows none
        return (replace(item, key=item.key.replace("cat/2.png", odd)) for item in original(store, *arguments, **named))

    config = pipeline(inbox, order=order, max_samples=2)
    with monkeypatch.context() as patch:
        patch.setattr(FolderStore, "list", listed)
        entries = [ingest(folder_store, config), ingest(folder_store, config)]
        assert ingest(folder_store, config) is None
    assert sorted(key for entry in entries for key in taken(folder_store, entry)) == ["cat/1.png", "dog/3.png"]
    reason = "has a key with empty parts, '.' or '..', which is no path; put it under another one"
    assert [q for entry in entries if (q := quarantined(folder_store, entry))] == [{odd: reason}]


def test_an_archive_whose_key_is_no_path_is_named(
    folder_store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tar(tmp_path / "in/a.tar", pictures("cat/1.png"))
    original = FolderStore.list
    monkeypatch.setattr(
        FolderStore, "list", lambda *args, **named: (replace(i, key=f"/{i.key}") for i in original(*args, **named))
    )
    with pytest.raises(SourceError, match=r"the key of an archive must be a path .*, got '/a\.tar'\. Put it under another one"):
        ingest(folder_store, pipeline({"kind": "shards", "paths": [str(tmp_path / "in")]}))


# --- links -----------------------------------------------------------------------------------------------


def test_links_are_followed_and_one_that_leads_nowhere_is_no_file(folder_store: FolderStore, tmp_path: Path) -> None:
    inbox = write_folder(tmp_path / "inbox", pictures("cat/1.png"))
    outside = write_folder(tmp_path / "outside", pictures("dog/2.png", "dog/3.png"))
    (inbox / "cat/2.png").symlink_to(outside / "dog/2.png")
    (inbox / "more").symlink_to(outside)
    (inbox / "cat/nowhere.png").symlink_to(tmp_path / "nowhere.png")
    config = pipeline(inbox)
    entry = ingest(folder_store, config)
    assert taken(folder_store, entry) == ["cat/1.png", "more/dog/3.png"]
    assert set(quarantined(folder_store, entry)) == {"cat/2.png", "more/dog/2.png"}  # one picture, two labels
    (inbox / "cat/nowhere.png").unlink()
    (inbox / "cat/nowhere.png").symlink_to(outside / "dog/3.png")
    assert set(quarantined(folder_store, ingest(folder_store, config))) == set()
    assert ingest(folder_store, config) is None


# --- archives --------------------------------------------------------------------------------------------


def member(name: str, data: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    """One member of an archive."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def archive(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    """An archive of these members."""
    with tarfile.open(path, "w") as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return path


def test_members_that_climb_out_are_read_in_place_and_nothing_is_unpacked(folder_store: FolderStore, tmp_path: Path) -> None:
    names = {"../cat/1.png": "cat", "/cat/2.png": "cat", "./3.png": None, "../4.png": None, "/5.png": None, "cat//6.png": None}
    (tmp_path / "in").mkdir()
    path = archive(tmp_path / "in/a.tar", *(member(name, noise(n)) for n, name in enumerate(names)))
    entry = ingest(folder_store, pipeline({"kind": "shards", "paths": [str(path)]}))
    assert entry is not None
    view = View(folder_store, entry.view)
    assert {s.key.removeprefix("a.tar/"): s.label for s in view.samples} == names
    assert sorted(view.read(view.rows())) == sorted(noise(n) for n in range(len(names)))
    assert {p.relative_to(tmp_path).parts[0] for p in tmp_path.rglob("*.png")} == set()


@pytest.mark.parametrize(
    "odd",
    [
        member("cat/odd.png", type=tarfile.SYMTYPE, linkname="1.png"),
        member("cat/odd.png", type=tarfile.SYMTYPE, linkname="../../../etc/passwd"),
        member("cat/odd.png", type=tarfile.LNKTYPE, linkname="cat/1.png"),
        member("cat/odd.png", type=tarfile.CHRTYPE, devmajor=1, devminor=5),
        member("cat/odd.png", type=tarfile.FIFOTYPE),
        member("cat/odd.png", noise(2), pax_headers={"GNU.sparse.map": "0,4", "GNU.sparse.size": "9000"}),
    ],
    ids=["link", "link out", "hard link", "device", "pipe", "sparse"],
)
def test_a_member_that_is_no_plain_file_is_set_aside(
    folder_store: FolderStore, tmp_path: Path, odd: tuple[tarfile.TarInfo, bytes]
) -> None:
    path = archive(tmp_path / "a.tar", member("cat/1.png", noise(1)), odd, member("dog/2.png", noise(3)))
    config = pipeline({"kind": "shards", "paths": [str(path)]})
    entry = ingest(folder_store, config)
    assert taken(folder_store, entry) == ["a.tar/cat/1.png", "a.tar/dog/2.png"]
    reason = "is a link, a device or a sparse file in its archive; only plain files are read"
    assert quarantined(folder_store, entry) == {"a.tar/cat/odd.png": reason}
    assert ingest(folder_store, config) is None


def test_damage_in_the_middle_of_an_archive_does_not_pass_for_its_end(folder_store: FolderStore, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", pictures("cat/1.png", "cat/2.png", "cat/3.png"))
    data = bytearray(path.read_bytes())
    data[data.index(b"cat/2.png")] ^= 1
    path.write_bytes(data)
    with pytest.raises(SourceError, match=r"a\.tar is not a readable, uncompressed tar archive \(damaged at byte [\d,]+\)"):
        ingest(folder_store, pipeline({"kind": "shards", "paths": [str(path)]}))


def test_a_hole_of_zeros_in_an_archive_does_not_pass_for_its_end(folder_store: FolderStore, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", pictures("cat/1.png", "cat/2.png", "cat/3.png"))
    with tarfile.open(path) as tar:
        _, hole, after = tar
    data = bytearray(path.read_bytes())
    data[hole.offset : after.offset] = bytes(after.offset - hole.offset)
    path.write_bytes(data)
    place = rf"damaged: it ends at byte {hole.offset:,} and goes on at byte {after.offset:,}"
    with pytest.raises(SourceError, match=rf"a\.tar is not a readable, uncompressed tar archive \({place}\)\. Write it again"):
        ingest(folder_store, pipeline({"kind": "shards", "paths": [str(path)]}))
    assert stream(folder_store).last() is None


def test_a_hole_larger_than_what_is_read_at_once_is_found(folder_store: FolderStore, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", pictures("cat/1.png"))
    with path.open("ab") as file:
        file.write(bytes(3 << 20) + b"x")
    with pytest.raises(SourceError, match=rf"goes on at byte {path.stat().st_size - 1:,}\)"):
        ingest(folder_store, pipeline({"kind": "shards", "paths": [str(path)]}))


def test_an_archive_behind_another_is_not_lost(folder_store: FolderStore, tmp_path: Path) -> None:
    parts = [write_tar(tmp_path / f"{n}.tar", pictures(f"cat/{n}.png")) for n in range(2)]
    (tmp_path / "a.tar").write_bytes(b"".join(part.read_bytes() for part in parts))
    where = parts[0].stat().st_size
    with pytest.raises(SourceError, match=rf"ends at byte [\d,]+ and goes on at byte {where:,}\)"):
        ingest(folder_store, pipeline({"kind": "shards", "paths": [str(tmp_path / "a.tar")]}))


def test_an_archive_may_end_with_any_number_of_empty_blocks(folder_store: FolderStore, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", pictures("cat/1.png", "cat/2.png"))
    path.write_bytes(path.read_bytes() + bytes(3 << 20))
    entry = ingest(folder_store, pipeline({"kind": "shards", "paths": [str(path)]}))
    assert len(taken(folder_store, entry)) == 2


def test_an_archive_may_end_without_its_last_blocks(folder_store: FolderStore, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", pictures("cat/1.png", "cat/2.png"))
    path.write_bytes(path.read_bytes().rstrip(b"\0") + bytes(-len(path.read_bytes().rstrip(b"\0")) % 512))
    entry = ingest(folder_store, pipeline({"kind": "shards", "paths": [str(path)]}))
    assert len(taken(folder_store, entry)) == 2


def test_a_members_name_that_is_no_text_is_named(folder_store: FolderStore, tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tar", member("cat/caf\udce9.png", noise(1)))
    with pytest.raises(SourceError, match=r"must be UTF-8, got 'a\.tar/cat/caf\\udce9\.png'"):
        ingest(folder_store, pipeline({"kind": "shards", "paths": [str(path)]}))
