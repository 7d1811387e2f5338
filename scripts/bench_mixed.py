"""What it costs to answer a batch behind 16 prompts instead of one: the same texts, alternating, in one run.

    python scripts/bench_mixed.py --base PATH

Prints medians of wall time and of processor time (which other programs on the machine disturb less), for ranking two
labels and for writing. The goal is a ratio of at most 1.1.
"""

import argparse
import json
import statistics
import time

import jax
import numpy as np

from prompt_tuning import layout
from prompt_tuning.predict import PromptTuned, Request
from prompt_tuning.prompt_file import Card, Prompt

GOAL = 1.1
LABELS = ("negative", "positive")


def tuned(base: str, vocabulary: str | None, prompts: int, length: int, examples: int, tokens: int) -> PromptTuned:
    """A bank of random prompts on the scale of embeddings, its batches of one shape whatever it holds."""
    rows = -(-examples // max(1, 256 // (tokens + length)))
    shape = layout.Shape(256, 64, (rows,))
    opened = PromptTuned.open(base, prompts, length, vocabulary, examples, shape)
    scale = float(np.asarray(opened.base.params["token_embedder"]["embedding"][:5000]).std())
    for k in range(prompts):
        vectors = np.random.default_rng(k).normal(size=(length, opened.base.config.emb_dim), scale=scale)
        opened.add(Prompt(vectors.astype(np.float32), Card(name=f"p{k}", labels=LABELS)))
    opened.compile_ahead()
    return opened


def texts(opened: PromptTuned, count: int, tokens: int) -> list[str]:
    """Texts of nearly `tokens` tokens, of pieces drawn at random."""
    rng, vocabulary = np.random.default_rng(0), opened.vocabulary
    return [vocabulary.decode(rng.integers(100, 5000, tokens * 3 // 4).tolist()) for _ in range(count)]


def measure(one: PromptTuned, mixed: PromptTuned, batch: list[str], decode: bool, repeats: int) -> dict[str, float]:
    """Median seconds of either, and their ratios; which goes first alternates."""
    wall: dict[str, list[float]] = {"one": [], "mixed": []}
    processor: dict[str, list[float]] = {"one": [], "mixed": []}
    prompts = len(mixed.bank.names)
    runs = {
        "one": lambda: one.answer([Request(text, "p0", decode=decode) for text in batch]),
        "mixed": lambda: mixed.answer([Request(t, f"p{i % prompts}", decode=decode) for i, t in enumerate(batch)]),
    }
    for repeat in range(repeats + 1):
        for name in sorted(runs, reverse=repeat % 2 == 1):
            start, busy = time.perf_counter(), time.process_time()
            runs[name]()
            if repeat:  # the first is not counted
                wall[name].append(time.perf_counter() - start)
                processor[name].append(time.process_time() - busy)
    middle = {f"{name}_s": statistics.median(times) for name, times in wall.items()}
    ratio = lambda times: statistics.median(times["mixed"]) / statistics.median(times["one"])
    figures = middle | {"wall_ratio": ratio(wall), "processor_ratio": ratio(processor)}
    return {name: round(value, 4) for name, value in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True)
    parser.add_argument("--vocabulary")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--prompt_length", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--examples", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=15)
    o = parser.parse_args()
    one, mixed = (tuned(o.base, o.vocabulary, n, o.prompt_length, o.examples, o.tokens) for n in (1, o.prompts))
    batch = texts(one, o.examples, o.tokens)
    print(f"{o.examples} texts, {o.prompts} prompts of {o.prompt_length} against one, {jax.devices()[0].device_kind}")
    for name, decode in (("rank", False), ("write", True)):
        figures = measure(one, mixed, batch, decode, o.repeats)
        verdict = "reached" if figures["wall_ratio"] <= GOAL else "missed"
        print(name, json.dumps(figures), f"goal {GOAL}: {verdict}")


if __name__ == "__main__":
    main()
