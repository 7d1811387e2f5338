"""Small tasks that ship with the package (prompt_tuning/tiny/tasks), from sentences of public-domain English books.

The same files open without TensorFlow: `prompt_tuning.tiny.open_task`, or their TOML as TASK_FILE. Each has 3,500
training and 500 validation examples, half of either label; scripts/make_demo_tasks.py made them.
"""

import tensorflow as tf

from prompt_tuning import metrics, tiny
from tasks import formats
from tasks.registry import add
from tasks.sources import OfficialFiles, Source, text_fields


class Shipped(Source):
    """Files inside the package, which no DATA_DIR moves."""

    def at(self, data_dir: str) -> "Shipped":
        return self


def demo(name: str, labels: tuple[str, str]) -> None:
    """Register the task of the files `NAME.train.jsonl` and `NAME.validation.jsonl`."""
    splits = ("train", "validation")
    files = {split: (f"{name}.{split}.jsonl",) for split in splits}
    official = OfficialFiles(
        ("tasks",), files, text_fields(("sentence",), labels), {"label": tf.int64, "idx": tf.int32}
    )
    source = Shipped(None, {split: split for split in splits}, official, str(tiny.FOLDER))
    add(name, source, formats.classify(("sentence",), labels), [metrics.accuracy], labels)


def acceptability() -> None:
    """Is the sentence as it was written, or have two words changed places or one gone?

    inputs:  sentence: He fastened the at the fence, and, opening the gate, went in.
    targets: wrong
    """
    demo("demo_acceptability", ("wrong", "right"))


def intruder() -> None:
    """Is the sentence as it was written, or are two of its words from elsewhere?

    inputs:  sentence: This advice happy barbarians to the future chancellor.
    targets: strange
    """
    demo("demo_intruder", ("strange", "usual"))


def jumble() -> None:
    """Is the sentence as it was written, or are its words shuffled?

    inputs:  sentence: Turning, to her she retrace tried steps.
    targets: mixed
    """
    demo("demo_jumble", ("mixed", "plain"))


def order() -> None:
    """Do the sentence's halves stand in their order, or the second half first?

    inputs:  sentence: studied it for a space we both
    targets: backward
    """
    demo("demo_order", ("backward", "forward"))


def question() -> None:
    """Does the speaker ask or state? The mark at the end is gone.

    inputs:  sentence: This name will make his fortune
    targets: statement
    """
    demo("demo_question", ("statement", "question"))


def speech() -> None:
    """Does somebody in the book say it, or does the book tell it? The quotation marks are gone.

    inputs:  sentence: The time wore on, and he began to grow impatient.
    targets: story
    """
    demo("demo_speech", ("story", "speech"))


for register in (acceptability, intruder, jumble, order, question, speech):
    register()
