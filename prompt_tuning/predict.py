"""Answers from a trained prompt, in Python and for `prompt-tuning infer`; imports no TensorFlow."""

import argparse
import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import jax.numpy as jnp
import numpy as np

from prompt_tuning import device, infer, layout, prompt_file
from prompt_tuning.base import load_base
from prompt_tuning.errors import UserError
from prompt_tuning.slots import Slot
from prompt_tuning.split import Params
from prompt_tuning.step import Model
from prompt_tuning.vocabulary import Vocabulary

PLACEMENTS = {p.__name__: p for p in (layout.front, layout.after_bos, layout.behind)}


@dataclasses.dataclass(frozen=True)
class PromptTuned:
    """A frozen T5 behind one trained prompt."""

    answerer: infer.Answerer
    params: Params
    input_length: int

    @classmethod
    def load(
        cls, base: str | None, prompt: str | Path, labels: Sequence[str] | None = None,
        vocabulary: str | None = None, batch_size: int = 64,
    ) -> "PromptTuned":  # fmt: skip
        """Loads a prompt and its base; `base` and `labels` default to what the prompt's card says."""
        device.keep_compiled_programs(None)
        loaded = prompt_file.load(prompt)
        card = loaded.card
        path = base or card.base
        if not path:
            raise UserError(f"{prompt} does not say which base it was tuned on. Type --base PATH.")
        mesh = device.make_mesh()
        frozen = load_base(path, None, device.frozen_dtype(), lambda config: device.frozen_shardings(config, mesh))
        _check(loaded, frozen, prompt)
        spelling = vocabulary or frozen.vocabulary
        if spelling is None:
            raise UserError(f"There is no spiece.model beside {frozen.path}. Type --vocabulary PATH.")
        length = len(loaded.vectors)
        name = card.name or Path(prompt).stem
        slot = Slot(card.task or None, length=length, placement=PLACEMENTS.get(card.placement, layout.front), name=name)
        model = Model(frozen.config, 1, length)
        chosen = tuple(labels or card.labels)
        answerer = infer.Answerer(model, (slot,), (chosen,), Vocabulary(spelling), mesh, batch_size)
        bank = device.put_everywhere(jnp.asarray(loaded.vectors[None]), mesh)
        return cls(answerer, frozen.params | {"prompt": {"bank": bank}}, card.input_length or 512)

    @property
    def labels(self) -> tuple[str, ...]:
        """The answers it ranks; empty if it writes freely."""
        return self.answerer.labels[0]

    def predict(self, texts: Sequence[str], decode: bool = False) -> list[infer.Answer]:
        """One answer a text: the likeliest label, or with `decode` (or without labels) what the model writes."""
        vocabulary = self.answerer.vocabulary
        cut = lambda text: [*vocabulary.encode(text), vocabulary.eos_id][: self.input_length]
        questions = [infer.Question(np.array(cut(text), np.int32), 0) for text in texts]
        if not questions:
            return []
        method = infer.write if decode or not self.labels else infer.rank
        with device.on(self.answerer.mesh):
            return method(self.answerer, self.params, questions)


def _check(prompt: prompt_file.Prompt, base: Any, path: str | Path) -> None:
    width = prompt.vectors.shape[1]
    if width != base.config.emb_dim:
        raise UserError(f"The prompt {path} is {width} wide and the base {base.path} is {base.config.emb_dim}: choose the base it was tuned on.")  # fmt: skip # noqa: E501
    if prompt.card.base_digest and prompt.card.base_digest != base.digest:
        raise UserError(
            f"The prompt {path} was tuned on a base with other weights ({prompt.card.base}, digest"
            f" {prompt.card.base_digest[:12]}; {base.path} has {base.digest[:12]}). Type --base with its own path."
        )


def main(options: argparse.Namespace) -> int:
    """`prompt-tuning infer`: every text in, one JSON line out."""
    if options.text and options.input:
        raise UserError("Texts stand both on the command line and in --input: give one of them.")
    if not options.text and not options.input:
        raise UserError("There is nothing to answer. Type texts, or --input FILE (- for standard input).")
    texts = list(options.text) or _read(options.input)
    if not texts:
        raise UserError(f"{options.input} holds no text.")
    tuned = PromptTuned.load(options.base, options.prompt, options.labels, options.vocabulary, options.batch_size)
    answers = tuned.predict(texts, options.decode)
    name = tuned.answerer.slots[0].name
    with _output(options.output) as out:
        for text, answer in zip(texts, answers, strict=True):
            row = {"text": text, "prediction": answer.text, "probabilities": answer.probabilities, "score": answer.score, "prompt": name}  # fmt: skip # noqa: E501
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
    return 0


def _read(name: str) -> list[str]:
    """A text a line; in .jsonl files, or lines that are JSON objects on standard input, the field 'text'."""
    path = Path(name)
    if name != "-" and not path.is_file():
        raise UserError(f"There is no input file {name}.")
    try:
        lines = (sys.stdin if name == "-" else path.open(encoding="utf-8")).read().splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8 text (byte {error.start}).") from error
    json_lines = path.suffix == ".jsonl" or (name == "-" and lines and lines[0].startswith("{"))
    return [_field(name, n, line) if json_lines else line for n, line in enumerate(lines, 1) if line.strip()]


def _field(name: str, number: int, line: str) -> str:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{name}, line {number} is not JSON ({error}).") from error
    text = row.get("text", row.get("inputs")) if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise UserError(f"{name}, line {number} has no 'text' (or 'inputs') that is a string: {line[:80]}")
    return text


@contextlib.contextmanager
def _output(name: str | None) -> Iterator[TextIO]:
    """Standard output, or a file that takes its place when it is complete."""
    if name is None:
        yield sys.stdout
        return
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            yield file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
