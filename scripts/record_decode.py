"""Records what PyTorch transformers decodes behind prompts, for tests/test_decode.py.

    python scripts/record_decode.py

Needs torch and transformers (recorded with torch 2.13.0 and transformers 5.23.0), which the project does not. Reads the
tiny model that scripts/record_golden.py wrote to tests/golden/t5_1_1, decodes each example alone and without padding
in float64, and writes tests/golden/decode.npz.

Two rules differ from T5X's, which this project follows. Transformers ranks a finished answer by log-likelihood /
length ** length_penalty, T5X by log-likelihood / ((5 + length) / 6) ** alpha: they agree where both exponents are 0. Of
the 2 * num_beams best continuations transformers lets only the first num_beams end an answer, T5X all of them: they
agree on the best answer of a model that is sure of what it says. Hence SHARPNESS, and one answer an example.
scripts/record_decode_t5x.py records all beams and a penalty.
"""

import json
from pathlib import Path

import numpy as np
import torch
from record_golden import GOLDEN, untie
from safetensors.torch import load_file
from transformers import T5Config, T5ForConditionalGeneration

PROMPT_LENGTHS = (5, 2, 8)  # of the bank's slots
EXAMPLES = 8  # a slot
LONGEST = 16  # answers
BEAMS = 4
SHARPNESS = 4.0  # the output matrix is multiplied by it
SWAPPED = (1, 90)  # output columns exchanged: the model says 90 often and EOS hardly ever


def load(folder: Path) -> T5ForConditionalGeneration:
    """The tiny model in float64, its output matrix its own."""
    model = T5ForConditionalGeneration(T5Config(**json.loads((folder / "config.json").read_text())))
    weights = load_file(folder / "model.safetensors")
    head = weights.pop("lm_head.weight")
    wrong = model.load_state_dict(weights, strict=False)
    assert not wrong.unexpected_keys, wrong
    untie(model, head)
    model.config.num_layers = model.config.num_decoder_layers  # generate() counts its caches by the encoder's layers
    return model.double().eval()


def sharpen(head: torch.Tensor) -> None:
    """Makes the model sure of itself, and given to ending its answers."""
    head[list(SWAPPED)] = head[list(SWAPPED[::-1])]
    head *= SHARPNESS


def generate(model: T5ForConditionalGeneration, prompt: np.ndarray, inputs: np.ndarray, **settings) -> tuple:
    """The answer's token ids, without the decoder's start and padding, and its log-likelihood."""
    tokens = torch.tensor(inputs)[None]
    embedded = torch.cat([torch.tensor(prompt, dtype=torch.float64)[None], model.shared(tokens)], dim=1)
    answer = model.generate(
        inputs_embeds=embedded,
        attention_mask=torch.ones(embedded.shape[:2], dtype=torch.long),
        max_new_tokens=LONGEST,
        do_sample=False,
        **settings,
    )[0, 1:].tolist()
    answer = answer[: answer.index(1) + 1] if 1 in answer else answer
    return answer, likelihood(model, embedded, answer)


@torch.no_grad()
def likelihood(model: T5ForConditionalGeneration, embedded: torch.Tensor, answer: list[int]) -> float:
    """Log-likelihood of an answer, teacher-forced: it must not come from the search that is compared."""
    shifted = torch.tensor([[0, *answer[:-1]]])
    logits = model(inputs_embeds=embedded, decoder_input_ids=shifted).logits[0]
    return float(torch.log_softmax(logits, -1)[torch.arange(len(answer)), torch.tensor(answer)].sum())


def main() -> None:
    torch.set_num_threads(1)
    model = load(GOLDEN / "t5_1_1")
    sharpen(model.lm_head.weight.data)
    rng = np.random.default_rng(6)
    bank = np.zeros((len(PROMPT_LENGTHS), max(PROMPT_LENGTHS), model.config.d_model), np.float32)
    for slot, length in enumerate(PROMPT_LENGTHS):
        bank[slot, :length] = rng.normal(size=(length, model.config.d_model))
    slots = np.repeat(np.arange(len(PROMPT_LENGTHS)), EXAMPLES)
    inputs = np.zeros((len(slots), 24), int)
    settings = {"greedy": {}, "beam": {"num_beams": BEAMS, "length_penalty": 0.0, "early_stopping": "never"}}
    tokens = {name: np.zeros((len(slots), LONGEST), int) for name in settings}
    scores = {name: np.zeros(len(slots)) for name in settings}
    for n, slot in enumerate(slots):
        length = int(rng.integers(3, 24))
        inputs[n, :length] = [*rng.integers(3, model.config.vocab_size, length - 1), 1]
        for name, chosen in settings.items():
            answer, score = generate(model, bank[slot, : PROMPT_LENGTHS[slot]], inputs[n, :length], **chosen)
            tokens[name][n, : len(answer)], scores[name][n] = answer, score
    ints = {"inputs": inputs, "slots": slots, "lengths": np.array(PROMPT_LENGTHS), "swapped": np.array(SWAPPED)}
    ints |= {f"{name}_tokens": x for name, x in tokens.items()}
    floats = {"bank": bank, "sharpness": np.array(SHARPNESS)} | {f"{name}_scores": x for name, x in scores.items()}
    path = GOLDEN / "decode.npz"
    np.savez_compressed(
        path, **{k: v.astype(np.int32) for k, v in ints.items()}, **{k: v.astype(np.float32) for k, v in floats.items()}
    )
    ended = {name: f"{(x == 1).any(1).mean():.0%} of answers end" for name, x in tokens.items()}
    print(path, f"{path.stat().st_size:,} bytes", ended)


if __name__ == "__main__":
    main()
