"""LoRA: nothing until it is trained, the same applied as merged, and the base stays as it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import export_hf
from experiments.entry import load_config
from mctx import checkpoint
from mctx.errors import UserError
from mctx.models import hf, lora
from mctx.models.wrapped import read
from mctx.opened import open_checkpoint
from mctx.training import lora as training
from mctx.training.step import State, make_optimizer, make_step
from tests import tiny
from tests.experiments import tiny_checkpoint
from tests.training.test_phases import CONFIGS, SETTINGS, SMALL, SOURCES, load

ALL = lora.LoraConfig(rank=2, targets=tuple(lora.PROJECTIONS))


def base():
    return tiny.params()["base"]


def drawn():
    """A LoRA on every projection, with nothing zero in it."""
    shapes = jax.eval_shape(lambda key: lora.init(ALL, base(), key), jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.float32(rng.normal(0, 0.2, x.shape)), shapes)


@jax.jit
def hidden(params):
    tokens = tiny.tokens(2, 12)
    positions = jnp.broadcast_to(jnp.arange(12), tokens.shape)
    return read(tiny.MODEL, {"base": params}, tokens, positions).hidden


def test_a_fresh_lora_is_exactly_the_base():
    fresh = jax.jit(lambda key: lora.init(ALL, base(), key))(jax.random.key(1))
    assert any(x.any() for x in jax.tree.leaves(fresh))
    np.testing.assert_array_equal(hidden(lora.graft(base(), fresh)), hidden(base()))


def test_merged_is_the_same_as_applied():
    applied, merged = hidden(lora.graft(base(), drawn())), hidden(lora.merge(base(), drawn()))
    assert float(jnp.abs(applied - hidden(base())).max()) > 0.1
    np.testing.assert_allclose(merged, applied, atol=2e-5)
    assert jax.tree.structure(lora.merge(base(), drawn())) == jax.tree.structure(base())


def test_every_projection_counts():
    whole = hidden(lora.graft(base(), drawn()))
    for target, (module, _) in lora.PROJECTIONS.items():
        one = drawn()
        name = target + lora.B
        one["layers"][module][name] = jnp.zeros_like(one["layers"][module][name])
        assert float(jnp.abs(hidden(lora.graft(base(), one)) - whole).max()) > 1e-3, target


@pytest.fixture(scope="module")
def phase():
    config = load_config(CONFIGS / "pico_lora.py")
    with config.unlocked():
        config.update({"window": 16, "dtype": "float32", "batch_size": 4, "eval_segments": 4})
        config.update(SMALL["gist"] | {"lora": {"rank": 1, "targets": ("q", "o")}})
        config.mixture.allocator = 0.0  # tested with phase gist; the dearest part to compile
    with pytest.raises(UserError, match="lower lora.rank"):
        training.phase(config, SOURCES)
    patched = pytest.MonkeyPatch()
    patched.setattr(training, "MOST", 1.0)  # of a base of 4,000 parameters, rank 1 is much
    yield training.phase(config, SOURCES)
    patched.undo()


def test_a_step_trains_the_lora_and_the_gistnet_along_with_it(phase):
    fresh = phase.calibrate(jax.jit(phase.init)(jax.random.key(1)), phase.frozen)
    gistnet = load(("gistnet",))[0]["gistnet"]
    jax.tree.map(np.testing.assert_array_equal, fresh["gistnet"], gistnet)
    state = State(fresh, make_optimizer(SETTINGS).init(fresh), jnp.int32(0))
    before = jax.tree.map(np.array, phase.frozen)
    step, batch = jax.jit(make_step(phase.loss, SETTINGS)), phase.batch(0, slice(0, 4))
    one, _ = step(state, phase.frozen, batch, 0)
    two, metrics = step(one, phase.frozen, batch, 1)
    assert int(two.step) == 2 and set(two.params) == {"base", "gistnet"}
    jax.tree.map(np.testing.assert_array_equal, phase.frozen, before)  # law 4

    def moved(a, b):
        return {jax.tree_util.keystr(path) for path, same in jax.tree_util.tree_leaves_with_path(
            jax.tree.map(lambda x, y: bool((x == y).all()), a, b)) if not same}  # fmt: skip

    own = moved(state.params["base"], two.params["base"])
    assert own == {f"['layers']['attn']['{t}_lora_{i}']" for t in "qo" for i in "ab"}
    # At zero B, A's gradient is zero: only weight decay can move it, on the first step.
    assert moved(state.params["gistnet"], two.params["gistnet"])
    assert np.isfinite(float(metrics["loss"]))


def test_it_is_applied_and_merged_only_when_asked_for(tmp_path, capsys):
    items = {name: tiny.params()[name] for name in ("base", "gistnet")}
    other = tiny.drawn(tiny.MODEL, "gistnet", seed=9)
    items["lora"] = {"base": drawn(), "gistnet": other}
    config = tiny.MODEL.to_dict() | {"lora": ALL.to_dict()}
    files = {"tokenizer.json": tiny_checkpoint.tokenizer_json()}
    checkpoint.save_bundle(tmp_path / "bundle", items, config, files, np.float32)

    plain = open_checkpoint(tmp_path / "bundle", ("base", "gistnet"))
    tuned = open_checkpoint(tmp_path / "bundle", ("base", "gistnet"), lora=True)
    jax.tree.map(np.testing.assert_array_equal, plain.params["base"], base())
    jax.tree.map(np.testing.assert_array_equal, tuned.params["gistnet"], other)
    grafted = lora.graft(base(), drawn())
    jax.tree.map(np.testing.assert_array_equal, tuned.params["base"], grafted)
    assert plain.fingerprint != tuned.fingerprint  # their gists are not the same

    for flags, wanted in (([], base()), (["--lora"], lora.merge(base(), drawn()))):
        out = tmp_path / f"out{len(flags)}"
        export_hf.main([str(tmp_path / "bundle"), str(out), *flags])
        jax.tree.map(np.testing.assert_array_equal, hf.load(out)[1], wanted)


@pytest.mark.parametrize("bad", [{"rank": 0, "targets": ("q",)}, {"rank": 1, "targets": ("w",)}])
def test_a_lora_that_cannot_be(bad):
    with pytest.raises(UserError, match="targets out of q, k, v, o"):
        lora.LoraConfig.from_dict(bad)
