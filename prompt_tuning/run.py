"""A run as gin describes it, and what it opens: base, vocabulary, tasks, slots."""

import dataclasses
import functools
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gin
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from prompt_tuning import configure, device, infer, inits, kept_tasks, kinds, optim, scan, slots, tiny
from prompt_tuning.base import Base, load_base, random_base, spelling
from prompt_tuning.errors import UserError
from prompt_tuning.examples import LENGTHS, UNCUT, Mixture, Task, proportional
from prompt_tuning.grouping import Progress, planned
from prompt_tuning.progress import bar
from prompt_tuning.slots import Slot
from prompt_tuning.stack import T5Config
from prompt_tuning.step import Model
from prompt_tuning.task_file import Description, FileTask, open_task_file
from prompt_tuning.vocabulary import Vocabulary

# The config.gin that a run leaves has these of T5Config whatever its base: they are no size that a base is held to.
NO_SIZES = {"dtype", "factors", "remat", "scan_layers", "shared_relative_bias"}


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Frozen:
    """The base and where it is put."""

    path: str | None = None
    vocabulary_file: str | None = None
    dtype: Any = None  # of the weights, `device.types`; None: bfloat16 on TPU and GPU, float32 on CPU
    model_parallel: int = 1

    def __post_init__(self) -> None:
        kinds.check(kinds.TEXT, True, INITIAL_CHECKPOINT_PATH=self.path)
        kinds.check(kinds.PLACE, True, VOCABULARY_FILE=self.vocabulary_file)
        kinds.check(kinds.WHOLE, MODEL_PARALLEL=self.model_parallel)
        if self.dtype not in (None, "float32", "bfloat16"):
            raise UserError(f"FROZEN_DTYPE is {self.dtype!r}; it is float32, bfloat16 or None (what suits).")

    def open(self, trained: bool = False, seed: int | None = None) -> tuple[Base, Vocabulary, Mesh]:
        """The sharded base, its vocabulary and the mesh.

        The weights of a model that is `trained` are float32, whatever its activations are. With a `seed`, a base that
        has no path is drawn at random.
        """
        mesh = device.make_mesh(self.model_parallel, trained)
        dtype = jnp.dtype(self.dtype) if self.dtype else device.frozen_dtype()
        types = device.types(dtype)
        sized = configure.is_configured("T5Config", besides=NO_SIZES)
        expected = dataclasses.replace(T5Config(), **types) if sized else None
        shardings = lambda config: device.frozen_shardings(config, mesh)
        if self.path:
            base = load_base(self.path, expected, jnp.float32 if trained else dtype, shardings)
            base = dataclasses.replace(base, config=dataclasses.replace(base.config, **types))
        elif seed is not None and expected is not None:
            base = random_base(expected, seed, shardings)
        else:
            raise UserError("There is no base. Type --gin.INITIAL_CHECKPOINT_PATH=PATH: a T5X checkpoint, a Hugging Face T5 folder or a hub name.")  # fmt: skip # noqa: E501
        path = spelling(base, self.vocabulary_file, "--gin.VOCABULARY_FILE=PATH")
        vocabulary = Vocabulary(path)
        if vocabulary.size > base.config.vocab_size:
            raise UserError(
                f"The vocabulary {path} has {vocabulary.size:,} pieces, and the base {base.path} embeds only"
                f" {base.config.vocab_size:,}: they do not belong together. Type --gin.VOCABULARY_FILE=PATH."
            )
        return base, vocabulary, mesh


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Data:
    """Where tasks come from."""

    module: str | None = None
    task_file: str | Description | None = None
    data_dir: str | None = None
    lengths: Mapping[str, int] = dataclasses.field(default_factory=LENGTHS.copy)
    eval_lengths: Mapping[str, int] | None = dataclasses.field(default_factory=LENGTHS.copy)  # None: nothing is cut
    eval_split: str = "validation"

    def __post_init__(self) -> None:
        kinds.check(kinds.TEXT, True, MIXTURE_OR_TASK_MODULE=self.module)
        kinds.check(kinds.PLACE, True, DATA_DIR=self.data_dir)
        if not isinstance(self.task_file, Description):
            kinds.check(kinds.PLACE, True, TASK_FILE=self.task_file)
        kinds.check(kinds.TEXT, EVAL_SPLIT=self.eval_split)
        _check_lengths("TASK_FEATURE_LENGTHS", self.lengths)
        if self.eval_lengths is not None:
            _check_lengths("EVAL_FEATURE_LENGTHS", self.eval_lengths)

    def open(self, name: str | None, vocabulary: Vocabulary) -> Mixture:
        """The task or mixture `name`, a task file, several with + between them, or the one that TASK_FILE describes."""
        parts = self._parts(name, vocabulary)
        return parts[0] if len(parts) == 1 else proportional(parts)

    def open_held_out(self, name: str | None, vocabulary: Vocabulary) -> tuple[Task, ...]:
        """The tasks of `open`, over texts of EVAL_FEATURE_LENGTHS."""
        parts = dataclasses.replace(self, lengths=self.eval_lengths or UNCUT)._parts(name, vocabulary)
        return tuple({task.name: task for part in parts for task in part.tasks}.values())

    def _parts(self, name: str | None, vocabulary: Vocabulary) -> list[Mixture]:
        if self.task_file:
            if name:
                described = "a dict" if isinstance(self.task_file, Description) else f"TASK_FILE={self.task_file}"
                raise UserError(
                    f"The task is {described}, and MIXTURE_OR_TASK_NAME, GRID or SLOTS names another, {name}. Leave one"
                    " out; several are trained side by side where GRID or SLOTS names each, or its .toml file."
                )
            if isinstance(self.task_file, Description):
                return [self.task_file.open(vocabulary, self.lengths)]
            return [open_task_file(self.task_file, vocabulary, self.lengths)]
        if not name:
            raise UserError("There is no task. Type --gin.MIXTURE_OR_TASK_NAME=NAME (prompt-tuning data list shows them) or --gin.TASK_FILE=PATH.")  # fmt: skip # noqa: E501
        parts = [self._part(one, vocabulary) for one in name.split("+")]
        seen: dict[str, Task] = {}
        for task in (task for part in parts for task in part.tasks):
            if isinstance(seen.setdefault(task.name, task), FileTask) and seen[task.name] is not task:
                raise UserError(f"{name} has two tasks called {task.name!r}: give one another `name` in its file.")
        return parts

    def _part(self, name: str, vocabulary: Vocabulary) -> Mixture:
        if name.endswith(".toml"):
            return open_task_file(name, vocabulary, self.lengths)
        if name in tiny.TASKS and not self.module:
            return tiny.open_task(name, vocabulary, self.lengths)
        if importlib.util.find_spec("seqio") is None:
            raise UserError("SeqIO is not installed here, and tasks by name need it. Use a TASK_FILE instead.")
        return kept_tasks.open_mixture(name, vocabulary, self.lengths, self.module, self.data_dir)


def _check_lengths(name: str, lengths: Any) -> None:
    known = isinstance(lengths, Mapping) and set(lengths) == set(LENGTHS)
    if not known or not all(isinstance(n, int) and n > 0 for n in lengths.values()):
        raise UserError(f"{name} is {lengths!r}; it gives the longest inputs and targets in tokens, such as {LENGTHS}.")


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Run:
    """Everything a training run is told; gin/defaults.gin says what each setting means."""

    model_dir: str | None = None
    tuning: Any = None  # a tuning.Tuning; None: PromptTuning
    frozen: Frozen = Frozen()
    data: Data = dataclasses.field(default_factory=Data)
    slots: Sequence[Mapping[str, Any]] | None = None
    grid: Mapping[str, Sequence[Any]] | None = None
    train_steps: int = 30_000
    batch_size: int = 32
    optimizer: optim.MakeOptimizer = optim.adafactor
    schedule: optim.Schedule = optim.constant_schedule
    z_loss: float = 1e-4
    dropout_rate: float = 0.1
    packing: bool = True
    rows_at_once: int | None = None
    remat: bool = False
    scan_layers: bool = False
    eval_period: int = 1000
    eval_batch_size: int = 64
    predict: infer.Predict | None = None
    patience: int | None = None
    log_period: int = 10
    jax_cache_dir: str | None = None

    def __post_init__(self) -> None:
        of = lambda *names: {name.upper(): getattr(self, name) for name in names}
        kinds.check(kinds.PLACE, True, **of("model_dir", "jax_cache_dir"))
        kinds.check(kinds.WHOLE, **of("train_steps", "batch_size", "eval_period", "eval_batch_size", "log_period"))
        kinds.check(kinds.WHOLE, True, **of("rows_at_once", "patience"))
        kinds.check(kinds.NUMBER, **of("z_loss"))
        kinds.check(kinds.TRUTH, **of("packing", "remat", "scan_layers"))
        optim.check(self.optimizer)
        kinds.check(kinds.FUNCTION, **of("schedule"))
        kinds.check(kinds.FUNCTION, True, **of("predict"), DECODER=gin.get_bindings(infer.write).get("decoder"))
        if self.predict and (why := kinds.uncallable(self.predict, None, None, [])):
            raise UserError(f"PREDICT cannot be called with (answerer, params, questions): {why}. See infer.rank.")
        if self.tuning is None:
            from prompt_tuning.tuning import PromptTuning  # which stands on this room

            object.__setattr__(self, "tuning", PromptTuning())
        if isinstance(self.tuning, type) or not hasattr(self.tuning, "whole_model"):
            ways = "@PromptTuning(), @PromptPretraining(), @ModelTuning() or @Pretraining()"
            raise UserError(f"TUNING is {self.tuning!r}; it is {ways}.")
        if self.scan_layers and self.tuning.whole_model:
            raise UserError("SCAN_LAYERS goes through frozen layers; a whole model is trained with it at False.")
        if not isinstance(self.dropout_rate, int | float) or not 0 <= self.dropout_rate < 1:
            raise UserError(f"DROPOUT_RATE is {self.dropout_rate!r}; it is from 0 (off) to below 1.")

    @property
    def folder(self) -> Path:
        """MODEL_DIR, which may not exist yet."""
        if not self.model_dir:
            raise UserError("There is nowhere to write to. Type --gin.MODEL_DIR=FOLDER.")
        return Path(self.model_dir).expanduser()


@dataclasses.dataclass(frozen=True)
class Opened:
    """A run's base, slots and tasks, loaded."""

    run: Run
    base: Base
    vocabulary: Vocabulary
    mesh: Mesh
    slots: tuple[Slot, ...]
    mixtures: tuple[Mixture, ...]  # one a slot; slots of one task share it
    progress: Progress = bar  # what the batches of an evaluation are passed through

    @functools.cached_property
    def model(self) -> Model:
        return Model(self.base.config, len(self.slots), max(slot.length for slot in self.slots))

    @property
    def labels(self) -> list[tuple[str, ...]]:
        """The answers that each slot ranks."""
        of_tasks = [{task.labels for task in mixture.tasks} for mixture in self.mixtures]
        return [
            tuple(slot.labels) if slot.labels else found.pop() if len(found) == 1 else ()
            for slot, found in zip(self.slots, of_tasks, strict=True)
        ]

    def start_bank(self) -> np.ndarray:
        """`bank[K P D]` of the slots' inits."""
        table = self.base.params["token_embedder"]["embedding"]
        if table.is_fully_addressable and jax.default_backend() == "cpu":
            host = np.asarray(table)  # the same memory; on the device each number of ids is a program to compile
            embed = lambda ids: host[np.asarray(ids)].astype(np.float32)
        else:
            embed = lambda ids: device.fetch(table[jnp.asarray(ids)]).astype(np.float32)
        config = self.base.config
        starts = [
            inits.Start(slot.length, config.emb_dim, embed, self.vocabulary, labels, self.base.digest)
            for slot, labels in zip(self.slots, self.labels, strict=True)
        ]
        return slots.start_bank(self.slots, starts)

    def held_out(self) -> list[infer.HeldOut]:
        """The tasks of each slot and their examples of EVAL_SPLIT. Raises UserError as the function `held_out`."""
        pairs = zip(self.mixtures, self._held_out_tasks, strict=True)
        return [held_out(mixture, self.run.data.eval_split, tasks) for mixture, tasks in pairs]

    @functools.cached_property
    def _held_out_tasks(self) -> list[tuple[Task, ...]]:
        data = self.run.data
        if data.eval_lengths == data.lengths:
            return [mixture.tasks for mixture in self.mixtures]
        names = dict.fromkeys(slot.task for slot in self.slots)
        opened = {name: data.open_held_out(name, self.vocabulary) for name in names}
        return [opened[slot.task] for slot in self.slots]

    def answerer(self) -> infer.Answerer:
        """The slots, ready to predict."""
        data = self.run.data
        return infer.Answerer(
            self.model, self.slots, self.labels, self.vocabulary, self.mesh, self.run.eval_batch_size,
            (data.eval_lengths or data.lengths)["targets"], functools.partial(planned, packing=self.run.packing),
            self.progress, [(data.eval_lengths or UNCUT)["inputs"]] * len(self.slots),
        )  # fmt: skip


def held_out(mixture: Mixture, split: str, tasks: Sequence[Task]) -> infer.HeldOut:
    """The `tasks` of a mixture, each with its examples of a split, of those that have it.

    Raises UserError for one whose answers cannot be scored, and where no task has the split.
    """
    for task in (task for task in tasks if not task.scored):
        raise UserError(
            f"Task {task.name} has no metric_fns of (targets, predictions), so no answer to it could be told to be"
            " right. Give it some. On text without answers @PromptPretraining() and @Pretraining() train, and log"
            " its loss as they do."
        )
    of = split.partition("[")[0]  # of validation[:200]
    there = [task for task in tasks if of in task.splits] or tasks[:1]  # which says that it has none
    drawn = {task.name for task, rate in zip(mixture.tasks, mixture.rates, strict=True) if rate > 0}
    counts = lambda task: task.name in drawn and "train" in task.splits
    return [infer.Held(task, task.load(split), counts(task)) for task in there]


def open_run(run: Run) -> Opened:
    """Loads the base, then the tasks; each task once, however many slots share it."""
    device.keep_compiled_programs(run.jax_cache_dir)
    if not run.tuning.whole_model:
        device.share_cpu()
    wanted = run.tuning.slots(run)
    base, vocabulary, mesh = run.frozen.open(
        run.tuning.whole_model, wanted[0].seed if run.tuning.may_start_anew else None
    )
    mixtures = {name: run.data.open(name, vocabulary) for name in dict.fromkeys(slot.task for slot in wanted)}
    if run.data.task_file:  # a slot that was given no name is called after its file's task
        given = {*(row.get("name") for row in run.slots or ()), *(run.grid or {}).get("name", ())}
        called = lambda slot: slots.file_name(slot.name.replace("prompt", mixtures[slot.task].name, 1)).lstrip("_")
        wanted = tuple(s if s.name in given else dataclasses.replace(s, name=called(s)) for s in wanted)
    _check_init_settings(wanted)
    for slot in wanted:
        refuse_other_labels(
            slot.name, slot.labels or (), mixtures[slot.task].tasks,
            "CLASS_LABELS are the answers to choose from; to start a prompt from other words, type"
            " --gin.class_labels.words=\"['...']\".",
        )  # fmt: skip
        if slot.labels:
            vocabulary.check_labels(slot.labels, run.data.lengths["targets"], slot.name)
    config = dataclasses.replace(base.config, remat=run.remat, scan_layers=run.scan_layers)
    params = scan.stacked(base.params) if run.scan_layers else base.params
    base = dataclasses.replace(base, config=config, params=params)
    jax.block_until_ready(base.params)
    return Opened(run, base, vocabulary, mesh, wanted, tuple(mixtures[slot.task] for slot in wanted))


def _check_init_settings(wanted: Sequence[Slot]) -> None:
    """Raises UserError for a PROMPT_FILE or PROMPT_TEXT that no slot's init can be asking for."""
    said = [str(configure.plain(slot.init)) for slot in wanted]
    ours = all(getattr(slot.init, "__module__", "") == inits.__name__ for slot in wanted)  # others may call any
    for init, parameter, name in ((inits.from_file, "path", "PROMPT_FILE"), (inits.text, "text", "PROMPT_TEXT")):
        value = gin.get_bindings(init).get(parameter)
        if value is not None and ours and not any(init.__name__ in words for words in said):
            raise UserError(
                f"{name} is {value!r}, and no prompt starts from it. Type --gin.PROMPT_INIT=@{init.__name__}, or leave"
                f" {name} out."
            )


def refuse_other_labels(name: str, labels: Sequence[str], tasks: Sequence[Task], instead: str) -> None:
    """Raises UserError, which ends with what to do `instead`, for a prompt that ranks other answers than its tasks."""
    for task in tasks:
        if labels and (never := [label for label in task.labels if label not in labels]):
            raise UserError(
                f"{name} ranks {', '.join(labels)}, but {task.name} asks for {', '.join(never)} too, which it could"
                f" never answer. {instead}"
            )
