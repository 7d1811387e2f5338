"""Kinds of values that flags take, for argparse."""

import argparse
import math
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


def number(least: float) -> Callable[[str], float]:
    """A finite number from `least`."""

    def read(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not least <= number < math.inf:
            raise argparse.ArgumentTypeError(f"it is {text!r}, and takes a number from {least:g}")
        return number

    return read
