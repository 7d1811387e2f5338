"""What a run survives: kills, signals, damaged and foreign files, full and locked folders. Kill-and-resume to the bit
is in test_train; scripts/torture.py does it at random moments."""

import errno
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from conftest import Signalling, flags, full, random_bank, start_state

from prompt_tuning import base, checkpoint, cli, infer, job, log, optim, preemption, prompt_file, run_folder
from prompt_tuning.checkpoint import Best, Checkpointer, Identity
from prompt_tuning.errors import UserError

IDENTITY = Identity("digest of the base", {"batch_size": 4})


def state_at(step: int):
    """A state without a model behind it, different at every step."""
    bank = random_bank([4], seed=step)
    optimizer = optim.over_slots(optim.adafactor, [4], [0.3])
    return start_state(bank, optimizer, [step]).replace(step=jnp.asarray(step, jnp.int32))


def best_at(step: int) -> Best:
    return Best.none(state_at(step).trainable, 1).updated(state_at(step).trainable, np.array([50.0 + step]), step)


@pytest.fixture
def saved(tmp_path) -> Path:
    """A folder with the checkpoints of steps 3 and 6."""
    checkpointer = Checkpointer(tmp_path)
    for step in (3, 6):
        checkpointer.save(state_at(step), best_at(step), IDENTITY)
    checkpointer.close()
    return tmp_path


def restored(folder: Path) -> checkpoint.Restored:
    return Checkpointer(folder).restore(state_at(0), best_at(0), IDENTITY)


def same(found: checkpoint.Restored, step: int) -> bool:
    pairs = zip(
        jax.tree.leaves((found.state, found.best)), jax.tree.leaves((state_at(step), best_at(step))), strict=True
    )
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


def damaged(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "a flipped bit":
        data[len(data) // 2] ^= 0x10
    path.write_bytes(bytes(data[: len(data) // 2]) if how == "cut short" else bytes(data))


def test_what_was_saved_is_restored_to_the_bit(saved):
    found = restored(saved)
    assert same(found, 6) and found.evaluated and found.notes == ()


def test_each_slot_keeps_the_prompt_and_step_of_its_own_best_evaluation_and_of_equals_the_first():
    bank = lambda value: {"prompt": {"bank": np.full((2, 1, 1), value, np.float32)}}
    best = Best.none(bank(0), 2)
    for step, scores in ((1, [50.0, 60.0]), (2, [50.0, 70.0]), (3, [np.nan, 10.0])):
        best = best.updated(bank(step), np.array(scores), step)
    assert best.params["prompt"]["bank"].ravel().tolist() == best.step.tolist() == [1, 2]
    assert best.score.tolist() == [50, 70]


@pytest.mark.parametrize("how", ["a flipped bit", "cut short"])
def test_no_damage_to_any_file_of_a_checkpoint_is_taken_for_its_numbers(saved, tmp_path_factory, how):
    files = [f.relative_to(saved) for f in (saved / "checkpoints" / "6").rglob("*") if f.is_file() and f.stat().st_size]
    assert len(files) > 4
    fallen_back = 0
    for n, file in enumerate(files):
        copy = tmp_path_factory.mktemp("copy") / str(n)
        shutil.copytree(saved, copy)
        damaged(copy / file, how)
        found = restored(copy)
        if same(found, 3):
            fallen_back += 1
            (note,) = found.notes
            assert "is damaged" in note and "going on from step 3" in note
            assert Checkpointer(copy).latest == 3 and (copy / "checkpoints" / "damaged-6").is_dir()
        else:
            assert same(found, 6), f"{file}: other numbers than were written"
    assert fallen_back >= 2


def test_no_process_looks_again_before_a_damaged_checkpoint_is_out_of_the_way(saved, monkeypatch):
    shutil.rmtree(saved / "checkpoints" / "6" / "state")
    seen, looked_again = [], ocp.CheckpointManager.reload
    aside = saved / "checkpoints" / "damaged-6"
    monkeypatch.setattr(job, "together", lambda _: seen.append(("waits", aside.is_dir())))
    monkeypatch.setattr(ocp.CheckpointManager, "reload", lambda self: seen.append("looks again") or looked_again(self))
    restored(saved)
    assert seen == [("waits", True), "looks again"]


def test_a_run_whose_checkpoints_are_all_damaged_is_left_as_it_is(saved):
    for step in (3, 6):
        shutil.rmtree(saved / "checkpoints" / str(step) / "state")
    with pytest.raises(UserError, match=r"No checkpoint in .* is whole"):
        restored(saved)
    assert sorted(p.name for p in (saved / "checkpoints").iterdir()) == ["3", "6"]


def rewritten(folder: Path, step: int, tree, told: dict) -> None:
    """A checkpoint as another version of this project would have written it."""
    shutil.rmtree(folder / "checkpoints" / str(step), ignore_errors=True)
    manager = ocp.CheckpointManager(folder / "checkpoints", item_names=("state", "identity"))
    items = {"state": ocp.args.StandardSave(tree), "identity": ocp.args.JsonSave(told)}
    manager.save(step, args=ocp.args.Composite(**items))
    manager.close()


def test_a_checkpoint_of_a_newer_version_is_refused(saved):
    told = {"base_digest": "digest of the base", "settings": {}, "format": checkpoint.FORMAT + 1, "version": "9.1"}
    rewritten(saved, 6, {"state": {"new": jnp.ones(3)}}, told | {"seal": checkpoint._seal(told)})
    with pytest.raises(UserError, match=r"newer version of prompt-tuning, 9\.1 .* Install that version"):
        restored(saved)
    assert (saved / "checkpoints" / "6").is_dir()


def test_a_checkpoint_whose_description_was_changed_is_damaged(saved):
    told = {"base_digest": IDENTITY.base_digest, "settings": IDENTITY.settings, "format": checkpoint.FORMAT}
    seal = checkpoint._seal(told | {"settings": {"batch_size": 8}})
    rewritten(saved, 6, {"state": state_at(6), "best": best_at(6)}, told | {"seal": seal})
    earlier = saved / "checkpoints" / "damaged-6" / "state"
    earlier.mkdir(parents=True)
    found = restored(saved)
    assert same(found, 3) and "its description is not what was written" in found.notes[0]
    assert earlier.is_dir() and (saved / "checkpoints" / "damaged-6-1" / "state").is_dir()


def test_a_checkpoint_from_before_digests_is_resumed(saved):
    state = state_at(9)
    old = {"trainable": state.trainable, "opt_state": state.opt_state, "step": state.step, "rng": state.rng}
    told = {"base_digest": IDENTITY.base_digest, "settings": IDENTITY.settings}
    rewritten(saved, 9, {"state": old, "best": best_at(9)}, told)
    assert same(restored(saved), 9)


def test_a_damaged_prompt_is_refused(tmp_path):
    path = tmp_path / "films.safetensors"
    card = prompt_file.Card("films", "films", ("negative", "positive"), score=61.5)
    prompt_file.save_safetensors(path, prompt_file.Prompt(random_bank([4])[0], card))
    whole = path.read_bytes()
    assert prompt_file.load(path).card == card
    prompt_file.save_safetensors(path, prompt_file.load(path))
    assert path.read_bytes() == whole, "equal prompts are equal files"
    for place in (whole.index(b"negative"), len(whole) - 30):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(UserError, match="is damaged"):
            prompt_file.load(path)
    path.write_bytes(whole[:-20])
    with pytest.raises(UserError, match="not a readable"):
        prompt_file.load(path)


def test_a_damaged_base_is_never_read_as_another(home, tmp_path):
    shutil.copytree(home / "base", tmp_path / "base")
    whole = base.load_base(tmp_path / "base").digest
    (chunk,) = (f for f in (tmp_path / "base").rglob("*token_embedder*/*") if not f.name.startswith("."))
    for how in ("a flipped bit", "cut short"):
        data = chunk.read_bytes()
        damaged(chunk, how)
        with pytest.raises(UserError, match="damaged or incomplete: copy it again"):
            base.load_base(tmp_path / "base")
        with pytest.raises(UserError, match="damaged or incomplete: copy it again"):
            base.open_source(tmp_path / "base").read("token_embedder/embedding")  # as interpret does
        chunk.write_bytes(data)
    assert base.load_base(tmp_path / "base").digest == whole


HOLD = "import sys, time; from pathlib import Path; from prompt_tuning import run_folder\n" + textwrap.dedent("""
    with run_folder.held(Path(sys.argv[1])):
        print("held", flush=True)
        time.sleep(600)
""")


def test_a_second_run_in_a_folder_is_refused_until_the_first_is_killed(tmp_path):
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=rf"process {first.pid} on .*another MODEL_DIR"), run_folder.held(tmp_path):
            pass
    finally:
        first.kill()
        first.wait()
    with run_folder.held(tmp_path):
        assert f"process {os.getpid()} " in (tmp_path / run_folder.LOCK).read_text()
    assert (tmp_path / run_folder.LOCK).read_text() == ""


def test_a_file_system_that_renames_no_folders_is_refused_before_training(tmp_path, monkeypatch):
    def rename(path, to):
        raise OSError(errno.EMFILE, "Too many open files", str(path), None, str(to))  # as gcsfuse answers

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(UserError, match=r"renames no folders .*--rename-dir-limit"), run_folder.held(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [run_folder.LOCK]


def test_what_a_killed_run_left_half_written_is_cleared_and_nothing_else(tmp_path):
    whole = ["prompts/films.safetensors", "checkpoints/3/state/x", "base/checkpoint_7/checkpoint", "notes.part"]
    half = ["prompts/.films.safetensors.a1b2.part", "checkpoints/6.orbax-checkpoint-tmp/x", ".config.gin.c3.part",
            "base/.checkpoint_9.1f.part/x"]  # fmt: skip
    for name in whole + half:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    with run_folder.held(tmp_path):
        left = {str(f.relative_to(tmp_path)) for f in tmp_path.rglob("*") if f.is_file()}
        assert left == {*whole, run_folder.LOCK}


def test_a_file_too_large_for_the_disk_leaves_the_old_one(saved, tmp_path):
    path = tmp_path / "prompt.safetensors"
    prompt_file.save_safetensors(path, prompt_file.Prompt(random_bank([4])[0]))
    before = path.read_bytes()
    with full(2000):
        with pytest.raises(OSError, match="File too large"):
            prompt_file.save_safetensors(path, prompt_file.Prompt(random_bank([512])[0]))
        with pytest.raises(UserError, match="is full"):
            large = state_at(9).replace(trainable={"prompt": {"bank": jnp.asarray(random_bank([512]))}})
            Checkpointer(saved).save(large, best_at(9), IDENTITY)
        with pytest.raises(UserError, match="is full"):
            base.save_t5x({"embedding": random_bank([512])[0]}, tmp_path / "base", 9)
    assert path.read_bytes() == before and not list(tmp_path.glob(".*.part"))
    assert not list((tmp_path / "base").iterdir())
    assert same(restored(saved), 6)


def test_a_folder_that_cannot_be_written_is_said_before_training(home, tmp_path, capsys):
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("a read-only file system can be mounted only as root")
    (tmp_path / "disk").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=200k", "none", str(tmp_path / "disk")]).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        assert cli.main(["train", *flags(home, tmp_path / "disk" / "run")]) == 2
        assert "Read-only file system" in capsys.readouterr().err
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path / "disk")], check=True)


def test_metrics_keep_each_step_once(tmp_path):
    rows = [{"step": 3, "loss": {}}, {"step": 3, "eval": {}}, {"step": 6, "loss": {}}, {"step": 6, "eval": {}}]
    text = "".join(json.dumps(row) + "\n" for row in rows) + '{"step": 9, "lo'
    for evaluated, expected in ((True, rows), (False, rows[:3])):
        (tmp_path / "metrics.jsonl").write_text(text)
        log.Log(tmp_path, 6, evaluated).close()
        assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == expected


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2"])
def test_every_signal_of_a_scheduler_asks_for_a_stop(name):
    with preemption.Stop() as stop:
        batches = stop.leaving(range(9))
        assert next(batches) == 0 and not stop.after(1)
        signal.raise_signal(getattr(signal, name))
        assert stop.after(2) and stop.is_set()
        with pytest.raises(preemption.Interrupted):
            next(batches)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


NESTED = textwrap.dedent("""
    import signal, sys
    from prompt_tuning.preemption import Stop

    def heard(number):
        lines = 0

        def tell(*_):
            nonlocal lines
            lines += 1
            if lines == number:
                signal.raise_signal(signal.SIGUSR2)
            return tell

        with Stop() as stop:
            sys.settrace(tell)
            signal.raise_signal(signal.SIGUSR1)
            sys.settrace(None)
            assert stop.is_set()

    for number in range(1, 40):
        heard(number)
""")


def test_a_signal_that_comes_while_another_is_heard_is_waited_for_by_nobody():
    assert subprocess.run([sys.executable, "-c", NESTED], timeout=60).returncode == 0


def plain(folder: Path) -> list[tuple]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row.get("loss"), row.get("eval")) for row in rows]


def test_an_evaluation_that_a_signal_cut_short_is_made_up_for(home, tmp_path, monkeypatch):
    on_one = {"LOG_PERIOD": 3, "GRID": {"seed": [0, 1]}}
    assert cli.main(["train", *flags(home, tmp_path / "whole", **on_one)]) == 0
    monkeypatch.setattr(sys, "stdout", Signalling(" 6/6 "))
    assert cli.main(["train", *flags(home, tmp_path / "stopped", **on_one)]) == 0
    assert "stopped at step 6 and saved" in sys.stdout.text
    assert [row[0] for row in plain(tmp_path / "stopped") if row[2]] == [3], "the evaluation of step 6 was left"
    assert cli.main(["train", *flags(home, tmp_path / "stopped", **on_one)]) == 0
    assert [row[0] for row in plain(tmp_path / "stopped")] == [row[0] for row in plain(tmp_path / "whole")]
    for name in ("films-seed0", "films-seed1"):
        one, other = (
            prompt_file.load(tmp_path / run / "prompts" / f"{name}.safetensors") for run in ("whole", "stopped")
        )
        assert one.card.step == other.card.step and one.card.score == pytest.approx(other.card.score)


def test_patience_counts_an_evaluation_that_is_made_up_for(home, tmp_path, monkeypatch, capsys):
    told, evaluated = iter([0.5, None, 0.6, 0.7, 0.7]), []

    def evaluate(answerer, params, held_out, predict):
        score = next(told)
        if score is None:
            raise preemption.Interrupted
        evaluated.append(score)
        return [{"accuracy": score}]

    monkeypatch.setattr(infer, "evaluate", evaluate)
    patient = flags(home, tmp_path, TRAIN_STEPS=30, PATIENCE=1)
    monkeypatch.setattr(sys, "stdout", Signalling(" 6/30 "))
    assert cli.main(["train", *patient]) == 0
    assert cli.main(["train", *patient]) == 0
    assert evaluated == [0.5, 0.6, 0.7, 0.7], "it goes on until it gets no better"


def test_a_run_says_which_examples_were_unsound_and_goes_on_with_the_other_slots(home, tmp_path, capsys):
    grid = {"learning_rate": [0.3, 1e30]}
    assert cli.main(["train", *flags(home, tmp_path, GRID=grid, TRAIN_STEPS=12, EVAL_PERIOD=6)]) == 0
    said = capsys.readouterr().out
    assert "films-lr1e_30: step 1 left out" in said and "training examples, from 0: films " in said
    assert "10 steps in a row left out; it stays as it was at step 0" in said
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert all(row["films-lr1e_30"] is None and row["films-lr0.3"] > 0 for row in losses)
    left_out = [step for row in rows for step in row.get("left_out", {}).get("films-lr1e_30", [])]
    assert left_out == list(range(1, 11))
    assert (tmp_path / "curves.png").is_file()
    assert cli.main(["train", *flags(home, tmp_path / "alone", LEARNING_RATE=1e30, TRAIN_STEPS=40)]) == 2
    assert "Nothing is left to train" in capsys.readouterr().err
    assert max(row[0] for row in plain(tmp_path / "alone")) < 20


TOGETHER = textwrap.dedent("""
    import sys, time
    import jax
    jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
    from prompt_tuning.preemption import Stop
    with Stop() as stop:
        print("ready", flush=True)
        for step in range(1, 4000):
            time.sleep(0.01)
            if stop.after(step):
                break
    print(step, flush=True)
""")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_processes_of_one_job_stop_after_the_same_step(name):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"
    start = lambda n: subprocess.Popen(
        [sys.executable, "-c", TOGETHER, place, str(n)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env=os.environ | {"XLA_FLAGS": ""},
    )  # fmt: skip
    both = [start(0), start(1)]
    try:
        assert [p.stdout.readline() for p in both if p.stdout] == ["ready\n"] * 2
        both[1].send_signal(getattr(signal, name))  # one is told, both stop
        told = [p.communicate(timeout=300)[0] for p in both]
    finally:
        for process in both:
            process.kill()
    assert told[0] == told[1] and 0 < int(told[0]) < 3999


@pytest.mark.slow
def test_a_run_killed_at_random_moments_is_the_undisturbed_one(tmp_path):
    path = Path(__file__).parents[1] / "scripts" / "torture.py"
    spec = importlib.util.spec_from_file_location("torture", path)
    assert spec is not None and spec.loader is not None
    torture = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(torture)
    flags = torture.prepare(tmp_path, steps=60, period=5)
    assert torture.Life(flags, tmp_path / "calm", 5).wait() == 0
    phases = ["evaluation", "save", torture.END]
    hits = torture.torture(flags, tmp_path / "killed", phases, 5, random.Random(0), torture.Life.kill)
    assert sum(map(len, hits.values())) == 3
    assert torture.compare(tmp_path / "calm", tmp_path / "killed", 5, 60) == ""
    (tmp_path / "killed" / "prompts" / ".x.part").write_text("")
    assert "only one run has" in torture.compare(tmp_path / "calm", tmp_path / "killed", 5, 60)


def test_a_run_in_a_thread_leaves_signals_alone_and_every_signal_is_given_back():
    numbers = [number for number in preemption.SIGNALS if number != signal.SIGTERM]
    before = {number: signal.getsignal(number) for number in numbers}

    def inside() -> dict:
        with preemption.Stop():
            return {number: signal.getsignal(number) for number in numbers}

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(inside).result() == before
    assert inside().keys() == before.keys() and not set(inside().values()) & set(before.values())
    assert {number: signal.getsignal(number) for number in numbers} == before
