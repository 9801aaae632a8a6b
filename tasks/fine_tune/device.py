"""Where a training runs, and what a network does there that it must not."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from everfresh.tasks.errors import DeviceError, EverfreshError, ModelError
from everfresh.tasks.records import ModelSpec

log = logging.getLogger(__name__)


def present() -> list[str]:
    """The devices of this machine, as `fine_tune.device` names them."""
    gpus = [f"cuda:{n}" for n in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return ["cpu", *gpus, *(["mps"] if torch.backends.mps.is_available() else [])]


def use(wanted: str) -> bool:
    """Make a device the current one; returns whether training stays on the CPU.

    Args:
        wanted: ``auto`` (a GPU where there is one), ``cpu``, ``cuda`` (the current one), ``cuda:N`` or ``mps``.

    Raises:
        DeviceError: this machine has no such device.
    """
    there = present()
    if wanted == "auto":
        if there == ["cpu"]:
            log.info("fine_tune.device auto: there is no GPU here, so this trains on the CPU")
        return False  # accelerate takes the best that is there
    if wanted not in there and not (wanted == "cuda" and any(name.startswith("cuda") for name in there)):
        raise DeviceError(
            f"fine_tune.device must be there, got {wanted} where there is {', '.join(there)} (torch {torch.__version__}, CUDA "
            f"{torch.version.cuda or 'not built in'}). Run it where there is one, or set fine_tune.device to auto."
        )
    if wanted.startswith("cuda:"):
        torch.cuda.set_device(wanted)
    return wanted == "cpu"


@contextmanager
def trains(spec: ModelSpec, inputs: torch.Tensor) -> Iterator[None]:
    """A step forwards and backwards; what the network raises there is told as the network's.

    Raises:
        ModelError: names the architecture and the error, which it came from.
        torch.OutOfMemoryError: as it is; smaller parts may fit.
    """
    try:
        yield
    except (torch.OutOfMemoryError, EverfreshError):
        raise
    except Exception as error:  # of somebody else's code
        raise ModelError(
            f"model.architecture {spec.architecture} must learn from inputs of shape {tuple(inputs.shape)}, got "
            f"{type(error).__name__}: {str(error).rstrip('.')}. Take a step with it where you can see its traceback "
            "(`everfresh --debug` shows it too)."
        ) from error
