"""The frozen model from disk: T5X checkpoints and Hugging Face folders, straight into a sharded, cast, hashed tree."""

import dataclasses
import hashlib
import logging
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from prompt_tuning import device, huggingface, t5x_checkpoint, vocabulary
from prompt_tuning.base_source import Source
from prompt_tuning.errors import UserError
from prompt_tuning.prompt_file import Card, Prompt, is_of_t5x
from prompt_tuning.stack import T5Config
from prompt_tuning.t5 import T5, parameter_shapes
from prompt_tuning.t5x_checkpoint import save_t5x

__all__ = ["Base", "load_base", "random_base", "save_t5x"]

Shardings = Callable[[T5Config], Any]  # from a config to a tree of jax.sharding.Sharding, one a parameter

WORKERS = 4  # tensors on the way from disk to device at once: what loading needs beside the model itself

TINY = Path(__file__).parent / "tiny"
SHIPPED = {"tiny": TINY / "checkpoint_11384", "tiny_pretrained": TINY / "checkpoint_7584"}  # LM-adapted; before that


@dataclasses.dataclass(frozen=True)
class Base:
    """A frozen T5 and its identity."""

    path: str  # the folder the weights were read from, or the name of a shipped base
    config: T5Config
    params: dict[str, Any]  # nested, under T5X's names
    digest: str  # the same for a T5X and a Hugging Face copy of the same float32 weights
    step: int | None  # pretraining steps, where the checkpoint tells
    vocabulary: str | None  # the SentencePiece model beside the weights

    def check(self, prompt: Prompt, called: str) -> None:
        """Raises UserError for a prompt that was tuned on another base."""
        card = prompt.card
        prompt.check_width(self.config.emb_dim, called, f"the base {self.path}")
        if card.base_digest and card.base_digest != self.digest:
            raise UserError(
                f"The prompt {called} was tuned on another base, one with other weights ({card.base}, digest"
                f" {card.base_digest[:12]}; {self.path} has {self.digest[:12]}): choose the base it was tuned on."
            )


def base_of(cards: Iterable[Card], given: str | None, called: str) -> str:
    """Where the base stands: as it is `given`, or as one of the cards says. Raises UserError for neither."""
    path = given or next((card.base for card in cards if card.base), None)
    if not path:
        raise UserError(
            f"{called} does not say which base it was tuned on. Type --base PATH, in Python load(PATH, ...)."
        )
    return path


def spelling(of: Base | Source, given: str | None, typed: str = "--vocabulary PATH") -> str:
    """The SentencePiece model that is `given`, or else the one beside a base. Raises UserError for neither."""
    path = given or (of.vocabulary if isinstance(of, Base) else vocabulary_beside(of.path))
    if path is None:
        raise UserError(f"There is no spiece.model beside {of.path}. Type {typed}.")
    return path


def load_base(
    path: str | Path,
    expected: T5Config | None = None,
    dtype: Any = jnp.float32,
    shardings: Shardings | None = None,
) -> Base:
    """Loads a T5X `checkpoint_N` folder, a `MODEL_DIR` of such, a Hugging Face T5 folder or the name of one on the hub.

    `tiny` and `tiny_pretrained` are the bases that ship with the package (`SHIPPED`).

    Sizes are read from the files; `expected` must agree with them. Weights are stored as `dtype`, one tensor at a time:
    the host never holds more than `WORKERS` of them. Activations have `expected`'s dtype, or `dtype`.
    Raises UserError naming every size, or every missing, extra or misshapen tensor, that does not fit.
    """
    source = open_source(path, expected)
    config = dataclasses.replace(source.config, dtype=expected.dtype if expected else dtype)
    if expected is not None:
        _check_sizes(source, expected)
    _check_tensors(source, config)
    placement = traverse_util.flatten_dict(shardings(config), sep="/") if shardings else {}
    flat, digests = _read(source, dtype, placement)
    total = hashlib.sha256()
    for name in sorted(flat):
        total.update(f"{name} {flat[name].shape} {digests[name]}\n".encode())
    params = traverse_util.unflatten_dict(flat, sep="/")
    return Base(source.path, config, params, total.hexdigest(), source.step, vocabulary_beside(source.path))


def random_base(config: T5Config, seed: int, shardings: Shardings | None = None) -> Base:
    """A T5 that has learned nothing yet, drawn as T5X draws it; float32."""
    tokens = jnp.ones((1, 1), jnp.int32)
    draw = lambda key: T5(config).init(key, tokens, tokens)["params"]
    params = jax.jit(draw, out_shardings=shardings(config) if shardings else None)(jax.random.key(seed))
    return Base(f"drawn at random (seed {seed})", config, params, f"random seed {seed}", 0, None)


def open_source(path: str | Path, expected: T5Config | None = None) -> Source:
    """Tells from what stands there which kind of base it is, and opens it without reading weights."""
    text = str(path).rstrip("/")
    if text.startswith("gs://"):
        return t5x_checkpoint.open_checkpoint(t5x_checkpoint.newest(text), expected)
    folder = Path(text).expanduser()
    if folder.is_dir():
        names = {entry.name for entry in folder.iterdir()}
        if is_of_t5x(names):
            found = t5x_checkpoint.newest(str(folder.resolve()))
            if sum(name.startswith("checkpoint_") for name in names) > 1:
                logging.getLogger(__name__).warning("Of the checkpoints in %s the newest is read: %s", folder, found)
            return t5x_checkpoint.open_checkpoint(found, expected)
        if "config.json" in names or any(name.endswith((".safetensors", ".bin")) for name in names):
            return huggingface.open_folder(folder.resolve())
        listed = ", ".join(sorted(names)[:8]) or "nothing"
        raise UserError(f"There is no T5 in {folder}: it holds {listed}. {_KINDS}")
    if shipped := _shipped(text):
        return dataclasses.replace(t5x_checkpoint.open_checkpoint(str(shipped), expected), path=text)
    if folder.exists():
        raise UserError(f"{folder} is a file; give the folder it stands in. {_KINDS}")
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", text) and not Path(text.split("/")[0]).is_dir():
        return huggingface.open_hub(text)
    raise UserError(f"There is no folder {folder}. {_KINDS}")


_KINDS = (
    "A base is a T5X folder checkpoint_N (local or gs://), a Hugging Face T5 folder (config.json and"
    " model.safetensors), a hub name such as google/t5-base-lm-adapt, or tiny, which comes along."
)


def _check_sizes(source: Source, expected: T5Config) -> None:
    ways = ("dtype", "factors", "remat", "scan_layers")  # to compute the same
    names = [field.name for field in dataclasses.fields(T5Config) if field.name not in ways]
    pairs = [(name, getattr(source.config, name), getattr(expected, name)) for name in names]
    wrong = [(name, found, want) for name, found, want in pairs if _plain(found) != _plain(want)]
    if wrong:
        listed = "; ".join(f"{name} is {_plain(found)} and not {_plain(want)}" for name, found, want in wrong)
        typed = " ".join(f'--gin.T5Config.{name}="{_plain(found)}"' for name, found, _ in wrong)
        raise UserError(
            f"The base {source.path} is not of the size that was configured: {listed}."
            f" Choose the gin/models file of its size, or type {typed}"
        )


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value


def _check_tensors(source: Source, config: T5Config) -> None:
    wanted = {k: v.shape for k, v in traverse_util.flatten_dict(parameter_shapes(config), sep="/").items()}
    found = {name: tensor.shape for name, tensor in source.tensors.items()}
    complaints = [f"missing {source.label(name)} {wanted[name]}" for name in wanted.keys() - found.keys()]
    complaints += [f"extra {source.label(name)} {found[name]}" for name in found.keys() - wanted.keys()]
    complaints += [f"extra {name}" for name in source.unknown]
    for name in wanted.keys() & found.keys():
        if found[name] != wanted[name]:
            complaints.append(f"misshapen {source.label(name)} {found[name]}, expected {wanted[name]}")
    if complaints:
        raise UserError(
            f"The tensors in {source.path} are not those of the T5 that its sizes describe:\n  "
            + "\n  ".join(sorted(complaints))
            + "\nCopy or convert the checkpoint again, or give the folder of another one."
        )


def _read(source: Source, dtype: Any, placement: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Arrays on device and their digests, by name; a worker lets go of its host copy before it takes the next."""

    def one(name: str) -> tuple[Any, str]:
        host = source.read(name)
        digest = hashlib.sha256(host.data.cast("B") if host.size else b"").hexdigest()
        cast = host.astype(dtype, copy=False)
        return jax.block_until_ready(device.put_frozen(cast, placement.get(name))), digest

    names = sorted(source.tensors, key=lambda name: -int(np.prod(source.tensors[name].shape)))
    with ThreadPoolExecutor(WORKERS) as pool:
        futures = {name: pool.submit(one, name) for name in names}
        try:
            results = {name: future.result() for name, future in futures.items()}
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return {name: array for name, (array, _) in results.items()}, {name: d for name, (_, d) in results.items()}


def _shipped(path: str) -> Path | None:
    """The shipped base of that name, unless a folder is called so."""
    return None if Path(path).is_dir() else SHIPPED.get(path)


def vocabulary_beside(path: str) -> str | None:
    """The SentencePiece model beside the weights in `path`, or in the folder above."""
    if path.startswith("gs://"):
        return None
    folder = _shipped(path) or Path(path)
    beside = [folder / name for folder in (folder, folder.parent) for name in vocabulary.FILES]
    return next((str(file) for file in beside if file.is_file()), None)
