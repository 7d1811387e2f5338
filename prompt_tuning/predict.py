"""Answers from a trained prompt, in Python and for `prompt-tuning infer`; imports no TensorFlow."""

import argparse
import contextlib
import dataclasses
import io
import json
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from prompt_tuning import decode, device, disk, infer, kinds, layout, prompt_file
from prompt_tuning.bank import Bank, Entry, name_of, room_for
from prompt_tuning.base import Base, base_of, load_base, spelling
from prompt_tuning.errors import UserError
from prompt_tuning.examples import LENGTHS, UNCUT
from prompt_tuning.grouping import Fixed, Progress, roomy
from prompt_tuning.progress import bar
from prompt_tuning.records import FORMATS, lines, parsed, read_records
from prompt_tuning.slots import Slot
from prompt_tuning.split import Params
from prompt_tuning.step import Model
from prompt_tuning.vocabulary import Vocabulary, encodable

Loadable = str | Path | prompt_file.Prompt


@dataclasses.dataclass(frozen=True)
class Request:
    """A text, and the prompt it is to be answered behind."""

    text: str
    prompt: str
    labels: tuple[str, ...] = ()  # to rank; empty: the prompt's own
    decode: bool = False  # write the answer freely instead of ranking labels


class Now(NamedTuple):
    """The bank, the parameters with the bank on the device, and how they are run."""

    bank: Bank
    params: Params
    answerer: infer.Answerer


class PromptTuned:
    """A frozen T5 behind a bank of prompts, each text answered behind the prompt it names.

    Prompts come and go without anything being compiled again, and from any thread: what is being answered meanwhile
    keeps the prompts it began with. Answering is for one thread at a time.
    """

    def __init__(
        self, base: Base, vocabulary: Vocabulary, bank: Bank, mesh: Any,
        batch_size: int = 64, shape: layout.Shape | None = None, answer_length: int = LENGTHS["targets"],
    ) -> None:  # fmt: skip
        """Answers that are written have up to `answer_length` tokens, EOS included.

        With `shape` every batch has that row length, that room for targets, and one of those numbers of rows.
        """
        slots, length, _ = bank.vectors.shape
        self.base, self.vocabulary, self.mesh = base, vocabulary, mesh
        self._changing = threading.Lock()
        self._now = bank, self._on_device(bank)
        model, free = Model(base.config, slots, length), Slot(length=length)
        if shape:
            devices = mesh.shape["data"]  # rows are divided among them
            shape = dataclasses.replace(shape, rows=tuple(sorted({layout.round_up(r, devices) for r in shape.rows})))
        self._shape, grouping = shape, Fixed(shape) if shape else roomy
        self._answerer = infer.Answerer(
            model, (free,) * slots, ((),) * slots, vocabulary, mesh, batch_size, answer_length, grouping
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"PromptTuned({self.base.path}: {', '.join(self.bank.names) or 'no prompts'})"

    @classmethod
    def load(
        cls, base: str | None, prompt: Loadable | Sequence[Loadable], labels: Sequence[str] | None = None,
        vocabulary: str | None = None, batch_size: int = 64,
    ) -> "PromptTuned":  # fmt: skip
        """Loads a prompt, or several, and their base; `base` and `labels` default to what the prompts' cards say."""
        given: list[Any] = list(prompt) if isinstance(prompt, list | tuple) else [prompt]
        if not given:
            raise UserError("There is no prompt to load. Give the path of one, or a list of paths.")
        loaded = [_loaded(one) for one in given]
        _check_names([name for _, name in loaded])
        path = base_of((one.card for one, _ in loaded), base, str(given[0]))
        longest, answers = room_for(one for one, _ in loaded)
        tuned = cls.open(path, len(loaded), longest, vocabulary, batch_size, answer_length=answers)
        for one, name in loaded:
            tuned.add(one, name, labels)
        return tuned

    @classmethod
    def open(
        cls, base: str, slots: int, length: int = 100, vocabulary: str | None = None,
        batch_size: int = 64, shape: layout.Shape | None = None, answer_length: int = LENGTHS["targets"],
    ) -> "PromptTuned":  # fmt: skip
        """A base with `slots` free slots for prompts of up to `length` vectors and `answer_length` tokens of answer."""
        kinds.check(kinds.WHOLE, slots=slots, length=length, batch_size=batch_size, answer_length=answer_length)
        device.keep_compiled_programs(None)
        mesh = device.make_mesh()
        frozen = load_base(base, None, device.frozen_dtype(), lambda config: device.frozen_shardings(config, mesh))
        bank = Bank.empty(slots, length, frozen.config.emb_dim)
        return cls(frozen, Vocabulary(spelling(frozen, vocabulary)), bank, mesh, batch_size, shape, answer_length)

    @property
    def now(self) -> Now:
        """What answers at this moment, all three of one state; prompts that come or go later do not change it."""
        bank, params = self._now
        pairs = zip(bank.entries, self._answerer.slots, strict=True)
        slots = [entry.slot if entry else free for entry, free in pairs]
        labels = [entry.labels if entry else () for entry in bank.entries]
        room = [(self._shape.row_length if self._shape else UNCUT["inputs"]) - slot.length for slot in slots]
        lengths = [min(entry.input_length, n) if entry else n for entry, n in zip(bank.entries, room, strict=True)]
        answerer = dataclasses.replace(self._answerer, slots=slots, labels=labels, input_lengths=lengths)
        return Now(bank, params, answerer)

    @property
    def bank(self) -> Bank:
        """The prompts as they are now."""
        return self._now[0]

    @property
    def prompts(self) -> dict[str, Entry]:
        """What is known of each prompt, by name."""
        return {entry.name: entry for entry in self.bank.entries if entry}

    @property
    def labels(self) -> tuple[str, ...]:
        """The answers that the only prompt ranks; empty if it writes freely."""
        return self.bank.entry(self.only).labels

    @property
    def only(self) -> str:
        """The name of the prompt, where there is one. Raises UserError where there are several."""
        names = self.bank.names
        if len(names) != 1:
            raise UserError(f"{len(names)} prompts are loaded ({', '.join(names) or 'none'}): name the one to use.")
        return names[0]

    def add(self, prompt: Loadable, name: str | None = None, labels: Sequence[str] | None = None) -> str:
        """Puts a prompt into a free slot; returns its name, by default the card's or the file's.

        Raises UserError, and changes nothing, for a prompt of another base, a name that is taken, or a full bank.
        """
        kinds.check(kinds.TEXTS, True, labels=labels)
        loaded, known_as = _loaded(prompt)
        called = name or known_as
        ranked = tuple(loaded.card.labels if labels is None else labels)
        self.base.check(loaded, called)
        with self._changing:
            bank = self.bank.add(loaded, called, ranked)
            entry, room = bank.entry(called), self._answerer.target_length
            if entry.card.answer_length > room:
                raise UserError(f"The prompt {called} writes answers of up to {entry.card.answer_length} tokens, and these slots hold up to {room}: make them longer at the start.")  # fmt: skip # noqa: E501
            self._check_labels(ranked, entry)
            self._set(bank)
        return called

    def remove(self, name: str) -> None:
        """Frees a prompt's slot. Raises UserError if there is none of that name."""
        with self._changing:
            self._set(self.bank.remove(name))

    def predict(
        self, texts: str | Iterable[str], decode: bool = False, prompt: str | Sequence[str] | None = None,
        content_free: Sequence[str] = (),
    ) -> list[infer.Answer]:  # fmt: skip
        """One answer a text: the likeliest label, or with `decode` (or without labels) what the model writes.

        `texts` are several or one. `prompt` names the prompt, or one for each text; it may be left out where only one
        is loaded. `content_free` inputs calibrate the ranking, as `infer.rank` says.
        """
        if not isinstance(texts, Iterable):
            raise UserError(f"Texts to answer are a str or several; found {texts!r}.")
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not isinstance(prompt, Iterable | None):
            raise UserError(f"prompt is the name of one, or a name for each text; found {prompt!r}.")
        named = [prompt or self.only] * len(texts) if isinstance(prompt, str | None) else list(prompt)
        if len(named) != len(texts):
            raise UserError(
                f"{len(texts)} texts and the names of {len(named)} prompts: give one name, or one for each."
            )
        requests = [Request(text, name, decode=decode) for text, name in zip(texts, named, strict=True)]
        return self.answer(requests, content_free)

    def answer(
        self, requests: Sequence[Request], content_free: Sequence[str] = (), progress: Progress | None = None
    ) -> list[infer.Answer]:
        """An answer for each request, whatever prompts they name; batches are passed through `progress`.

        Raises UserError for a request that cannot be answered.
        """
        kinds.check(kinds.TEXTS, content_free=content_free)
        bank, params, answerer = self.now
        answerer = dataclasses.replace(answerer, progress=progress or answerer.progress)
        questions = [self._question(bank, answerer, request) for request in requests]
        written = [r.decode or not answerer.labels_of(q) for r, q in zip(requests, questions, strict=True)]
        answers: list[infer.Answer | None] = [None] * len(requests)
        room = [self._room(bank.entry(r.prompt)) if writes else 0 for r, writes in zip(requests, written, strict=True)]
        for tokens in sorted(set(room)):
            numbers = [i for i, of in enumerate(room) if of == tokens]
            asked = [questions[i] for i in numbers]
            with device.on(self.mesh):  # told everything: what gin says now may be of another run
                if tokens:
                    writer = dataclasses.replace(answerer, target_length=tokens)
                    found = infer.write(writer, params, asked, decode.greedy, seed=0)
                else:
                    found = infer.rank(answerer, params, asked, content_free)
            for i, answer in zip(numbers, found, strict=True):
                answers[i] = answer
        return [answer for answer in answers if answer]

    def compile_ahead(self, writing: bool = True) -> None:
        """Compiles all that fixed-shape answering will run (`shape` was given), so that nothing compiles later."""
        with device.on(self.mesh):
            infer.compile_ahead(self._answerer, self._now[1], writing)

    def _room(self, entry: Entry) -> int:
        """Tokens of an answer that a prompt writes; where the shape is fixed, as many as any does."""
        return self._answerer.target_length if self._shape else entry.card.answer_length

    def _question(self, bank: Bank, answerer: infer.Answerer, request: Request) -> infer.Question:
        if not isinstance(request, Request):
            raise UserError(
                f'A request is Request(text, prompt); found {request!r:.60}. predict("...") takes bare texts.'
            )
        k, entry = bank.slot_of(request.prompt), bank.entry(request.prompt)
        if not isinstance(request.text, str):
            raise UserError(f"A text to answer is a str; found {request.text!r}.")
        encodable(request.text, "The text")
        kinds.check(kinds.TEXTS, labels=request.labels)
        if request.labels:
            self._check_labels(request.labels, entry)
        return infer.Question(answerer.encode(request.text, k), k, tuple(request.labels))

    def _check_labels(self, labels: Sequence[str], entry: Entry) -> None:
        """Labels that can be spelled, and fit into one row where its size is fixed."""
        self.vocabulary.check_labels(labels, entry.card.answer_length, f"the prompt {entry.name}")
        room = self._shape.target_length if self._shape else None
        if room and (tokens := sum(len(self.vocabulary.encode(label)) + 1 for label in labels)) > room:
            raise UserError(f"The labels of the prompt {entry.name} have {tokens} tokens together, and there is room for {room}.")  # fmt: skip # noqa: E501

    def _set(self, bank: Bank) -> None:
        self._now = bank, self._on_device(bank)  # together, so that a thread sees both or neither

    def _on_device(self, bank: Bank) -> Params:
        return self.base.params | {"prompt": {"bank": device.put_everywhere(bank.vectors, self.mesh)}}


def _loaded(prompt: Loadable) -> tuple[prompt_file.Prompt, str]:
    """A prompt and what it is called."""
    if isinstance(prompt, prompt_file.Prompt):
        return prompt, prompt.card.name or "prompt"
    if not isinstance(prompt, str | Path):
        raise UserError(f"A prompt is a path, or prompt_file.Prompt(vectors); found a {type(prompt).__name__}.")
    loaded = prompt_file.load(prompt)
    return loaded, name_of(prompt, loaded.card)


def _check_names(names: Sequence[str]) -> None:
    """Seeds of one task leave prompts of one name, and a text says by name which of them answers it."""
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(
            f"{names.count(twice)} of these prompts are called {twice!r}. Give each a name of its own: prompt-tuning"
            " import FILE --out OTHER.safetensors --name OTHER"
        )


def main(options: argparse.Namespace) -> int:
    """`prompt-tuning infer`: every text in, one JSON line out."""
    if options.text and options.input:
        raise UserError("Texts stand both on the command line and in --input: give one of them.")
    if not options.text and not options.input:
        lists = [flag for flag in ("labels", "content_free") if getattr(options, flag)]
        before = f" Texts stand before --{lists[0]}, which takes all that follows." if lists else ""
        raise UserError(f"There is nothing to answer. Type texts, or --input FILE (- for standard input).{before}")
    asked = [(encodable(text, "The text"), None) for text in options.text] or _read(options.input)
    if not asked:
        raise UserError(f"{options.input} holds no text.")
    if len(asked) > options.batch_size and not options.decode:
        device.share_cpu()
    with _output(options.output, options.input) as out:  # first: nothing is computed for a place that takes none
        tuned = PromptTuned.load(options.base, options.prompt, options.labels, options.vocabulary, options.batch_size)
        requests = [Request(text, name or tuned.only, decode=options.decode) for text, name in asked]
        answers = tuned.answer(requests, options.content_free, bar)
        for request, answer in zip(requests, answers, strict=True):
            row = {"text": request.text, "prediction": answer.text, "probabilities": answer.probabilities, "score": answer.score, "prompt": request.prompt}  # fmt: skip # noqa: E501
            if answer.prior:
                row["prior"] = answer.prior  # of the labels, behind an input that says nothing
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
    return 0


def _read(name: str) -> list[tuple[str, str | None]]:
    """A text a line; where a line is a JSON object or a row of a table, its 'text', and perhaps its 'prompt'.

    Such are .jsonl, .csv, .tsv and .parquet files, and standard input that opens with a brace.
    """
    path = Path(name).expanduser()
    if name != "-" and not path.is_file():
        raise UserError(f"There is no input file {name}.")
    if path.suffix.lower() in FORMATS:
        return [_fields(name, n, row) for n, row in read_records(path)]
    with contextlib.nullcontext(sys.stdin.buffer) if name == "-" else path.open("rb") as file:
        numbered = [(n, line) for n, line in lines(file, "standard input" if name == "-" else name) if line.strip()]
    if name == "-" and numbered and numbered[0][1].startswith("{"):
        return [_fields(name, n, parsed(line, f"standard input:{n}")) for n, line in numbered]
    return [(line, None) for _, line in numbered]


def _fields(name: str, number: int, row: Any) -> tuple[str, str | None]:
    text = row.get("text", row.get("inputs")) if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise UserError(f"{name}, line {number} has no 'text' (or 'inputs') that is a string: {str(row)[:80]}")
    prompt = row.get("prompt")
    if not isinstance(prompt, str | None):
        raise UserError(f"{name}, line {number}: 'prompt' is the name of one, not {prompt!r}.")
    return text, prompt


@contextlib.contextmanager
def _output(name: str | None, source: str | None) -> Iterator[TextIO]:
    """Standard output, a device or a pipe, or a file that takes its place when it is complete."""
    if name in (None, "-"):
        yield sys.stdout
        return
    path = Path(name).expanduser().resolve()  # where a link leads
    if path.is_dir():
        raise UserError(f"{name} is a folder; --output is a file for the answers.")
    if path.exists() and not path.is_file():
        with path.open("w", encoding="utf-8") as file:
            yield file
        return
    if source and path == Path(source).expanduser().resolve():
        raise UserError(f"{name} is the --input too, whose texts would be gone. Name another file as --output.")
    with disk.replacing(path) as whole:
        text = io.TextIOWrapper(whole, encoding="utf-8")
        yield text
        text.detach()
