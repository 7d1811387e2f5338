"""prompt-tuning train | eval | infer | ...: dispatches, and turns mistakes into a paragraph and exit code 2."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence

from prompt_tuning import __version__, allocator
from prompt_tuning.errors import UserError, nearest, of_system, said
from prompt_tuning.flags import number, whole_number

EXAMPLE = """\
Example:
  prompt-tuning train --gin_file=runs/sst2_small.gin --gin.MODEL_DIR=runs/sst2 \\
      --gin.INITIAL_CHECKPOINT_PATH=google/t5-small-lm-adapt
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; 0 when it worked, 2 when the person can put it right.

    1 is for what a command found to be bad (doctor, data prepare), and where the program is at fault.
    """
    code = _main(argv)
    job = sys.modules.get("prompt_tuning.job")
    return job.leave(code) if job else code


def _main(argv: Sequence[str] | None) -> int:
    whole_process = argv is None
    argv = list(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if argv[0] == "--version":
        print(__version__)
        return 0
    try:
        if argv[0] not in COMMANDS:
            raise UserError(f"There is no command {argv[0]!r}.{nearest(argv[0], COMMANDS)} Type prompt-tuning --help.")
        _, run = COMMANDS[argv[0]]
        if whole_process:  # and not a caller's, who may not be started again
            allocator.start_in_huge_pages()
        code = run(argv[1:])
        print(end="", flush=True)
        return code
    except UserError as error:
        return _complain(said(error))
    except (RuntimeError, ValueError) as error:
        job, device = (sys.modules.get(f"prompt_tuning.{name}") for name in ("job", "device"))
        if not (known := (job and job.lost(error)) or (device and device.too_little_memory(error))):
            raise
        return _complain(str(known))
    except BrokenPipeError:  # the reader of standard output has read enough, as `head` does
        _drop_output()
        return 141
    except OSError as error:
        if (what := of_system(error)) is None:
            raise
        return _complain(what)
    except KeyboardInterrupt:
        return 130


def _complain(message: str) -> int:
    try:
        print(end="", flush=True)
    except OSError:
        _drop_output()
    print(f"prompt-tuning: {message}", file=sys.stderr)
    return 2


def _drop_output() -> None:
    """Sends what is not printed yet nowhere, or Python would try again when it ends, and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _gin_parser(command: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        f"prompt-tuning {command}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Every name that --gin.NAME sets is in gin/defaults.gin, with the papers' value.",
        allow_abbrev=False,
    )
    parser.add_argument("--gin_file", action="append", default=[], metavar="FILE", help="a gin file; any number, in any order")  # fmt: skip # noqa: E501
    parser.add_argument("--gin_search_paths", default="", metavar="DIRS", help="more folders with gin files, comma separated")  # fmt: skip # noqa: E501
    parser.add_argument(
        "--gin_bindings", action="append", default=[], metavar="LINE", help="a line of gin, as in a file"
    )
    parser.add_argument("--multihost", action="store_true", help="on every host of a TPU pod or SLURM step: JAX finds the others")  # fmt: skip # noqa: E501
    parser.add_argument("--coordinator_address", metavar="HOST:PORT", help="elsewhere, in each of several processes: where process 0 is found")  # fmt: skip # noqa: E501
    parser.add_argument("--process_count", type=whole_number(1), metavar="N", help="how many there are")
    parser.add_argument("--process_index", type=whole_number(0), metavar="I", help="which of them this is, from 0")
    parser.add_argument("--gin.NAME", dest="_", metavar="VALUE", help="sets one name, such as --gin.BATCH_SIZE=16")
    return parser


def _parse_gin(parser: argparse.ArgumentParser, argv: list[str], first: Sequence[str] = ()) -> argparse.Namespace:
    """Reads the flags and configures gin, from the files `first` and those of the flags.

    `--gin.NAME VALUE` and `--gin.NAME=VALUE` are the same.
    """
    import prompt_tuning.train  # noqa: F401 - registers what gin files name
    from prompt_tuning import configure, job, t5x_names

    plain: list[str] = []
    bindings: list[str] = []
    waiting = ""
    for word in argv:
        if waiting:
            bindings, waiting = [*bindings, configure.binding(f"{waiting}={word}")], ""
        elif word.startswith("--gin.") and "=" not in word:
            waiting = word.removeprefix("--gin.")
        elif word.startswith("--gin."):
            bindings.append(configure.binding(word.removeprefix("--gin.")))
        elif re.match(r"--[A-Z][A-Z_]+(=|$)", word):
            raise UserError(f"There is no flag {word.partition('=')[0]}. Type --gin.{word.removeprefix('--')}.")
        else:
            plain.append(word)
    if waiting:
        configure.binding(waiting)  # complains
    for word in plain:
        if word.startswith("--") and (told := t5x_names.here(word[2:].partition("=")[0])):
            raise UserError(told)
    options = parser.parse_args(plain)
    job.flags(options)
    files = [file for group in options.gin_file for file in group.split(",") if file]
    folders = [folder for folder in options.gin_search_paths.split(",") if folder]
    configure.parse([*first, *files], [*options.gin_bindings, *bindings], folders)
    return options


def _train(argv: list[str]) -> int:
    parser = _gin_parser("train", "Tunes prompts for a frozen T5 (Lester et al. 2021); the same command resumes a run.")
    if _asks_for_help(parser, argv):
        return 0
    _parse_gin(parser, argv)
    from prompt_tuning.run import Run
    from prompt_tuning.train import train

    train(Run())
    return 0


def _eval(argv: list[str]) -> int:
    parser = _gin_parser(
        "eval",
        "Scores the best prompts of the run in MODEL_DIR, or prompts from files, on EVAL_SPLIT;\n"
        "several prompts of one task are scored as an ensemble too.",
    )
    parser.add_argument("--prompts", nargs="+", default=[], metavar="FILE", help="score these prompts instead of a run's; a folder stands for all in it")  # fmt: skip # noqa: E501
    if _asks_for_help(parser, argv):
        return 0
    options = _parse_gin(parser, argv)
    from prompt_tuning.evaluate import evaluate_run
    from prompt_tuning.run import Run

    evaluate_run(Run(), options.prompts)
    return 0


def _infer(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "prompt-tuning infer", description="Answers texts with a trained prompt, as JSON lines.", allow_abbrev=False
    )
    parser.add_argument("text", nargs="*", help="texts, as the task words them ('sentence: a fine film')")
    parser.add_argument("--prompt", required=True, action="append", metavar="FILE", help="a prompt of MODEL_DIR/prompts, or a .npy; of several, each line of .jsonl names its own as 'prompt'")  # fmt: skip # noqa: E501
    parser.add_argument(
        "--base", metavar="PATH", help="the frozen base; the prompt's card names the one it was tuned on"
    )
    parser.add_argument("--vocabulary", metavar="FILE", help="SentencePiece model; default: the one beside the base")
    parser.add_argument("--input", metavar="FILE", help="a text a line, or .jsonl with 'text'; - reads standard input")
    parser.add_argument("--output", metavar="FILE", help="where the answers go; default: standard output")
    parser.add_argument("--labels", nargs="+", metavar="LABEL", help="rank these; default: those of the prompt's card")
    parser.add_argument("--decode", action="store_true", help="write the answer freely instead of ranking labels")
    parser.add_argument("--content_free", nargs="+", default=[], metavar="TEXT", help="calibrate the ranking by inputs that say nothing ('sentence: N/A')")  # fmt: skip # noqa: E501
    parser.add_argument("--batch_size", type=whole_number(1), default=64, metavar="N")
    options = parser.parse_args(argv)
    from prompt_tuning import predict

    return predict.main(options)


def _export(argv: list[str]) -> int:
    from prompt_tuning import export_command

    return export_command.export_main(export_command.export_parser().parse_args(argv))


def _import(argv: list[str]) -> int:
    from prompt_tuning import export_command

    return export_command.import_main(export_command.import_parser().parse_args(argv))


def _interpret(argv: list[str]) -> int:
    from prompt_tuning import interpret_command

    return interpret_command.main(interpret_command.parser().parse_args(argv))


def _serve(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "prompt-tuning serve",
        description="Answers texts over HTTP, each behind the prompt it names.",
        allow_abbrev=False,
    )
    parser.add_argument("--prompts", required=True, metavar="FOLDER", help="the only folder prompts are loaded from, such as MODEL_DIR/prompts")  # fmt: skip # noqa: E501
    parser.add_argument("--base", metavar="PATH", help="the frozen base; default: what the prompts' cards name")
    parser.add_argument("--vocabulary", metavar="FILE", help="SentencePiece model; default: the one beside the base")
    parser.add_argument("--host", default="127.0.0.1", help="whom to listen to; 0.0.0.0: every network")
    parser.add_argument("--port", type=whole_number(0, 65535), default=8000, metavar="N", help="0: any that is free")
    parser.add_argument("--slots", type=whole_number(1), default=16, metavar="N", help="prompts in memory at most")
    parser.add_argument(
        "--input_length", type=whole_number(1), default=512, metavar="N", help="tokens of a text at most"
    )
    parser.add_argument(
        "--room", type=whole_number(1), default=2048, metavar="N", help="positions of a batch; more on a GPU"
    )
    parser.add_argument("--writers", type=whole_number(1), default=16, metavar="N", help="texts written at a time")
    parser.add_argument(
        "--window_ms", type=number(0), default=5, metavar="MS", help="how long a batch waits for company"
    )
    parser.add_argument(
        "--queue", type=whole_number(1), default=256, metavar="N", help="texts that may wait; more get 429"
    )
    parser.add_argument(
        "--body_bytes", type=whole_number(1), default=1 << 18, metavar="N", help="of a request; larger get 413"
    )
    options = parser.parse_args(argv)
    try:
        from prompt_tuning.serve import command
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("fastapi", "uvicorn", "httptools", "prometheus_client"):
            raise
        raise UserError(f"Serving needs {error.name}. Type pip install 'prompt-tuning[serve]'.") from error
    return command.main(options)


def _data(argv: list[str]) -> int:
    from prompt_tuning import data_command

    return data_command.main(argv)


def _quickstart(argv: list[str]) -> int:
    from prompt_tuning import quickstart

    return quickstart.main(argv)


def _doctor(argv: list[str]) -> int:
    parser = _gin_parser(
        "doctor",
        "Looks at a run before or after it, or at trained prompts: gradients, labels, scales, learning rate, answers.\n"
        "Writes nothing; the exit code is 1 if something is bad.",
    )
    parser.add_argument("--prompt", action="append", default=[], metavar="FILE", help="look at this prompt; may be repeated")  # fmt: skip # noqa: E501
    if _asks_for_help(parser, argv):
        return 0
    options = _parse_gin(parser, argv)
    from prompt_tuning import doctor
    from prompt_tuning.run import Run

    return doctor.main(Run(), options.prompt)


def _library(argv: list[str]) -> int:
    from prompt_tuning import library

    return library.main(argv)


def _spot(argv: list[str]) -> int:
    parser = _gin_parser(
        "spot",
        "Starts prompts of TARGETS from those of SOURCES (Vu et al. 2022): tunes all of them, compares them at\n"
        "EMBEDDING_STEP, picks by RETRIEVE, tunes again. The same command resumes at the step where it was.",
    )
    parser.add_argument("--study", action="store_true", help="every source for every target, with tables and pictures")
    if _asks_for_help(parser, argv):
        return 0
    from prompt_tuning import configure, spot_steps, study, transfer

    options = _parse_gin(parser, argv, first=[str(configure.gin_folder() / "spot.gin")])
    from prompt_tuning.run import Run

    work = study.study if options.study else transfer.transfer
    return spot_steps.until_stopped(work, spot_steps.Spot(), Run())


def _asks_for_help(parser: argparse.ArgumentParser, argv: list[str]) -> bool:
    if {"-h", "--help"} & set(argv):
        parser.print_help()
        return True
    return False


COMMANDS: dict[str, tuple[str, Callable[[list[str]], int]]] = {
    "quickstart": ("see it work: a prompt against training the whole model, in minutes", _quickstart),
    "train": ("tune prompts for a frozen T5, or a whole model, from gin files", _train),
    "eval": ("score a run's best prompts, or prompt files, on a split", _eval),
    "doctor": ("look for what keeps a run or a prompt from learning; writes nothing", _doctor),
    "infer": ("answer texts with a trained prompt", _infer),
    "serve": ("answer texts over HTTP, with every prompt of a folder", _serve),
    "export": ("write a prompt as npy, safetensors, PEFT folder, T5X tree or StableHLO", _export),
    "import": ("read a prompt from one of these, with a card that says what it is", _import),
    "interpret": ("show which words a prompt lies near, and its norms", _interpret),
    "spot": ("start a task's prompt from those of other tasks; --study compares all pairs", _spot),
    "library": ("add | list | search: a folder of prompts", _library),
    "data": ("list | show NAME | prepare: the tasks and their data", _data),
}


def _usage() -> str:
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:{width}}  {summary}" for name, (summary, _) in COMMANDS.items())
    more = f"prompt-tuning COMMAND --help says more. Version {__version__}."
    return f"prompt-tuning COMMAND [FLAGS]\n\n{listed}\n\n{more}\n\n{EXAMPLE}"


if __name__ == "__main__":
    raise SystemExit(main())
