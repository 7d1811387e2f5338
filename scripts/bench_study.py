"""How much sooner a study is done as banks than prompt by prompt: runs it both ways, compares the times of its steps.

python scripts/bench_study.py --out /tmp/study --gin_file=runs/spot_tiny.gin [--gin.NAME=VALUE ...]

The flags are those of `prompt-tuning spot --study`, less MODEL_DIR and BANK_SLOTS. Both ways run in one process each,
over the same cache of compiled programs; the second way is the one that finds it filled. Two times are compared: of the
clock, and of the processor, which other programs on the machine lengthen little.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from prompt_tuning.spot_steps import FINISHED

STEPS = ("from_scratch", "sources", "targets", "mixtures", "transfers")
WAYS = {"bank": "None", "one after another": "1"}


def run(folder: Path, bank_slots: str, flags: list[str]) -> dict[str, tuple[float, float]]:
    """Seconds of each step, of clock and processor."""
    places = [f"--gin.MODEL_DIR={folder}", f"--gin.BANK_SLOTS={bank_slots}"]
    subprocess.run([sys.executable, "-m", "prompt_tuning.cli", "spot", "--study", *flags, *places], check=True)
    took = {}
    for step in STEPS:
        done = [json.loads(path.read_text()) for path in sorted((folder / step).rglob(FINISHED))]
        if done:
            took[step] = (sum(d["seconds"] for d in done), sum(d["processor_seconds"] for d in done))
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="an empty folder")
    options, flags = parser.parse_known_args()
    took = {way: run(options.out / way.replace(" ", "_"), slots, flags) for way, slots in WAYS.items()}
    print(f"\n{'':14}{'bank':>20}{'one after another':>20}{'ratio':>16}")
    for step in took["bank"]:
        pairs = [took[way][step] for way in WAYS]
        cells = [f"{clock:.0f} s ({processor:.0f} s)" for clock, processor in pairs]
        ratios = [together / alone for together, alone in zip(*pairs, strict=True)]
        print(f"{step:14}{cells[0]:>20}{cells[1]:>20}{ratios[0]:>8.2f} ({ratios[1]:.2f})")
    print("of the clock, and (of the processor)")


if __name__ == "__main__":
    main()
