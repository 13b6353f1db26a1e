"""config.json of a Hugging Face checkpoint <-> `BaseConfig`: the families and their spellings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mctx.errors import UserError
from mctx.models.base import BaseConfig
from mctx.models.rope import RopeScaling

# The fields whose meaning is the same on both sides: ours -> theirs.
FIELDS = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "d_ff": "intermediate_size",
    "tied": "tie_word_embeddings",
    "norm_eps": "rms_norm_eps",
    "window": "max_position_embeddings",
}
SCALING_FIELDS = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_window": "original_max_position_embeddings",
}

PREFIX = "mctx_prefix"  # ours in their config.json, of which Transformers takes no notice


class Family(NamedTuple):
    """What a `model_type` can express, and the values that its config.json may leave out."""

    architecture: str
    qkv_bias: bool = False
    qk_norm: bool = False
    partial_rope: bool = False  # layers without RoPE
    defaults: Mapping[str, Any] = {}


DEFAULTS = {"tie_word_embeddings": False, "rms_norm_eps": 1e-6, "rope_theta": 10_000.0}
FAMILIES = {  # SmolLM2 calls itself llama
    "llama": Family("LlamaForCausalLM"),
    "mistral": Family(
        "MistralForCausalLM", defaults={"use_sliding_window": True, "sliding_window": 4096}
    ),
    "qwen2": Family("Qwen2ForCausalLM", qkv_bias=True),
    "qwen3": Family("Qwen3ForCausalLM", qk_norm=True, defaults={"head_dim": 128}),
    "smollm3": Family(
        "SmolLM3ForCausalLM",
        partial_rope=True,
        defaults={"rope_theta": 2e6, "tie_word_embeddings": True, "no_rope_layer_interval": 4},
    ),
}


def read_config(directory: str | Path) -> BaseConfig:
    """The decoder that a checkpoint's config.json describes.

    `prefix` is its beginning-of-sequence token, or the (first) end-of-sequence token where it has
    none, if `write_config` did not write another one. `window` is `max_position_embeddings`.

    Raises:
      UserError: no readable config.json, or one that asks for what `Base` does not do.
    """
    path = Path(directory) / "config.json"
    try:
        stored = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable config: give a checkpoint folder.") from error
    kind = stored.get("model_type")
    if kind not in FAMILIES:
        raise UserError(f"{path} has model_type {kind!r}: only {', '.join(FAMILIES)} can be read.")
    family = FAMILIES[kind]
    values = DEFAULTS | family.defaults | stored
    try:
        for met, what in _demands(values, family):
            if not met:
                raise UserError(f"{path} asks for {what}, which this decoder does not have.")
        theta, scaling = _read_rope(values)
        # Left out or null, these two follow from the others.
        heads = values["num_attention_heads"]
        values["num_key_value_heads"] = values.get("num_key_value_heads") or heads
        values["head_dim"] = values.get("head_dim") or values["hidden_size"] // heads
        return BaseConfig(
            **{ours: values[theirs] for ours, theirs in FIELDS.items()},
            rope_theta=theta,
            rope_scaling=scaling,
            rope_layers=_read_rope_layers(values) if family.partial_rope else None,
            qkv_bias=family.qkv_bias,
            qk_norm=family.qk_norm,
            prefix=_read_prefix(values),
        )
    except KeyError as error:
        raise UserError(f"{path} lacks {error}: it is not a whole {kind} config.") from error


def _demands(values: dict, family: Family) -> Iterator[tuple[bool, str]]:
    """(met, what it is) of everything that a config can ask for and `Base` has in one form."""
    activation = values.get("hidden_act", "silu")
    yield activation == "silu", f"the activation {activation!r}"
    # Qwen2 has its biases whatever this says; elsewhere it gives the output projection one too.
    yield family.qkv_bias or not values.get("attention_bias"), "attention_bias"
    yield not values.get("mlp_bias"), "mlp_bias"
    yield "quantization_config" not in values, "quantized weights"

    rope = _rope_values(values)
    yield not any(isinstance(v, dict) for v in rope.values()), "another RoPE in some layers"
    kind = _rope_type(rope)
    yield kind in ("default", "llama3"), f"the RoPE type {kind!r}"
    share = rope.get("partial_rotary_factor", values.get("partial_rotary_factor"))
    yield share in (None, 1.0), f"RoPE on {share} of a head"

    window, sliding = values["max_position_embeddings"], values.get("sliding_window")
    slides = bool(values.get("use_sliding_window")) and sliding is not None and sliding < window
    yield (
        not slides,
        f"attention that slides over {sliding} of {window} tokens (lower its "
        f"max_position_embeddings to {sliding}: there it changes nothing)",
    )


def _rope_values(values: dict) -> dict:
    """Transformers 5 writes `rope_parameters`; before, `rope_scaling` stood beside `rope_theta`."""
    return values.get("rope_parameters") or values.get("rope_scaling") or {}


def _rope_type(rope: dict) -> str:
    return rope.get("rope_type", rope.get("type", "default"))


def _read_rope(values: dict) -> tuple[float, RopeScaling | None]:
    rope = _rope_values(values)
    theta = float(rope.get("rope_theta", values["rope_theta"]))
    if _rope_type(rope) == "default":
        return theta, None
    return theta, RopeScaling(**{ours: rope[name] for ours, name in SCALING_FIELDS.items()})


def _read_rope_layers(values: dict) -> tuple[bool, ...]:
    """`no_rope_layers` holds 1 for a layer WITH RoPE; without it, every fourth layer has none."""
    layers, interval = range(values["num_hidden_layers"]), values["no_rope_layer_interval"]
    flags = values.get("no_rope_layers") or [(layer + 1) % interval != 0 for layer in layers]
    return tuple(bool(flags[layer]) for layer in layers)


def _read_prefix(values: dict) -> tuple[int, ...]:
    if PREFIX in values:
        return tuple(values[PREFIX])
    for tokens in (values.get("bos_token_id"), values.get("eos_token_id")):
        if tokens is not None:
            return (tokens[0],) if isinstance(tokens, list) else (tokens,)
    return ()


def write_config(
    directory: str | Path, config: BaseConfig, family: str | None, others: Mapping[str, Any]
) -> None:
    """Writes config.json, spelled so that Transformers 4 and 5 both read it.

    Args:
      family: a `model_type`; None for the first that can express the config.
      others: fields of config.json that the decoder knows nothing of.

    Raises:
      UserError: the family, or every family, cannot express the config.
    """
    able = [name for name, one in FAMILIES.items() if _expresses(one, config)]
    if not able or family not in (None, *able):
        mend = f"use {' or '.join(able)}" if able else "Transformers has none like it"
        raise UserError(f"family {family or 'of any name'} cannot express this decoder: {mend}.")
    values = _config_values(config, family or able[0]) | others
    if _read_prefix(values) != config.prefix:  # their fields can only tell of one token
        values[PREFIX] = list(config.prefix)
    (Path(directory) / "config.json").write_text(json.dumps(values, indent=2) + "\n")


def _expresses(family: Family, config: BaseConfig) -> bool:
    has_rope = config.rope_layers is None or all(config.rope_layers)
    return (
        family.qkv_bias == config.qkv_bias
        and family.qk_norm == config.qk_norm
        and (family.partial_rope or has_rope)
    )


def _config_values(config: BaseConfig, kind: str) -> dict:
    scaling = config.rope_scaling
    values = {theirs: getattr(config, ours) for ours, theirs in FIELDS.items()} | {
        "architectures": [FAMILIES[kind].architecture],
        "model_type": kind,
        "hidden_act": "silu",
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling
        and {"rope_type": "llama3"}
        | {theirs: getattr(scaling, ours) for ours, theirs in SCALING_FIELDS.items()},
        # Said outright, for what a family takes silence to mean may not fit.
        "sliding_window": None,
        "bos_token_id": config.prefix[0] if config.prefix else None,
        "pad_token_id": None,
    }
    if FAMILIES[kind].partial_rope:
        rope_layers = config.rope_layers or (True,) * config.n_layers
        values["no_rope_layers"] = [int(has_rope) for has_rope in rope_layers]
    return values
