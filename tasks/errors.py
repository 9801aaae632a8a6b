"""Every error Everfresh raises on purpose.

::

    EverfreshError
    ├── ConfigError       the pipeline file: field, rule, value, remedy
    ├── StoreError        the store cannot be reached or breaks a promise
    │   ├── ObjectMissing     a key that a record names is not there
    │   ├── AccessRefused     this object, or all, may not be read or written
    │   │   └── AccountRefused    none may, with these credentials, this clock or this bucket
    │   └── DigestMismatch    bytes are not what their record says
    ├── SourceError       the source cannot be listed or read
    ├── ModelError        architecture, weights or classes do not fit
    │   └── ExportError       the network cannot be written in a format of the release
    ├── DataError         too few or unusable samples for a step
    ├── TrainingError     the loss is not finite
    │   └── RungUnfit         this rung has no answer here; the ladder goes on
    ├── DeviceError       the device to train on is missing, or too small; the window waits
    └── ReleaseError      a move of the champion that is not allowed
        └── ChampionMoved     somebody moved it since the evaluation

A message names what was read, the rule, the value that broke it and the remedy. An ``EverfreshError``
is shown to the user as that one sentence; anything else is a bug, whose traceback ``--debug`` shows.
"""


class EverfreshError(Exception):
    """Base of all errors that are meant for the user's eyes."""


class ConfigError(EverfreshError):
    """The pipeline configuration is wrong."""


class StoreError(EverfreshError):
    """The store cannot be reached, refuses, or breaks a promise."""


class ObjectMissing(StoreError):
    """A key that should exist does not."""


class AccessRefused(StoreError):
    """The store answers, but not for this object: it may not be read or written."""


class AccountRefused(AccessRefused):
    """The store refuses whatever is asked: other objects would fare no better."""


class DigestMismatch(StoreError):
    """Bytes read are not the bytes that were recorded."""


class SourceError(EverfreshError):
    """The data source cannot be listed or read."""


class ModelError(EverfreshError):
    """Architecture, weights and classes do not fit together."""


class ExportError(ModelError):
    """The network cannot be written in a format, or the file does not do as it does."""


class DataError(EverfreshError):
    """There is not enough usable data for a step."""


class TrainingError(EverfreshError):
    """Training cannot go on."""


class DeviceError(EverfreshError):
    """The device to train on is missing, or has too little memory; that is not the window's fault, which waits."""


class RungUnfit(TrainingError):
    """A rung has no answer to this window, a dearer one may have."""


class ReleaseError(EverfreshError):
    """A move of the champion that is not allowed."""


class ChampionMoved(ReleaseError):
    """The champion is no longer the one that the challenger was proven against."""


def passing(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, speaks of the machine and not of what was tried: memory, a full disk, a library."""
    if error is None:
        return False
    full = any(words in str(error).lower() for words in NO_MEMORY)
    return full or isinstance(error, MemoryError | OSError | ImportError | StoreError) or passing(error.__cause__)


NO_MEMORY = ("allocate memory", "out of memory", "bad_alloc")
"""How libraries tell that there was no memory, who have no error of their own for it."""
