"""Records what PyTorch transformers computes for a prompted T5, for tests/test_t5_golden.py.

    python scripts/record_golden.py [FLAN_T5_SMALL_HF_FOLDER]

Needs torch and transformers (recorded with torch 2.13.0 and transformers 5.23.0), which the project does not. Writes
two tiny random models with their numbers to tests/golden/t5_1_1 and tests/golden/t5_1_0, and, given the folder, the
numbers of that model to tests/golden/flan_t5_small.npz. Everything is computed in float64.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5ForConditionalGeneration

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
SIZES = {
    "vocab_size": 96,
    "d_model": 16,
    "d_kv": 6,
    "num_heads": 3,
    "d_ff": 24,
    "num_layers": 2,
    "num_decoder_layers": 3,
}
VARIANTS = {
    "t5_1_1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "t5_1_0": {"feed_forward_proj": "relu", "tie_word_embeddings": True},
}
FIXED = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0, "dropout_rate": 0.0}


def random_model(variant: dict) -> T5ForConditionalGeneration:
    """A T5 whose every parameter matters: norms off one, biases of the size of the logits."""
    model = T5ForConditionalGeneration(T5Config(**SIZES, **variant, **FIXED))
    if not variant["tie_word_embeddings"]:
        untie(model, torch.randn(SIZES["vocab_size"], SIZES["d_model"]) * 0.3)
    for name, weight in model.named_parameters():
        if "norm" in name:
            weight.data = 1 + 0.2 * torch.randn_like(weight)
        elif "relative_attention_bias" in name or "shared" in name:
            weight.data = torch.randn_like(weight)
        elif "lm_head" not in name:
            weight.data = torch.randn_like(weight) * weight.shape[1] ** -0.5
    return model


def untie(model: T5ForConditionalGeneration, head: torch.Tensor) -> None:
    """Gives a model its own output matrix: transformers 5 ties and rescales it whatever the configuration says."""
    model.lm_head.weight = torch.nn.Parameter(head)
    model.config.tie_word_embeddings = model.config.scale_decoder_outputs = False


def batch(rng: np.random.Generator, vocab_size: int, input_lengths: list[int], target_lengths: list[int]) -> dict:
    """Padded random token ids that end in EOS."""
    padded = lambda lengths: np.stack(
        [np.r_[rng.integers(3, vocab_size, n - 1), 1, np.zeros(max(lengths) - n, int)] for n in lengths]
    )
    return {"inputs": padded(input_lengths), "targets": padded(target_lengths)}


def run(model: T5ForConditionalGeneration, tokens: dict, prompt: np.ndarray) -> dict:
    """Logits, loss summed over target tokens, and its gradient with respect to the prompt."""
    model = model.double().eval()
    inputs, targets = (torch.tensor(tokens[name]) for name in ("inputs", "targets"))
    vectors = torch.tensor(prompt, dtype=torch.float64, requires_grad=True)
    embedded = torch.cat([vectors.expand(len(inputs), -1, -1), model.shared(inputs)], dim=1)
    mask = torch.cat([torch.ones(len(inputs), len(prompt)), (inputs > 0).float()], dim=1)
    shifted = torch.cat([torch.zeros_like(targets[:, :1]), targets[:, :-1]], dim=1)
    logits = model(inputs_embeds=embedded, attention_mask=mask, decoder_input_ids=shifted).logits
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none") * (targets > 0)
    losses.sum().backward()
    return {"logits": logits.detach().numpy(), "losses": losses.detach().numpy(), "gradient": vectors.grad.numpy()}


def save(path: Path, numbers: dict) -> None:
    """Floats as float32, ids as int32."""
    small = {k: np.asarray(v, np.int32 if np.asarray(v).dtype.kind == "i" else np.float32) for k, v in numbers.items()}
    np.savez_compressed(path, **small)
    print(path, f"{path.stat().st_size:,} bytes, loss {small['losses'].sum():.4f}")


def record_tiny(name: str, variant: dict) -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    model, folder = random_model(variant), GOLDEN / name
    folder.mkdir(parents=True, exist_ok=True)
    weights = {k: v.clone() for k, v in model.state_dict().items() if "embed_tokens" not in k}
    if variant["tie_word_embeddings"]:
        weights.pop("lm_head.weight")
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "t5", **SIZES, **variant, **FIXED}, indent=1) + "\n")
    tokens = batch(rng, SIZES["vocab_size"], [150, 9, 2], [6, 13, 2])  # far enough for the last relative bucket
    prompt = rng.normal(size=(5, SIZES["d_model"])).astype(np.float32)
    save(folder / "golden.npz", {**tokens, "prompt": prompt, **run(model, tokens, prompt)})


def record_flan(folder: Path) -> None:
    """Only the logits of 64 ids spread over the vocabulary: all of them would be megabytes."""
    model = T5ForConditionalGeneration.from_pretrained(folder)
    untie(model, load_file(folder / "model.safetensors")["lm_head.weight"])
    rng = np.random.default_rng(0)
    tokens = batch(rng, 32100, [40, 17], [5, 9])
    prompt = rng.normal(scale=5.0, size=(3, model.config.d_model)).astype(np.float32)
    numbers = run(model, tokens, prompt)
    ids = np.arange(0, 32128, 502)
    numbers["logits"] = numbers["logits"][..., ids]
    save(GOLDEN / "flan_t5_small.npz", {**tokens, "prompt": prompt, "logit_ids": ids, **numbers})


if __name__ == "__main__":
    for name, variant in VARIANTS.items():
        record_tiny(name, variant)
    if len(sys.argv) > 1:
        record_flan(Path(sys.argv[1]))
