"""The one thread that has the model: it ranks and writes what waits, in batches of whatever prompts they name."""

import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from prompt_tuning import device, infer, layout
from prompt_tuning.grouping import Fixed
from prompt_tuning.predict import PromptTuned
from prompt_tuning.serve.ladder import Size, fit, for_reading, ladder
from prompt_tuning.serve.metrics import Metrics
from prompt_tuning.serve.waiting import Job, Queue
from prompt_tuning.serve.writer import STRIDE, Writer, Written

BATCH = 128  # examples of a batch at most
LABEL_TOKENS = 256  # of one text's labels together

Post = Callable[[Callable[..., None], Any], Any]  # how another thread is made to call a function


@dataclasses.dataclass(frozen=True)
class Piece:
    """One token of an answer that is being written."""

    token: int
    piece: str  # as the vocabulary spells it
    text: str  # what is written so far


class Removed(Exception):
    """The prompt was removed while the text waited."""


@dataclasses.dataclass
class _Text:
    job: Job
    ids: list[int] = dataclasses.field(default_factory=list)


class Engine:
    """Takes jobs from a queue until it is closed; tells each what became of it through `post`."""

    def __init__(self, tuned: PromptTuned, queue: Queue, metrics: Metrics, input_length: int, room: int, writers: int) -> None:  # fmt: skip # noqa: E501
        """`input_length` tokens of input, `room` positions of a batch, `writers` texts written at a time, at most."""
        self.tuned, self.queue, self.metrics, self.room = tuned, queue, metrics, room
        self.input_length = input_length
        devices = tuned.mesh.shape["data"]
        entries = tuned.prompts.values()
        lengths = sorted(entry.slot.length for entry in entries)
        labels = max((self.label_tokens(entry.labels) for entry in entries), default=0)
        longest = Size(tuned.bank.vectors.shape[1] + input_length, max(labels, LABEL_TOKENS))
        usual = lengths[len(lengths) // 2] if lengths else tuned.bank.vectors.shape[1]
        self.shapes = ladder(usual, longest, max(labels, 4), room, devices)
        answerer = tuned.now.answerer
        self.writer = Writer(answerer.model, tuned.mesh, for_reading(self.shapes), writers, answerer.target_length)
        self._texts: dict[int, _Text] = {}
        self._post: Post = lambda function, argument: function(argument)
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def label_tokens(self, labels: Sequence[str]) -> int:
        """Tokens of labels together, each with its EOS."""
        return sum(len(self.tuned.vocabulary.encode(label)) + 1 for label in labels)

    def compile(self) -> None:
        """Runs every program once; afterwards nothing compiles."""
        now = self.tuned.now
        with device.on(self.tuned.mesh):
            for shape in self.shapes:
                infer.compile_ahead(self._answerer(now.answerer, shape), now.params, writing=False)
            self.writer.compile(now.params)

    def start(self, post: Post) -> None:
        """Begins to take jobs; `post(f, x)` has f(x) called where the listeners live."""
        self._post = post
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def stop(self, seconds: float) -> None:
        """Lets it finish what waits, for some time."""
        self.queue.close()
        if self._thread.ident is not None:
            self._thread.join(seconds)

    def _run(self) -> None:
        with device.on(self.tuned.mesh):
            while (jobs := self.queue.take(self.room, self.writer.busy)) is not None or self.writer.busy:
                ranked = [job for job in jobs or () if job.labels]
                written = [job for job in jobs or () if not job.labels]
                if ranked:
                    self._rank(ranked)
                if written and self.writer.free:
                    self._begin(written)
                if self.writer.busy:
                    self._write()

    @contextlib.contextmanager
    def _answering(self, jobs: Sequence[Job]) -> Iterator[None]:
        """A batch that fails is told to those in it, and the next one goes on.

        What is being written meanwhile is given up too: its state may have been handed to the call that failed.
        """
        try:
            yield
        except Exception as error:
            logging.getLogger(__name__).exception("a batch failed")
            self._tell([(job, error) for job in {*jobs, *(text.job for text in self._texts.values())}])
            self._texts.clear()
            self.writer.clear()

    def _tell(self, news: list[tuple[Job, Any]]) -> None:
        if news:
            self._post(_tell, news)

    def _rank(self, jobs: list[Job]) -> None:
        shape, chosen = fit([job.size for job in jobs[: 2 * BATCH]], self.shapes)
        batch = [jobs[i] for i in chosen[:BATCH]]
        self.queue.remove(batch)
        now = self.tuned.now
        with self._answering(batch):
            there, questions = self._there(batch, now)
            if not questions:
                return
            began = time.monotonic()
            answers = infer.rank(self._answerer(now.answerer, shape), now.params, questions)
            used = sum(job.size.length for job in there)
            self.metrics.batch("rank", len(there), used, shape.rows[0] * shape.row_length, time.monotonic() - began)
            self._tell(list(zip(there, answers, strict=True)))

    def _answerer(self, answerer: infer.Answerer, shape: layout.Shape) -> infer.Answerer:
        return dataclasses.replace(answerer, grouping=Fixed(shape), batch_size=BATCH)

    def _there(self, jobs: list[Job], now: Any) -> tuple[list[Job], list[infer.Question]]:
        """The jobs whose prompts are still in the bank, as questions; the others are told that theirs is not."""
        slots = {id(entry): k for k, entry in enumerate(now.bank.entries) if entry}
        gone = [job for job in jobs if id(job.entry) not in slots]
        self._tell([(job, Removed(job.entry.name)) for job in gone])
        there = [job for job in jobs if id(job.entry) in slots]
        return there, [infer.Question(job.tokens, slots[id(job.entry)], job.labels) for job in there]

    def _begin(self, jobs: list[Job]) -> None:
        shape, chosen = fit([job.size for job in jobs[: self.writer.free]], self.writer.shapes)
        batch = [jobs[i] for i in chosen]
        self.queue.remove(batch)
        now = self.tuned.now
        with self._answering(batch):
            there, questions = self._there(batch, now)
            if not questions:
                return
            began = time.monotonic()
            most = [job.entry.card.answer_length for job in there]
            places = self.writer.admit(now.params, now.answerer.items(questions, ranking=False), shape, most)
            self._texts |= {place: _Text(job) for place, job in zip(places, there, strict=True)}
            used = sum(job.size.length for job in there)
            self.metrics.batch("read", len(there), used, shape.rows[0] * shape.row_length, time.monotonic() - began)

    def _write(self) -> None:
        for place in [place for place, text in self._texts.items() if text.job.given_up]:
            del self._texts[place]
            self.writer.leave(place)
        if not self._texts:
            return
        began = time.monotonic()
        with self._answering([]):
            steps = self.writer.step(self.tuned.now.params)
            self._spell(steps)
            texts, computed = len({written.place for written in steps}), STRIDE * self.writer.places
            self.metrics.batch("write", texts, len(steps), computed, time.monotonic() - began)

    def _spell(self, steps: Sequence[Written]) -> None:
        """Tells each text's listener its new token, and the answer of those that are done."""
        news: list[tuple[Job, Any]] = []
        for written in steps:
            text = self._texts[written.place]
            text.ids.append(written.token)
            so_far = self.tuned.vocabulary.decode(text.ids)
            if written.token != self.tuned.vocabulary.eos_id:
                news.append((text.job, Piece(written.token, self.tuned.vocabulary.piece(written.token), so_far)))
            if written.done:
                news.append((text.job, infer.Answer(so_far, {}, written.score)))
                del self._texts[written.place]
        self._tell(news)


def _tell(news: list[tuple[Job, Any]]) -> None:
    for job, what in news:
        job.tell(what)
