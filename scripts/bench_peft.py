"""PEFT's prompt tuning on PyTorch, timed on the lengths that bench.py or bench_writing.py hands over; run by them.

    python scripts/bench_peft.py JOB.json        # prints {"seconds": a step, "memory_gib": ..., "compile_s": 0}

A T5 1.1 with random weights of the job's type, dropout 0.1, a prompt of 100 before the encoder, Adafactor at 0.3
without parameter scaling. A job that says how many tokens are to be `written` is generated from, without training.
"""

import json
import resource
import statistics
import sys
import time
from pathlib import Path

import torch
from peft import PromptTuningConfig, get_peft_model
from transformers import T5Config, T5ForConditionalGeneration
from transformers.optimization import Adafactor


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.manual_seed(0)
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
    seconds = []
    for lengths in [job["lengths"][0], *job["lengths"]]:  # the first one warms up
        longest = job["length"] - job["prompt"] if job["length"] else max(lengths)
        mask = (torch.arange(longest)[None] < torch.tensor(lengths)[:, None]).long()
        ids = torch.randint(2, 32000, mask.shape) * mask
        labels = torch.randint(2, 32000, (len(lengths), job.get("target", 1)))
        started = time.perf_counter()
        if "written" in job:
            write(model, ids, mask, job["written"], job["beams"])
        else:
            model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"seconds": statistics.fmean(seconds[1:]), "memory_gib": memory, "compile_s": 0.0}))


def write(model: torch.nn.Module, ids: torch.Tensor, mask: torch.Tensor, tokens: int, beams: int) -> None:
    """Writes so many tokens behind each text."""
    counts = {"max_new_tokens": tokens, "min_new_tokens": tokens, "num_beams": beams}
    with torch.no_grad():
        model.eval().generate(input_ids=ids, attention_mask=mask, do_sample=False, **counts)


if __name__ == "__main__":
    main()
