"""Ranks labels with a folder that `prompt-tuning export --format stablehlo` wrote, without that package.

    python scripts/run_stablehlo.py FOLDER "sentence: a charming journey ." "sentence: flat and dull ."

Needs jax, numpy, safetensors and sentencepiece; prints one JSON line a text.
"""

import json
import sys
from pathlib import Path

import numpy as np
import sentencepiece
from jax import export
from safetensors.numpy import load_file


def main(folder: Path, texts: list[str]) -> None:
    told = json.loads((folder / "program.json").read_text())
    program = export.deserialize((folder / told["files"]["program"]).read_bytes())
    weights = load_file(folder / told["files"]["weights"])
    pieces = sentencepiece.SentencePieceProcessor(str(folder / told["files"]["vocabulary"]))

    shape, eos, pad = told["tokens"]["shape"], told["tokens"]["eos_id"], told["tokens"]["pad_id"]
    tokens = np.full((len(texts), shape[1]), pad, np.int32)
    for row, text in zip(tokens, texts, strict=True):
        ids = [*pieces.encode(text)[: len(row) - 1], eos]
        row[: len(ids)] = ids
    probabilities, scores = (np.asarray(output) for output in program.call(weights, tokens))
    for text, row, score in zip(texts, probabilities, scores, strict=True):
        ranked = dict(zip(told["outputs"]["columns"], map(float, row), strict=True))
        best = max(ranked, key=ranked.__getitem__)
        print(json.dumps({"text": text, "prediction": best, "probabilities": ranked, "score": float(score.max())}))


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2:])
