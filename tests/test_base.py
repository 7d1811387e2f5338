"""Bases load whole, exact, hashed and placed, or not at all with a message that says what to type."""

import dataclasses
import json
import re
import shutil
import sys
import types
import weakref
from pathlib import Path

import gin
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import serialization, traverse_util
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

from prompt_tuning import base as base_module
from prompt_tuning import export, split, t5x_checkpoint
from prompt_tuning.base import load_base, save_t5x
from prompt_tuning.base_source import Source
from prompt_tuning.errors import UserError
from prompt_tuning.stack import T5Config
from prompt_tuning.t5 import parameter_shapes

MODELS = Path(__file__).parents[1] / "gin" / "models"
GOLDEN = Path(__file__).parent / "golden"
COUNTS = {  # Lester et al. 2021, Table 4, without the prompt
    "t5_1_1_small": 76_961_152,
    "t5_1_1_base": 247_577_856,
    "t5_1_1_large": 783_150_080,
    "t5_1_1_xl": 2_849_757_184,
    "t5_1_1_xxl": 11_135_332_352,
}


@pytest.fixture
def hf(tmp_path) -> Path:
    """A Hugging Face folder to spoil."""
    return Path(shutil.copytree(GOLDEN / "t5_1_1", tmp_path / "hf"))


@pytest.fixture
def t5x(tmp_path) -> Path:
    """The same weights as a T5X checkpoint to spoil."""
    return Path(save_t5x(load_base(GOLDEN / "t5_1_1").params, tmp_path / "t5x", 1_100_000))


def flat(params: dict) -> dict:
    return traverse_util.flatten_dict(params, sep="/")


def assert_same(a: dict, b: dict) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def read_index(checkpoint: Path) -> dict:
    return serialization.msgpack_restore((checkpoint / "checkpoint").read_bytes())


def write_index(checkpoint: Path, index: dict) -> None:
    (checkpoint / "checkpoint").write_bytes(serialization.msgpack_serialize(index))


def configured(name: str) -> T5Config:
    gin.clear_config()
    gin.parse_config_file(str(MODELS / f"{name}.gin"))
    config = T5Config()
    gin.clear_config()
    return config


@pytest.mark.parametrize("name", COUNTS)
def test_every_size_has_the_papers_parameter_count(name):
    assert split.count(parameter_shapes(configured(name))) == COUNTS[name]


@pytest.mark.parametrize("path", sorted(MODELS.glob("*.gin")), ids=lambda p: p.stem)
def test_every_model_file_states_the_count_of_its_own_shapes(path):
    assert f" {split.count(parameter_shapes(configured(path.stem))):,} parameters" in path.read_text().splitlines()[0]


def test_a_t5x_copy_of_a_hugging_face_model_has_its_weights_and_identity(t5x):
    ours, theirs = load_base(t5x), load_base(GOLDEN / "t5_1_1")
    assert_same(ours.params, theirs.params)
    assert ours.digest == theirs.digest
    assert ours.config == theirs.config
    assert (ours.step, theirs.step) == (1_100_000, None)


def test_one_changed_weight_changes_the_digest(hf):
    before = load_base(hf).digest
    weights = load_file(hf / "model.safetensors")
    weights["shared.weight"][3, 4] += 1e-6
    save_file(weights, hf / "model.safetensors")
    assert load_base(hf).digest != before


def test_t5_1_0_is_recognised_by_its_single_relu_and_tied_output(tmp_path):
    base = load_base(GOLDEN / "t5_1_0")
    again = load_base(save_t5x(base.params, tmp_path, 0))
    for config in (base.config, again.config):
        assert config.mlp_activations == ("relu",) and config.logits_via_embedding


def test_an_output_layer_of_its_own_is_never_taken_for_the_embedding(hf):
    untied, settings = load_base(hf), json.loads((hf / "config.json").read_text())
    tell = lambda **told: (hf / "config.json").write_text(json.dumps(settings | told))
    tell(tie_word_embeddings=True, scale_decoder_outputs=False)  # how transformers 5 writes a T5 1.1
    assert load_base(hf).digest == untied.digest
    tell(tie_word_embeddings=True)
    with pytest.raises(UserError, match=r"lm_head\.weight of its own"):
        load_base(hf)
    weights = load_file(hf / "model.safetensors")
    save_file(weights | {"lm_head.weight": weights["shared.weight"].copy()}, hf / "model.safetensors")
    assert load_base(hf).config.logits_via_embedding


def test_a_folder_of_checkpoints_gives_its_newest_and_says_so(t5x, caplog):
    base = load_base(t5x)
    changed = jax.tree.map(lambda x: x + jnp.asarray(1.0, x.dtype), base.params)
    save_t5x(changed, t5x.parent, 1_100_500)
    found = load_base(t5x.parent)
    assert found.step == 1_100_500 and found.path.endswith("checkpoint_1100500")
    assert "checkpoint_1100500" in caplog.text
    assert_same(found.params, changed)


def test_scanned_layers_and_optimizer_states_load_as_the_plain_checkpoint(t5x):
    base, index = load_base(t5x), read_index(t5x)
    stacked: dict = {}
    for name, array in flat(base.params).items():
        stack, _, rest = name.partition("/layers_")
        if not rest:
            stacked[name] = np.asarray(array)
            continue
        number, _, part = rest.partition("/")
        stacked.setdefault(f"{stack}/{stack}/{part}", {})[int(number)] = np.asarray(array)
    target = {
        name: np.stack([layers[i] for i in range(len(layers))], axis=1) if isinstance(layers, dict) else layers
        for name, layers in stacked.items()
    }
    for stack in ("encoder", "decoder"):  # T5X's scanned network has a table a layer
        table = target.pop(f"{stack}/relpos_bias/rel_embedding")
        layers = len(stacked[f"{stack}/{stack}/mlp/wo/kernel"])
        target[f"{stack}/{stack}/relpos_bias/rel_embedding"] = np.repeat(table[:, None], layers, axis=1)
    for name, array in target.items():  # and keeps heads and head width apart
        if "attention/out/kernel" in name:
            target[name] = np.moveaxis(np.moveaxis(array, 1, 0).reshape(-1, 3, 6, 16), 0, 1)
        elif re.search("attention/(query|key|value)/kernel", name):
            target[name] = array.reshape(*array.shape[:2], 3, 6)
    index["optimizer"]["target"] = traverse_util.unflatten_dict(target, sep="/")
    index["optimizer"]["state"]["param_states"] = {"decoder": {"v_row": np.ones(3, np.float32)}}
    write_index(t5x, index)
    again = load_base(t5x)
    assert again.digest == base.digest and again.config == base.config
    table = target["encoder/encoder/relpos_bias/rel_embedding"]
    table[0, 1] += 1
    write_index(t5x, index)
    own = load_base(t5x)
    assert own.config == dataclasses.replace(base.config, shared_relative_bias=False)
    np.testing.assert_array_equal(own.params["encoder"]["layers_1"]["relpos_bias"]["rel_embedding"], table[:, 1])
    with pytest.raises(UserError, match=r"shared_relative_bias is False and not True"):
        load_base(t5x, base.config)


def test_the_authors_prompt_inside_a_checkpoint_is_left_alone(t5x):
    before, index = load_base(t5x).digest, read_index(t5x)
    index["optimizer"]["target"]["encoder"]["prompt"] = {"prompt": {"prompt": np.ones((5, 16), np.float32)}}
    write_index(t5x, index)
    assert load_base(t5x).digest == before


@pytest.mark.parametrize("version", [2, 3])
def test_bfloat16_checkpoints_load_in_both_of_t5xs_encodings(t5x, version):
    base = load_base(t5x)
    stored = save_t5x(base.params, t5x.parent, 2_000_000, dtype=jnp.bfloat16)
    if version == 2:
        index = read_index(Path(stored))
        as_integers = jax.tree.map(lambda x: np.asarray(x, jnp.bfloat16).view(np.uint16), base.params)
        index["version"], index["optimizer"]["target"] = 2, as_integers
        write_index(Path(stored), index)
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), base.params)
    assert_same(load_base(stored).params, rounded)


def test_shards_are_read_as_one_model(hf):
    before, weights = load_base(hf).digest, load_file(hf / "model.safetensors")
    (hf / "model.safetensors").unlink()
    parts = {f"model-0000{i}-of-00002.safetensors": dict(list(weights.items())[i - 1 :: 2]) for i in (1, 2)}
    for file, part in parts.items():
        save_file(part, hf / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (hf / "model.safetensors.index.json").write_text(json.dumps(index))
    assert load_base(hf).digest == before
    (hf / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="lacks model-00002-of-00002"):
        load_base(hf)


def test_weights_are_cast_and_placed_as_asked(hf):
    mesh = Mesh(np.asarray(jax.devices()[:2]), ("model",))

    def halves(config: T5Config) -> dict:
        spec = lambda leaf: PartitionSpec("model") if leaf.shape[0] % 2 == 0 else PartitionSpec()
        return jax.tree.map(lambda leaf: NamedSharding(mesh, spec(leaf)), parameter_shapes(config))

    base, plain = load_base(hf, dtype=jnp.bfloat16, shardings=halves), load_base(hf)
    table = base.params["token_embedder"]["embedding"]
    assert table.dtype == jnp.bfloat16 and base.config.dtype == jnp.bfloat16
    assert [shard.data.shape for shard in table.addressable_shards] == [(48, 16), (48, 16)]
    assert base.digest == plain.digest
    assert_same(base.params, jax.tree.map(lambda x: x.astype(jnp.bfloat16), plain.params))


def test_no_more_than_a_few_tensors_are_on_the_host_at_once(hf, monkeypatch):
    alive, most, read = set(), [], Source.read

    def watched(source, name):
        array = read(source, name) + np.float32(0)
        alive.add(id(array))
        weakref.finalize(array, alive.discard, id(array))
        most.append(len(alive))
        return array

    monkeypatch.setattr(Source, "read", watched)
    monkeypatch.setattr(base_module.jax, "device_put", lambda host: jnp.zeros(host.shape))
    load_base(hf)
    assert max(most) <= base_module.WORKERS < len(most)


def test_another_size_is_refused_with_what_to_type(hf):
    expected = dataclasses.replace(load_base(hf).config, mlp_dim=32, num_heads=4, dtype=jnp.bfloat16)
    with pytest.raises(UserError) as error:
        load_base(hf, expected)
    assert "num_heads is 3 and not 4; mlp_dim is 24 and not 32" in str(error.value)
    assert '--gin.T5Config.mlp_dim="24"' in str(error.value)
    same = dataclasses.replace(expected, mlp_dim=24, num_heads=3, mlp_activations=["gelu", "linear"])
    assert load_base(hf, same).config.dtype == jnp.bfloat16


def test_every_missing_extra_and_misshapen_tensor_is_named_at_once(hf):
    weights = load_file(hf / "model.safetensors")
    del weights["decoder.block.2.layer.2.layer_norm.weight"], weights["encoder.block.1.layer.0.SelfAttention.q.weight"]
    weights["encoder.block.7.layer.0.layer_norm.weight"] = np.ones(16, np.float32)
    weights["lm_head.weight"] = weights["lm_head.weight"][:50].copy()
    save_file(weights, hf / "model.safetensors")
    with pytest.raises(UserError) as error:
        load_base(hf)
    for name in (
        "missing decoder.block.2.layer.2.layer_norm.weight (decoder/layers_2/pre_mlp_layer_norm/scale)",
        "missing encoder.block.1.layer.0.SelfAttention.q.weight",
        "extra encoder.block.7.layer.0.layer_norm.weight",
        "misshapen lm_head.weight (decoder/logits_dense/kernel) (16, 50), expected (16, 96)",
    ):
        assert name in str(error.value)


def test_a_t5x_checkpoint_without_a_tensor_names_it(t5x):
    index = read_index(t5x)
    del index["optimizer"]["target"]["decoder"]["layers_1"]["mlp"]["wo"]
    write_index(t5x, index)
    with pytest.raises(UserError, match="missing decoder/layers_1/mlp/wo/kernel"):
        load_base(t5x)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[9] ^= 0x40
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def garbage(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(4000))


@pytest.mark.parametrize("damage", [truncate, flip, garbage, Path.unlink])
@pytest.mark.parametrize(
    "file", ["checkpoint", "target.encoder.layers_1.mlp.wo.kernel/0.0", "target.encoder.encoder_norm.scale/.zarray"]
)
def test_a_damaged_t5x_checkpoint_is_refused(t5x, file, damage):
    damage(t5x / file)
    with pytest.raises(UserError, match=r"T5X|damaged|cannot be opened|not a|no T5|no file"):
        load_base(t5x)


@pytest.mark.parametrize("damage", [truncate, flip, garbage, Path.unlink])
@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_damaged_hugging_face_folder_is_refused(hf, file, damage):
    damage(hf / file)
    with pytest.raises(UserError, match=r"safetensors|config\.json"):
        load_base(hf)


def test_a_nan_among_the_weights_is_refused(hf):
    weights = load_file(hf / "model.safetensors")
    weights["shared.weight"][0, 0] = np.nan
    save_file(weights, hf / "model.safetensors")
    with pytest.raises(UserError, match=r"shared.weight.*NaN"):
        load_base(hf)


def test_pickled_weights_are_refused_with_the_command_that_converts_them(hf):
    (hf / "model.safetensors").rename(hf / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"torch.load\('pytorch_model.bin'"):
        load_base(hf)


@pytest.mark.parametrize(
    "setting, message",
    [
        ({"model_type": "umt5"}, "'umt5'"),
        ({"relative_attention_num_buckets": 64}, "relative_attention_num_buckets"),
        ({"feed_forward_proj": "swish"}, "swish"),
        ({"d_model": "wide"}, "d_model|number"),
    ],
)
def test_a_configuration_this_network_cannot_run_is_refused(hf, setting, message):
    file = hf / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | setting))
    with pytest.raises(UserError, match=message):
        load_base(hf)


def test_wrong_paths_say_what_a_base_is(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "mtf").mkdir()
    (tmp_path / "mtf" / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-1100000"')
    for path, message in [
        (tmp_path / "absent", "There is no folder"),
        (tmp_path, "it holds"),
        (tmp_path / "notes.txt", "is a file"),
        (tmp_path / "mtf", "Mesh TensorFlow"),
        ("google/no-such-t5-anywhere", "hub"),
    ]:
        with pytest.raises(UserError, match=message):
            load_base(path)


def test_a_hub_name_is_loaded_from_what_the_hub_gives(hf, monkeypatch):
    hub = types.SimpleNamespace(snapshot_download=lambda name, **_: str(hf))
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert load_base("someone/t5-tiny").digest == load_base(GOLDEN / "t5_1_1").digest
    (hf / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no safetensors on the hub.*(\n.*)*torch.load"):
        load_base("someone/t5-tiny")


@pytest.mark.parametrize("layout", ["ocdbt", "zarr3", "arrays"])
def test_orbaxs_layout_is_read_as_t5xs_own(t5x, tmp_path, layout):
    before = load_base(t5x)
    params = {**before.params, "encoder": {**before.params["encoder"], "prompt": jnp.ones((3, 8))}}
    states = {"step": np.int32(1_100_005), "param_states": {"encoder": {"prompt": {"v": jnp.ones(3)}}}}
    kind = {"use_ocdbt": layout != "arrays", "use_zarr3": layout == "zarr3"}
    options = ocp.CheckpointManagerOptions(step_prefix="checkpoint")
    handlers = {"state": ocp.PyTreeCheckpointHandler(**kind)}
    with ocp.CheckpointManager(tmp_path / "o", options=options, item_handlers=handlers) as manager:
        saved = ocp.args.PyTreeSave({"target": params, "state": states})
        manager.save(5, args=ocp.args.Composite(state=saved))
    folder = tmp_path / "o" / "checkpoint_5"
    for path in (tmp_path / "o", folder):
        read = load_base(path)
        assert (read.digest, read.step, read.path) == (before.digest, 1_100_005, str(folder))
    np.testing.assert_array_equal(export.load(folder).vectors, np.ones((3, 8)))


def test_a_folder_that_orbax_did_not_finish_is_refused(tmp_path):
    (tmp_path / "checkpoint_5" / "state" / "ocdbt.process_0" / "d").mkdir(parents=True)
    for path in (tmp_path, tmp_path / "checkpoint_5"):
        with pytest.raises(UserError, match=r"nor an array in .*/checkpoint_5/state; expected .* saved to its end"):
            load_base(path)


def test_a_checkpoint_is_never_half_written_nor_overwritten(t5x, monkeypatch):
    base = load_base(t5x)
    with pytest.raises(UserError, match="exists already"):
        save_t5x(base.params, t5x.parent, 1_100_000)
    monkeypatch.setattr(serialization, "msgpack_serialize", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_t5x(base.params, t5x.parent, 5)
    assert [entry.name for entry in t5x.parent.iterdir()] == ["checkpoint_1100000"]


def test_the_vocabulary_beside_the_weights_is_found(hf):
    assert load_base(hf).vocabulary is None
    (hf / "spiece.model").write_bytes(b"")
    assert load_base(hf).vocabulary == str(hf / "spiece.model")


def test_the_newest_checkpoint_is_the_one_of_the_highest_number(tmp_path):
    for name in ("checkpoint_900", "checkpoint_1000", "checkpoint_990", "checkpoint_2000.tmp"):
        (tmp_path / name).mkdir()
    assert t5x_checkpoint.newest(str(tmp_path)) == f"{tmp_path}/checkpoint_1000"


def test_a_checkpoint_names_its_tensors_in_each_of_t5xs_ways(t5x):
    before, index = load_base(t5x).digest, read_index(t5x)
    embedding = index["optimizer"]["target"]["token_embedder"]["embedding"]
    folder = embedding["kvstore"]["path"].strip("/")
    cast = {"driver": "cast", "dtype": "bfloat16", "base": dict(embedding)}
    moved = {"driver": "zarr", "kvstore": {"driver": "gfile", "path": f"/somewhere/else/checkpoint_5/{folder}"}}
    older = {"driver": "zarr", "path": f"{folder}/", "kvstore": {"driver": "file"}}
    (t5x / folder).rename(t5x / "another.name")
    for spec in (cast, moved, older):
        told = json.loads(json.dumps(spec).replace(folder, "another.name"))
        index["optimizer"]["target"]["token_embedder"]["embedding"] = told
        write_index(t5x, index)
        assert load_base(t5x).digest == before
    index["optimizer"]["target"] = {"params": index["optimizer"]["target"]}
    write_index(t5x, index)
    assert load_base(t5x).digest == before, "as Flax's own states have it"


def test_the_function_of_a_t5x_model_is_the_configured_one(t5x):
    expected = dataclasses.replace(load_base(t5x).config, mlp_activations=("silu", "linear"))
    assert load_base(t5x, expected).config.mlp_activations == ("silu", "linear")


@pytest.mark.parametrize(
    "told, activation", [("gated-silu", "silu"), ("gated-relu", "relu"), ("gated-gelu_new", "gelu")]
)
def test_the_function_of_a_hugging_face_model_is_the_one_of_its_configuration(hf, told, activation):
    settings = json.loads((hf / "config.json").read_text())
    (hf / "config.json").write_text(json.dumps(settings | {"feed_forward_proj": told}))
    assert load_base(hf).config.mlp_activations == (activation, "linear")


def test_an_embedding_is_found_under_the_encoders_name_too(hf):
    before, weights = load_base(hf).digest, load_file(hf / "model.safetensors")
    shared = weights.pop("shared.weight")
    save_file(weights | {"encoder.embed_tokens.weight": shared}, hf / "model.safetensors")
    assert load_base(hf).digest == before
    copies = {f"{stack}.embed_tokens.weight": np.zeros_like(shared) for stack in ("encoder", "decoder")}
    save_file(weights | copies | {"shared.weight": shared}, hf / "model.safetensors")
    assert load_base(hf).digest == before, "copies are not read where the table itself is there"


def test_a_hugging_face_folder_that_does_not_say_so_is_tied_and_unread_tables_are_passed_over(tmp_path):
    folder = Path(shutil.copytree(GOLDEN / "t5_1_0", tmp_path / "hf"))
    before, settings = load_base(folder), json.loads((folder / "config.json").read_text())
    settings.pop("tie_word_embeddings", None)
    (folder / "config.json").write_text(json.dumps(settings))
    weights, layer = load_file(folder / "model.safetensors"), "decoder.block.0.layer.1.EncDecAttention"
    table = np.ones((32, before.config.num_heads), np.float32)
    save_file(weights | {f"{layer}.relative_attention_bias.weight": table}, folder / "model.safetensors")
    assert load_base(folder).digest == before.digest
