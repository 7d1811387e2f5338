"""What ships inside the package: six demonstration tasks and a vocabulary; the tiny bases beside them, `base` opens."""

from collections.abc import Mapping
from pathlib import Path

from prompt_tuning.errors import UserError, nearest
from prompt_tuning.examples import Mixture
from prompt_tuning.task_file import open_task_file
from prompt_tuning.vocabulary import Vocabulary

FOLDER = Path(__file__).parent
VOCABULARY = FOLDER / "spiece.model"  # 8,000 pieces; with the 100 sentinels 8,100 ids
TASKS = {path.stem: path for path in sorted((FOLDER / "tasks").glob("*.toml"))}
LENGTHS = {"inputs": 48, "targets": 4}  # tokens, EOS included; none of the tasks' texts is longer


def open_task(name: str, vocabulary: Vocabulary, lengths: Mapping[str, int] = LENGTHS) -> Mixture:
    """A demonstration task, as a mixture of one, without TensorFlow.

    Raises:
      UserError: there is no such task.
    """
    return open_task_file(task_path(name), vocabulary, lengths)


def task_path(name: str) -> Path:
    """The task file of a demonstration task. Raises UserError if there is no such task."""
    if name not in TASKS:
        raise UserError(f"No demonstration task {name!r}.{nearest(name, TASKS)} There are {', '.join(TASKS)}.")
    return TASKS[name]
