"""Mistakes a person can put right."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """What was found, what was expected, and what to type; the command line prints it and exits with 2."""


def said(error: UserError) -> str:
    """What an error says, without what gin adds where it passes through, which means nothing to a person."""
    return str(error).split("\n  In call to configurable")[0]


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence that offers the known names closest to `name` whatever its case; empty if none is close."""
    spellings: dict[str, list[str]] = {}
    for each in sorted(known):
        spellings.setdefault(each.casefold(), []).append(each)
    folded = difflib.get_close_matches(name.casefold(), spellings, n=3, cutoff=0.5)
    close = [repr(spelling) for each in folded for spelling in spellings[each]]
    return f" Did you mean {' or '.join(close)}?" if close else ""
