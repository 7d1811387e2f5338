"""Prompts of one task answer together: majority vote, ties by mean likelihood; calibrated rankings."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import flags

from prompt_tuning import cli, ensemble, evaluate, metrics, prompt_file
from prompt_tuning.examples import LENGTHS
from prompt_tuning.infer import Answer
from prompt_tuning.over_prompts import over_prompts
from prompt_tuning.predict import PromptTuned
from prompt_tuning.prompt_file import Prompt
from prompt_tuning.run import Data, Run

LABELS = ("flat", "war", "rain", "film")  # of as many pieces each


def ranked(*probabilities: float) -> Answer:
    labels = ("a", "b", "c")[: len(probabilities)]
    best = int(np.argmax(probabilities))
    return Answer(labels[best], dict(zip(labels, probabilities, strict=True)), float(np.log(max(probabilities))))


def test_the_majority_outvotes_a_surer_minority():
    members = [ranked(0.51, 0.49), ranked(0.52, 0.48), ranked(0.01, 0.99)]
    assert ensemble.vote(members).text == "a"
    assert ensemble.mean_likelihood(members).text == "b"
    assert ensemble.mean_likelihood(members).probabilities == pytest.approx({"a": 0.3466667, "b": 0.6533333})


def test_a_tie_goes_to_the_higher_mean_likelihood():
    members = [ranked(0.6, 0.4, 0.0), ranked(0.1, 0.9, 0.0), ranked(0.3, 0.3, 0.4)]
    assert ensemble.vote(members).text == ensemble.vote(members[::-1]).text == "b"


def test_written_answers_are_voted_on_too():
    members = [Answer("Paris", {}, -0.1), Answer("Rome", {}, -1.5), Answer("Rome", {}, -1.5)]
    assert ensemble.vote(members).text == "Rome" and ensemble.mean_likelihood(members).text == "Paris"
    assert ensemble.vote(members[:2]).text == ensemble.vote(members[1::-1]).text == "Paris"
    assert ensemble.vote(members).probabilities == {}


def test_slots_of_one_task_and_its_labels_are_a_team():
    assert ensemble.teams([("x", LABELS), ("y", LABELS), ("x", LABELS), ("x", ("no", "yes"))]) == [[0, 2]]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> list[str]:
    """Three prompts of one name."""
    folder = tmp_path_factory.mktemp("prompts")
    for seed, length in enumerate((5, 2, 3)):
        vectors = np.random.default_rng(seed).normal(size=(length, 16), scale=5).astype(np.float32)
        card = prompt_file.Card(name="films", labels=LABELS, step=seed)
        prompt_file.save_safetensors(folder / f"[bold]{seed}.safetensors", prompt_file.Prompt(vectors, card))
    return sorted(map(str, folder.iterdir()))


def test_eval_scores_prompt_files_alone_and_as_an_ensemble(home, prompts, tmp_path, capsys):
    texts = [json.loads(line)["text"] for line in (home / "dev.jsonl").read_text().splitlines()]
    rows = [{"text": text, "label": LABELS[2 + (i % 4 == 0)]} for i, text in enumerate(texts)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = (home / "task.toml").read_text().replace('["negative", "positive"]', json.dumps(LABELS))
    (tmp_path / "task.toml").write_text(task)
    settings = flags(home, tmp_path, TASK_FILE=tmp_path / "task.toml")
    assert cli.main(["eval", "--prompts", *prompts, *settings]) == 0
    found = json.loads((tmp_path / "eval.jsonl").read_text())
    together = found["ensembles"]["films"]
    names = [Path(path).name for path in prompts]  # a name that several have would tell nothing
    assert list(found["metrics"]) == together["members"] == names and found["step"] == ["0", "1", "2"]
    alone = [m["accuracy"] for m in found["metrics"].values()]
    assert together["mean"]["accuracy"] == pytest.approx(np.mean(alone))
    (best,) = together["best"].values()
    assert best["accuracy"] == max(alone) > min(alone)

    each = [PromptTuned.load(str(home / "base"), path).predict([f"review: {t}" for t in texts]) for path in prompts]
    right = lambda answers: 100 * np.mean([a.text == row["label"] for a, row in zip(answers, rows, strict=True)])
    assert alone == pytest.approx([right(answers) for answers in each])
    for way, combine in ensemble.WAYS.items():
        assert together[way]["accuracy"] == pytest.approx(right(list(map(combine, zip(*each, strict=True)))))
    said = capsys.readouterr().out
    assert "ensemble, majority vote" in said and "[bold]0.safetensors" in said


def test_examples_are_cut_where_a_prompt_was_trained_unless_lengths_are_set():
    vectors, cards = np.ones((2, 4), np.float32), [prompt_file.Card(input_length=n, target_length=4) for n in (16, 24)]
    over = lambda run, *cards: over_prompts(run, [(str(k), Prompt(vectors, card)) for k, card in enumerate(cards)])
    lengths = lambda run: (run.data.lengths, run.data.eval_lengths)
    assert lengths(over(Run(), cards[0])) == ({"inputs": 16, "targets": 4},) * 2
    assert lengths(over(Run(), *cards, prompt_file.Card())) == ({"inputs": 24, "targets": 4},) * 2
    assert lengths(over(Run(), prompt_file.Card())) == (LENGTHS, LENGTHS)
    for chosen in (Data(eval_lengths=None), Data(lengths={"inputs": 8, "targets": 2})):
        assert over(Run(data=chosen), *cards).data == chosen


def test_the_mean_of_a_benchmark_is_over_its_tasks_and_of_each_over_its_prompts():
    named = [(f"superglue_{task}", seed) for task in metrics.BENCHMARKS["superglue"] for seed in (0, 1)]
    opened = SimpleNamespace(mixtures=[SimpleNamespace(name=name) for name, _ in named])
    found = [{"accuracy": 50.0 + seed, "f1": 70.0 + seed} for _, seed in named]
    assert evaluate._averages(opened, found) == {"superglue": 60.5}
    opened.mixtures[0] = opened.mixtures[1] = SimpleNamespace(name="glue_sst2")
    assert evaluate._averages(opened, found) == {}


def test_calibration_divides_by_what_says_nothing(home, prompts, capsys):
    tuned = PromptTuned.load(str(home / "base"), prompts[0])
    texts, nothing = ["review: a fine film about war", "review: a dull film"], ["review:", "review: a film"]
    plain, calibrated = tuned.predict(texts), tuned.predict(texts, content_free=nothing)
    priors = [list(answer.probabilities.values()) for answer in tuned.predict(nothing)]
    for before, after in zip(plain, calibrated, strict=True):
        assert list(after.prior.values()) == pytest.approx(np.mean(priors, axis=0))
        expected = np.array(list(before.probabilities.values())) / np.mean(priors, axis=0)
        assert list(after.probabilities.values()) == pytest.approx(expected / expected.sum(), rel=1e-4)
    says_nothing = tuned.predict(nothing[:1], content_free=nothing[:1])[0]
    assert list(says_nothing.probabilities.values()) == pytest.approx([0.25] * 4, abs=1e-6)

    arguments = ["--prompt", prompts[0], "--base", str(home / "base"), "--content_free", *nothing]
    assert cli.main(["infer", texts[0], *arguments]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["probabilities"] == calibrated[0].probabilities and row["prior"] == calibrated[0].prior
