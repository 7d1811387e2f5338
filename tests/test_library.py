"""A folder of prompts: what is found in it, what is kept of it, and what is refused."""

import dataclasses
import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from prompt_tuning import cli, disk, library, prompt_file, spot
from prompt_tuning.errors import UserError
from prompt_tuning.library import Library


def save(folder: Path, name: str, seed: int, length: int = 4, width: int = 8, base: str = "B") -> str:
    vectors = np.random.default_rng(seed).normal(size=(length, width)) + 1
    card = prompt_file.Card(name=name, task=f"task_{name}", score=80.0 + seed, base="t5", base_digest=base)
    prompt_file.save_safetensors(folder / f"{name}.safetensors", prompt_file.Prompt(vectors.astype(np.float32), card))
    return str(folder / f"{name}.safetensors")


@pytest.fixture
def places(tmp_path) -> list[str]:
    (tmp_path / "in").mkdir()
    return [save(tmp_path / "in", name, seed) for seed, name in enumerate("abcd")]


@pytest.fixture
def shelf(tmp_path, places) -> Library:
    made = Library(tmp_path / "shelf", create=True)
    made.add(places)
    return made


def test_the_most_alike_are_found_first_with_both_similarities(shelf, places):
    found, others = shelf.search(places[1])
    assert others == 0 and found[0].entry.name == "b", "itself"
    vectors = {name: prompt_file.load(place).vectors for name, place in zip("abcd", places, strict=True)}
    for hit in found:
        both = spot.similarities(spot.directions(vectors[hit.entry.name])[None], spot.directions(vectors["b"])[None])
        assert (hit.average_tokens, hit.per_token_average) == pytest.approx(tuple(both.ravel()), abs=1e-6)
    assert [hit.average_tokens for hit in found] != sorted(hit.average_tokens for hit in found)
    by_average, _ = shelf.search(places[1], spot.average_tokens)
    assert [h.average_tokens for h in by_average] == sorted((h.average_tokens for h in found), reverse=True)


def test_prompts_of_another_length_width_or_base_are_left_out_and_counted(shelf, places, tmp_path):
    shelf.add(
        [save(tmp_path, "long", 5, length=6), save(tmp_path, "wide", 6, width=9), save(tmp_path, "other", 7, base="C")]
    )
    found, others = shelf.search(places[0])
    assert sorted(hit.entry.name for hit in found) == list("abcd") and others == 3
    found, _ = shelf.search(str(tmp_path / "wide.safetensors"))
    assert [hit.entry.name for hit in found] == ["wide"]
    prompt_file.save_npy(tmp_path / "bare.npy", prompt_file.load(places[0]).vectors)
    found, others = shelf.search(str(tmp_path / "bare.npy"))
    assert len(found) == 5 and others == 2, "a prompt without a card says nothing of its base"


def test_files_that_come_change_or_go_are_noticed(shelf, tmp_path, monkeypatch):
    save(shelf.folder, "e", 9)
    (shelf.folder / "a.safetensors").unlink()
    save(shelf.folder, "b", 11, length=5)
    again = Library(shelf.folder)
    assert [entry.name for entry in again.entries] == ["b", "c", "d", "e"] and again.entries[0].length == 5
    monkeypatch.setattr(prompt_file, "load", lambda place: pytest.fail(f"{place} is read again"))
    assert Library(shelf.folder).entries == again.entries, "an index that is up to date is enough"


@pytest.mark.parametrize(("length", "time"), [(4, 1), (5, 0)], ids=["of its size", "of its time"])
def test_a_prompt_is_read_again_where_another_stands_under_its_name(shelf, length, time):
    file = shelf.folder / "b.safetensors"
    before = file.stat()
    save(shelf.folder, "b", 1 + time, length)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + time))
    assert (file.stat().st_size == before.st_size) == (length == 4)
    found, _ = Library(shelf.folder).search(str(file))
    assert found[0].entry.name == "b" and found[0].average_tokens == pytest.approx(1, abs=1e-6)


def test_a_damaged_index_is_made_again(shelf, places):
    before = shelf.search(places[0])
    for content in (b"", b"x" * 100):
        (shelf.folder / library.INDEX).write_bytes(content)
        assert Library(shelf.folder).search(places[0]) == before


def test_an_index_that_may_not_be_read_is_gone_without(shelf, places, monkeypatch):
    before, real = shelf.search(places[0]), library.safe_open

    def kept_back(path, *how):
        if path == shelf.folder / library.INDEX:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *how)

    monkeypatch.setattr(library, "safe_open", kept_back)
    assert Library(shelf.folder).search(places[0]) == before


def test_a_name_that_is_taken_is_refused_and_nothing_is_added(shelf, places, tmp_path):
    new = save(tmp_path, "new", 1)
    for batch, said in ((new, places[0]), "already has a prompt"), ((new, new), "both called 'new'.*--name"):
        with pytest.raises(UserError, match=said):
            shelf.add(batch)
    assert [entry.name for entry in Library(shelf.folder).entries] == list("abcd")
    assert shelf.add([places[0]], "a again")[0].name == "a_again"
    assert prompt_file.load(shelf.folder / "a_again.safetensors").card.name == "a_again", "as who uses it calls it"


def test_nothing_is_added_where_one_prompt_points_nowhere(shelf, tmp_path):
    nowhere = str(tmp_path / "nowhere.npy")
    prompt_file.save_npy(Path(nowhere), np.zeros((4, 8)))
    with pytest.raises(UserError, match="nowhere"):
        shelf.add([save(tmp_path, "new", 1), nowhere])
    assert not list(shelf.folder.glob("n*"))


def test_a_name_cannot_leave_the_folder(shelf, places):
    [entry] = shelf.add([places[0]], "../../a/b")
    assert shelf.path(entry.name).parent == shelf.folder


def test_the_command_adds_lists_and_searches(tmp_path, places, capsys):
    shelf = str(tmp_path / "shelf")
    assert cli.main(["library", "add", shelf, *places]) == 0
    assert cli.main(["library", "list", shelf]) == 0
    out = capsys.readouterr().out
    assert "task_c" in out and "83.00" in out and "4 prompts" in out
    assert cli.main(["library", "search", shelf, places[2], "--top", "2", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows[0]["name"] == "c" and len(rows) == 2
    assert prompt_file.load(rows[0]["path"]).card.task == "task_c"
    assert cli.main(["library", "list", str(tmp_path / "none")]) == 2
    assert f"library add {tmp_path / 'none'} PROMPT" in capsys.readouterr().err


def test_files_that_cannot_be_read_are_left_out_named_and_not_replaced(shelf, places, capsys):
    (shelf.folder / "bad.safetensors").write_bytes(b"no prompt")
    (shelf.folder / "gone.safetensors").symlink_to("nowhere")
    assert [entry.name for entry in Library(shelf.folder).entries] == list("abcd")
    for argv in (["list"], ["search", places[0]], ["add", places[0], "--name", "e"]):
        assert cli.main(["library", argv[0], str(shelf.folder), *argv[1:]]) == 0
        assert "not readable: bad.safetensors, gone.safetensors" in capsys.readouterr().err
    with pytest.raises(UserError, match="already has a prompt"):
        Library(shelf.folder).add([places[0]], "bad")


def test_a_library_that_cannot_be_written_to_is_read(tmp_path, capsys, monkeypatch):
    save(tmp_path, "a", 0)
    save(tmp_path, "b", 1, length=5)

    def refuse(path):
        raise PermissionError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(disk, "replacing", refuse)
    assert cli.main(["library", "search", str(tmp_path), str(tmp_path / "a.safetensors")]) == 0
    assert "not compared: 1 prompt of another length" in capsys.readouterr().err
    (tmp_path / "b.safetensors").unlink()
    assert cli.main(["library", "list", str(tmp_path)]) == 0
    assert "1 prompt in" in capsys.readouterr().out
    assert not (tmp_path / library.INDEX).exists()


def test_brackets_on_a_card_are_printed_as_they_are(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    cards = {"a": "[/oops]", "b": "[bold]mine", "c": "task:cat:"}
    for seed, (name, task) in enumerate(cards.items()):
        prompt = prompt_file.load(save(tmp_path, name, seed))
        card = dataclasses.replace(prompt.card, task=task, base="[/t5]")
        prompt_file.save_safetensors(tmp_path / f"{name}.safetensors", prompt_file.Prompt(prompt.vectors, card))
    places = [str(tmp_path / f"{name}.safetensors") for name in cards]
    shelf = str(tmp_path / "[/shelf]")
    for argv in (["add", shelf, *places], ["list", shelf], ["search", shelf, places[0]]):
        assert cli.main(["library", *argv]) == 0
        said = capsys.readouterr().out
        assert all(task in said for task in cards.values())


def test_a_runs_prompts_are_found_by_slot_and_step(tmp_path):
    run = tmp_path / "run"
    for seed, name in enumerate(("films", "books")):
        place = save(tmp_path, name, seed)
        vectors = prompt_file.load(place).vectors
        prompt_file.save_npy(run / "numpy_checkpoints" / "checkpoint_20" / name / prompt_file.BARE, vectors + seed)
        (run / "prompts").mkdir(exist_ok=True)
        shutil.move(place, run / "prompts")
    best, early = prompt_file.load(f"{run}:books"), prompt_file.load(f"{run}:books@20")
    np.testing.assert_array_equal(early.vectors, best.vectors + 1)
    assert (early.card.task, early.card.step, early.card.score, early.card.base_digest) == ("task_books", 20, None, "B")
    for place, expected in ((str(run), "RUN:books"), (f"{run}:film", "'films'"), (f"{run}:films@30", "no prompt in")):
        with pytest.raises(UserError, match=expected):
            prompt_file.load(place)
    (run / "prompts" / "books.safetensors").unlink()
    assert prompt_file.load(str(run)).card.name == "films", "a run of one prompt needs no name"


def test_the_step_of_a_run_of_one_prompt_needs_no_name_and_takes_no_wrong_one(tmp_path):
    run = tmp_path / "run"
    (run / "prompts").mkdir(parents=True)
    save(run / "prompts", "films", 0)
    vectors = np.ones((4, 8), np.float32)
    prompt_file.save_npy(run / "numpy_checkpoints" / "checkpoint_20" / prompt_file.BARE, vectors)
    for place in (f"{run}@20", f"{run}:films@20"):
        np.testing.assert_array_equal(prompt_file.load(place).vectors, vectors)
    with pytest.raises(UserError, match=r"no prompt 'film' in .*Did you mean 'films'"):
        prompt_file.load(f"{run}:film@20")
