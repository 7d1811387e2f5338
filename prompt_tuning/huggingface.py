"""A Hugging Face T5 folder or hub name as a base: safetensors under PyTorch's names and layout."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from prompt_tuning import vocabulary
from prompt_tuning.base_source import Source, Tensor, of_a_t5
from prompt_tuning.errors import UserError
from prompt_tuning.stack import T5Config

_ACTIVATIONS = {
    "relu": ("relu",),
    "gated-gelu": ("gelu", "linear"),
    "gated-gelu_new": ("gelu", "linear"),
    "gated-silu": ("silu", "linear"),
    "gated-relu": ("relu", "linear"),
}
_FIXED = {"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128, "layer_norm_epsilon": 1e-6}
_FILES = ["config.json", "*.safetensors", "*.safetensors.index.json", *vocabulary.FILES]

# copies of other tensors, and a table that early T5 exports carry although no layer reads it
_IGNORED = re.compile(
    r"(en|de)coder\.embed_tokens\.weight|decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight"
)


def open_folder(folder: Path) -> Source:
    """Opens config.json and the safetensors beside it. Raises UserError for what is not a T5 that can be read."""
    settings = _settings(folder / "config.json")
    config = _config(settings, folder)
    files = _files(folder)
    names = dict(_names(config))
    known = {own: (name, transposed) for name, (own, transposed) in names.items()}
    if config.logits_via_embedding:
        known.pop("lm_head.weight", None)
    tensors, unknown = {}, []
    if "shared.weight" not in files and "encoder.embed_tokens.weight" in files:
        known["encoder.embed_tokens.weight"] = known["shared.weight"]
    for own, (file, shape) in files.items():
        if own in known:
            name, transposed = known[own]
            tensors[name] = Tensor(shape[::-1] if transposed else shape, _reader(file, own, transposed))
        elif not _IGNORED.fullmatch(own) and not (config.logits_via_embedding and own == "lm_head.weight"):
            unknown.append(f"{own} {shape}")
    if config.logits_via_embedding and {"lm_head.weight", "shared.weight"} <= files.keys():
        head, shared = (_reader(files[own][0], own, False)() for own in ("lm_head.weight", "shared.weight"))
        if not np.array_equal(head, shared):
            raise UserError(
                f"{folder} has an lm_head.weight of its own, and its config.json says that it is the embedding: set"
                ' "tie_word_embeddings" to false there, or leave the tensor out.'
            )
    return Source(str(folder), config, tensors, tuple(unknown), None, {name: own for name, (own, _) in names.items()})


def open_hub(name: str) -> Source:
    """Opens a model of the Hugging Face hub, downloading it unless the cache holds it."""
    try:
        from huggingface_hub import snapshot_download  # the extra `hub`
    except ImportError as error:
        raise UserError(
            f"There is no folder {name}, and to look for it on the Hugging Face hub an extra is needed:"
            " type pip install 'prompt-tuning[hub]'."
        ) from error
    try:
        folder = snapshot_download(name, allow_patterns=[*_FILES, "*.bin.index.json"])
    except Exception as error:  # the hub's own errors, and those of every network layer under it
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"There is no folder {name}, and the Hugging Face hub did not give a model of that name ({reason[:300]})."
            " Check the name and the connection, or download it elsewhere and give the folder."
        ) from error
    if not list(Path(folder).glob("*.safetensors")):
        raise UserError(f"{name} has no safetensors on the hub. {_conversion('FOLDER')}")
    return open_folder(Path(folder))


def _settings(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path.parent} has weights but no config.json; copy the one of the same model beside them.")
    try:
        settings = json.loads(path.read_text())
        if not isinstance(settings, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a readable JSON file ({error}).") from error
    if settings.get("model_type") not in ("t5", "mt5"):
        raise UserError(
            f"{path} describes a model of type {settings.get('model_type')!r}; only T5 and mT5 (types 't5' and 'mt5')"
            " have the network that this project runs."
        )
    return settings


def _config(settings: dict[str, Any], folder: Path) -> T5Config:
    wrong = {k: settings[k] for k, v in _FIXED.items() if settings.get(k, v) != v}
    if wrong:
        raise UserError(f"{folder}/config.json sets {wrong}; this network is fixed at {_FIXED}.")
    feed_forward = settings.get("feed_forward_proj", "relu")
    if not isinstance(feed_forward, str) or feed_forward not in _ACTIVATIONS:
        raise UserError(f"{folder}/config.json: feed_forward_proj {feed_forward!r} is none of {sorted(_ACTIVATIONS)}.")
    try:
        layers = int(settings["num_layers"])
        config = T5Config(
            vocab_size=int(settings["vocab_size"]),
            emb_dim=int(settings["d_model"]),
            num_heads=int(settings["num_heads"]),
            head_dim=int(settings["d_kv"]),
            mlp_dim=int(settings["d_ff"]),
            num_encoder_layers=layers,
            num_decoder_layers=int(settings.get("num_decoder_layers") or layers),
            mlp_activations=_ACTIVATIONS[feed_forward],
            logits_via_embedding=bool(settings.get("scale_decoder_outputs", settings.get("tie_word_embeddings", True))),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{folder}/config.json lacks a size, or one is no number ({error!r}).") from error
    return of_a_t5(config, f"{folder}/config.json")


def _files(folder: Path) -> dict[str, tuple[Path, tuple[int, ...]]]:
    """File and shape of every tensor, from the headers alone."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = sorted({str(file) for file in json.loads(index.read_text())["weight_map"].values()})
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise UserError(f"{index} is not a readable index of shards ({error!r}).") from error
        paths = [folder / Path(shard).name for shard in shards]
        absent = [path.name for path in paths if not path.is_file()]
        if absent:
            raise UserError(f"{folder} lacks {', '.join(absent)}, which its index names: copy the shards again.")
    elif (folder / "model.safetensors").is_file():
        paths = [folder / "model.safetensors"]
    elif list(folder.glob("*.bin")):
        raise UserError(f"{folder} has only PyTorch .bin weights, which are pickles. {_conversion(str(folder))}")
    else:
        raise UserError(f"{folder} has a config.json but no model.safetensors; copy the weights beside it.")
    found: dict[str, tuple[Path, tuple[int, ...]]] = {}
    for path in paths:
        try:
            with safe_open(path, "numpy") as file:
                found |= {name: (path, tuple(file.get_slice(name).get_shape())) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{path} is not a complete safetensors file ({error}); it is cut off or damaged: copy it again."
            ) from error
    return found


def _conversion(folder: str) -> str:
    return (
        "Convert them once, on a machine with torch:\n"
        '  python -c "import torch, safetensors.torch as s;'
        " w = torch.load('pytorch_model.bin', map_location='cpu', weights_only=True);"
        " s.save_file({k: v.clone() for k, v in w.items()}, 'model.safetensors')\"\n"
        f"inside {folder}, and give the folder with config.json and model.safetensors."
    )


def _reader(file: Path, name: str, transposed: bool) -> Any:
    def read() -> np.ndarray:
        with safe_open(file, "numpy") as opened:
            array = opened.get_tensor(name)
        return array.T if transposed else array

    return read


def _names(config: T5Config) -> Iterator[tuple[str, tuple[str, bool]]]:
    """T5X name -> (Hugging Face name, whether it is stored transposed)."""
    yield "token_embedder/embedding", ("shared.weight", False)
    if not config.logits_via_embedding:
        yield "decoder/logits_dense/kernel", ("lm_head.weight", True)
    gated = len(config.mlp_activations) > 1
    stacks = {
        "encoder": (config.num_encoder_layers, {"attention": "SelfAttention"}),
        "decoder": (
            config.num_decoder_layers,
            {"self_attention": "SelfAttention", "encoder_decoder_attention": "EncDecAttention"},
        ),
    }
    for stack, (count, attentions) in stacks.items():
        bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        yield f"{stack}/relpos_bias/rel_embedding", (bias, True)
        yield f"{stack}/{stack}_norm/scale", (f"{stack}.final_layer_norm.weight", False)
        for i in range(count):
            for part, (ours, theirs) in enumerate(attentions.items()):
                norm = "pre_cross_attention" if part else f"pre_{ours}"
                yield (
                    f"{stack}/layers_{i}/{norm}_layer_norm/scale",
                    (f"{stack}.block.{i}.layer.{part}.layer_norm.weight", False),
                )
                for kernel, letter in zip(("query", "key", "value", "out"), "qkvo", strict=True):
                    own = f"{stack}.block.{i}.layer.{part}.{theirs}.{letter}.weight"
                    yield f"{stack}/layers_{i}/{ours}/{kernel}/kernel", (own, True)
            last = f"{stack}.block.{i}.layer.{len(attentions)}"
            yield f"{stack}/layers_{i}/pre_mlp_layer_norm/scale", (f"{last}.layer_norm.weight", False)
            for kernel in ("wi_0", "wi_1", "wo") if gated else ("wi", "wo"):
                yield f"{stack}/layers_{i}/mlp/{kernel}/kernel", (f"{last}.DenseReluDense.{kernel}.weight", True)
