"""A bar on the terminal while people wait."""

from collections.abc import Iterable


def bar(batches: Iterable, total: int) -> Iterable:
    """The batches, with a bar and the time left on standard error, if that is a terminal; it is gone in the end."""
    from rich.progress import track

    from prompt_tuning import terminal

    console = terminal.console(stderr=True)
    hidden = not console.is_terminal or total < 2
    yield from track(batches, "answering", total, console=console, transient=True, disable=hidden)
