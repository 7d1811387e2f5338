"""How many examples a second one core reads, tokenises and lays out, at the lengths of SST-2 and of BoolQ.

    taskset -c 0 python scripts/bench_data.py --vocabulary PATH/TO/spiece.model

The text is made here, with the words and lengths of the two sets (SST-2 9 words a sentence, BoolQ 110 a passage), as
official files in a scratch folder; reading is that of `glue_sst2` and `superglue_boolq`, the layout that of training.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np

GOAL = {"sst2": 5000, "boolq": 1500}  # examples/s, so that input never starves a step
# fmt: off
WORDS = [
    "the", "of", "and", "a", "to", "in", "is", "it", "that", "film", "with", "for", "as", "its", "an", "this", "movie",
    "one", "on", "but", "story", "energy", "government", "united", "states", "season", "series", "released", "national",
    "characters", "performances", "emotional", "international", "constitution", "approximately", "entertainment",
]
# fmt: on


def write(folder: Path, examples: int, seed: int = 0) -> None:
    """Official files of both sets below `folder`."""
    rng = np.random.default_rng(seed)

    def text(mean: float) -> str:
        return " ".join(rng.choice(WORDS, max(2, int(rng.gamma(3.0, mean / 3.0)))))

    (folder / "glue/SST-2").mkdir(parents=True)
    (folder / "superglue/BoolQ").mkdir(parents=True)
    rows = (f"{text(9)}\t{rng.integers(2)}\n" for _ in range(examples))
    (folder / "glue/SST-2/train.tsv").write_text("sentence\tlabel\n" + "".join(rows))
    with (folder / "superglue/BoolQ/train.jsonl").open("w") as file:
        for i in range(examples // 5):
            row = {"question": text(9), "passage": text(110), "label": bool(rng.integers(2)), "idx": i}
            file.write(json.dumps(row) + "\n")


def throughput(vocabulary: str, examples: int = 20000, batch: int = 32, prompt_length: int = 100) -> dict[str, dict]:
    """Examples/s of loading (read, format, tokenise) and of layout (packing), and of both together, by set."""
    from prompt_tuning import layout, planning
    from prompt_tuning.data import open_mixture
    from prompt_tuning.vocabulary import Vocabulary

    figures = {}
    with tempfile.TemporaryDirectory() as scratch:
        write(Path(scratch), examples)
        for short, name in (("sst2", "glue_sst2"), ("boolq", "superglue_boolq")):
            task = open_mixture(name, Vocabulary(vocabulary), data_dir=scratch).tasks[0]
            task.load("train[:64]")  # TensorFlow builds its functions once
            start = time.perf_counter()
            loaded = task.load("train")
            reading = time.perf_counter() - start

            items = [
                layout.Item(loaded.inputs[i], [loaded.targets[i]], prompt_length=prompt_length)
                for i in range(len(loaded))
            ]
            batches = [items[i : i + batch] for i in range(0, len(items) - batch + 1, batch)]
            longest = max(i.length for i in items), max(i.target_length for i in items)
            shape = planning.plan(batches[:16], longest)
            start = time.perf_counter()
            for group in batches:
                layout.pack(group, shape, prompt_length)
            packing = (time.perf_counter() - start) / (len(batches) * batch)
            each = reading / len(loaded)
            figures[short] = {
                "examples": len(loaded),
                "mean_tokens": round(float(loaded.inputs.lengths.mean()), 1),
                "load_per_s": round(1 / each),
                "layout_per_s": round(1 / packing),
                "both_per_s": round(1 / (each + packing)),
                "goal_per_s": GOAL[short],
            }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", required=True)
    parser.add_argument("--examples", type=int, default=20000)
    options = parser.parse_args()
    if hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) > 1:
        print("More than one core is in use; `taskset -c 0` keeps it to one.")
    for name, row in throughput(options.vocabulary, options.examples).items():
        print(name, json.dumps(row))


if __name__ == "__main__":
    main()
