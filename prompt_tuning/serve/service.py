"""Between requests and the model: checks what was asked, lets it wait, and hands back what became of it."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import numpy as np

from prompt_tuning import infer
from prompt_tuning.bank import Entry
from prompt_tuning.errors import UserError, nearest
from prompt_tuning.predict import PromptTuned
from prompt_tuning.serve.engine import LABEL_TOKENS, Engine, Piece, Removed
from prompt_tuning.serve.gate import Refusal
from prompt_tuning.serve.ladder import Size
from prompt_tuning.serve.metrics import Metrics
from prompt_tuning.serve.shelf import Shelf
from prompt_tuning.serve.waiting import Closed, Full, Job, Queue


@dataclasses.dataclass(frozen=True)
class Limits:
    """What the server takes on at most."""

    waiting: int = 256  # texts
    window: float = 0.005  # seconds that a batch waits for company
    body: int = 1 << 18  # bytes
    input_length: int = 512  # tokens of a text, EOS included
    room: int = 2048  # positions of a batch
    writers: int = 16  # texts written at a time
    seconds: float = 10.0  # that a body may take to arrive


class Service:
    """One model, its prompts, and what waits for it."""

    def __init__(self, tuned: PromptTuned, shelf: Shelf, limits: Limits) -> None:
        self.tuned, self.shelf, self.limits = tuned, shelf, limits
        self.metrics = Metrics()
        self.queue = Queue(limits.waiting, limits.window)
        self.engine = Engine(tuned, self.queue, self.metrics, limits.input_length, limits.room, limits.writers)
        self.stopping = False
        self.metrics.gauge("waiting_texts", "Texts that wait for the model", lambda: len(self.queue))
        self.metrics.gauge("prompts", "Prompts that are loaded", lambda: len(tuned.prompts))

    def entry(self, name: str) -> Entry:
        """The loaded prompt of that name. Raises Refusal (404)."""
        prompts = self.tuned.prompts
        if name not in prompts:
            hint = nearest(name, prompts) or f" Loaded: {', '.join(sorted(prompts)) or 'none'}."
            raise Refusal(404, f"The prompt {name!r} is not loaded.{hint}")
        return prompts[name]

    async def answer(self, name: str, texts: Sequence[str], labels: Sequence[str]) -> list[infer.Answer]:
        """Each text's answer: the labels ranked, or written if there are none."""
        entry, chosen = self.entry(name), tuple(labels)
        room = self.engine.label_tokens(chosen)
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future] = [loop.create_future() for _ in texts]
        jobs = []
        for number, (text, future) in enumerate(zip(texts, futures, strict=True)):
            tokens = self._tokens(entry, text, f"Text {number + 1} of {len(texts)}")
            jobs.append(Job(entry, tokens, chosen, Size(len(tokens) + entry.slot.length, room), _settle(future)))
        self._wait_in_line(jobs)
        try:
            return await asyncio.gather(*futures)
        except Removed:
            raise Refusal(409, f"The prompt {name!r} was removed before its turn came.") from None
        finally:
            _give_up(jobs)

    async def stream(self, name: str, text: str) -> AsyncIterator[Piece | infer.Answer]:
        """The pieces of a written answer as they come, then the answer; refuses before the first of them."""
        heard: asyncio.Queue[Any] = asyncio.Queue()
        entry = self.entry(name)
        tokens = self._tokens(entry, text, "The text")
        job = Job(entry, tokens, (), Size(len(tokens) + entry.slot.length, 0), heard.put_nowait)
        self._wait_in_line([job])
        return _listen(heard, job)

    def _tokens(self, entry: Entry, text: str, which: str) -> np.ndarray:
        vocabulary = self.tuned.vocabulary
        tokens = [*vocabulary.encode(text), vocabulary.eos_id]
        limit = min(self.limits.input_length, entry.input_length)
        if len(tokens) > limit:
            raise Refusal(422, f"{which} has {len(tokens)} tokens; {entry.name} reads at most {limit}.")
        return np.array(tokens, np.int32)

    def _wait_in_line(self, jobs: list[Job]) -> None:
        try:
            self.queue.put(jobs)
        except Full:
            sentence = f"{len(self.queue)} texts wait already, of {self.limits.waiting} that may. Try again shortly."
            raise Refusal(429, sentence, retry_after="1") from None
        except Closed:
            raise Refusal(503, "The server is stopping.", retry_after="5", connection="close") from None

    def check_labels(self, labels: Sequence[str]) -> None:
        """Raises Refusal (422) for labels that cannot be ranked."""
        if len(set(labels)) < len(labels):
            raise Refusal(422, "A label stands twice.")
        if wrong := next((label for label in labels if not self.tuned.vocabulary.can_spell(label)), None):
            raise Refusal(422, f"The model's vocabulary cannot spell the label {wrong!r}.")
        if (tokens := self.engine.label_tokens(labels)) > LABEL_TOKENS:
            raise Refusal(422, f"The labels have {tokens} tokens together; at most {LABEL_TOKENS} are ranked.")

    async def add(self, name: str) -> Entry:
        """Loads a prompt of the folder into a free slot. Raises Refusal."""
        return await asyncio.to_thread(self._add, name)

    def _add(self, name: str) -> Entry:
        try:
            prompt = self.shelf.read(name)
        except KeyError as error:
            raise Refusal(404, error.args[0]) from None
        except UserError as error:
            raise Refusal(422, str(error).replace(f"{self.shelf.folder}/", "")) from None
        if name in self.tuned.prompts:
            raise Refusal(409, f"The prompt {name!r} is loaded already. DELETE it first to load it anew.")
        if len(self.tuned.prompts) == len(self.tuned.bank.entries):
            raise Refusal(409, f"All {len(self.tuned.bank.entries)} slots are taken. DELETE a prompt first.")
        self.check_labels(prompt.card.labels)
        try:
            self.tuned.add(prompt, name)
        except UserError as error:
            raise Refusal(422, str(error)) from None
        return self.entry(name)

    async def remove(self, name: str) -> None:
        """Frees a prompt's slot; texts that wait for it are told. Raises Refusal."""
        self.entry(name)
        try:
            await asyncio.to_thread(self.tuned.remove, name)
        except UserError as error:  # somebody else was quicker
            raise Refusal(404, str(error)) from None


def _settle(future: asyncio.Future) -> Callable[[Any], None]:
    def tell(what: Any) -> None:
        if future.done() or isinstance(what, Piece):
            return
        if isinstance(what, Exception):
            future.set_exception(what)
        else:
            future.set_result(what)

    return tell


def _give_up(jobs: Sequence[Job]) -> None:
    for job in jobs:
        job.given_up = True


async def _listen(heard: asyncio.Queue, job: Job) -> AsyncIterator[Piece | infer.Answer]:
    try:
        while True:
            what = await heard.get()
            if isinstance(what, Exception):
                raise what
            yield what
            if isinstance(what, infer.Answer):
                return
    finally:
        _give_up([job])
