"""What ships inside the package: two bases, a vocabulary with T5's conventions, and tasks that are what they say."""

import collections
import json
import random
import string
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY, random_params

from prompt_tuning import tiny
from prompt_tuning.base import SHIPPED, load_base, save_t5x
from prompt_tuning.errors import UserError
from prompt_tuning.split import count
from prompt_tuning.vocabulary import Vocabulary

SCRIPT = Path(__file__).parents[1] / "scripts/make_demo_tasks.py"
SPLITS = ("train", "validation")
NAMES = ["acceptability", "intruder", "jumble", "order", "question", "speech"]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary(tiny.VOCABULARY)


def test_the_vocabulary_has_8000_pieces_and_the_sentinels_behind_them(vocabulary):
    assert vocabulary.size == 8100
    assert vocabulary.encode("<extra_id_99>") == [8000]
    assert vocabulary.encode("<extra_id_0>") == [8099]
    assert [vocabulary.piece(i) for i in range(3)] == ["<pad>", "</s>", "<unk>"]
    assert tiny.VOCABULARY.stat().st_size < 400_000


def test_the_vocabulary_spells_every_printable_character_and_shortens_english(vocabulary):
    assert all(vocabulary.can_spell(c) for c in string.printable if not c.isspace())
    text = "She looked at the old house for a long time, and then she went quietly up the stairs."
    assert vocabulary.decode(vocabulary.encode(text)) == text
    assert len(vocabulary.encode(text)) < 25


def test_the_vocabularys_ids_equal_seqios(vocabulary):
    import seqio

    theirs = seqio.SentencePieceVocabulary(str(tiny.VOCABULARY), 100)
    assert (vocabulary.size, vocabulary.unk_id) == (theirs.vocab_size, theirs.unk_id)
    for text in ("It was <extra_id_0> and <extra_id_41> stormy <extra_id_99>", "  «Ünknown» 日本, Queen 1847: £7", ""):
        ids = vocabulary.encode(text)
        assert ids == theirs.encode(text) == theirs.encode_tf(text).numpy().tolist()
        assert vocabulary.decode(ids) == theirs.decode(ids)


def shown(name: str, split: str) -> list[dict[str, str]]:
    lines = (tiny.FOLDER / f"tasks/{name}.{split}.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_six_tasks_ship():
    assert list(tiny.TASKS) == [f"demo_{name}" for name in NAMES]
    assert sum(path.stat().st_size for path in (tiny.FOLDER / "tasks").iterdir()) < 2_700_000


def test_two_bases_ship_in_16_megabytes_with_their_vocabulary():
    files = [path for path in tiny.FOLDER.rglob("*") if path.is_file() and "tasks" not in path.parts]
    assert sum(path.stat().st_size for path in files) < 16e6
    bases = [load_base(name) for name in SHIPPED]
    for base, folder in zip(bases, SHIPPED.values(), strict=True):
        assert base.vocabulary == str(tiny.VOCABULARY)
        assert f"checkpoint_{base.step}" == folder.name
        outside = {name: part for name, part in base.params.items() if name != "token_embedder"}
        assert count(outside) - outside["decoder"]["logits_dense"]["kernel"].size == 952_320 < 6_000_000
        assert base.digest[:12] in (tiny.FOLDER / "README.md").read_text()
    assert bases[0].digest != bases[1].digest


def test_a_folder_called_as_a_shipped_base_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_t5x(random_params(TINY), "tiny", 5)
    assert load_base("tiny").step == 5


@pytest.mark.parametrize("name", tiny.TASKS)
def test_half_of_each_split_has_either_label_all_along_the_file(name, vocabulary):
    labels = tiny.open_task(name, vocabulary).tasks[0].labels
    for split, size in (("train", 3500), ("validation", 500)):
        answers = [row["label"] for row in shown(name, split)]
        assert collections.Counter(answers) == dict.fromkeys(labels, size // 2)
        assert 0.35 < answers[: size // 5].count(labels[0]) / (size // 5) < 0.65


def test_no_sentence_stands_twice_in_any_task_whatever_was_done_to_its_order():
    words = [
        tuple(sorted(row["sentence"].lower().translate(str.maketrans("", "", ",.")).split()))
        for name in tiny.TASKS
        for split in SPLITS
        for row in shown(name, split)
    ]
    assert len(words) == len(set(words)) == 6 * 4000


@pytest.mark.parametrize("name", tiny.TASKS)
def test_no_text_is_cut_at_the_tasks_lengths_and_none_has_unknown_pieces(name, vocabulary):
    task = tiny.open_task(name, vocabulary).tasks[0]
    for split in task.splits:
        examples = task.load(split)
        assert examples.truncated == 0
        assert examples.inputs.lengths.max() <= tiny.LENGTHS["inputs"] == 48
        assert not (examples.inputs.tokens == vocabulary.unk_id).any()


def test_every_label_is_one_piece_and_no_two_tasks_share_one(vocabulary):
    labels = [label for name in tiny.TASKS for label in tiny.open_task(name, vocabulary).tasks[0].labels]
    assert len(labels) == len(set(labels)) == 12
    assert all(len(vocabulary.encode(label)) == 1 for label in labels)


@pytest.mark.parametrize(
    ("name", "least", "most"), [("demo_acceptability", 80, 92), ("demo_question", 80, 95), ("demo_speech", 75, 90)]
)
def test_pairs_of_words_tell_most_of_what_three_tasks_ask(name, least, most):
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    pairs = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\S+", sublinear_tf=True, min_df=2)  # noqa: S106
    texts = {split: [row["sentence"] for row in shown(name, split)] for split in SPLITS}
    answers = {split: [row["label"] for row in shown(name, split)] for split in SPLITS}
    learner = LogisticRegression(C=3, max_iter=1000).fit(pairs.fit_transform(texts["train"]), answers["train"])
    assert least < 100 * learner.score(pairs.transform(texts["validation"]), answers["validation"]) < most


def test_an_unknown_task_is_refused_with_the_nearest(vocabulary):
    with pytest.raises(UserError, match=r"'demo_oder'. Did you mean 'demo_order'"):
        tiny.open_task("demo_oder", vocabulary)


@pytest.mark.parametrize("name", tiny.TASKS)
def test_a_task_is_the_same_by_name_in_seqio_and_stays_where_it_is(name, vocabulary, tmp_path):
    from prompt_tuning.data import open_mixture

    (tmp_path / "tasks").mkdir()
    ours = tiny.open_task(name, vocabulary).tasks[0]
    theirs = open_mixture(name, vocabulary, tiny.LENGTHS, data_dir=str(tmp_path)).tasks[0]
    assert (ours.name, ours.labels, ours.splits) == (theirs.name, theirs.labels, theirs.splits)
    for split in SPLITS:
        a, b = ours.load(split), theirs.load(split)
        assert (a.inputs.tokens.tolist(), a.inputs.starts.tolist()) == (
            b.inputs.tokens.tolist(),
            b.inputs.starts.tolist(),
        )
        assert a.targets.tokens.tolist() == b.targets.tokens.tolist()
    said = [row["label"] for row in shown(name, "validation")]
    assert (
        ours.score(ours.load("validation"), said) == theirs.score(theirs.load("validation"), said) == {"accuracy": 100}
    )


@pytest.fixture(scope="module")
def book(tmp_path_factory) -> Path:
    """5,000 paragraphs of one sentence each, of which the last 200 are validation's; a third of them speaks."""
    rng = random.Random(0)
    nouns = "boat river house garden letter king horse window street storm candle field castle ship forest".split()  # noqa: SIM905
    kinds = "old red quiet dark broken narrow distant empty heavy golden".split()  # noqa: SIM905
    paragraphs = []
    for n in range(5000):
        place = f"the {rng.choice(kinds)} {rng.choice(nouns)} of the {rng.choice(kinds)} {rng.choice(nouns)}"
        told = f"She carried {rng.choice(kinds)} {rng.choice(nouns)} and a {rng.choice(nouns)} to {place}."
        said = f"You were in {place} with a {rng.choice(nouns)}."
        asked = f"Have you seen {place} and the {rng.choice(nouns)}?"
        paragraphs.append([told, told, told, told, f'"{said}" he said.', f'"{asked}" he said.'][n % 6])
    path = tmp_path_factory.mktemp("book") / "book.txt"
    path.write_text("\n".join(paragraphs) + "\n")
    return path


def make(book: Path, folder: Path, seed: int = 0) -> dict[str, bytes]:
    """What the script makes of a book, by file name."""
    command = [sys.executable, SCRIPT, "--corpus", book, "--output", folder]
    command += ["--train", "60", "--validation", "8", "--seed", str(seed)]
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def made(book, tmp_path_factory) -> dict[str, bytes]:
    return make(book, tmp_path_factory.mktemp("made"))


def test_the_script_makes_the_same_files_of_the_same_seed(book, made, tmp_path):
    assert len(made) == 18
    assert made == make(book, tmp_path / "again")
    other = make(book, tmp_path / "other", seed=1)
    assert all((made[file] == other[file]) == file.endswith(".toml") for file in made)


def test_the_shipped_task_files_are_those_the_script_writes(made):
    assert {name: made[f"{name}.toml"] for name in tiny.TASKS} == {n: p.read_bytes() for n, p in tiny.TASKS.items()}


def test_validation_comes_from_stretches_that_training_never_sees(book, made):
    paragraphs = [p.lower().split('"')[p.startswith('"')].rstrip(".?") for p in book.read_text().splitlines()]
    places = collections.defaultdict(set)
    for n, paragraph in enumerate(paragraphs):
        places[paragraph].add(n >= 4800)
    for name in ("demo_speech", "demo_question"):  # shown word by word
        for split in SPLITS:
            for line in made[f"{name}.{split}.jsonl"].splitlines():
                assert (split == "validation") in places[json.loads(line)["sentence"].lower().rstrip(".")]
