"""How much sooner a study's transfers are tuned as one bank than one after another; both times with warm caches.

python scripts/bench_study.py --gin_file=runs/spot_demo.gin --gin.MODEL_DIR=/tmp/study --gin.TRAIN_STEPS=20 ...

The flags are those of `prompt-tuning spot --study`. Sources and targets are tuned first, untimed, if MODEL_DIR does not
hold them yet. Of the transfers, `--alone N` are tuned one after another and their time is scaled up to all; each of
them loads base and tasks and finds its programs compiled, as a run of its own would. Shown are the times of the clock
and of the processor, which other programs on the machine lengthen little.
"""

import argparse
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from prompt_tuning import configure, spot_steps, study
from prompt_tuning.run import Run
from prompt_tuning.spot_steps import Retuning, Spot, Steps


def parse() -> argparse.Namespace:
    """The flags, with gin configured by them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gin_file", action="append", default=[])
    parser.add_argument("--alone", type=int, metavar="N", help="tune so many one after another; default: all")
    options, rest = parser.parse_known_args()
    bindings = [configure.binding(flag.removeprefix("--gin.")) for flag in rest]
    configure.parse([str(configure.gin_folder() / "spot.gin"), *options.gin_file], bindings)
    return options


def took(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of clock and processor."""
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - processor


def main() -> None:
    options = parse()
    settings, run = Spot(), Run()
    settings.check(run, {})
    scratch = spot_steps.tune_from_scratch(settings, Steps(run))
    every = list(study.every_pair(settings).values())

    def retune(wanted: Sequence[Retuning], bank_slots: int | None) -> Callable[[], object]:
        shutil.rmtree(Path(run.folder) / "transfers", ignore_errors=True)
        return lambda: spot_steps.retune(settings, Steps(run, bank_slots), scratch, wanted)

    alone = every[:: max(1, len(every) // (options.alone or len(every)))][: options.alone]
    retune(every[:1], None)()  # compiles
    separate = took(retune(alone, 1))
    retune(every, None)()
    together = took(retune(every, None))
    scaled = [seconds * len(every) / len(alone) for seconds in separate]
    print(f"\n{len(every)} transfers of {run.train_steps} steps; one after another timed on {len(alone)} of them")
    for name, bank, one in zip(("clock", "processor"), together, scaled, strict=True):
        print(f"{name:10} one bank {bank:7.1f} s   one after another {one:7.1f} s   ratio {bank / one:.2f}")


if __name__ == "__main__":
    main()
