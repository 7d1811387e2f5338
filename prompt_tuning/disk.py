"""Files and folders that are written whole or not at all, and a disk that is full while a library writes to it."""

import contextlib
import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from prompt_tuning.errors import UserError

_FULL = ("No space left", "RESOURCE_EXHAUSTED", "File too large", "Disk quota exceeded")
_LOUD = ("absl", "asyncio")  # which Orbax tells of a failure before it raises it


def cache() -> Path:
    """The user's folder for what makes a second start quick; it may be deleted at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prompt_tuning"


class replacing:
    """A file that takes `path`'s place when it is complete, and leaves nothing behind when it is not."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def __enter__(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.part")
        try:
            self.file = self.temporary.open("xb")
        except OSError as error:
            error.filename = str(self.path)  # which was asked for, and not a name that nobody typed
            raise
        return self.file

    def __exit__(self, kind, value, traceback) -> None:
        try:
            if kind is None:
                self.file.flush()
                os.fsync(self.file.fileno())
            self.file.close()
            if kind is None:
                self.temporary.replace(self.path)
        finally:
            self.temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `path` when all is written and else is gone.

    Raises UserError where something stands at `path` already.
    """
    if path.exists():
        raise UserError(f"{path} exists already. Give another folder, or remove it.")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextlib.contextmanager
def writing(what: str, folder: Path) -> Iterator[None]:
    """Inside, `what` is written to `folder`. Raises UserError if the disk is full; the loggers stay quiet then."""
    levels, full = _set_levels([logging.CRITICAL] * len(_LOUD)), False
    try:
        yield
    except Exception as error:  # TensorStore's own types
        full = any(sign in str(error) for sign in _FULL)
        if not full:
            raise
        raise UserError(
            f"The disk of {folder} is full: {what} could not be written, and what was there before is whole."
            " Free some space and type the same command to go on."
        ) from error
    finally:
        if not full:
            _set_levels(levels)


def _set_levels(levels: list[int]) -> list[int]:
    """Sets the loud loggers' levels; those before."""
    loggers = [logging.getLogger(name) for name in _LOUD]
    before = [logger.level for logger in loggers]
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
    return before
