"""A training step is traced once: a later start computes the same with what was kept, and never another step."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY

from prompt_tuning import made_from, traced
from prompt_tuning.layout import Filled
from prompt_tuning.step import Model

STATE, FROZEN, BATCH = {"w": jnp.arange(3.0)}, {"v": jnp.ones(3)}, jnp.full(3, 2.0)


class Machine:
    """One CPU device and a cache; `start` takes a step as a new process would."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.times = folder, 0

    def start(self, rate: float = 0.5, batch=BATCH, told: dict | None = None) -> tuple:
        def pure(state, frozen, batch):
            self.times += 1
            after = {"w": state["w"] - rate * jnp.tanh(batch[:3] * frozen["v"])}
            return after, {"loss": jnp.sum(after["w"]), "gradient_norm": jnp.max(batch)}

        step = traced.step(pure, {"rate": rate} if told is None else told, STATE, FROZEN, batch)
        state, metrics = jax.jit(step)(STATE, FROZEN, batch)
        return np.asarray(state["w"]).tobytes(), {name: float(value) for name, value in metrics.items()}

    @property
    def files(self) -> list[Path]:
        return sorted((self.folder / "jax" / "traced").glob("*"))


@pytest.fixture
def machine(tmp_path, monkeypatch):
    monkeypatch.setattr(made_from, "nothing_else_loaded", lambda: True)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "jax"))
    yield Machine(tmp_path)
    jax.config.update("jax_compilation_cache_dir", before)


def test_a_second_start_traces_nothing_and_computes_the_same_to_the_bit(machine, monkeypatch):
    first = machine.start()
    assert machine.start() == first and machine.times == 1 and len(machine.files) == 1
    monkeypatch.setattr(made_from, "nothing_else_loaded", lambda: False)
    assert machine.start() == first and machine.times == 2, "as the step itself"


def test_another_step_is_traced(machine, monkeypatch):
    first = machine.start()
    assert machine.start(rate=0.25) != first and machine.times == 2
    machine.start(batch=jnp.full(4, 2.0))
    assert machine.times == 3, "other shapes"
    monkeypatch.setattr(made_from, "code", lambda: ["another version"])
    machine.start()
    assert machine.times == 4
    with jax.numpy_dtype_promotion("standard"):
        machine.start()
    assert machine.times == 5, "JAX is told something else"


def test_what_has_no_name_is_not_kept(machine):
    schedule = lambda step: step
    for _ in range(2):  # at one address, as two functions may be, one after the other
        machine.start(told={"schedule": schedule})
    assert machine.times == 2 and not machine.files


def test_a_model_that_cuts_its_examples_elsewhere_is_another_step(machine):
    for widths in ((16, 32), (24, 32), (16, 32)):
        machine.start(told={"model": Model(TINY, filled=Filled(widths, 2, 128))})
    assert machine.times == 2


DAMAGE = {
    "cut off": lambda content: content[:50],
    "empty": lambda content: b"",
    "one bit": lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
    "something else": lambda content: b"{}",
}


@pytest.mark.parametrize("spoil", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_traced_anew(machine, spoil):
    first = machine.start()
    machine.files[0].write_bytes(spoil(machine.files[0].read_bytes()))
    assert machine.start() == first and machine.times == 2
    assert machine.start() == first and machine.times == 2


def test_a_cache_that_cannot_be_written_keeps_nothing(machine):
    (machine.folder / "jax").write_text("a file stands where the folder would")
    assert machine.start() == machine.start() and machine.times == 2


def test_the_oldest_steps_go_first(machine, monkeypatch):
    monkeypatch.setattr(traced, "MOST", 2)
    for n in range(3):
        machine.start(rate=n)
        for file in machine.files:
            os.utime(file, (file.stat().st_mtime - 60,) * 2)
    assert len(machine.files) == 2
    machine.start(rate=2)
    assert machine.times == 3, "the newest is there"
