"""Kinds of values that flags take, for argparse."""

import argparse
from collections.abc import Callable


def whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
    """A whole number from `least`, and up to `most` where there is one."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = None
        if number is None or number < least or (most is not None and number > most):
            to = "" if most is None else f" to {most}"
            raise argparse.ArgumentTypeError(f"it is {text!r}, and takes a whole number from {least}{to}")
        return number

    return read
