"""Texts written token by token, many at once: each joins and leaves the others between two tokens, at fixed shapes."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from prompt_tuning import decode, device, layout
from prompt_tuning.decoder import Cache, empty_cache
from prompt_tuning.split import Params
from prompt_tuning.step import Model

STRIDE = 4  # tokens of each text in one call: between two calls the device waits for the host


class Sources(NamedTuple):
    """What N texts are written from."""

    cross: Any  # keys [N 1 H A S] and values [N 1 H S A] of every decoder layer
    seen: Bool[Array, "N 1 S"]


class Written(NamedTuple):
    """One more token of a text."""

    place: int
    token: int
    score: float  # log-likelihood of all tokens so far
    done: bool  # the token is EOS, or the last there is room for


class Writer:
    """N places for texts that are being written greedily; one call of the model writes a few tokens of each."""

    def __init__(self, model: Model, mesh: Any, shapes: Sequence[layout.Shape], places: int, max_length: int) -> None:
        """`shapes` are those that inputs are read in; no text has more than `max_length` tokens, EOS included."""
        self.model, self.mesh, self.shapes, self.max_length = model, mesh, shapes, max_length
        self.source_length = max(shape.row_length for shape in shapes)
        self._taken = np.zeros(places, bool)
        self.clear()

    @property
    def busy(self) -> bool:
        """Whether any text is being written."""
        return bool(self._taken.any())

    @property
    def places(self) -> int:
        """Texts that can be written at a time."""
        return len(self._taken)

    @property
    def free(self) -> int:
        """Places where nothing is written."""
        return int((~self._taken).sum())

    def clear(self) -> None:
        """Forgets all texts."""
        places, config = len(self._taken), self.model.config
        self._taken[:] = False
        self._last = np.zeros(places, np.int32)
        self._lengths = np.zeros(places, np.int32)
        self._most = np.full(places, self.max_length, np.int32)  # tokens of each text
        self._scores = np.zeros(places, np.float64)
        cache = lambda length: jax.eval_shape(lambda: empty_cache(config, 1, length))["layers"]
        none = lambda length: jax.tree.map(lambda one: np.zeros((places, *one.shape), one.dtype), cache(length))
        layers, cross = none(self.max_length), [(kept["keys"], kept["values"]) for kept in none(self.source_length)]
        seen: Any = np.zeros((places, 1, self.source_length), bool)
        # Arrays of the host, so that each becomes a buffer of its own: they are given away one by one.
        self._layers = device.put_everywhere(layers, self.mesh)  # each text's own cache, N in front
        self._sources = device.put_everywhere(Sources(cross, seen), self.mesh)

    def compile(self, params: Params) -> None:
        """Runs every program once, on nothing."""
        for shape in self.shapes:
            self._read(params, [], shape, [])
        self._advance(params)
        self.clear()

    def admit(
        self, params: Params, items: Sequence[layout.Item], shape: layout.Shape, most: Sequence[int]
    ) -> list[int]:
        """Reads items that `shape`, one of the writer's, holds; returns the place that each is written at.

        The text of an item has `most` tokens at most, EOS included.
        """
        places = np.flatnonzero(~self._taken)[: len(items)].tolist()
        self._read(params, items, shape, places)
        self._taken[places] = True
        self._last[places], self._lengths[places], self._scores[places] = decode.PAD, 0, 0.0
        self._most[places] = np.minimum(most, self.max_length)
        return places

    def leave(self, place: int) -> None:
        """Nobody wants that text any more."""
        self._taken[place] = False

    def step(self, params: Params) -> list[Written]:
        """`STRIDE` more tokens of every text, in their order; texts that are done leave their places."""
        written = []
        for tokens, gained in zip(*self._advance(params), strict=True):
            for place in np.flatnonzero(self._taken).tolist():
                self._scores[place] += gained[place]
                self._lengths[place] += 1
                self._last[place] = tokens[place]
                done = tokens[place] == decode.EOS or self._lengths[place] == self._most[place]
                written.append(Written(place, int(tokens[place]), float(self._scores[place]), bool(done)))
                if done:
                    self.leave(place)
        return written

    def _read(self, params: Params, items: Sequence[layout.Item], shape: layout.Shape, places: Sequence[int]) -> None:
        count = len(self._taken)
        batch = layout.pack(items, shape, self.model.length, count)
        batch = batch._replace(target_examples=np.zeros(0, np.int32))
        at = np.full(count, count, np.int32)  # out of range: written nowhere
        at[: len(places)] = places
        batch, at = device.put_batch(batch, self.mesh), device.put_everywhere(at, self.mesh)
        with device.on(self.mesh):
            self._sources = _read(params, self._sources, batch, at, model=self.model, length=self.source_length)

    def _advance(self, params: Params) -> tuple[np.ndarray, np.ndarray]:
        last, index = device.put_everywhere((self._last, np.where(self._taken, self._lengths, 0)), self.mesh)
        with device.on(self.mesh):
            self._layers, tokens, gained = _advance(
                params, self._layers, self._sources, last, index, model=self.model
            )  # fmt: skip
        return np.asarray(tokens), np.asarray(gained)


@functools.partial(jax.jit, static_argnames=("model", "length"), donate_argnums=1)
def _read(
    params: Params, old: Sources, batch: layout.Batch, places: Int[Array, "N"], *, model: Model, length: int
) -> Sources:
    """Puts what the examples of a batch are written from at their places."""
    encoded, seen, _ = decode.read(params, batch, batch.example_numbers, model=model, length=length)
    put = lambda old, new: old.at[places, 0].set(new.astype(old.dtype), mode="drop")
    return Sources(jax.tree.map(put, old.cross, list(model.apply(params, "project", encoded))), put(old.seen, seen))


@functools.partial(jax.jit, static_argnames="model", donate_argnums=1)
def _advance(
    params: Params, layers: Any, sources: Sources, last: Int[Array, "N"], index: Int[Array, "N"], *, model: Model
) -> tuple[Any, Int[Array, "T N"], Float[Array, "T N"]]:
    """The likeliest next tokens of each text, which is at its own `index`, and the log-likelihood that each adds.

    What a cache holds beyond its index is not looked at, so a place needs no cleaning between two texts.
    """

    def one(last: Int[Array, ""], index: Int[Array, ""], layers: Any, cross: Any, seen: Bool[Array, "1 S"]) -> Any:
        cache: Cache = {"layers": layers, "index": index}
        logits, cache = model.apply(params, "step", last[None], cache, cross, seen)
        chosen = logits[0].argmax().astype(jnp.int32)
        return chosen, cache["layers"], jax.nn.log_softmax(logits[0])[chosen]

    def all_of_them(state: Any, _: None) -> Any:
        last, index, layers = state
        last, layers, gained = jax.vmap(one)(last, index, layers, sources.cross, sources.seen)
        return (last, index + 1, layers), (last, gained)

    (_, _, layers), (tokens, gained) = jax.lax.scan(all_of_them, (last, index, layers), length=STRIDE)
    return layers, tokens, gained
