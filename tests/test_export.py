"""A prompt survives every format, and means the same inside PEFT; scripts/record_peft.py recorded PEFT's side."""

import functools
import json
import resource
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

from prompt_tuning import export, layout, prompt_file, t5x_checkpoint
from prompt_tuning.base import load_base
from prompt_tuning.errors import UserError
from prompt_tuning.prompt_file import Card, Prompt
from prompt_tuning.step import Model

GOLDEN = Path(__file__).parent / "golden"
PEFT = GOLDEN / "peft"
CARD = Card(name="mine", task="rte", labels=("entailment", "not_entailment"), init="text", step=500, score=61.5)


@pytest.fixture
def source(tmp_path) -> Path:
    vectors = np.random.default_rng(0).normal(size=(5, 16), scale=300).astype(np.float32)
    prompt_file.save_safetensors(tmp_path / "source.safetensors", Prompt(vectors, CARD))
    return tmp_path / "source.safetensors"


OUT = {"npy": "p.npy", "safetensors": "p.safetensors", "peft": "folder", "t5x": "model"}


@pytest.mark.parametrize("first", OUT)
@pytest.mark.parametrize("second", OUT)
def test_vectors_survive_every_pair_of_formats_to_the_bit(source, tmp_path, first, second):
    once = export.export(source, first, tmp_path / "a" / OUT[first])
    twice = export.load(export.export(once, second, tmp_path / "b" / OUT[second]))
    assert twice.vectors.dtype == np.float32
    np.testing.assert_array_equal(twice.vectors, prompt_file.load(source).vectors)


def test_safetensors_and_peft_keep_the_card_and_t5x_its_step(source, tmp_path):
    loaded = {name: export.load(export.export(source, name, tmp_path / out)) for name, out in OUT.items()}
    assert loaded["safetensors"].card == loaded["peft"].card == CARD
    assert loaded["t5x"].card == Card(step=500)


def test_who_may_read_one_file_of_a_peft_folder_may_read_the_other(source, tmp_path):
    folder = export.export(source, "peft", tmp_path / "folder")
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1


def test_a_disk_that_has_no_room_for_a_peft_folder_is_an_error_of_the_system(source, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            export.export(source, "peft", tmp_path / "folder")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_a_t5x_tree_holds_the_prompt_under_the_authors_name(source, tmp_path):
    written = export.export(source, "t5x", tmp_path / "model")
    assert written == tmp_path / "model" / "checkpoint_500"
    assert {p.name for p in written.iterdir()} == {"checkpoint", "target.encoder.prompt.prompt.prompt"}
    np.testing.assert_array_equal(export.load(tmp_path / "model").vectors, export.load(source).vectors)


def test_the_prompt_is_found_in_a_checkpoint_of_the_whole_model(tmp_path):
    prompt = np.ones((3, 16), np.float32)
    params = jax.device_get(load_base(GOLDEN / "t5_1_1").params)
    params = {**params, "encoder": {**params["encoder"], "prompt": {"prompt": {"prompt": prompt}}}}
    found = export.load(t5x_checkpoint.save_t5x(params, tmp_path, 1_100_500))
    np.testing.assert_array_equal(found.vectors, prompt)
    assert found.card.step == 1_100_500


def test_base_and_prompt_in_one_t5x_checkpoint_are_the_base_and_the_prompt(source, tmp_path):
    base = load_base(GOLDEN / "t5_1_1")
    apart = t5x_checkpoint.save_t5x(base.params, tmp_path / "base", 1_100_000)
    together = export.with_base(apart, source, tmp_path / "together")
    assert together.name == "checkpoint_1100500"
    assert load_base(together).digest == base.digest
    np.testing.assert_array_equal(export.load(together).vectors, export.load(source).vectors)
    narrow = tmp_path / "narrow.npy"
    np.save(narrow, np.ones((5, 8), np.float32))
    with pytest.raises(UserError, match=r"8 wide, and the base .* 16"):
        export.with_base(apart, narrow, tmp_path / "never")
    of_another = prompt_file.Prompt(np.ones((5, 16), np.float32), prompt_file.Card(base_digest="0" * 64))
    prompt_file.save_safetensors(tmp_path / "another.safetensors", of_another)
    with pytest.raises(UserError, match="another base"):
        export.with_base(apart, tmp_path / "another.safetensors", tmp_path / "never")


@pytest.mark.parametrize("name", ["ours", "theirs"])
def test_logits_behind_a_prompt_are_those_of_peft(name):
    golden, prompt = np.load(PEFT / "golden.npz"), export.load(PEFT / name)
    base = load_base(GOLDEN / "t5_1_1")
    pairs = zip(golden["inputs"], golden["targets"], strict=True)
    items = [layout.Item(x[x > 0], [y], 0, 0, len(prompt.vectors)) for x, y in pairs]
    batch = layout.pack(items, layout.Shape(48, 16, (4,), per_row=1), len(prompt.vectors))
    model = Model(base.config, 1, len(prompt.vectors))
    params = {**base.params, "prompt": {"bank": jnp.asarray(prompt.vectors)[None]}}
    logits = np.asarray(jax.jit(functools.partial(model.logits, dropout=None))(params, batch))
    rows = [int(np.flatnonzero((batch.decoder_segments == n + 1).any(1))[0]) for n in range(4)]
    np.testing.assert_allclose(logits[rows], golden[f"{name}_logits"], atol=1e-4)


def test_the_folder_that_peft_opened_is_the_folder_written_today(tmp_path):
    written = export.export(PEFT / "ours", "peft", tmp_path / "again")
    assert (written / export.PEFT_CONFIG).read_text() == (PEFT / "ours" / export.PEFT_CONFIG).read_text()
    files = [safe_open(folder / export.PEFT_WEIGHTS, "numpy") for folder in (written, PEFT / "ours")]
    assert files[0].metadata() == files[1].metadata() and files[0].keys() == files[1].keys() == [export.PEFT_TENSOR]
    np.testing.assert_array_equal(*(file.get_tensor(export.PEFT_TENSOR) for file in files))


def test_a_peft_prompt_in_front_of_the_decoder_is_refused():
    with pytest.raises(UserError, match="num_transformer_submodules=1"):
        export.load(PEFT / "both")


@pytest.mark.parametrize(
    "change, word",
    [
        ({"peft_type": "LORA"}, "LORA"),
        ({"num_virtual_tokens": 3}, "says 3"),
        ({"num_virtual_tokens": "many"}, "not a readable"),
        ({"task_type": "CAUSAL_LM"}, "CAUSAL_LM"),
    ],
)
def test_a_peft_folder_that_is_no_such_prompt_is_refused(tmp_path, change, word):
    shutil.copytree(PEFT / "theirs", tmp_path / "folder")
    settings = json.loads((tmp_path / "folder" / export.PEFT_CONFIG).read_text()) | change
    (tmp_path / "folder" / export.PEFT_CONFIG).write_text(json.dumps(settings))
    with pytest.raises(UserError, match=word):
        export.load(tmp_path / "folder")


def test_pickled_weights_are_never_opened(tmp_path):
    shutil.copytree(PEFT / "theirs", tmp_path / "folder")
    (tmp_path / "folder" / export.PEFT_WEIGHTS).rename(tmp_path / "folder" / "adapter_model.bin")
    with pytest.raises(UserError, match="can run code"):
        export.load(tmp_path / "folder")


def test_a_prompt_in_memory_is_saved_and_exported_under_names_that_are_found_again(source, tmp_path):
    prompt = export.load(source)
    np.testing.assert_array_equal(np.load(export.export(prompt, "npy", tmp_path / "a.npy")), prompt.vectors)
    prompt_file.save_safetensors(str(tmp_path / "a.safetensors"), prompt)
    assert prompt_file.load(tmp_path / "a.safetensors").card == prompt.card
    with pytest.raises(UserError, match=r"add \.safetensors"):
        prompt_file.save_safetensors(tmp_path / "b.npy", prompt)
    assert not (tmp_path / "b.npy").exists()


def test_mistakes_say_what_to_type(source, tmp_path):
    behind = tmp_path / "behind.safetensors"
    prompt_file.save_safetensors(behind, Prompt(np.ones((2, 4), np.float32), Card(placement="behind")))
    (tmp_path / "empty").mkdir()
    for arguments, word in [
        ((source, "pefd", tmp_path / "x"), "'peft'"),
        ((source, "npy", tmp_path / "x.bin"), r"add \.npy"),
        ((source, "peft", tmp_path / "empty"), "another folder"),
        ((behind, "peft", tmp_path / "x"), "in front"),
        ((tmp_path / "empty", "npy", tmp_path / "x.npy"), "expected PEFT's"),
        ((tmp_path / "none", "npy", tmp_path / "x.npy"), "no prompt file"),
    ]:
        with pytest.raises(UserError, match=word):
            export.export(*arguments)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["behind.safetensors", "empty", "source.safetensors"]
