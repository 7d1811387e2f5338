"""prompt-tuning quickstart: a frozen T5 learns a demonstration task through a prompt, beside what it is compared with.

The paper's Figure 1 in small: a frozen model with a prompt against the same model trained whole (Lester et al. 2021).
"""

import argparse
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from prompt_tuning import configure, device, evaluate, flags, infer, report, split, terminal, tiny, train
from prompt_tuning.infer import Answerer
from prompt_tuning.log import bytes_in_words
from prompt_tuning.run import Opened, Run, open_run
from prompt_tuning.slots import Slot
from prompt_tuning.step import Model

PROMPT, MODEL = "runs/quickstart.gin", "runs/quickstart_model_tuning.gin"


@dataclasses.dataclass(frozen=True)
class Row:
    """One way to do the task."""

    name: str
    accuracy: float  # percent of the validation examples
    trained: int = 0  # parameters


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        "prompt-tuning quickstart",
        description="Prompt-tunes a frozen T5 on one of the demonstration tasks that come with this project, and"
        " compares with training the whole model. Two minutes on two CPU cores; a larger base takes longer.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--base",
        default="tiny",
        metavar="PATH",
        help="another T5: hub name, Hugging Face folder or T5X checkpoint",
    )
    parser.add_argument("--out", type=Path, default=Path("quickstart"), metavar="FOLDER", help="default: ./quickstart")
    parser.add_argument("--task", default="demo_acceptability", metavar="NAME", help="another demo_... task")
    parser.add_argument("--seed", type=flags.whole_number(0), default=0)
    options = parser.parse_args(argv)
    tiny.task_path(options.task)  # another is compared by other metrics, or is several
    started = time.monotonic()
    rows = compare(options.out, options.base, options.task, options.seed)
    if rows is None:
        return 0
    picture = report.comparison(
        options.out, {"prompt tuning": "prompt", "model tuning": "model"}, {r.name: r.accuracy for r in rows[:2]}
    )
    _tell(options.out, options.task, rows, picture, time.monotonic() - started)
    return 0


def compare(out: Path, base: str, task: str, seed: int) -> list[Row] | None:
    """Majority class, frozen model without a prompt, frozen model with one, model tuning; each run in its folder.

    None: a run was asked to stop. The same call goes on with it.
    """
    say = terminal.console().print
    say(f"1/2  a prompt for the frozen model, on {task}", style="bold")
    run = _configured(PROMPT, out / "prompt", base, task, seed)
    opened = open_run(run)
    majority, silent = majority_class(opened), without_prompt(opened)
    if (prompt := train.train(opened)).stopped:
        return None
    say("\n2/2  for comparison, all of the model's parameters", style="bold")
    if (model := train.train(_configured(MODEL, out / "model", base, task, seed))).stopped:
        return None
    bank = opened.slots[0].length * opened.base.config.emb_dim
    return [
        Row("majority class", majority),
        Row("frozen model", silent),
        Row("frozen model + prompt", float(prompt.best.score[0]), bank),
        Row("model tuning", float(model.best.score[0]), split.count(opened.base.params)),
    ]


def _configured(file: str, folder: Path, base: str, task: str, seed: int) -> Run:
    names = {
        "MODEL_DIR": str(folder),
        "INITIAL_CHECKPOINT_PATH": base,
        "MIXTURE_OR_TASK_NAME": task,
        "RANDOM_SEED": seed,
    }
    configure.parse([file], [f"{name} = {value!r}" for name, value in names.items()])
    return Run()


def majority_class(opened: Opened) -> float:
    """Accuracy of always giving the commonest answer, percent."""
    return infer.mean_metric(evaluate.commonest(opened.held_out()[0]))


def without_prompt(opened: Opened) -> float:
    """Accuracy of the frozen model that ranks the labels with nothing before the input, percent."""
    bare = Answerer(
        Model(opened.base.config), [Slot(length=0)], opened.labels, opened.vocabulary, opened.mesh,
        opened.run.eval_batch_size, opened.run.data.lengths["targets"],
    )  # fmt: skip
    with device.on(opened.mesh):
        (found,) = infer.evaluate(bare, opened.base.params, opened.held_out())
    return infer.mean_metric(found)


def _tell(out: Path, task: str, rows: list[Row], picture: Path | None, seconds: float) -> None:
    table = Table("", "accuracy", "trained parameters", "kept per task", box=None, header_style="bold")
    for row in rows:
        size = bytes_in_words(4 * row.trained) if row.trained else ""
        table.add_row(row.name, f"{row.accuracy:.1f} %", f"{row.trained:,}" if row.trained else "none", size)
    console = terminal.console()
    console.print(f"\n{task} after {seconds:.0f} s\n", style="bold")
    console.print(table)
    prompt = next((out / "prompt" / "prompts").glob("*.safetensors"))
    console.print(
        f"\nprompt    {prompt}\ncurves    {picture}\neverything else of the two runs is in {out}\n", soft_wrap=True
    )
    console.print("Next, ask the prompted model something:", style="bold")
    text = "sentence: He sat the by fire and told us of the war."
    console.print(f"  prompt-tuning infer --prompt {prompt} '{text}'\n", soft_wrap=True)
    console.print("or train on a task of the papers: see README, or gin/runs/sst2_small.gin.")


__all__ = ["compare", "main", "majority_class", "without_prompt"]
