"""The doctor finds what keeps a prompt from learning, and finds nothing where nothing is wrong."""

import numpy as np
import pytest
from conftest import configured, flags

from prompt_tuning import cli, doctor, prompt_file
from prompt_tuning.doctor import BAD, DOUBTFUL, GOOD
from prompt_tuning.errors import UserError


def by_check(findings, slot: str | None = None) -> dict[str, doctor.Finding]:
    return {f.check: f for f in findings if slot is None or f.slot in ("", slot)}


@pytest.fixture(scope="module")
def findings(home, tmp_path_factory):
    """Of two prompts before their training, one of them on a scale and at a rate that do not fit."""
    folder = tmp_path_factory.mktemp("doctor")
    large = {"init": str(folder / "large.npy"), "learning_rate": 300.0, "name": "large", "length": 5}
    prompt_file.save_npy(folder / "large.npy", 1000 * np.ones((5, 16), np.float32))
    run = configured(flags(home, folder / "run", SLOTS=[{"name": "usual", "learning_rate": 0.03}, large]))
    found = doctor.examine(run)
    assert not (folder / "run").exists(), "nothing is written"
    return found


def test_every_check_is_made_of_every_prompt(findings):
    checks = {"labels", "prompt", "learning rate", "baseline", "gradient", "decoding"}
    assert all({f.check for f in findings if f.slot == slot} == checks for slot in ("usual", "large"))


def test_a_usual_prompt_has_a_gradient_a_scale_and_a_rate(findings):
    found = by_check(findings, "usual")
    for check in ("labels", "prompt", "learning rate", "baseline", "gradient", "frozen base"):
        assert found[check].verdict == GOOD, found[check]
    assert "norm" in found["gradient"].text and "digest" in found["frozen base"].text
    assert "the commonest answer alone scores" in found["baseline"].text


def test_a_scale_and_a_rate_that_do_not_fit_are_doubtful(findings):
    found = by_check(findings, "large")
    assert found["prompt"].verdict == DOUBTFUL and "@sampled_vocabulary" in found["prompt"].text
    assert "4 vectors repeat others" in found["prompt"].text
    assert found["learning rate"].verdict == DOUBTFUL and "in proportion" in found["learning rate"].text


def test_a_random_model_writes_no_labels(findings):
    assert "% of 24 greedily decoded answers are no label" in by_check(findings, "usual")["decoding"].text
    assert by_check(findings, "usual")["decoding"].verdict == DOUBTFUL


def test_a_prompt_that_learned_nothing_is_bad_and_the_exit_code_says_so(home, tmp_path, capsys):
    card = prompt_file.Card("[/flat]", "films", ("negative", "positive"), score=31.0, base=str(home / "base"))
    path = tmp_path / "flat.safetensors"
    prompt_file.save_safetensors(path, prompt_file.Prompt(np.ones((5, 16), np.float32), card))
    assert cli.main(["doctor", "--prompt", str(path), *flags(home, tmp_path / "run", EVAL_SPLIT="train")]) == 1
    said = capsys.readouterr().out
    assert "[/flat]" in said and "it has learned nothing" in " ".join(said.split()) and "1 bad" in said


def test_a_loss_or_the_score_of_another_task_is_compared_with_nothing(home, tmp_path):
    for n, card in enumerate(({"metric": "minus the loss of a target token"}, {"task": "books"})):
        card = {"task": "films", "labels": ("negative", "positive"), "score": -3.1, "base": str(home / "base")} | card
        path = tmp_path / f"{n}.safetensors"
        prompt_file.save_safetensors(path, prompt_file.Prompt(np.ones((5, 16), np.float32), prompt_file.Card(**card)))
        found = by_check(doctor.examine(configured(flags(home, tmp_path / "run")), [str(path)]))["baseline"]
        assert found.verdict == GOOD and "this prompt" not in found.text


class Spelled:
    """A vocabulary of whole words, but for what its table says."""

    def encode(self, text: str) -> list[int]:
        return {"yes": [5], "yesterday": [5, 6], "yep": [5, 7], "no": [8], "No": [8], "?": [2]}[text]

    def can_spell(self, text: str) -> bool:
        return 2 not in self.encode(text)


@pytest.mark.parametrize(
    "labels, verdict, words",
    [
        (("yes", "no"), GOOD, "first pieces of their own"),
        (("yes", "yesterday"), DOUBTFUL, "one begins with the other"),
        (("yesterday", "yep"), DOUBTFUL, "the same first piece"),
        (("no", "No"), BAD, "spelled alike"),
        (("yes", "?"), BAD, "cannot spell '?'"),
    ],
)
def test_labels_that_collide_are_named(labels, verdict, words):
    from types import SimpleNamespace

    opened = SimpleNamespace(slots=[SimpleNamespace(name="s")], labels=[labels], vocabulary=Spelled())
    found = list(doctor._labels(opened))
    assert [f.verdict for f in found] == [verdict] and words in found[0].text


def test_a_whole_model_is_no_patient(home, tmp_path):
    with pytest.raises(UserError, match="looks at prompts"):
        doctor.examine(configured(flags(home, tmp_path / "run", TUNING="@ModelTuning()")))
