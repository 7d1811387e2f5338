"""The vocabulary spells as SeqIO's does, without TensorFlow."""

import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece

from prompt_tuning.errors import UserError
from prompt_tuning.tiny import VOCABULARY
from prompt_tuning.vocabulary import Vocabulary

T5_MODEL = Path(__file__).parents[1].parent / "shared/models/flan_t5_small/spiece.model"
TEXTS = [
    "",
    " ",
    "False",
    "not_equivalent",
    "  two  spaces and a tab\t. ",
    "sentence: it 's a charming and often affecting journey . ",
    "I like peanut butter and <extra_id_0> sandwiches <extra_id_1>",
    "caf\u00e9 na\u00efve \u65e5\u672c\u8a9e \U0001f600 \x00 \u2028",
]


def _trained(folder: Path) -> str:
    """A model of 60 pieces with T5's special ids, trained on the spot."""
    corpus = folder / "corpus.txt"
    corpus.write_text("the film was good and the plot was thin\na dull film with a good heart\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(folder / "tiny"),
        vocab_size=60,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return str(folder / "tiny.model")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Vocabulary:
    return Vocabulary(_trained(tmp_path_factory.mktemp("vocabulary")), extra_ids=10)


@pytest.fixture(scope="module")
def t5() -> Vocabulary:
    if not T5_MODEL.is_file():
        pytest.skip("T5's vocabulary stands beside the project only where it is developed (../shared/models)")
    return Vocabulary(T5_MODEL)


def test_extra_ids_count_backwards_from_the_end(tiny):
    assert tiny.encode("<extra_id_0>") == [tiny.size - 1]
    assert tiny.encode("<extra_id_9>") == [tiny.size - 10]
    assert tiny.piece(tiny.size - 1) == "▁<extra_id_0>"
    assert tiny.decode([tiny.size - 1]) == "<extra_id_0>"


def test_a_model_that_has_its_extra_ids_gets_no_others(tiny, tmp_path):
    """Such are T5X's `cc_all.32000.100extra` and mT5's own."""
    import seqio

    tiny.save(tmp_path / "with_extra.model")
    whole = Vocabulary(tmp_path / "with_extra.model", extra_ids=10)
    assert (whole.size, whole.extra_ids) == (tiny.size, 0)
    assert whole.encode("a good <extra_id_3> film") == tiny.encode("a good <extra_id_3> film")
    assert seqio.SentencePieceVocabulary(whole.path, whole.extra_ids).vocab_size == tiny.size


def test_decoding_stops_at_eos_and_drops_padding(tiny):
    ids = tiny.encode("a good film")
    assert tiny.decode([0, *ids, 0, 1, *ids]) == "a good film"


def test_ids_past_the_end_decode_as_unknown_and_show_as_a_number(tiny):
    assert tiny.decode([tiny.size + 5]) == tiny.decode([tiny.unk_id])
    assert tiny.piece(tiny.size + 5) == f"<{tiny.size + 5}>"


def test_a_text_of_unknown_letters_cannot_be_spelled(tiny):
    assert tiny.can_spell("good")
    assert not tiny.can_spell("日本")
    assert not tiny.can_spell("")


def test_bulk_encoding_equals_encoding_one_by_one(tiny):
    assert tiny.encode_all(TEXTS) == [tiny.encode(t) for t in TEXTS]


@pytest.mark.parametrize("which", ["tiny", "t5"])
def test_ids_and_texts_equal_seqios(which, request):
    import seqio

    ours = request.getfixturevalue(which)
    theirs = seqio.SentencePieceVocabulary(ours.path, ours.extra_ids)
    assert (ours.size, ours.unk_id) == (theirs.vocab_size, theirs.unk_id)
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == theirs.encode(text)
        assert ids == theirs.encode_tf(text).numpy().tolist()
        assert ours.decode([*ids, 1, 0]) == theirs.decode([*ids, 1, 0])


def test_t5s_own_ids(t5):
    assert t5.size == 32100
    assert t5.encode("not_equivalent") == [59, 834, 15, 1169, 15592]
    assert t5.encode("positive") == [1465]
    assert t5.encode("<extra_id_0>") == [32099]


def test_the_one_that_comes_along_has_its_bases_name_unless_a_folder_is_called_so(tiny, tmp_path, monkeypatch):
    assert Vocabulary("tiny").path == str(VOCABULARY)
    (tmp_path / "tiny").mkdir()
    tiny.save(tmp_path / "tiny" / "spiece.model")
    monkeypatch.chdir(tmp_path)
    assert Vocabulary("tiny").path == str(Path("tiny") / "spiece.model")


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.model does not exist"):
        Vocabulary(tmp_path / "nowhere.model")


@pytest.mark.parametrize("content", [b"", b"this is no model", b"\x00" * 100])
def test_a_garbage_model_is_refused(tmp_path, content):
    (tmp_path / "garbage.model").write_bytes(content)
    with pytest.raises(UserError, match=r"garbage\.model is not a sentencepiece model"):
        Vocabulary(tmp_path / "garbage.model")


def test_the_vocabulary_needs_no_tensorflow():
    code = "import sys, prompt_tuning.vocabulary; assert not {'tensorflow', 'seqio'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
