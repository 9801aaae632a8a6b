"""Processes that are forked from a parent which has imported everything: a start takes a tenth of a second, not five."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import wait
from threading import Lock
from typing import Any

WARM = get_context("forkserver")
REAP = Lock()
WARM.set_forkserver_preload(
    [
        "everfresh.tasks.drift.detect",
        "everfresh.tasks.evaluate",
        "everfresh.tasks.fine_tune",
        "everfresh.tasks.publish",
        "everfresh.flows.look",
        "sklearn.linear_model",
        "sklearn.neighbors",
        "torchvision",
        "accelerate",
        "pyarrow.parquet",
        "jinja2",
        "matplotlib.backends.backend_agg",
        "matplotlib.figure",
        "scipy.optimize",
        "torch.utils.tensorboard",
        "torchvision.transforms.v2",
    ]
)


def in_child(work: Callable[..., None], *arguments: Any) -> int:
    """Exit status of a warmed-up process that does some work; threads may call it side by side.

    Each start looks at all children that run, and who reads a status second reads 255: one thread at a time.
    """
    process = WARM.Process(target=work, args=arguments)
    with REAP:
        process.start()
    wait([process.sentinel])
    with REAP:
        process.join()
        status = process.exitcode
        process.close()
    assert status is not None
    return status
