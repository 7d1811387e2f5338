"""PEFT's prompt tuning on PyTorch, timed on the lengths that bench.py or bench_writing.py hands over; run by them.

    python scripts/bench_peft.py JOB.json        # prints {"seconds": a step, "memory_gib": ..., "compile_s": 0}

A T5 1.1 with random weights of the job's type, dropout 0.1, a prompt of 100 before the encoder, Adafactor at 0.3
without parameter scaling; on a GPU where PyTorch finds one. A job that says how many tokens are to be `written` is
generated from, without training.
"""

import functools
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from peft import PromptTuningConfig, get_peft_model
from transformers import T5Config, T5ForConditionalGeneration
from transformers.optimization import Adafactor

GPU = torch.cuda.is_available()


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.manual_seed(0)
    torch.set_default_device("cuda" if GPU else "cpu")
    config = T5Config(
        vocab_size=job["vocab"], feed_forward_proj="gated-gelu", tie_word_embeddings=False, dropout_rate=0.1,
        decoder_start_token_id=0, **job["config"],
    )  # fmt: skip
    settings = PromptTuningConfig(
        task_type="SEQ_2_SEQ_LM", num_virtual_tokens=job["prompt"], num_transformer_submodules=1,
        num_layers=config.num_layers, num_attention_heads=config.num_heads, token_dim=config.d_model,
    )  # fmt: skip
    frozen = T5ForConditionalGeneration(config).to(getattr(torch, job["dtype"]))
    model = get_peft_model(frozen, settings).train()  # which keeps the prompt in float32
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = Adafactor(trained, lr=0.3, relative_step=False, scale_parameter=False, warmup_init=False)
    batches = [drawn(lengths, job) for lengths in job["lengths"]]
    run = functools.partial(write, model, job) if "written" in job else functools.partial(train, model, optimizer)
    for batch in batches if GPU else batches[:1]:  # warms up: a GPU's memory is taken by length
        run(*batch)
    finish()
    started = time.perf_counter()
    for batch in batches:
        run(*batch)
    finish()
    seconds = (time.perf_counter() - started) / len(batches)
    print(json.dumps({"seconds": seconds, "memory_gib": peak_memory() / 2**30, "compile_s": 0.0}))


def drawn(lengths: list[int], job: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A batch's ids and mask, padded to the job's length or to the longest, and labels; where a loader has them."""
    longest = job["length"] - job["prompt"] if job["length"] else max(lengths)
    with torch.device("cpu"):
        mask = (torch.arange(longest)[None] < torch.tensor(lengths)[:, None]).long()
        labels = torch.randint(2, 32000, (len(lengths), job.get("target", 1)))
        return torch.randint(2, 32000, mask.shape) * mask, mask, labels


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, *batch: torch.Tensor) -> None:
    """A step."""
    ids, mask, labels = (tensor.to(model.device) for tensor in batch)
    model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def write(model: torch.nn.Module, job: dict[str, Any], *batch: torch.Tensor) -> None:
    """Writes as many tokens behind each text as the job says."""
    ids, mask, _ = (tensor.to(model.device) for tensor in batch)
    counts = {"max_new_tokens": job["written"], "min_new_tokens": job["written"], "num_beams": job["beams"]}
    with torch.no_grad():
        model.eval().generate(input_ids=ids, attention_mask=mask, do_sample=False, **counts)


def finish() -> None:
    """Waits for a GPU."""
    if GPU:
        torch.cuda.synchronize()


def peak_memory() -> int:
    """The most in use so far, in bytes: of the GPU, or of the process."""
    if GPU:
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
