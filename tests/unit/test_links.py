"""Links in a source folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.pictures import write_folder
from support.windows import pictures, pipeline, taken

from everfresh.tasks.ingest import ingest
from everfresh.tasks.store import FolderStore


@pytest.mark.timeout(20)
def test_links_that_go_in_circles_are_not_followed(folder_store: FolderStore, tmp_path: Path) -> None:
    inbox = write_folder(tmp_path / "inbox", pictures("cat/1.png", "dog/2.png"))
    outside = write_folder(tmp_path / "outside", pictures("cat/3.png"))
    for name, target in {"up": "..", "down": ".", "self": "self", "out": str(outside)}.items():
        (inbox / "cat" / name).symlink_to(target)
    (inbox / "cat/self.png").symlink_to("self.png")
    (outside / "back").symlink_to(inbox)
    entry = ingest(folder_store, pipeline(inbox))
    assert taken(folder_store, entry) == ["cat/1.png", "cat/out/cat/3.png", "dog/2.png"]


def test_a_date_that_no_calendar_has_is_taken(folder_store: FolderStore, tmp_path: Path) -> None:
    inbox = write_folder(tmp_path / "inbox", pictures("cat/1.png"))
    os.utime(inbox / "cat/1.png", (1 << 40, 1 << 40))  # kept by some file systems, cut by others
    assert taken(folder_store, ingest(folder_store, pipeline(inbox, order="modified"))) == ["cat/1.png"]
