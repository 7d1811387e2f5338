"""Mistakes a person can put right."""

import difflib
import errno
from collections.abc import Iterable

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
WRONG_PLACE = (
    errno.ENOENT, errno.EACCES, errno.EROFS, errno.EPERM, errno.EEXIST, errno.ENOTDIR, errno.EISDIR,
    errno.ENAMETOOLONG,
)  # fmt: skip


class UserError(ValueError):
    """What was found, what was expected, and what to type; the command line prints it and exits with 2."""


def said(error: UserError) -> str:
    """What an error says, without what gin adds where it passes through, which means nothing to a person."""
    return str(error).split("\n  In call to configurable")[0]


def of_system(error: OSError) -> str | None:
    """What an error of the operating system means to a person; None where it is none that they can put right."""
    place = error.filename2 or error.filename  # of a file that was to be moved, where to
    what = f"{error.strerror} ({place})" if place else error.strerror
    if error.errno in FULL:
        return (
            f"{what}. Nothing that was saved before is lost: free the disk, or write to another (MODEL_DIR, --out or"
            " --output), and type the same command; a run goes on where it was."
        )
    if error.errno in WRONG_PLACE:
        return f"{what}. Name another file or folder, or change what stands there, and type the same command again."
    return None


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence that offers the known names closest to `name` whatever its case; empty if none is close."""
    spellings: dict[str, list[str]] = {}
    for each in sorted(known):
        spellings.setdefault(each.casefold(), []).append(each)
    folded = difflib.get_close_matches(name.casefold(), spellings, n=3, cutoff=0.5)
    close = [repr(spelling) for each in folded for spelling in spellings[each]]
    return f" Did you mean {' or '.join(close)}?" if close else ""
