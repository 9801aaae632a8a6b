"""No object of a store may be executable: find those that hold a pickle."""

from __future__ import annotations

import io
import pickletools
import zipfile

from everfresh.tasks.store import Store


def find_pickles(store: Store) -> list[str]:
    """Keys of all objects that are a pickle, or an archive that holds one (`torch.save` makes such)."""
    return [item.key for item in store.list() if is_pickle(store.get(item.key))]


def is_pickle(data: bytes) -> bool:
    """Whether loading these bytes with pickle or `torch.load` could run code."""
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return any(name.endswith((".pkl", ".pickle")) or is_pickle(archive.read(name)) for name in archive.namelist())
    if data[:1] == b"\x80" and data[1:2] <= b"\x05":  # protocol 2 and later open with their number
        return _parses(data)
    # Protocols 0 and 1 are plain text: "(", "c", "]", "}" … up to "." — what parses to the end is one. JSON does not.
    return len(data) > 2 and b"." in data and data[:1] in b"(cil]}" and _parses(data)


def _parses(data: bytes) -> bool:
    try:
        for _ in pickletools.genops(data):
            pass
    except Exception:  # a damaged stream raises many kinds
        return False
    return True
