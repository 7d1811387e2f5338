"""A disk that is full while a library writes to it: one sentence instead of what the library says."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from prompt_tuning.errors import UserError

_FULL = ("No space left", "RESOURCE_EXHAUSTED", "File too large", "Disk quota exceeded")
_LOUD = ("absl", "asyncio")  # which Orbax tells of a failure before it raises it


@contextlib.contextmanager
def writing(what: str, folder: Path) -> Iterator[None]:
    """Inside, `what` is written to `folder`. Raises UserError if the disk is full; the loggers stay quiet then."""
    levels = _set_levels([logging.CRITICAL] * len(_LOUD))
    try:
        yield
    except Exception as error:  # TensorStore's own types
        if not any(sign in str(error) for sign in _FULL):
            _set_levels(levels)
            raise
        raise UserError(
            f"The disk of {folder} is full: {what} could not be written, and what was there before is whole."
            " Free some space and type the same command to go on."
        ) from error
    _set_levels(levels)


def _set_levels(levels: list[int]) -> list[int]:
    """Sets the loud loggers' levels; those before."""
    loggers = [logging.getLogger(name) for name in _LOUD]
    before = [logger.level for logger in loggers]
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
    return before
