"""Writes a base that `prompt-tuning train` made as bfloat16, as those in prompt_tuning/tiny are shipped.

python scripts/ship_base.py MODEL_DIR/base prompt_tuning/tiny --step 11384    # counted over all runs that made it
"""

import argparse
from pathlib import Path

import jax.numpy as jnp

from prompt_tuning.base import load_base, save_t5x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--step", type=int, help="default: the step that the base was saved at")
    options = parser.parse_args()
    base = load_base(options.base)
    folder = save_t5x(base.params, options.out, options.step or base.step or 0, jnp.bfloat16)
    size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    print(f"{folder}: {size / 1e6:.1f} MB, digest {load_base(folder).digest}")


if __name__ == "__main__":
    main()
