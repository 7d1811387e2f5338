"""Our T5 behind a prompt computes what PyTorch transformers computes; scripts/record_golden.py recorded the numbers."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import loss
from prompt_tuning.base import Base, load_base
from prompt_tuning.t5 import T5, unpacked

GOLDEN = Path(__file__).parent / "golden"
FLAN = Path(__file__).parents[1].parent / "shared" / "models" / "flan_t5_small"


def compute(base: Base, golden: dict) -> dict:
    """Logits, token losses, and the gradient of their sum with respect to a prompt in front of padded inputs."""
    model, inputs, targets = T5(base.config), jnp.asarray(golden["inputs"]), jnp.asarray(golden["targets"])
    source = unpacked(jnp.concatenate([jnp.ones((len(inputs), len(golden["prompt"])), jnp.int32), inputs], axis=1))
    stream = unpacked(targets, padding=False)
    shifted = jnp.pad(targets[:, :-1], ((0, 0), (1, 0)))

    @jax.jit
    def run(prompt):
        apply = lambda method, *args: model.apply({"params": base.params}, *args, method=method)
        vectors = jnp.broadcast_to(prompt, (len(inputs), *prompt.shape))
        encoded = apply("encode", jnp.concatenate([vectors, apply("embed", inputs)], axis=1), source)
        logits = apply("decode", shifted, stream, stream.segments, encoded, source)
        losses = jnp.where(targets > 0, loss.token_losses(logits, targets), 0.0)
        return losses.sum(), (logits, losses)

    (_, (logits, losses)), gradient = jax.value_and_grad(run, has_aux=True)(jnp.asarray(golden["prompt"]))
    return {"logits": np.asarray(logits), "losses": np.asarray(losses), "gradient": np.asarray(gradient)}


def difference(ours: dict, golden: dict, name: str) -> float:
    return float(np.abs(ours[name] - golden[name]).max())


@pytest.mark.parametrize("variant", ["t5_1_1", "t5_1_0"])
def test_logits_losses_and_prompt_gradient_are_those_of_transformers(variant):
    golden = dict(np.load(GOLDEN / variant / "golden.npz"))
    ours = compute(load_base(GOLDEN / variant), golden)
    for name in ("logits", "losses", "gradient"):
        assert difference(ours, golden, name) < 2e-5, name


def test_more_padding_changes_nothing():
    golden = dict(np.load(GOLDEN / "t5_1_1" / "golden.npz"))
    base = load_base(GOLDEN / "t5_1_1")
    longer = {**golden, "inputs": np.pad(golden["inputs"], ((0, 0), (0, 7)))}
    ours = compute(base, longer)
    assert difference(ours, golden, "gradient") < 2e-5


@pytest.mark.slow
def test_a_real_t5_computes_what_transformers_computes(tmp_path):
    if not (FLAN / "to_hf.py").is_file():
        pytest.skip(f"{FLAN} is absent: the real small T5 is not part of the project")
    subprocess.run([sys.executable, FLAN / "to_hf.py", tmp_path], check=True, capture_output=True)
    golden = dict(np.load(GOLDEN / "flan_t5_small.npz"))
    ours = compute(load_base(tmp_path), golden)
    ours["logits"] = ours["logits"][..., golden["logit_ids"]]
    for name in ("logits", "losses", "gradient"):
        assert difference(ours, golden, name) < 1e-4, name  # its logits reach 80, its losses 33
