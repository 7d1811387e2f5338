"""What a setting may be: one of another kind is refused where it is set, not hours later where it is used."""

import inspect
import numbers
import os
from collections.abc import Callable
from typing import Any, NamedTuple

from prompt_tuning.errors import UserError


class Kind(NamedTuple):
    """Values that a setting may have, in words and as a test."""

    words: str
    holds: Callable[[Any], bool]


def _whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)  # numpy's too


WHOLE = Kind("a whole number from 1", lambda value: _whole(value) and value >= 1)
NUMBER = Kind("a number", lambda value: isinstance(value, int | float) and not isinstance(value, bool))
TRUTH = Kind("True or False", lambda value: isinstance(value, bool))
TEXT = Kind("text", lambda value: isinstance(value, str | os.PathLike))
# Files are written whole by being renamed, and folders are locked, which buckets have no word for.
PLACE = Kind(
    "a place on this machine, where a bucket of gs:// or s3:// is mounted first (gcsfuse --rename-dir-limit=1000)",
    lambda value: TEXT.holds(value) and "://" not in str(value),
)
TEXTS = Kind(
    "a list of texts, such as ['no', 'yes']",
    lambda value: isinstance(value, list | tuple) and all(isinstance(one, str) for one in value),
)
WHOLES = Kind(
    "a list of whole numbers, such as [0, 1, 2]",
    lambda value: isinstance(value, list | tuple) and all(map(_whole, value)),
)
FUNCTION = Kind("a function, written with @ before its name", callable)


def check(kind: Kind, optional: bool = False, /, **settings: Any) -> None:
    """Raises UserError for the first of `settings` that is of another kind; `optional` ones may be None."""
    for name, value in settings.items():
        if not kind.holds(value) and not (optional and value is None):
            typed = f" Type @{value}." if kind is FUNCTION and isinstance(value, str) else ""
            raise UserError(f"{name} is {value!r}; it is {kind.words}{', or None' if optional else ''}.{typed}")


def uncallable(function: Callable, /, *given: Any, **named: Any) -> str:
    """Why a function of one's own cannot be called with this, or ""; what else it takes, gin may give."""
    try:
        inspect.signature(function).bind_partial(*given, **named)
    except (TypeError, ValueError) as error:  # the last: a function in C that does not say what it takes
        return str(error)
    return ""
