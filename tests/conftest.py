"""Every test runs in float32 on 8 pretended CPU devices, with type and rank promotion forbidden, away from home."""

import os
import tempfile
from pathlib import Path

if "PYTEST_XDIST_WORKER" not in os.environ:  # the workers are told by who started them
    _caches = tempfile.TemporaryDirectory()  # of compiled programs and of tasks, gone with the last test
    os.environ.setdefault("MPLCONFIGDIR", str(Path.home() / ".cache" / "matplotlib"))  # fonts take long to be found
    os.environ["XDG_CACHE_HOME"] = _caches.name

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import contextlib
import dataclasses
import functools
import json
import signal
import string

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_threefry_partitionable", True)

from prompt_tuning import base, configure, layout, optim, scan
from prompt_tuning.run import Run
from prompt_tuning.stack import T5Config
from prompt_tuning.step import Model, TrainState
from prompt_tuning.t5 import T5
from prompt_tuning.vocabulary import Vocabulary

TINY = T5Config(
    vocab_size=97, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=24, num_encoder_layers=2, num_decoder_layers=2
)


@functools.cache
def random_params(config: T5Config = TINY, seed: int = 0) -> dict:
    """A randomly initialised frozen T5, drawn in one compiled call."""
    tokens = jnp.ones((1, 2), jnp.int32)
    return jax.jit(T5(config).init)(jax.random.key(seed), tokens, tokens)["params"]


def stacked(params: dict) -> dict:
    """The same parameters as `scan.stacked`, which keeps none of those it is given."""
    return scan.stacked(jax.tree.map(jnp.copy, params))


def random_items(count: int, lengths: list[int], seed: int = 0, vocab: int = 97, slot: int | None = None) -> list:
    """`count` examples for each slot with prompts of `lengths`, inputs and targets of unequal lengths."""
    items = []
    for s, prompt_length in enumerate(lengths):
        rng = np.random.default_rng([seed, s])
        for n in range(count):
            inputs = rng.integers(2, vocab, rng.integers(3, 20)).astype(np.int32)
            targets = [rng.integers(2, vocab, rng.integers(1, 5)).astype(np.int32)]
            if slot is None or slot == s:
                items.append(layout.Item(inputs, targets, 0 if slot is not None else s, n, prompt_length))
    return items


def random_bank(lengths: list[int], features: int = TINY.emb_dim, seed: int = 0) -> np.ndarray:
    """One prompt a slot, zero behind its own length."""
    bank = np.zeros((len(lengths), max(lengths), features), np.float32)
    for s, n in enumerate(lengths):
        bank[s, :n] = np.random.default_rng([seed, s, 7]).normal(size=(n, features))
    return bank


def start_state(bank: np.ndarray, optimizer: optim.Optimizer, seeds: list[int]) -> TrainState:
    """Step 0 of prompts `bank`, every slot with the random numbers of its own seed."""
    trainable = {"prompt": {"bank": jnp.asarray(bank)}}
    rng = jnp.stack([jax.random.key_data(jax.random.key(s)) for s in seeds])
    return TrainState(
        trainable, optimizer.init(trainable), jnp.zeros((), jnp.int32), rng, jnp.zeros(len(seeds), jnp.int32)
    )


def one_a_row(items: list) -> layout.Shape:
    """A shape without packing."""
    return layout.Shape(max(i.length for i in items), max(i.target_length for i in items), (len(items),), per_row=1)


WORDS = {"positive": ["fine", "lovely", "great", "moving"], "negative": ["dull", "awful", "flat", "weak"]}


def reviews(count: int, seed: int) -> list[dict]:
    """Films that a word tells good from bad."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        label = str(rng.choice(sorted(WORDS)))
        rows.append(
            {"text": f"a {rng.choice(WORDS[label])} film about {rng.choice(['love', 'war', 'rain'])}", "label": label}
        )
    return rows


@pytest.fixture(scope="session")
def home(tmp_path_factory) -> Path:
    """A tiny random base with a vocabulary of its own, and a task file."""
    folder = tmp_path_factory.mktemp("home")
    text = folder / "corpus.txt"
    text.write_text("\n".join(f"review: {row['text']} {row['label']}" for row in reviews(300, 9)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "spiece"), vocab_size=80, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    config = dataclasses.replace(TINY, vocab_size=192)
    base.save_t5x(random_params(config), folder / "base", 7, np.float32)
    (folder / "spiece.model").rename(folder / "base" / "spiece.model")
    for name, count, seed in (("train", 60, 0), ("dev", 24, 1)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in reviews(count, seed)))
    (folder / "task.toml").write_text(
        'name = "films"\ninputs = "review: {text}"\ntarget = "label"\nlabels = ["negative", "positive"]\n'
        'metric = "accuracy"\ntrain = "train.jsonl"\nvalidation = "dev.jsonl"\n'
    )
    return folder


def flags(home: Path, model_dir: Path, **names) -> list[str]:
    """A short run over the tiny base; keyword arguments are gin names."""
    settings = {
        "MODEL_DIR": model_dir, "INITIAL_CHECKPOINT_PATH": home / "base", "TASK_FILE": home / "task.toml",
        "TRAIN_STEPS": 6, "EVAL_PERIOD": 3, "BATCH_SIZE": 4, "PROMPT_LENGTH": 5, "LOG_PERIOD": 2,
        "JAX_CACHE_DIR": home / "cache", "TASK_FEATURE_LENGTHS": {"inputs": 32, "targets": 8},
    }  # fmt: skip
    return [f"--gin.{name}={value}" for name, value in (settings | names).items()]


def configured(given: list[str]) -> Run:
    """A run as such flags describe it."""
    import prompt_tuning.train  # noqa: F401 - registers what gin files name

    configure.parse(bindings=[configure.binding(flag.removeprefix("--gin.")) for flag in given])
    return Run()


class Signalling:
    """Standard output that raises a signal when a line says `words`, once."""

    def __init__(self, words: str) -> None:
        self.words, self.text = words, ""

    def write(self, text: str) -> int:
        self.text += text
        if self.words and self.words in self.text:
            self.words = ""
            signal.raise_signal(signal.SIGUSR1)
        return len(text)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return False


@contextlib.contextmanager
def full(room: int):
    """Inside, the disk has no room for a file of more than `room` bytes, that of captured output among them."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


@pytest.fixture(autouse=True)
def unconfigured():
    """What a test configures ends with it."""
    yield
    gin.clear_config()


@pytest.fixture
def tiny() -> T5Config:
    return TINY


__all__ = ["Model", "one_a_row", "random_bank", "random_items", "random_params", "start_state"]


@pytest.fixture(scope="session")
def letters(tmp_path_factory) -> Vocabulary:
    """A vocabulary of single characters and 100 sentinels."""
    folder = tmp_path_factory.mktemp("vocabulary")
    (folder / "corpus.txt").write_text((string.ascii_letters + " _0123456789.:,\n") * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"), model_prefix=str(folder / "tiny"), vocab_size=100, pad_id=0, eos_id=1,
        unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return Vocabulary(folder / "tiny.model", extra_ids=100)
