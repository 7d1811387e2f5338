"""prompt-tuning doctor: one step and a few answers of a run, or of trained prompts, and what does not look healthy.

Nothing is written. The checks are those that tell a prompt that cannot learn, or did not, from one that needs time.
"""

import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from rich.table import Table
from rich.text import Text

from prompt_tuning import bank, decode, device, evaluate, infer, inits, prompt_file, split, terminal, train
from prompt_tuning.errors import UserError
from prompt_tuning.examples import Examples, Ragged
from prompt_tuning.over_prompts import over_prompts
from prompt_tuning.run import Opened, Run, open_run
from prompt_tuning.slots import Slot
from prompt_tuning.step import train_step
from prompt_tuning.tuning import PromptTuning

GOOD, DOUBTFUL, BAD = "good", "doubtful", "bad"
STYLES = {GOOD: "green", DOUBTFUL: "yellow", BAD: "bold red"}
ANSWERED = 64  # held-out examples that are answered freely
USUAL_RATE = 0.3 / 13  # of a step to the embeddings' RMS: the paper's 0.3 on a released T5, whose table has 13
FAR = 10.0  # times too large or too small


@dataclasses.dataclass(frozen=True)
class Finding:
    """What one check saw of one prompt."""

    check: str
    slot: str  # empty: it is true of all
    verdict: str
    text: str


def main(run: Run, prompts: Sequence[str]) -> int:
    """Prints what was found; the exit code, 1 if anything is bad."""
    findings = examine(run, prompts)
    table = Table("check", "prompt", "", "found", box=None, header_style="bold")
    for found in findings:
        table.add_row(found.check, found.slot, Text(found.verdict, STYLES[found.verdict]), found.text)
    console = terminal.console()
    console.print(table)
    counts = collections.Counter(found.verdict for found in findings)
    console.print(", ".join(f"{counts[verdict]} {verdict}" for verdict in STYLES))
    return 1 if counts[BAD] else 0


def examine(run: Run, prompts: Sequence[str] = ()) -> list[Finding]:
    """Every check of a run's slots, or of the prompt files `prompts`.

    A run's slots stand at their best prompts where MODEL_DIR has them, else at their inits.
    """
    if run.tuning.whole_model:
        raise UserError("The doctor looks at prompts; leave TUNING at @PromptTuning(), or give prompts with --prompt.")
    opened = open_run(_over_files(run, prompts) if prompts else run)
    if not prompts:
        opened = dataclasses.replace(opened, slots=tuple(_at_its_best(run, slot) for slot in opened.slots))
    findings = [*_labels(opened), *_inits(opened), *_rates(opened), *_baselines(opened)]
    with device.on(opened.mesh):
        return [*findings, *_step(opened), *_answers(opened)]


def _over_files(run: Run, files: Sequence[str]) -> Run:
    """The run with a slot for each file, which starts from it."""
    loaded = [prompt_file.load(file) for file in files]
    run = over_prompts(run, [(bank.name_of(file, one.card), one) for file, one in zip(files, loaded, strict=True)])
    rows = zip(run.slots or (), files, strict=True)
    return dataclasses.replace(run, slots=[{**row, "init": str(prompt_file.find(file))} for row, file in rows])


def _at_its_best(run: Run, slot: Slot) -> Slot:
    path = Path(run.model_dir or "").expanduser() / "prompts" / f"{slot.name}.safetensors"
    return dataclasses.replace(slot, init=inits.of(str(path))) if run.model_dir and path.is_file() else slot


def _labels(opened: Opened) -> Iterator[Finding]:
    """Labels that the vocabulary cannot spell, or that begin alike, so that decoding takes one for another."""
    for slot, labels in zip(opened.slots, opened.labels, strict=True):
        spelled = {label: tuple(opened.vocabulary.encode(label)) for label in labels}
        unknown = [label for label in labels if not opened.vocabulary.can_spell(label)]
        pairs = list(itertools.combinations(labels, 2))
        same = [pair for pair in pairs if spelled[pair[0]] == spelled[pair[1]]]
        prefix = [(a, b) for a, b in pairs if (a, b) not in same and _begins(spelled[a], spelled[b])]
        first = [(a, b) for a, b in pairs if spelled[a][:1] == spelled[b][:1] and (a, b) not in same + prefix]
        say = functools.partial(Finding, "labels", slot.name)
        if unknown:
            yield say(BAD, f"the vocabulary cannot spell {_listed(unknown)}: choose other words in CLASS_LABELS")
        if same:
            yield say(BAD, f"spelled alike: {_listed(same)}")
        if prefix:
            yield say(
                DOUBTFUL, f"one begins with the other, so the shorter is likelier by its length: {_listed(prefix)}"
            )
        if first:
            yield say(DOUBTFUL, f"the same first piece: {_listed(first)}; greedy decoding decides between them late")
        if labels and not unknown + same + prefix + first:
            yield say(GOOD, f"{len(labels)} labels with first pieces of their own")
        if not labels:
            yield say(GOOD, "answers are free text")


def _begins(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    shorter = min(len(one), len(other))
    return one[:shorter] == other[:shorter]


def _listed(things: Sequence, most: int = 3) -> str:
    words = [" and ".join(map(repr, t)) if isinstance(t, tuple) else repr(t) for t in things[:most]]
    return ", ".join(words) + (f" and {len(things) - most} more" if len(things) > most else "")


def _rms(array: np.ndarray) -> float:
    return math.sqrt(float(np.mean(np.square(array, dtype=np.float64))))


def _table_rms(opened: Opened) -> float:
    """Root mean square of the embeddings of the pieces that the vocabulary has."""
    table = opened.base.params["token_embedder"]["embedding"][: opened.vocabulary.size]
    return _rms(np.asarray(table, np.float32))


def _inits(opened: Opened) -> Iterator[Finding]:
    """Prompts on another scale than the embeddings that the model knows."""
    usual, vectors = _table_rms(opened), opened.start_bank()
    for k, slot in enumerate(opened.slots):
        own = vectors[k, : slot.length]
        if not np.isfinite(own).all():
            yield Finding("prompt", slot.name, BAD, "holds infinities or NaN")
            continue
        alike = len(own) - len(np.unique(own, axis=0))
        ratio = _rms(own) / usual if usual else math.inf
        verdict = GOOD if 1 / FAR <= ratio <= FAR else DOUBTFUL
        text = f"RMS {_rms(own):.3g}, {ratio:.2g} times that of the embedding table ({usual:.3g})"
        if verdict == DOUBTFUL:
            text += "; @sampled_vocabulary or @class_labels start on its scale"
        yield Finding("prompt", slot.name, verdict, text + (f"; {alike} vectors repeat others" if alike else ""))


def _rates(opened: Opened) -> Iterator[Finding]:
    """Adafactor moves a number by about the learning rate a step, which has to fit the size of what is moved."""
    fitting = USUAL_RATE * _table_rms(opened)
    for slot in opened.slots:
        ratio = slot.learning_rate / fitting if fitting else math.inf
        told = f"{slot.learning_rate:g}; the paper's 0.3 in proportion to this embedding table is {fitting:.2g}"
        yield Finding("learning rate", slot.name, GOOD if 1 / FAR < ratio < FAR else DOUBTFUL, told)


def _baselines(opened: Opened) -> Iterator[Finding]:
    """The score of always giving the commonest answer, and whether a trained prompt is above it."""
    for slot, mixture, pairs in zip(opened.slots, opened.mixtures, opened.held_out(), strict=True):
        if not all(held.task.labels for held in pairs):
            continue
        majority, own = infer.mean_metric(evaluate.commonest(pairs)), _score(slot, mixture.name)
        text = f"the commonest answer alone scores {majority:.2f}"
        if own is None:
            yield Finding("baseline", slot.name, GOOD, text)
        elif own > majority:
            yield Finding("baseline", slot.name, GOOD, f"{text}, this prompt {own:.2f}")
        else:
            yield Finding("baseline", slot.name, BAD, f"{text}, this prompt {own:.2f}: it has learned nothing")


def _score(slot: Slot, task: str) -> float | None:
    """What a trained prompt's card says it scored, if it was on this task."""
    if not isinstance(slot.init, inits.Saved):
        return None
    card = prompt_file.load(slot.init.places[0]).card
    known = card.task in ("", task) and card.metric in ("", PromptTuning.scored_by)
    return card.score if known else None


def _step(opened: Opened) -> Iterator[Finding]:
    """One training step: the gradients, and whether the frozen parameters stay as they are."""
    run, way = opened.run, opened.run.tuning
    optimizer, feed = way.optimizer(opened), way.feed(opened)
    state, frozen = train.first_state(opened, optimizer)
    before = split.digest(frozen)
    pure = functools.partial(
        train_step, model=opened.model, optimizer=optimizer, dropout_rate=run.dropout_rate, z_loss=run.z_loss,
    )  # fmt: skip
    batch = device.put_batch(feed.batch(0, feed.plan()), opened.mesh)
    _, metrics = jax.device_get(jax.jit(pure, donate_argnames="state")(state, frozen, batch))
    for k, slot in enumerate(opened.slots):
        norm, took = float(metrics["gradient_norm"][k]), bool(metrics["took"][k])
        if not math.isfinite(norm) or not took:
            yield Finding("gradient", slot.name, BAD, f"its norm is {norm:g}: the step would be left out")
        elif norm == 0:
            yield Finding("gradient", slot.name, BAD, "is zero: nothing of this prompt reaches the loss")
        else:
            yield Finding("gradient", slot.name, GOOD, f"norm {norm:.3g} at a loss of {metrics['loss'][k]:.3g}")
    unchanged = split.digest(frozen) == before
    text = f"digest {before[:12]} before and after a step" if unchanged else "the step changed the frozen parameters"
    yield Finding("frozen base", "", GOOD if unchanged else BAD, text)


def _answers(opened: Opened) -> Iterator[Finding]:
    """How many freely written answers are none of the labels."""
    held_out = [[held._replace(examples=_first(held.examples)) for held in pairs] for pairs in opened.held_out()]
    params = split.merge(opened.run.tuning.start(opened)[0], opened.base.params)
    greedily = functools.partial(infer.write, decoder=decode.greedy)
    written = infer.answer_all(opened.answerer(), params, held_out, greedily)
    for slot, pairs, labels, given in zip(opened.slots, held_out, opened.labels, written, strict=True):
        answers = [a.text for task in given for a in task]
        allowed = set(labels).union(*(held.task.labels for held in pairs))
        if not allowed or not answers:
            continue
        wrong = [text for text in answers if text not in allowed]
        rate = len(wrong) / len(answers)
        text = f"{rate:.0%} of {len(answers)} greedily decoded answers are no label"
        if wrong:
            ((commonest, _),) = collections.Counter(wrong).most_common(1)
            text += f", such as {commonest[:40]!r}" + ("; ranking is not affected" if rate > 0.05 else "")
        decoding = getattr(opened.run.predict, "__name__", "") == infer.write.__name__
        verdict = GOOD if rate <= 0.05 else BAD if decoding and rate > 0.5 else DOUBTFUL
        yield Finding("decoding", slot.name, verdict, text)


def _first(examples: Examples) -> Examples:
    """The first ANSWERED of a split."""
    cut = lambda ragged: Ragged.of([ragged[i] for i in range(min(ANSWERED, len(ragged)))])
    return dataclasses.replace(
        examples, inputs=cut(examples.inputs), targets=cut(examples.targets), texts=list(examples.texts[:ANSWERED])
    )
