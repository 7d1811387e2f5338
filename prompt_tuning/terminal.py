"""What tables and sentences are printed to."""

from rich.console import Console


def console(stderr: bool = False) -> Console:
    """A console that prints text as it is: brackets in names and labels are no markup, `:words:` no pictures."""
    return _Console(stderr=stderr, markup=False, emoji=False, highlight=False)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leaves a reader who is gone to the command line; rich would exit with 1, as if something were bad."""
        raise BrokenPipeError
