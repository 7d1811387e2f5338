"""Mistakes a person can put right."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """What was found, what was expected, and what to type; the command line prints it and exits with 2."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence that offers the known names closest to `name`, or the empty string if none is close."""
    close = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
