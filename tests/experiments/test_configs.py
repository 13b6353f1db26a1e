"""Configs of all sizes and of imported bases: counts, shapes and shardings, without a weight."""

import json
import math

import jax
import pytest

from experiments.entry import load_config
from experiments.train import PHASES, configuration
from mctx import sharding
from mctx.errors import UserError
from mctx.models import hf, lora
from mctx.models.base import BaseConfig, count_parameters
from mctx.models.hf_config import read_config
from mctx.models.wrapped import init_part
from mctx.training.lora import MOST
from mctx.training.sources import wrapped_from
from tests.training.test_phases import CONFIGS

QWEN3 = dict(
    model_type="qwen3", vocab_size=151936, head_dim=128, num_key_value_heads=8, rms_norm_eps=1e-6,
    rope_theta=1000000, max_position_embeddings=32768, bos_token_id=151643, eos_token_id=151643,
    sliding_window=None, use_sliding_window=False, attention_bias=False,
)  # fmt: skip
LLAMA3 = dict(
    factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, rope_type="llama3",
    original_max_position_embeddings=8192,
)  # fmt: skip


def of(kind, width, inner, layers, heads, **more):
    return more | dict(
        model_type=more.get("model_type", kind), hidden_size=width, intermediate_size=inner,
        num_hidden_layers=layers, num_attention_heads=heads,
    )  # fmt: skip


# What the published config.json says, and how many parameters the published model has.
PUBLISHED = {
    "smollm2_135m": (134_515_008, of(
        "llama", 576, 1536, 30, 9, num_key_value_heads=3, vocab_size=49152, rope_theta=100000,
        tie_word_embeddings=True, rms_norm_eps=1e-5, max_position_embeddings=8192, bos_token_id=0,
        eos_token_id=0)),
    "qwen3_0p6b": (596_049_920, of("", 1024, 3072, 28, 16, tie_word_embeddings=True, **QWEN3)),
    "llama32_1b": (1_235_814_400, of(
        "llama", 2048, 8192, 16, 32, num_key_value_heads=8, head_dim=64, vocab_size=128256,
        rope_theta=500000.0, rope_scaling=LLAMA3, tie_word_embeddings=True, rms_norm_eps=1e-5,
        max_position_embeddings=131072, bos_token_id=128000, eos_token_id=128001)),
    "qwen3_8b": (8_190_735_360, of("", 4096, 12288, 36, 32, tie_word_embeddings=False, **QWEN3)),
    "Qwen2.5-0.5B": (494_032_768, of(
        "qwen2", 896, 4864, 24, 14, num_key_value_heads=2, vocab_size=151936, rope_theta=1e6,
        tie_word_embeddings=True, rms_norm_eps=1e-6, max_position_embeddings=32768,
        use_sliding_window=False, sliding_window=32768, bos_token_id=151643, eos_token_id=151643)),
    "SmolLM3-3B": (3_075_098_624, of(
        "smollm3", 2048, 11008, 36, 16, num_key_value_heads=4, vocab_size=128256, rope_theta=5e6,
        rms_norm_eps=1e-6, max_position_embeddings=65536, bos_token_id=128000,
        eos_token_id=128001)),
    "Mistral-7B-v0.3": (7_248_023_552, of(
        "mistral", 4096, 14336, 32, 32, num_key_value_heads=8, vocab_size=32768, rope_theta=1e6,
        rms_norm_eps=1e-5, max_position_embeddings=32768, sliding_window=None, bos_token_id=1,
        eos_token_id=2)),
}  # fmt: skip
WRAPPED = [name for name in PUBLISHED if (CONFIGS / f"{name}.py").exists()]


def shapes(model, part):
    return jax.eval_shape(lambda key: init_part(model, part, key), jax.random.key(0))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_the_parameters_that_they_are_known_for(name, tmp_path):
    count, published = PUBLISHED[name]
    (tmp_path / "config.json").write_text(json.dumps(published))
    config = read_config(tmp_path)
    assert count_parameters(hf.abstract_params(config)) == count
    if name in WRAPPED:
        base = load_config(CONFIGS / f"{name}.py").base.to_dict()
        assert BaseConfig.from_dict(base) == config


@pytest.mark.parametrize(
    "size, count", [("30m", 29_794_176), ("300m", 298_890_240), ("1b", 1_048_651_776),
                    ("8b", 7_986_286_592)]
)  # fmt: skip
def test_bases_of_all_sizes(size, count):
    config = configuration(f"{CONFIGS}/base.py:{size}", ["--config.corpus=none"])
    base = shapes(wrapped_from(config, {}), "base")
    assert count_parameters(base) == count
    assert_split(base, min(config.train.fsdp, 8))


@pytest.mark.parametrize("name", WRAPPED)
def test_parts_around_an_imported_base(name):
    configs = {
        phase: configuration(f"{CONFIGS}/{name}.py:{phase}", ["--config.corpus=none"])
        for phase in PHASES[1:]
    }
    known = {"gist": configs["gist"].gist, "lens": configs["lens"].lens}
    model = wrapped_from(configs["lora"], known)
    base = shapes(model, "base")
    assert count_parameters(base) == PUBLISHED[name][0]
    assert_split(base, 8)
    for part in ("gistnet", "lensnet"):  # what is trained is small beside what is frozen
        assert 0 < count_parameters(shapes(model, part)) < 0.11 * count_parameters(base)
    wanted = lora.LoraConfig.from_dict(configs["lora"].lora)
    own = jax.eval_shape(lambda key: lora.init(wanted, base, key), jax.random.key(0))
    assert 0 < count_parameters(own) < MOST * count_parameters(base)
    gist = model.gist
    for phase in ("gist", "mof", "lora"):
        config = configs[phase]
        assert config.history % config.window == 0 == config.history % gist.span(gist.levels)
        assert config.focus.recent * gist.block + config.tail < model.base.window


@pytest.mark.parametrize("name", WRAPPED)
def test_the_lens_of_an_imported_base_can_be_given_finders_and_questions(name):
    given = ["--config.corpus=none", "--config.questions=0.25"]
    given.append("--config.lens.finders=((12, 0), (11, 2))")
    config = configuration(f"{CONFIGS}/{name}.py:lens", given)
    assert wrapped_from(config, {}).lens.finders == ((12, 0), (11, 2))
    rows = config.batch_size * config.questions
    assert rows == int(rows)


def assert_split(tree, ways):
    """No device holds much more than its share of the parameters."""
    mesh = sharding.mesh(data=1, fsdp=ways)
    places = sharding.shardings(tree, mesh)
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(places), strict=True)
    own = sum(math.prod(place.shard_shape(leaf.shape)) for leaf, place in pairs)
    assert own <= 1.05 * count_parameters(tree) / ways


def test_a_choice_that_a_config_does_not_have():
    with pytest.raises(UserError, match="no size '2b': use one of 30m"):
        load_config(f"{CONFIGS}/base.py:2b")
    with pytest.raises(UserError, match="no config for phase 'base'"):
        load_config(f"{CONFIGS}/qwen3_8b.py:base")
    with pytest.raises(UserError, match="holds one config"):
        load_config(f"{CONFIGS}/pico_gist.py:lens")
