"""How a flow fails: with the cause in one sentence, which people read in the UI, in messages and on the terminal."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

from prefect import get_run_logger
from prefect.states import Failed

from everfresh.flows.alerts import tell_failure
from everfresh.flows.logs import take_over_console
from everfresh.tasks.config import PipelineConfig
from everfresh.tasks.errors import EverfreshError
from everfresh.tasks.store.base import FULL

P = ParamSpec("P")
R = TypeVar("R")


def in_one_sentence(work: Callable[P, R]) -> Callable[P, R]:
    """Let a flow end failed with the sentence of its error as the state's message; who called it gets the error as ever.

    Prefect itself would put its own words and the error's class before it. The traceback of what nobody foresaw is logged.
    What our modules say stands with the run: Prefect gives extra loggers its handler, but not its level.
    """
    ours = logging.getLogger("everfresh")

    @functools.wraps(work)
    def told(*args: P.args, **kwargs: P.kwargs) -> R:
        if ours.level == logging.NOTSET:  # a worker's process: the command line and others set their own
            ours.setLevel(logging.INFO)
        try:
            take_over_console()
            return work(*args, **kwargs)
        except Exception as error:
            if not isinstance(error, EverfreshError):
                get_run_logger().exception("an error that is not meant to be")
            tell_failure(_about(parameters.bind(*args, **kwargs)), sentence(error))
            failed: Any = Failed(message=sentence(error), data=error)
            return cast(R, failed)

    # Prefect makes a model of the parameters in the names that the function knows: those of the work, not of this module.
    parameters = inspect.signature(work, eval_str=True)
    told.__signature__ = parameters  # type: ignore[attr-defined]
    return told


def _about(called: inspect.BoundArguments) -> str | None:
    """The pipeline, or the fleet, that a flow was called for."""
    called.apply_defaults()
    config, name = called.arguments.get("config"), called.arguments.get("name")
    return config.name if isinstance(config, PipelineConfig) else name


def sentence(error: BaseException) -> str:
    """The cause in one sentence: our own errors are one, of the others what they say."""
    words = " ".join(str(error).split())
    if isinstance(error, EverfreshError):
        return words
    if isinstance(error, OSError) and error.errno in FULL:
        where = error.filename or "this machine"
        return f"The disk must have room, got none on that of {where}. Free some; the next run goes on where this one was."
    return f"{type(error).__name__}: {words or 'no more is known'}. The next run goes on where this one was."
