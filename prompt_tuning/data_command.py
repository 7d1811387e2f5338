"""prompt-tuning data list | show NAME | prepare: which tasks there are, and what one looks like."""

import argparse
import collections
import fnmatch
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from prompt_tuning import terminal
from prompt_tuning.errors import UserError
from prompt_tuning.examples import LENGTHS, Mixture, Task
from prompt_tuning.flags import whole_number
from prompt_tuning.vocabulary import Vocabulary

MEASURED = 5000  # examples of a split whose tokens are counted
PERCENTILES = (50, 90, 99, 100)
BLUNT = 160  # characters shown of each end of a long text


def main(argv: list[str]) -> int:
    """Runs `list`, `show` or `prepare`; raises UserError for what a person can put right."""
    options = _parser().parse_args(argv)
    match options.command:
        case "list":
            list_tasks(options)
        case "show":
            show(options)
        case "prepare":
            from prompt_tuning import prepare

            return prepare.main(options)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="prompt-tuning data", description="The tasks and their data.")
    commands = parser.add_subparsers(dest="command", required=True)

    def module(command: argparse.ArgumentParser) -> None:
        command.add_argument("--module", default="tasks", metavar="MODULE", help="registers the tasks (several: a,b)")

    names = commands.add_parser("list", help="every task and mixture, with its answers, metrics and source")
    names.add_argument("pattern", nargs="?", default="*", help="such as 'glue_*'; tasks with a prefix: '*_prefixed'")
    module(names)

    look = commands.add_parser("show", help="one task: splits, sizes, lengths, and examples as the model sees them")
    look.add_argument("name", nargs="?", help="a task or mixture")
    look.add_argument("--task_file", metavar="FILE", help="a task described in TOML, instead of a name")
    look.add_argument(
        "--vocabulary", required=True, metavar="PATH", help="sentencepiece model, or folder of one, or tiny"
    )
    look.add_argument("--data_dir", metavar="DIR", help="official files (superglue/, glue/); default: $DATA_DIR")
    look.add_argument("--split", metavar="SPLIT", help="show examples of this split; default: the first one")
    look.add_argument("--examples", type=whole_number(0), default=3, metavar="N")
    look.add_argument("--lengths", nargs=2, type=whole_number(1), metavar=("INPUTS", "TARGETS"), help="default: 512 62")
    module(look)

    prepare = commands.add_parser("prepare", help="download and verify the official files of SuperGLUE and GLUE")
    prepare.add_argument("names", nargs="*", help="sets such as BoolQ or glue/RTE (default: all), or tasks with --tfds")
    prepare.add_argument("--data_dir", metavar="DIR", help="where they go; default: $DATA_DIR")
    prepare.add_argument(
        "--verify", action="store_true", help="download nothing; say what is there and what is missing"
    )
    prepare.add_argument("--tfds", action="store_true", help="prepare tasks of these names with TensorFlow Datasets")
    return parser


def list_tasks(options: argparse.Namespace) -> None:
    """Prints a table of the tasks and one of the mixtures whose names match the pattern."""
    from prompt_tuning import data

    tasks, mixtures = data.known_names(options.module)
    hidden = "" if "prefixed" in options.pattern else "_prefixed"
    chosen = [
        [n for n in names if fnmatch.fnmatch(n, options.pattern) and not (hidden and n.endswith(hidden))]
        for names in (tasks, mixtures)
    ]
    if not any(chosen):
        raise UserError(f"No task or mixture matches {options.pattern!r}; {len(tasks)} tasks are registered.")
    console = terminal.console()
    if chosen[0]:
        table = _table("task", "splits", "answers", "metrics", "source")
        for name in chosen[0]:
            about = data.describe(name)
            answers = ", ".join(about["labels"]) or "free text"
            table.add_row(name, ", ".join(about["splits"]), answers, ", ".join(about["metrics"]), about["source"])
        console.print(table)
    if chosen[1]:
        table = _table("mixture", "tasks")
        for name in chosen[1]:
            table.add_row(name, ", ".join(data.members(name)))
        console.print(table)


def show(options: argparse.Namespace) -> None:
    """Prints each split's size, commonest answer and lengths in tokens, and a few examples."""
    vocabulary = Vocabulary(options.vocabulary)
    lengths = dict(zip(LENGTHS, options.lengths, strict=True)) if options.lengths else LENGTHS
    mixture = _open(options, vocabulary, lengths)
    console = terminal.console()
    if len(mixture.tasks) > 1:
        table = _table("task", "rate")
        for task, rate in zip(mixture.tasks, mixture.rates, strict=True):
            table.add_row(task.name, f"{rate:.4f}")
        console.print(Text.assemble((mixture.name, "bold"), ", a mixture; show one of its tasks for examples"))
        console.print(table)
        return
    task = mixture.tasks[0]
    answers = f"answers: {', '.join(task.labels)}" if task.labels else "answers: free text"
    console.print(Text.assemble((task.name, "bold"), f"   {answers}"))
    table = _table("split", "examples", "commonest", *LENGTHS, "cut")
    texts = {split: _row(table, task, split, vocabulary, lengths) for split in task.splits}
    console.print(table)
    limits = " and ".join(f"{lengths[k]} {k}" for k in lengths)
    console.print(
        f"Lengths in tokens, EOS included: 50, 90, 99 and 100 % of the first {MEASURED:,} of a split are no longer."
        f" Cut at {limits}."
    )
    _examples(console, options, texts, vocabulary)


def _open(options: argparse.Namespace, vocabulary: Vocabulary, lengths: Mapping[str, int]) -> Mixture:
    if bool(options.name) == bool(options.task_file):
        raise UserError("Give the name of a task, or --task_file FILE; `prompt-tuning data list` shows the names.")
    if options.task_file:
        from prompt_tuning.task_file import open_task_file

        return open_task_file(options.task_file, vocabulary, lengths)
    from prompt_tuning.data import open_mixture

    return open_mixture(options.name, vocabulary, lengths, options.module, options.data_dir)


def _row(
    table: Table, task: Task, split: str, vocabulary: Vocabulary, lengths: Mapping[str, int]
) -> Sequence[Mapping[str, Any]]:
    """Adds a split's figures to the table; returns its texts."""
    texts = task.texts(split)
    common, times = collections.Counter(t["targets_pretokenized"] for t in texts).most_common(1)[0]
    cells = [split, f"{len(texts):,}", f"{_blunt(common, 24)} {100 * times / len(texts):.1f} %"]
    for kind in LENGTHS:
        ids = vocabulary.encode_all([t[f"{kind}_pretokenized"] for t in itertools.islice(texts, MEASURED)])
        counts = np.array([len(i) + 1 for i in ids])
        cells.append(" / ".join(f"{np.percentile(counts, p, method='higher'):.0f}" for p in PERCENTILES))
        if kind == "inputs":
            cut = f"{100 * np.mean(counts > lengths[kind]):.1f} %"
    table.add_row(*cells, cut)
    return texts


def _examples(
    console: Console,
    options: argparse.Namespace,
    texts: Mapping[str, Sequence[Mapping[str, Any]]],
    vocabulary: Vocabulary,
) -> None:
    split = options.split or next(iter(texts))
    if split not in texts:
        raise UserError(f"There is no split {split!r}; there are {', '.join(texts)}.")
    for n, text in enumerate(texts[split][: options.examples]):
        console.print(Text(f"\n{split} {n}", style="bold"))
        for kind in LENGTHS:
            given = text[f"{kind}_pretokenized"]
            pieces = [vocabulary.piece(i) for i in vocabulary.encode(given)] + ["</s>"]
            console.print(Text(f"  {kind:8}{_blunt(given)}"))
            console.print(Text(f"  {len(pieces):>6}  {_blunt(' '.join(pieces))}", style="dim"))


def _blunt(text: str, most: int = 2 * BLUNT) -> str:
    """A text on one line, its middle left out where it is long."""
    line = text.replace("\n", "⏎")
    return line if len(line) <= most else f"{line[: most // 2]} […] {line[-(most // 2) :]}"


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        figure = column in ("examples", "rate", "cut", *LENGTHS)
        table.add_column(
            column, justify="right" if figure else "left", overflow="fold", no_wrap=figure or column == "split"
        )
    return table
