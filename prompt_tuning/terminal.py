"""What tables and sentences are printed to."""

from rich.console import Console


def console(stderr: bool = False) -> Console:
    """A console that prints text as it is: brackets in names and labels are no markup, `:words:` no pictures."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)
