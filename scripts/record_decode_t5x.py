"""Records the answers of T5X's own beam search behind prompts, for tests/test_decode.py.

    PYTHONPATH=.:T5X:AIRIO:JESTIMATOR:FLAXFORMER python scripts/record_decode_t5x.py

Runs where the sources stand that PYTHONPATH names; docs/from_t5x.md says how to lay them out. T5X searches over the
network of this project, teacher-forced and without a cache, on the model, prompts and inputs of
tests/golden/decode.npz. Writes tests/golden/decode_t5x.npz. Recorded with t5x cc342d4, jax 0.10.2, flax 0.12.8.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from t5x import decoding

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from test_decode import GOLDEN, LONGEST, recorded

from prompt_tuning import decode
from prompt_tuning.layers import Stream

jax.config.update("jax_numpy_dtype_promotion", "standard")  # T5X promotes types and ranks, the tests forbid it
jax.config.update("jax_numpy_rank_promotion", "allow")

SETTINGS = [(4, 0.6, 16), (4, 0.0, 16), (2, 1.5, 16), (3, 0.6, 5)]  # beams, alpha, max_length; 5 is too short for some


def main() -> None:
    numbers = {"settings": np.array(SETTINGS, np.float32)}
    params, batch, model = recorded()
    encoded, seen = decode.unpack(model.encode(params, batch), batch, LONGEST, len(batch.example_slots))
    for i, (beams, alpha, max_length) in enumerate(SETTINGS):
        repeat = lambda x, beams=beams: jnp.repeat(x, beams, axis=0)
        source = Stream(repeat(seen.astype(jnp.int32)), repeat(jnp.zeros_like(seen, jnp.int32)))

        def logits(state, source=source, repeat=repeat):
            ones = jnp.ones_like(state.sequences)
            args = (state.sequences, Stream(ones, ones), ones, repeat(encoded), source)
            return model.apply(params, "decode", *args)[:, state.cur_index], state.cache

        inputs = jnp.zeros((encoded.shape[0], max_length), jnp.int32)
        search = lambda logits=logits, inputs=inputs, beams=beams, alpha=alpha: decoding.beam_search(
            inputs, {}, logits, decode.EOS, num_decodes=beams, alpha=alpha
        )
        tokens, scores = jax.device_get(jax.jit(search)())
        numbers |= {f"tokens_{i}": tokens[:, ::-1].astype(np.int32), f"scores_{i}": scores[:, ::-1]}
        print(SETTINGS[i], f"{(tokens == decode.EOS).any(2).mean():.0%} of answers end")
    path = GOLDEN / "decode_t5x.npz"
    np.savez_compressed(path, **numbers)
    print(path, f"{path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
