"""SPoT from the command line on a tiny base: the four steps, the study, and what survives a kill between them."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import processes
import pytest
from conftest import WORDS, flags, reviews

from prompt_tuning import cli, job, log, prompt_file, spot, spot_steps, transfer
from prompt_tuning.errors import UserError
from prompt_tuning.run import Data, Frozen, Run

ABOUT = ("love", "war", "rain")
LABELS = {"films": ("negative", "positive"), "about": ABOUT, "dull": ("weak", "fine")}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    """Three task files: two ask the same of a film in other words, one asks what it is about."""
    folder = tmp_path_factory.mktemp("tasks")
    for split, count, seed in (("train", 40, 0), ("dev", 12, 1)):
        rows = [row | {"about": row["text"].split()[-1]} for row in reviews(count, seed)]
        rows = [row | {"dull": "fine" if row["label"] == "positive" else "weak"} for row in rows]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert {row.split()[-1] for row in (r["text"] for r in reviews(40, 0))} == set(ABOUT) and WORDS
    for name, target in (("films", "label"), ("about", "about"), ("dull", "dull")):
        (folder / f"{name}.toml").write_text(
            f'name = "{name}"\ninputs = "review: {{text}}"\ntarget = "{target}"\nlabels = {list(LABELS[name])}\n'
            'metric = "accuracy"\ntrain = "train.jsonl"\nvalidation = "dev.jsonl"\n'
        )
    return folder


def argv(home: Path, model_dir: Path, tasks: Path, *more: str, **names) -> list[str]:
    place = lambda *names: [str(tasks / f"{name}.toml") for name in names]
    settings = {
        "TASK_FILE": None, "SOURCES": place("films", "about"), "TARGETS": place("dull"), "SEEDS": [0, 1],
        "SOURCE_STEPS": 4, "TRAIN_STEPS": 4, "EVAL_PERIOD": 2, "EMBEDDING_STEP": 2, "TOP_K": 2, "LEARNING_RATE": 0.1,
    }  # fmt: skip
    return ["spot", *more, *flags(home, model_dir, **settings | names)]


def plain(folder: Path, name: str = "spot.json"):
    return json.loads((folder / name).read_text())


@pytest.fixture(scope="module")
def transferred(home, tasks, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("spot")
    assert cli.main(argv(home, folder, tasks)) == 0
    return folder


def test_a_target_is_tuned_with_and_without_transfer_and_both_are_reported(transferred):
    [outcome] = plain(transferred)
    assert len(outcome["without_transfer"]) == len(outcome["with_transfer"]) == 2
    assert len(outcome["tunings"]) == 2 * 2, "two seeds, the best of top 2"
    for seed in (0, 1):
        tried = [t for t in outcome["tunings"] if t["seed"] == seed]
        assert max(t["score"] for t in tried) == outcome["with_transfer"][seed]
        order = sorted(outcome["similarity"][str(seed)], key=lambda name: -outcome["similarity"][str(seed)][name])
        assert [t["sources"][0] for t in tried] == order[:2], "those most like it"
    means = np.mean(outcome["with_transfer"]), np.mean(outcome["without_transfer"])
    assert outcome["relative_error_reduction"] == pytest.approx(spot.relative_error_reduction(*means))
    assert "without transfer" in (transferred / "spot.md").read_text()


def test_a_transferred_prompt_starts_where_its_source_was_best(transferred):
    [outcome] = plain(transferred)
    tried = outcome["tunings"][0]
    source = prompt_file.load(f"{transferred / 'from_scratch'}:{tried['sources'][0]}")
    card = prompt_file.load(tried["prompt"]).card
    assert card.init == f"{transferred / 'from_scratch'}:{tried['sources'][0]}"
    after = prompt_file.load(f"{transferred / 'transfers'}:{tried['name']}@2").vectors
    assert np.abs(after - source.vectors).max() < 0.1 * 2 * 1.5, "two steps of at most the learning rate away"
    kept = prompt_file.load(transferred / "prompts" / "dull.safetensors").card
    assert kept.score == max(outcome["with_transfer"]) and kept.labels == LABELS["dull"]


def test_a_target_that_no_prompt_was_scored_on_is_told_beside_the_others(tmp_path):
    settings = spot_steps.Spot(sources=("a",), targets=("b", "c"), seeds=(0,), top_k=1)
    compared = spot_steps.Compared(np.full((2, 3, 3), 0.5), {("a", 0): 0}, {("b", 0): 1, ("c", 0): 2})
    prompt_file.save_safetensors(tmp_path / "prompts" / "good.safetensors", prompt_file.Prompt(np.ones((2, 3))))
    retuning = spot_steps.Retuning("b", 0, spot.Pick(("source-a-seed0",)), "good")
    tried = [(retuning, spot_steps.Tuned(str(tmp_path), name, score, 2, 4))
             for name, score in (("good", 75.0), ("never", -np.inf))]  # fmt: skip
    outcomes = [transfer.Outcome("b", [50.0], [tried]), transfer.Outcome("c", [-np.inf], [tried[1:]])]
    transfer._write(settings, tmp_path / "run", compared, outcomes)
    assert [f.name for f in (tmp_path / "run" / "prompts").iterdir()] == ["b.safetensors"]
    assert [t["prompt"] and t["score"] for told in plain(tmp_path / "run") for t in told["tunings"]] == [75, None, None]
    told = (tmp_path / "run" / "spot.md").read_text()
    assert "| b | 50.0 | 75.0 | 50.0 % |" in told and "| c | - | - | - |" in told and "inf" not in told


def test_similarities_are_those_of_the_prompts_of_the_embedding_step(transferred):
    written = plain(transferred, "similarity.json")
    vectors = [prompt_file.load(f"{transferred / 'from_scratch'}:{name}@2").vectors for name in written["prompts"]]
    units = [(v / np.linalg.norm(v, axis=1, keepdims=True)).astype(np.float64) for v in vectors]
    expected = [[(a @ b.T).mean() for a in units] for b in units]
    np.testing.assert_allclose(written["per_token_average"], expected, atol=2e-6)


def test_finished_steps_are_not_done_again_and_a_killed_one_goes_on(home, tasks, transferred, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(transferred, folder)
    shutil.rmtree(folder / "transfers")  # as if killed before the last step
    (folder / "spot.json").unlink()
    stamp = {f: f.stat().st_mtime_ns for f in (folder / "from_scratch").rglob("*")}
    assert cli.main(argv(home, folder, tasks)) == 0
    assert f"{folder / 'from_scratch'} is finished" in capsys.readouterr().out
    assert stamp == {f: f.stat().st_mtime_ns for f in (folder / "from_scratch").rglob("*")}
    scores = lambda where: [(t["name"], t["score"]) for t in plain(where)[0]["tunings"]]
    assert scores(folder) == scores(transferred)
    (folder / "transfers" / spot_steps.FINISHED).unlink()  # as if killed between training and writing it down
    assert cli.main(argv(home, folder, tasks)) == 0
    assert scores(folder) == scores(transferred)


def test_what_an_older_version_did_not_write_down_is_not_compared(home, tasks, transferred, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(transferred, folder)
    for finished in folder.glob(f"*/{spot_steps.FINISHED}"):
        told = json.loads(finished.read_text())
        assert told["plan"]["settings"].pop("z_loss") == 1e-4
        assert {slot.pop("placement") for slot in told["plan"]["slots"].values()} == {"front"}
        finished.write_text(json.dumps(told))
    assert cli.main(argv(home, folder, tasks)) == 0
    assert cli.main(argv(home, folder, tasks, SEEDS=[0])) == 2
    assert "the slot source-films-seed1 is another" in capsys.readouterr().err
    assert cli.main(argv(home, tmp_path / "other", tasks, PATIENCE=3)) == 2
    assert "leave PATIENCE at None" in capsys.readouterr().err


def test_a_number_that_is_none_is_null_in_json():
    told = log.finite({"a": [np.nan, 1.0], "b": {"c": float("inf")}, "d": (2,)})
    assert json.dumps(told, allow_nan=False) == '{"a": [null, 1.0], "b": {"c": null}, "d": [2]}'


def test_finished_steps_of_other_settings_are_refused(home, tasks, transferred, capsys):
    assert cli.main(argv(home, transferred, tasks, LEARNING_RATE=0.2)) == 2
    said = capsys.readouterr().err
    assert "source-films-seed0: learning_rate was 0.1 and is 0.2" in said and "from_scratch" in said
    assert cli.main(argv(home, transferred, tasks, TRAIN_STEPS=6, SOURCE_STEPS=6)) == 2
    assert "train_steps was 4 and is 6" in capsys.readouterr().err
    assert cli.main(argv(home, transferred, tasks, INITIAL_CHECKPOINT_PATH=home / "other")) == 2
    assert f"base was {home / 'base'} and is {home / 'other'}" in capsys.readouterr().err
    assert cli.main(argv(home, transferred, tasks, RETRIEVE="@top_k_mixture")) == 2
    assert f"delete {transferred / 'transfers'} to do that step again" in capsys.readouterr().err
    assert not (transferred / "mixtures").exists(), "nothing is tuned for a step that will be refused"


def test_finished_steps_are_read_again_on_another_kind_of_machine(home, tasks, transferred, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(transferred, folder)
    elsewhere = {"REMAT": True, "SCAN_LAYERS": True, "FROZEN_DTYPE": "bfloat16", "MODEL_PARALLEL": 2,
                 "DATA_DIR": tmp_path, "LOG_PERIOD": 1, "EVAL_BATCH_SIZE": 8}  # fmt: skip
    assert cli.main(argv(home, folder, tasks, **elsewhere)) == 0
    out = capsys.readouterr().out
    assert all(f"{folder / step} is finished" in out for step in ("from_scratch", "transfers"))


def test_a_step_that_an_earlier_version_finished_is_checked_by_its_checkpoint(
    home, tasks, transferred, tmp_path, capsys
):
    def older(step: str) -> Path:
        told = json.loads((transferred / step / spot_steps.FINISHED).read_text())
        plan = {"run": {"batch_size": "4", "train_steps": "4", "frozen": "Frozen(path='base')"}}
        slots = {name: {"task": "films", "learning_rate": "0.1"} for name in told["slots"]}
        (folder / step / spot_steps.FINISHED).write_text(json.dumps(told | {"plan": plan | {"slots": slots}}))
        return folder / step / spot_steps.FINISHED

    folder = tmp_path / "run"
    shutil.copytree(transferred, folder)
    finished = older("from_scratch")
    for wrong, said in (({"LEARNING_RATE": 0.2}, "learning_rate was 0.1 and is 0.2"),
                        ({"TRAIN_STEPS": 2, "SOURCE_STEPS": 2}, "train_steps was 4 and is 2"),
                        ({"SEEDS": [0]}, "the slot source-films-seed1 is another")):  # fmt: skip
        assert cli.main(argv(home, folder, tasks, **wrong)) == 2
        assert said in capsys.readouterr().err
    assert cli.main(argv(home, folder, tasks)) == 0
    assert json.loads(finished.read_text())["plan"] == plain(transferred / "from_scratch", finished.name)["plan"]
    assert plain(folder)[0]["without_transfer"] == plain(transferred)[0]["without_transfer"]


def test_a_mixture_of_the_most_alike_is_tuned_and_its_last_prompt_starts_the_target(home, tasks, transferred, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(transferred, folder, ignore=shutil.ignore_patterns("transfers", "spot.*"))
    assert cli.main(argv(home, folder, tasks, RETRIEVE="@top_k_mixture")) == 0
    [outcome] = plain(folder)
    assert [len(t["sources"]) for t in outcome["tunings"]] == [2, 2], "one tuning a seed"
    mixtures = json.loads((folder / "mixtures" / spot_steps.FINISHED).read_text())["plan"]["slots"]
    drawn = {slot["task"] for slot in mixtures.values()}
    assert all("dull.toml" in task and "+" in task for task in drawn), "the sources' tasks and the target's"
    starts = {prompt_file.load(t["prompt"]).card.init for t in outcome["tunings"]}
    assert starts == {f"{folder / 'mixtures'}:{name}@4" for name in mixtures}


def test_a_study_compares_every_pair_and_no_task_with_itself(home, tasks, tmp_path, monkeypatch):
    place = lambda *names: [str(tasks / f"{name}.toml") for name in names]
    names = {"SOURCES": place("films", "about", "dull"), "TARGETS": place("dull", "about"), "TRAIN_STEPS": 2,
             "EMBEDDING_STEP": 2, "AVERAGE_TOP": [2], "BANK_SLOTS": 8}  # fmt: skip
    assert cli.main(argv(home, tmp_path, tasks, "--study", **names)) == 0
    found = plain(tmp_path, "study.json")
    scores = np.array(found["transfer_scores"], float)
    assert scores.shape == (2, 3, 2)
    own = np.isnan(scores).all(axis=2)
    assert own.tolist() == [[False, False, True], [False, True, False]]
    banks = [json.loads((tmp_path / "transfers" / f"{n}_of_2" / spot_steps.FINISHED).read_text()) for n in (1, 2)]
    assert [len(bank["slots"]) for bank in banks] == [8, 4], "four pairs and an average for each target, two seeds each"
    assert banks[0]["slots"]["target-dull-seed1-from-films-seed1"][0] == pytest.approx(scores[0, 0, 1], abs=1e-5)
    gain = np.array(found["relative_error_reduction"], float)
    base = np.mean(found["baseline"][0])
    assert gain[0, 0] == pytest.approx(100 * (scores[0, 0].mean() - base) / (100 - base), abs=1e-4)
    assert found["retrieval"][0]["name"] == "best of all 4 (oracle)"
    oracle = np.array(found["retrieval"][0]["score"])
    assert oracle == pytest.approx(np.nanmax(scores.reshape(2, -1), axis=1).mean())
    for name in ("error_reduction.png", "similarity.png", "correlation.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "study.md").read_text()
    assert "76.7 ± 0.7" in text and "best of top-1 by per_token_average" in text
    (tmp_path / "study.md").unlink()
    monkeypatch.setattr(job, "writes", lambda: False)
    assert cli.main(argv(home, tmp_path, tasks, "--study", **names)) == 0
    assert not (tmp_path / "study.md").exists(), "one process of several writes it"


def test_of_several_processes_one_writes_and_speaks_and_the_others_wait(
    home, tasks, transferred, tmp_path, capsys, monkeypatch
):
    folder, waits = tmp_path / "run", []
    shutil.copytree(transferred, folder)
    made = ("spot.md", "spot.json", "similarity.json", "prompts/dull.safetensors")
    for name in (*made, f"from_scratch/{spot_steps.FINISHED}"):
        (folder / name).unlink()
    stamps = lambda: {f: f.stat().st_mtime_ns for f in folder.rglob("*") if f.is_file()}
    before = stamps()
    monkeypatch.setattr(job, "writes", lambda: False)
    monkeypatch.setattr(job, "together", waits.append)
    assert cli.main(argv(home, folder, tasks)) == 0
    assert stamps() == before and capsys.readouterr().out == ""
    assert waits[-1] == "a step of spot is finished"


@pytest.mark.slow
def test_two_processes_transfer_as_one_does(home, tasks, transferred, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "TRAIN", (sys.executable, "-m", "prompt_tuning.cli"))
    folder = tmp_path / "run"
    processes.run(argv(home, folder, tasks), 2, tmp_path / "logs", 600)
    alike = [plain(where, "similarity.json")["per_token_average"] for where in (folder, transferred)]
    np.testing.assert_allclose(*alike, atol=1e-3)
    [outcome] = plain(folder)
    assert len(outcome["tunings"]) == 4 and prompt_file.load(folder / "prompts" / "dull.safetensors").card.score
    assert "dull" in (tmp_path / "logs" / "0").read_text() and "dull" not in (tmp_path / "logs" / "1").read_text()


MISTAKES = {
    "no sources": ({"SOURCES": []}, "SOURCES"),
    "a text for a list": ({"TARGETS": "'films'"}, "TARGETS"),
    "a source twice": ({"SEEDS": [1, 1]}, "twice"),
    "two files of one name": ({"SOURCES": ["a/t.toml", "b/t.toml"]}, "SOURCES names t twice"),
    "no other source": ({"SOURCES": ["a"], "TARGETS": ["a"]}, "no source of itself"),
    "an embedding between evaluations": ({"EMBEDDING_STEP": 3}, "EVAL_PERIOD=2"),
    "an embedding behind the end": ({"EMBEDDING_STEP": 6}, "TRAIN_STEPS=4"),
    "more than there are": ({"TOP_K": 5}, "4 source prompts"),
    "slots of one's own": ({"SLOTS": [{"seed": 1}]}, "SLOTS"),
    "labels of one's own": ({"CLASS_LABELS": ["yes", "no"]}, "leave CLASS_LABELS out"),
    "a seed of one's own": ({"RANDOM_SEED": 7}, "leave RANDOM_SEED out"),
    "a misspelt name": ({"SOURCE_STEP": 3}, "'SOURCE_STEPS'"),
}


@pytest.mark.parametrize("settings, expected", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_explained_and_nothing_is_written(home, tasks, tmp_path, capsys, settings, expected):
    if expected == "TRAIN_STEPS=4":
        settings = settings | {"SOURCE_STEPS": 8}
    assert cli.main(argv(home, tmp_path / "run", tasks, **settings)) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_folder_of_another_run_is_left_alone(home, tasks, tmp_path, capsys):
    (tmp_path / "checkpoints").mkdir()
    assert cli.main(argv(home, tmp_path, tasks)) == 2
    assert "holds a run of `train`" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


OTHERWISE = {
    "other weights": {"frozen": Frozen("elsewhere")},
    "another vocabulary": {"frozen": Frozen("base", vocabulary_file="other.model")},
    "tasks of another module": {"data": Data(module="theirs")},
    "other steps": {"train_steps": 5},
    "another split": {"data": Data(eval_split="test")},
    "another seed": {"slots": [{"name": "a", "seed": 1}]},
    "another slot": {"slots": [{"name": "b"}]},
    "a slot more": {"slots": [{"name": "a"}, {"name": "b"}]},
}


@pytest.mark.parametrize("change", OTHERWISE.values(), ids=OTHERWISE)
def test_a_finished_step_is_held_to_all_it_was_tuned_over(tmp_path, change):
    run = Run(str(tmp_path), frozen=Frozen("base"), slots=[{"name": "a"}])
    steps = spot_steps.Steps(run)
    plan = steps._plan(run)
    spot_steps._refuse_other(
        tmp_path, plan, steps._plan(dataclasses.replace(run, frozen=Frozen("base", dtype="bfloat16")))
    )
    with pytest.raises(UserError, match="finished under other settings"):
        spot_steps._refuse_other(tmp_path, plan, steps._plan(dataclasses.replace(run, **change)))


def test_finished_steps_may_be_moved_with_what_they_started_from(tmp_path):
    plan = lambda folder: spot_steps.Steps(
        run := Run(str(folder), frozen=Frozen("base"), slots=[{"name": "a", "init": f"{folder}/sources:b"}])
    )._plan(run)
    assert plan(tmp_path / "here") == plan(tmp_path / "there")


class Recorded:
    """Trainings that are only written down."""

    def __init__(self) -> None:
        self.run, self.asked = SimpleNamespace(train_steps=7), []

    def refuse_others(self, step, names):
        pass

    def tune(self, step: str, rows: list, train_steps: int) -> dict[str, spot_steps.Tuned]:
        self.asked.append((step, rows, train_steps))
        return {row["name"]: spot_steps.Tuned(step, row["name"], 50.0, 2, train_steps) for row in rows}


def test_a_target_starts_from_best_prompts_by_their_weights_or_from_the_last_of_a_mixture():
    settings = spot_steps.Spot(sources=("a", "b"), targets=("c",), seeds=(0, 1), source_steps=9)
    sources = {(task, seed): spot_steps.Tuned("from", f"source-{task}-seed{seed}", 60.0, 2, 4)
               for task in "ab" for seed in (0, 1)}  # fmt: skip
    scratch, steps = spot_steps.Scratch(sources, {}), Recorded()
    average = spot.Pick(("source-b-seed1", "source-a-seed0"), (0.75, 0.25))
    mixtures = [spot.Pick((f"source-a-seed{seed}", "source-b-seed0"), (0.5, 0.5), True) for seed in (0, 1)]
    wanted = [spot_steps.Retuning("c", 0, average, "averaged"), spot_steps.Retuning("c", 0, mixtures[0], "mixed"),
              spot_steps.Retuning("c", 0, mixtures[1], "alike"), spot_steps.Retuning("c", 1, mixtures[0], "later")]  # fmt: skip # noqa: E501
    found = spot_steps.retune(settings, steps, scratch, wanted)
    assert [(step, n) for step, _, n in steps.asked] == [("mixtures", 9), ("transfers", 7)]
    assert [(row["task"], row["seed"], row["name"]) for row in steps.asked[0][1]] == [
        ("a+b+c", 0, "mixture1-seed0"), ("a+b+c", 1, "mixture2-seed1"),
    ]  # fmt: skip
    starts = {row["name"]: (row["task"], row["seed"], row["init"].places, row["init"].weights)
              for row in steps.asked[1][1]}  # fmt: skip
    assert starts == {
        "averaged": ("c", 0, ("from:source-b-seed1", "from:source-a-seed0"), (0.75, 0.25)),
        "mixed": ("c", 0, ("mixtures:mixture1-seed0@9",), (1.0,)),
        "alike": ("c", 0, ("mixtures:mixture1-seed0@9",), (1.0,)),
        "later": ("c", 1, ("mixtures:mixture2-seed1@9",), (1.0,)),
    }
    assert found.keys() == starts.keys()


def test_a_source_that_was_never_scored_starts_nothing():
    settings, steps = spot_steps.Spot(sources=("a",), targets=("c",), seeds=(0,)), Recorded()
    scratch = spot_steps.Scratch({("a", 0): spot_steps.Tuned("from", "source-a-seed0", -np.inf, 2, 4)}, {})
    with pytest.raises(UserError, match="source-a-seed0 has no best prompt"):
        spot_steps.retune(settings, steps, scratch, [spot_steps.Retuning("c", 0, spot.Pick(("source-a-seed0",)), "x")])
    assert not steps.asked
