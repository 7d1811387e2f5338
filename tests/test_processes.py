"""A job of two processes: the numbers of one, whoever is killed, and nobody left hanging."""

import signal
import time

import numpy as np
import processes
import pytest
from conftest import flags

from prompt_tuning import cli, prompt_file

pytestmark = pytest.mark.slow
MINUTES = 60.0
# the last batch of an evaluation is an uneven one, and the rows of a step are no multiple of the processes
SETTINGS = {"TRAIN_STEPS": 6, "EVAL_PERIOD": 3, "LOG_PERIOD": 1, "BATCH_SIZE": 5, "EVAL_BATCH_SIZE": 10}


@pytest.fixture(scope="module")
def alone(home, tmp_path_factory):
    """The same run in one process."""
    folder = tmp_path_factory.mktemp("alone")
    processes.run(flags(home, folder / "run", **SETTINGS), 1, folder / "logs", 10 * MINUTES)
    return folder / "run"


def same(one, other) -> None:
    assert processes.furthest(one, other) < 1e-5
    vectors = [prompt_file.load(run / "prompts" / "films.safetensors").vectors for run in (one, other)]
    np.testing.assert_allclose(*vectors, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model_parallel", [1, 2])
def test_two_processes_train_as_one_does(home, alone, tmp_path, model_parallel):
    argv = flags(home, tmp_path / "run", MODEL_PARALLEL=model_parallel, **SETTINGS)
    processes.run(argv, 2, tmp_path / "logs", 10 * MINUTES)
    same(alone, tmp_path / "run")
    assert "films" not in (tmp_path / "logs" / "1").read_text(), "one of them speaks"


def test_a_killed_process_ends_the_other_and_the_job_goes_on_as_if_nothing_had_been(home, alone, tmp_path):
    argv = flags(home, tmp_path / "run", **SETTINGS)
    job = processes.Job(argv, 2, tmp_path / "logs")
    job.wait_for(tmp_path / "run" / "checkpoints" / "3" / "commit_success.txt", 10 * MINUTES)
    job.processes[1].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    codes = job.codes(3 * MINUTES)
    assert codes[0] != 0 and time.monotonic() - killed < 3 * MINUTES
    assert "type the same command on every host" in job.said(0) or "another task died" in job.said(0)
    processes.run(argv, 2, tmp_path / "again", 10 * MINUTES)
    same(alone, tmp_path / "run")


@pytest.mark.parametrize(
    "given, said",
    [
        (["--coordinator_address=127.0.0.1:1"], "--process_count and --process_index is missing"),
        (["--process_count=2"], "says nothing without --coordinator_address"),
        (["--coordinator_address=here", "--process_count=2", "--process_index=2"], "processes count from 0"),
    ],
)
def test_flags_that_do_not_fit_together_are_explained(capsys, given, said):
    assert cli.main(["train", *given]) == 2
    assert said in capsys.readouterr().err
