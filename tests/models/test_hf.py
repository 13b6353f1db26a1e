"""Hugging Face checkpoints: our logits are Transformers', both ways."""

import dataclasses
import functools
import json
import shutil
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mctx import sharding
from mctx.errors import UserError
from mctx.models import hf
from mctx.models.base import Base, BaseConfig, Context, logits
from mctx.models.rope import RopeScaling

FIXTURES = Path(__file__).parent / "fixtures"  # made by make_fixtures.py
FAMILIES = ("llama", "llama3", "qwen2", "qwen3", "smollm3", "mistral")
PREFILL = 4
OURS = BaseConfig(
    vocab_size=40, d_model=24, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=6, d_ff=20, window=64
)


# Compiling is most of what these tests do, so it is kept short and done once a config.
@functools.partial(
    jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0}
)
def our_logits(config, params, entries, positions, context=None, valid=None):
    """Logits [B, T, V], and the entries' rows."""
    out = Base(config).apply({"params": params}, entries, positions, context, valid)
    return logits(params, out.hidden), out.rows


def read_every_way(config, params, inputs):
    """Our logits [B, T, V] of each way in make_fixtures.expected."""
    tokens, gapped, valid, vectors = (inputs[k] for k in ("tokens", "gapped", "valid", "vectors"))
    plain = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    packed = np.maximum(np.cumsum(valid, axis=1) - 1, 0)
    everything = np.ones_like(valid)

    def read(*args):
        return our_logits(config, params, *args)

    head, rows = read(tokens[:, :PREFILL], gapped[:, :PREFILL])
    bias = np.zeros((len(tokens), PREFILL), np.float32)
    context = Context(rows, gapped[:, :PREFILL], bias)
    rest, _ = read(tokens[:, PREFILL:], gapped[:, PREFILL:], context)
    return {
        "plain": read(tokens, plain, None, everything)[0],
        "gap": read(tokens, gapped, None, everything)[0],
        "left_padding": read(tokens, packed, None, valid)[0],
        "vectors": read(vectors, plain)[0],
        "cached": np.concatenate([head, rest], axis=1),
    }


def assert_same_logits(directory, inputs, wanted):
    config, params = hf.load(directory)
    for way, found in read_every_way(config, params, inputs).items():
        # What a padding entry itself answers means nothing.
        read = inputs["valid"] if way == "left_padding" else np.ones_like(inputs["valid"])
        np.testing.assert_allclose(
            np.asarray(found)[read], wanted[way][read], rtol=0, atol=1e-4, err_msg=way
        )


def copy(family, to):
    shutil.copytree(FIXTURES / family, to, dirs_exist_ok=True)
    return to


def change_config(directory, **changes):
    path = directory / "config.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))
    return directory


def random_params(config, seed=0):
    """No leaf at its initial value, so that each one counts in the logits."""
    rng = np.random.default_rng(seed)

    def draw(leaf):
        return (0.5 + 0.3 * rng.normal(size=leaf.shape)).astype(np.float32)

    return jax.tree.map(draw, hf.abstract_params(config))


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_those_stored_with_the_fixture(family):
    stored = np.load(FIXTURES / family / "expected.npz")
    wanted = {k.removeprefix("logits_"): stored[k] for k in stored if k.startswith("logits_")}
    # A jump in positions must matter by far more than the tolerance.
    assert np.abs(wanted["gap"] - wanted["plain"]).max() > 0.05
    assert_same_logits(FIXTURES / family, stored, wanted)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_those_of_transformers(family, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from tests.models import make_fixtures

    model = make_fixtures.random_model(family, seed=100)
    model.save_pretrained(tmp_path)
    inputs = make_fixtures.random_inputs(model, seed=100)
    assert_same_logits(tmp_path, inputs, make_fixtures.expected(model, inputs))


EXPORTS = [
    ("llama", {}),
    ("llama", {"tied": False, "rope_theta": 500.0}),
    ("llama", {"rope_scaling": RopeScaling(8.0, 1.0, 4.0, 16)}),
    ("mistral", {"tied": False, "norm_eps": 1e-5}),
    ("qwen2", {"qkv_bias": True}),
    ("qwen3", {"qk_norm": True, "head_dim": 8}),
    ("smollm3", {"rope_layers": (True, False, True)}),
]


@pytest.mark.parametrize("family, changes", EXPORTS)
def test_transformers_reads_what_we_save(family, changes, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = dataclasses.replace(OURS, **changes)
    params = random_params(config)
    hf.save(tmp_path, config, params, family)

    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert model.config.model_type == family
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, 9))
    with torch.no_grad():
        theirs = model(input_ids=torch.from_numpy(tokens)).logits.numpy()
    found, _ = our_logits(config, params, tokens, np.broadcast_to(np.arange(9), (2, 9)))
    np.testing.assert_allclose(found, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family, changes", EXPORTS)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_what_is_saved_is_loaded(family, changes, dtype, tmp_path):
    config = dataclasses.replace(OURS, **changes)
    params = jax.tree.map(lambda x: np.asarray(x, dtype), random_params(config))
    hf.save(tmp_path, config, params, family)
    again, loaded = hf.load(tmp_path)
    assert again == config
    assert jax.tree.structure(loaded) == jax.tree.structure(params)
    for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(params), strict=True):
        assert a.dtype == dtype
        np.testing.assert_array_equal(a, b)


def test_the_family_follows_from_the_config(tmp_path):
    kinds = {}
    for family, changes in EXPORTS:
        config = dataclasses.replace(OURS, **changes)
        hf.save(tmp_path, config, random_params(config))
        kinds[family] = json.loads((tmp_path / "config.json").read_text())["model_type"]
    assert kinds == {family: family for family in kinds} | {"mistral": "llama"}


def test_a_family_that_cannot_express_the_config_is_refused(tmp_path):
    config = dataclasses.replace(OURS, qk_norm=True)
    with pytest.raises(UserError, match="use qwen3"):
        hf.save(tmp_path, config, random_params(config), "llama")
    config = dataclasses.replace(OURS, qk_norm=True, qkv_bias=True)
    with pytest.raises(UserError, match="none like it"):
        hf.save(tmp_path, config, random_params(config))


def test_shards_are_read_like_one_file(tmp_path):
    copy("qwen2", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for part, members in parts.items():
        save_file({name: tensors[name] for name in members}, tmp_path / part)
    weight_map = {name: part for part, members in parts.items() for name in members}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    whole, sharded = hf.load(FIXTURES / "qwen2"), hf.load(tmp_path)
    assert whole[0] == sharded[0]
    jax.tree.map(np.testing.assert_array_equal, whole[1], sharded[1])

    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(UserError, match="no whole set of safetensors"):
        hf.load(tmp_path)


def many_files(directory, config):
    """A checkpoint of random values, a file to each layer."""
    hf.save(directory, config, random_params(config))
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    files: dict[str, dict] = {}
    for name, tensor in tensors.items():
        part = name.split(".")[2] if ".layers." in name else "rest"
        files.setdefault(f"model-{part}.safetensors", {})[name] = tensor
    for file, members in files.items():
        save_file(members, directory / file)
    weight_map = {name: file for file, members in files.items() for name in members}
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    return sum(tensor.nbytes for tensor in tensors.values())


def test_files_are_read_into_their_shards_and_never_held_twice(tmp_path):
    config = dataclasses.replace(OURS, vocab_size=512, d_model=256, d_ff=1024)
    size = many_files(tmp_path, config)
    assert size > 2**23
    mesh = sharding.mesh(data=2, fsdp=4)

    def place(shape):
        return jax.sharding.NamedSharding(mesh, sharding.shard_large(shape, mesh))

    held = []
    for where in (None, place):
        tracemalloc.start()
        loaded = hf.load(tmp_path, place=where)
        held.append(tracemalloc.get_traced_memory()[1] / size)
        tracemalloc.stop()
        jax.tree.map(np.testing.assert_array_equal, loaded[1], random_params(config))
    # One tensor of theirs (a tenth) is held beside ours; what is on the mesh is not counted.
    assert max(held) < 1.4
    gate = loaded[1]["layers"]["mlp"]["gate"]["kernel"]
    assert gate.sharding == place(gate.shape)
    assert {shard.data.shape for shard in gate.addressable_shards} == {(3, 256, 256)}


def test_dtype_is_the_one_asked_for():
    _, params = hf.load(FIXTURES / "llama", dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(jnp.bfloat16)}


def test_both_spellings_of_rope_are_read(tmp_path):
    wanted = hf.read_config(FIXTURES / "llama3")
    rope = json.loads((FIXTURES / "llama3" / "config.json").read_text())["rope_parameters"]
    theta = rope.pop("rope_theta")
    copy("llama3", tmp_path)
    change_config(tmp_path, rope_parameters=..., rope_theta=theta, rope_scaling=rope)
    assert hf.read_config(tmp_path) == wanted
    assert wanted.rope_scaling == RopeScaling(8.0, 1.0, 4.0, 256)


def test_what_a_config_leaves_out_follows_its_family(tmp_path):
    copy("smollm3", tmp_path)
    absent = dict.fromkeys(("rope_parameters", "no_rope_layers", "tie_word_embeddings"), ...)
    change_config(tmp_path, **absent, num_key_value_heads=None, num_hidden_layers=8)
    config = hf.read_config(tmp_path)
    assert config.rope_theta == 2e6 and config.tied and config.n_kv_heads == config.n_heads
    assert config.rope_layers == (True, True, True, False) * 2


@pytest.mark.parametrize(
    "changes, prefix",
    [
        ({"bos_token_id": 5, "eos_token_id": 6}, (5,)),
        ({"bos_token_id": None, "eos_token_id": 6}, (6,)),
        ({"bos_token_id": ..., "eos_token_id": [7, 8]}, (7,)),
        ({"bos_token_id": None, "eos_token_id": None}, ()),
    ],
)
def test_the_prefix_is_the_token_that_a_text_begins_with(changes, prefix, tmp_path):
    assert hf.read_config(change_config(copy("llama", tmp_path), **changes)).prefix == prefix


@pytest.mark.parametrize(
    "family, changes, message",
    [
        ("llama", {"model_type": "gpt2"}, "model_type 'gpt2'"),
        ("llama", {"hidden_size": ...}, "lacks 'hidden_size'"),
        ("llama", {"hidden_act": "gelu"}, "activation 'gelu'"),
        ("llama", {"attention_bias": True}, "attention_bias"),
        ("llama", {"mlp_bias": True}, "mlp_bias"),
        ("llama", {"quantization_config": {}}, "quantized"),
        ("llama", {"rope_parameters": {"rope_type": "yarn"}}, "RoPE type 'yarn'"),
        ("llama", {"rope_parameters": {"full_attention": {}}}, "another RoPE in some layers"),
        ("llama", {"partial_rotary_factor": 0.5}, "RoPE on 0.5 of a head"),
        ("mistral", {"sliding_window": 512}, "slides over 512 of 1024 tokens"),
        ("mistral", {"sliding_window": ..., "max_position_embeddings": 8192}, "slides over 4096"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8}, "slides over 8"),
    ],
)
def test_what_the_decoder_lacks_is_named(family, changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        hf.read_config(change_config(copy(family, tmp_path), **changes))


def test_a_sliding_window_that_changes_nothing_is_no_obstacle(tmp_path):
    wide = change_config(copy("mistral", tmp_path), sliding_window=1024)
    assert hf.read_config(wide) == hf.read_config(FIXTURES / "mistral")
    unused = change_config(copy("qwen2", tmp_path), sliding_window=8)  # use_sliding_window: false
    assert hf.read_config(unused) == hf.read_config(FIXTURES / "qwen2")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_hidden_layers": 3}, "lacks model.layers.2"),
        ({"num_hidden_layers": 1}, "also holds model.layers.1"),
        ({"tie_word_embeddings": False}, "lacks lm_head.weight"),
        ({"intermediate_size": 16}, "config.json makes it"),
        ({"model_type": "qwen2"}, "lacks .*bias"),
    ],
)
def test_weights_of_another_config_are_refused(changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        hf.load(change_config(copy("llama3", tmp_path), **changes))


def test_a_folder_without_config_or_weights_is_refused(tmp_path):
    with pytest.raises(UserError, match="not a readable config"):
        hf.load(tmp_path)
    copy("llama", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="no whole set of safetensors"):
        hf.load(tmp_path)
