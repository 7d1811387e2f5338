"""What ships inside the package: a vocabulary with T5's conventions."""

import string

import pytest

from prompt_tuning import tiny
from prompt_tuning.vocabulary import Vocabulary


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
