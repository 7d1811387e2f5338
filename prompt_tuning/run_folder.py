"""A run's folder belongs to one process at a time, and what a killed one left half-written in it is cleared away."""

import contextlib
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from prompt_tuning.errors import UserError

try:
    import fcntl
except ImportError:  # Windows, where nothing is locked
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"  # stays in the folder; it is locked while a run lives, and says whose it is
LEFTOVERS = ("**/.*.part", "checkpoints/*.orbax-checkpoint-tmp*")


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Makes `folder`, and inside no other process can hold it. Raises UserError, naming the process that does.

    The lock is the operating system's and dies with its process, so that a killed run can be started again at once.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+", encoding="utf-8") as file:
        if not _locked(file.fileno()):
            file.seek(0)
            raise UserError(
                f"Another run is writing to {folder}: {file.read().strip() or 'a process that did not say which'}."
                " Wait until it has ended or stop it, or give another MODEL_DIR."
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        try:
            _clear(folder)
            _try_to_rename(folder)
            yield
        finally:
            file.truncate(0)


def _locked(descriptor: int) -> bool:
    """False if somebody else has the lock; on a file system without locks nobody has."""
    if fcntl is not None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # some network file systems
            pass
    return True


def _try_to_rename(folder: Path) -> None:
    """Raises UserError where folders stay as they are called: at its end a checkpoint is renamed, with all it holds."""
    made, renamed = (folder / f".{secrets.token_hex(4)}.part" for _ in range(2))
    try:
        (made / "inside").mkdir(parents=True)
        (made / "inside" / "file").touch()
        try:
            made.rename(renamed)
        except OSError as error:
            raise UserError(
                f"The file system of {folder} renames no folders ({error.strerror}), so that no checkpoint could be"
                " saved. Give a MODEL_DIR elsewhere; for a bucket, mount it with gcsfuse --rename-dir-limit=1000."
            ) from error
    finally:
        for path in (made, renamed):
            shutil.rmtree(path, ignore_errors=True)


def _clear(folder: Path) -> None:
    """Removes what SIGKILL left in the middle of being written; it has taken nobody's place yet."""
    for pattern in LEFTOVERS:
        for path in folder.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
