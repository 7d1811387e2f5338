"""Labels are ranked alike whatever they are computed in: rows, lines, on one device or several."""

import dataclasses
from types import SimpleNamespace

import gin
import jax
import numpy as np
import pytest
from conftest import TINY, random_bank, random_params

from prompt_tuning import decode, device, infer, layout, planning
from prompt_tuning.errors import UserError
from prompt_tuning.examples import Examples, Mixture, Ragged
from prompt_tuning.grouping import Fixed, roomy
from prompt_tuning.progress import bar
from prompt_tuning.run import held_out
from prompt_tuning.slots import Slot
from prompt_tuning.step import Model

LENGTHS = [4, 7]
LABELS = [("a", "bcd", "ef"), ("gh", "i")]


@pytest.fixture
def asked():
    rng = np.random.default_rng(3)
    return [infer.Question(rng.integers(2, 97, rng.integers(3, 30)).astype(np.int32), n % 2) for n in range(41)]


def answerer(mesh, vocabulary, **changed) -> infer.Answerer:
    slots = [Slot(length=length) for length in LENGTHS]
    return infer.Answerer(Model(TINY, 2, 7), slots, LABELS, vocabulary, mesh, batch_size=16, **changed)


def ranked(mesh, vocabulary, asked, **changed) -> list[infer.Answer]:
    params = random_params() | {"prompt": {"bank": random_bank(LENGTHS)}}
    with device.on(mesh):
        one = answerer(mesh, vocabulary, **changed)
        return infer.rank(one, device.put_everywhere(params, mesh), asked)


def written(mesh, vocabulary, asked, decoder) -> list[infer.Answer]:
    params = random_params() | {"prompt": {"bank": random_bank(LENGTHS)}}
    with device.on(mesh):
        one = answerer(mesh, vocabulary, target_length=6)
        return infer.write(one, device.put_everywhere(params, mesh), asked, decoder, seed=3)


def assert_alike(found, expected):
    assert [answer.text for answer in found] == [answer.text for answer in expected]
    for one, two in zip(found, expected, strict=True):
        np.testing.assert_allclose(list(one.probabilities.values()), list(two.probabilities.values()), atol=1e-5)
        np.testing.assert_allclose(one.score, two.score, rtol=1e-5)


def test_lines_on_many_devices_rank_as_rows_on_one(letters, asked, monkeypatch):
    alone = jax.sharding.Mesh(np.asarray(jax.devices()[:1]).reshape(1, 1), ("data", "model"))
    in_rows = ranked(alone, letters, asked)
    packed = []
    monkeypatch.setattr(layout, "pack", lambda *args, pack=layout.pack: packed.append(pack(*args)) or packed[-1])
    assert_alike(ranked(device.make_mesh(), letters, asked), in_rows)
    assert not any(batch.in_parts for batch in packed), "for so few questions nothing is compiled as a line"
    packed.clear()
    monkeypatch.setattr(infer, "WORTH_A_LINE", 0)
    assert_alike(ranked(device.make_mesh(), letters, asked), in_rows)
    assert all(batch.in_parts for batch in packed)


@pytest.mark.parametrize("decoder", [decode.greedy, decode.beam_search, decode.sample])
def test_lines_on_many_devices_write_as_rows_on_one(letters, asked, monkeypatch, decoder):
    """Whatever is sampled, too: examples are written in another order, and draw what they would in their own."""
    monkeypatch.setattr(planning, "GROUPS_PER_LENGTH", 1)
    read = []
    monkeypatch.setattr(infer, "_read", lambda *args, one=infer._read, **more: read.append((args[1], more["length"])) or one(*args, **more))  # fmt: skip # noqa: E501
    alone = jax.sharding.Mesh(np.asarray(jax.devices()[:1]).reshape(1, 1), ("data", "model"))
    in_rows = written(alone, letters, asked, decoder)
    assert not any(batch.in_parts for batch, _ in read)
    for mesh in (device.make_mesh(), device.make_mesh(model_parallel=2)):
        one = written(mesh, letters, asked, decoder)
        assert [answer.text for answer in one] == [answer.text for answer in in_rows]
        np.testing.assert_allclose([a.score for a in one], [a.score for a in in_rows], atol=1e-4)
        read.clear()
        monkeypatch.setattr(infer, "WORTH_A_LINE", 0)
    in_lines = written(device.make_mesh(), letters, asked, decoder)
    assert all(batch.in_parts for batch, _ in read)
    lengths = [length for _, length in read]
    assert lengths == sorted(lengths, reverse=True) and lengths[0] > lengths[-1], "the longest first"
    assert [answer.text for answer in in_lines] == [answer.text for answer in in_rows]
    np.testing.assert_allclose([a.score for a in in_lines], [a.score for a in in_rows], atol=1e-4)


def test_labels_of_different_number_share_a_batch_of_fixed_shape(letters, asked):
    mesh = device.make_mesh()
    shape = layout.Shape(40, 16, (8, 16), multiple=8)
    assert_alike(ranked(mesh, letters, asked, grouping=Fixed(shape)), ranked(mesh, letters, asked))


def test_groups_of_examples_are_one_shape_whatever_labels_they_have(letters, asked):
    one, by_slot = answerer(device.make_mesh(), letters), sorted(asked, key=lambda question: -question.slot)
    packed = [group.batch for group in one.batches(one.items(by_slot, ranking=True))]
    assert len(packed) == 3 and len({tuple(array.shape for array in batch) for batch in packed}) == 1


@pytest.mark.parametrize("ranking", [True, False])
def test_a_few_questions_are_batches_that_others_have_been_before(letters, asked, ranking):
    """What a notebook asks: texts of any length, one or a handful at a time."""
    mesh, seen, else_seen = device.make_mesh(), set(), set()
    one, other = answerer(mesh, letters), answerer(mesh, letters, grouping=roomy)
    calls = [asked[i : i + n] for n in (1, 2, 3, 5, 8, 13) for i in range(0, 40, n)]
    shapes = lambda batch: tuple(array.shape for array in batch)
    for call in calls:
        items = other.items(call, ranking)
        for group in other.batches(items):
            segments = set(group.batch.encoder_segments.ravel())
            assert segments == set(range(len(group.items) + 1)), "all are there, and some air"
            assert max(item.length for item in group.items) <= group.source_length
            assert group.shape.row_length <= group.source_length
            seen.add(shapes(group.batch))
        else_seen |= {shapes(group.batch) for group in one.batches(one.items(call, True))}
    assert len(seen) < 10 < len(else_seen)
    if ranking:
        assert_alike(ranked(mesh, letters, asked, grouping=roomy), ranked(mesh, letters, asked))


def test_likelihoods_come_in_the_order_of_the_items(letters, asked):
    mesh = device.make_mesh()
    params = random_params() | {"prompt": {"bank": random_bank(LENGTHS)}}
    with device.on(mesh):
        one, params = answerer(mesh, letters), device.put_everywhere(params, mesh)
        items = [dataclasses.replace(item, number=7) for item in one.items(asked, ranking=True)]
        found = one.likelihoods(params, items)
        assert [len(scores) for scores in found] == [len(LABELS[question.slot]) for question in asked]
        for item, scores in list(zip(items, found, strict=True))[:3]:
            np.testing.assert_allclose(one.likelihoods(params, [item])[0], scores, rtol=1e-5)


def test_people_at_a_terminal_see_how_far_it_is(monkeypatch, capsys):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert list(bar(iter("abc"), 3)) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", ""), "nobody is there to see it"
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert list(bar(iter("abc"), 3)) == ["a", "b", "c"]
    out, shown = capsys.readouterr()
    assert not out
    assert "answering" in shown


def test_a_slot_without_labels_to_rank_is_named(letters):
    slots = [Slot(length=4, name="films"), Slot(length=7, name="books")]
    one = dataclasses.replace(answerer(device.make_mesh(), letters), slots=slots, labels=[LABELS[0], ()])
    asked = [infer.Question(np.array([5, 1], np.int32), k, labels) for k, labels in ((0, ()), (1, ("a",)), (1, ()))]
    with pytest.raises(UserError, match=r"^books: there are no labels to rank\. Type --gin\.PREDICT=@write"):
        infer.rank(one, {}, asked)


def test_each_task_of_a_mixture_is_ranked_with_its_own_labels_or_written(monkeypatch):
    answer = lambda how, q: infer.Answer(f"{how} {q.labels} {q.inputs.tolist()}", {}, 0.0)
    say = lambda how: lambda answerer, params, asked: [answer(how, q) for q in asked]
    monkeypatch.setattr(infer, "rank", say("ranked"))
    monkeypatch.setattr(infer, "write", say("written"))
    labels, held_out = (("x", "y"), (), ("z",)), []
    for n, name in enumerate("bac"):
        examples = Examples(name, "validation", Ragged.of([[n], [n, n]]), Ragged.of([]), ())
        held_out.append(infer.Held(SimpleNamespace(name=name, labels=labels[n]), examples))
    (found,) = infer.answer_all(SimpleNamespace(labels=[()]), {}, [held_out])
    for n, how in enumerate(("ranked", "written", "ranked")):
        assert [answer.text for answer in found[n]] == [f"{how} {labels[n]} [{n}]", f"{how} {labels[n]} [{n}, {n}]"]
    (found,) = infer.answer_all(SimpleNamespace(labels=[("own",)]), {}, [held_out])
    texts = [answer.text for task in found for answer in task]
    assert all(text.startswith("ranked ()") for text in texts), "the slot's labels go before"
    right = infer.Answer("", {}, 0.0)
    for wrong, said in ([right], "1 answers to 6"), (["a"] * 6, r"\['a', .* to 6"), (None, "None to 6 questions"):
        with pytest.raises(UserError, match=f"PREDICT, <lambda>, returned {said}"):
            infer.answer_all(SimpleNamespace(labels=[()]), {}, [held_out], lambda *args, wrong=wrong: wrong)


@dataclasses.dataclass
class Scored:
    """A task whose metrics are known."""

    name: str
    splits: tuple[str, ...]
    metrics: dict[str, float]
    scored = True

    def load(self, split):
        return None

    def score(self, examples, predictions):
        return self.metrics


def test_steps_are_compared_by_the_tasks_that_are_trained_on_each_counting_alike():
    both = ("train", "validation")
    tasks = [
        Scored("cb", both, {"f1": 10.0, "accuracy": 30.0}),
        Scored("rte", both, {"accuracy": 90.0}),
        Scored("zero_shot", ("validation",), {"accuracy": 0.0}),
    ]
    drawn = lambda tasks, *rates: Mixture("m", tuple(tasks), rates or (1.0,) * len(tasks))
    score = lambda mixture: infer.score(held_out(mixture, "validation", mixture.tasks), [[] for _ in mixture.tasks])
    found = score(drawn(tasks))
    assert found["cb/f1"] == 10 and found["zero_shot/accuracy"] == 0
    assert infer.mean_metric(found) == found["mean_of_tasks"] == 55
    one = score(drawn(tasks[:1]))
    assert infer.mean_metric(one) == 20 and one.keys() == {"f1", "accuracy"}
    assert infer.mean_metric(score(drawn([tasks[2], tasks[2]]))) == 0, "where nothing is trained, all count"
    assert score(drawn(tasks, 1.0, 0.0, 0.0))["mean_of_tasks"] == 20, "a task of rate 0 is not trained on"


def test_a_calibrating_text_is_read_as_far_as_any(letters):
    """Cut where the prompt's inputs are: a text that calibrates itself leaves every label as likely as the others."""
    mesh, text = device.make_mesh(), "letters " * 6
    one = answerer(mesh, letters, input_lengths=[12, 12])
    params = random_params() | {"prompt": {"bank": random_bank([4, 7])}}
    asked = [infer.Question(one.encode(text, k), k) for k in range(2)]
    assert len(asked[0].inputs) == 12 and asked[0].inputs[-1] == letters.eos_id
    with device.on(mesh):
        for answer in infer.rank(one, device.put_everywhere(params, mesh), asked, content_free=[text]):
            assert max(answer.probabilities.values()) == pytest.approx(1 / len(answer.probabilities), abs=1e-4)


def test_a_decoder_with_other_settings_is_another_program(letters, asked):
    mesh, one = device.make_mesh(), answerer(device.make_mesh(), letters, target_length=6)
    params = device.put_everywhere(random_params() | {"prompt": {"bank": random_bank([4, 7])}}, mesh)
    found = []
    for k in (1, 90):
        gin.clear_config()
        gin.bind_parameter("sample.top_k", k)
        with device.on(mesh):
            found.append([answer.text for answer in infer.write(one, params, asked[:8], decode.sample)])
            best = [answer.text for answer in infer.write(one, params, asked[:8], decode.greedy)]
    assert found[0] == best != found[1]
