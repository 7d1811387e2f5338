"""Records what PyTorch transformers and PEFT make of prompts, for tests/test_export.py.

    PYTHONPATH=. python scripts/record_peft.py

Needs torch, transformers and peft (recorded with torch 2.13.0, transformers 5.23.0 and peft 0.21.2), which the project
does not. On the tiny model and the prompts of tests/golden/decode.npz it writes to tests/golden/peft: `ours`, a folder
that prompt_tuning.export wrote and PEFT then opened; `theirs`, one that PEFT wrote; `both`, one with a prompt in front
of the decoder too; and the logits behind the first two.
"""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel, PromptTuningConfig, get_peft_model
from record_decode import GOLDEN, load

from prompt_tuning import prompt_file
from prompt_tuning.export import export

FOLDER = GOLDEN / "peft"
CARD = prompt_file.Card(
    name="recorded", task="sst2", labels=("negative", "positive"), base="tests/golden/t5_1_1", step=7
)


def fresh() -> torch.nn.Module:
    """The tiny model; PEFT changes the one it wraps."""
    return load(GOLDEN / "t5_1_1")


@torch.no_grad()
def logits(model: torch.nn.Module, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Teacher-forced logits through PEFT's own forward, of inputs padded on the right."""
    tokens, mask = torch.tensor(inputs), torch.tensor(inputs > 0).long()
    shifted = torch.tensor(np.pad(targets[:, :-1], ((0, 0), (1, 0))))
    return model.eval()(input_ids=tokens, attention_mask=mask, decoder_input_ids=shifted).logits.numpy()


def write_theirs(folder: Path, vectors: np.ndarray, parts: int) -> None:
    """A folder by PEFT's save_pretrained, without the README it adds."""
    settings = {"task_type": "SEQ_2_SEQ_LM", "num_virtual_tokens": len(vectors), "num_transformer_submodules": parts}
    model = get_peft_model(fresh(), PromptTuningConfig(**settings))
    both = torch.tensor(np.concatenate([vectors] * parts), dtype=torch.float32)
    model.prompt_encoder["default"].embedding.weight.data = both
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)


def main() -> None:
    torch.set_num_threads(1)
    shutil.rmtree(FOLDER, ignore_errors=True)
    recorded = np.load(GOLDEN / "decode.npz")
    inputs, targets = recorded["inputs"][:4].astype(int), recorded["greedy_tokens"][:4].astype(int)
    vectors = [recorded["bank"][slot, : recorded["lengths"][slot]] for slot in (0, 2)]
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "prompt.safetensors"
        prompt_file.save_safetensors(file, prompt_file.Prompt(vectors[0], CARD))
        export(file, "peft", FOLDER / "ours")
    write_theirs(FOLDER / "theirs", vectors[1], 1)
    write_theirs(FOLDER / "both", vectors[1], 2)
    found = {
        name: logits(PeftModel.from_pretrained(fresh(), FOLDER / name), inputs, targets) for name in ("ours", "theirs")
    }
    found = {f"{name}_logits": x.astype(np.float32) for name, x in found.items()}
    np.savez_compressed(
        FOLDER / "golden.npz", inputs=inputs.astype(np.int32), targets=targets.astype(np.int32), **found
    )
    print(*(f"{p.relative_to(FOLDER)} {p.stat().st_size:,}" for p in sorted(FOLDER.rglob("*.*"))), sep="\n")


if __name__ == "__main__":
    main()
