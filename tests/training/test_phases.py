"""Every phase on a random corpus: a step trains its item, nothing else, and can be repeated."""

import dataclasses
import functools
import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data import sampling
from data.questions import Questions
from experiments.entry import load_config
from mctx.errors import UserError
from mctx.focus.bank import BankShape
from mctx.training.gist import recovered
from mctx.training.lens import _goals, captured, gated, look, poisson, recall, texts_of
from mctx.training.loop import TrainSettings
from mctx.training.sources import Sources
from mctx.training.step import State, make_optimizer, make_step
from tests import tiny
from tests.runtime.small import Compilations

CONFIGS = Path(__file__).parents[2] / "experiments/configs"
GIST = dataclasses.replace(tiny.GIST, fanouts=(4, 2), trained=2, slots=2, pools="rows")
LENS = dataclasses.replace(tiny.LENS, finders=((1, 0), (0, 0)), find_query=4)
MODEL = dataclasses.replace(tiny.MODEL, gist=GIST, lens=LENS)
FOCUS = {"sink": 1, "recent": 1, "budget": 24, "capacity": 16, "max_edits": 16}
SMALL = {  # what the shipped configs are shrunk to; all else is as shipped
    "base": {"base": tiny.BASE.to_dict() | {"window": 16}, "eval_batch": 2},
    "gist": {
        "gist": GIST.to_dict() | {"slots": (2,)},
        "history": 32,
        "tail": 8,
        "blocks": 2,
        "teacher": 0.5,
        "mixture": {"levels": (0.5, 0.5), "recent": (0, 1)},
        "focus": FOCUS,
    },
    "lens": {
        "lens": LENS.to_dict(),
        "near": 32,
        "far": 16,
        "groups": 1,
        "reach": 100,
        "tail": 8,
        "recent": 2,
        "sets": 2,
        "novel": 2,
    },
    "mof": {"history": 32, "tail": 8, "focus": FOCUS},
}
SETTINGS = TrainSettings(steps=4, learning_rate=1e-2, seed=7)


def corpus(seed):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, tiny.BASE.vocab_size, 2000).astype(np.uint16)
    return sampling.Corpus(tokens, np.zeros((0, 3)), np.array([[0, 900], [900, 2000]]), {})


def load(items):
    config = {"base": tiny.BASE.to_dict(), "gist": GIST.to_dict()}
    config |= {"lens": LENS.to_dict(), "window": MODEL.window}
    have = {"base": ("base",), "gistnet": ("gist", "window"), "lensnet": ("lens",)}
    names = [name for item in items for name in have[item]]
    return {item: tiny.drawn(MODEL, item) for item in items}, {name: config[name] for name in names}


def asked(seed):
    """Random tokens in which one block is said to hold the answer."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, tiny.BASE.vocab_size, (24, 48 + 9)).astype(np.uint16)
    support = np.arange(12) == rng.integers(10, size=(24, 1))
    return Questions(tokens, support, {"length": 48, "tail": 9, "block": 4})


SOURCES = Sources(
    load=load,
    windows=functools.partial(sampling.windows, corpus(0)),
    segments=functools.partial(sampling.segments, corpus(0)),
    histories=functools.partial(sampling.histories, corpus(0)),
    held_out=functools.partial(sampling.segments, corpus(1)),
    held_histories=functools.partial(sampling.histories, corpus(1)),
    questions=asked(2).draw,
    held_questions=asked(3).draw,
)


def shrunk(name, batch_size=4):
    config = load_config(CONFIGS / f"pico_{name}.py")
    common = {"window": 16, "dtype": "float32", "batch_size": batch_size, "eval_segments": 4}
    with config.unlocked():
        config.update(common | SMALL[name])
    return config


def phase_of(name, batch_size=4):
    module = importlib.import_module(f"mctx.training.{name}")
    return module.phase(shrunk(name, batch_size), SOURCES)


@functools.cache
def compiled(name):
    """The phase, its first state and its compiled step."""
    phase = phase_of(name)
    fresh = jax.jit(phase.init)(jax.random.key(1))
    state = State(fresh, make_optimizer(SETTINGS).init(fresh), jnp.int32(0))
    return phase, state, jax.jit(make_step(phase.loss, SETTINGS))


@pytest.mark.parametrize("name", ["base", "gist", "lens", "mof"])
def test_a_step_trains_the_item_and_can_be_repeated(name):
    phase, state, step = compiled(name)
    assert phase.name == name and phase.item not in phase.frozen
    after, metrics = step(state, phase.frozen, phase.batch(0, slice(0, 4)), 0)
    assert int(after.step) == 1  # an update that is not finite is not made
    assert all(np.isfinite(float(value)) for value in metrics.values())
    before, after = jax.device_get((state, after))
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before.params, after.params)
    assert any(jax.tree.leaves(moved)) and float(metrics["grad_norm"]) > 0
    # The state is that of the item alone: no gradient, no moments of anything frozen.
    shapes = jax.eval_shape(phase.init, jax.random.key(0))
    assert jax.tree.structure(after.params) == jax.tree.structure(shapes)

    again, _ = step(state, phase.frozen, phase.batch(0, slice(0, 4)), 0)
    jax.tree.map(np.testing.assert_array_equal, after, jax.device_get(again))
    halves = [phase.batch(0, rows) for rows in (slice(0, 2), slice(2, 4))]
    for key, whole in phase.batch(0, slice(0, 4)).items():
        np.testing.assert_array_equal(whole, np.concatenate([half[key] for half in halves]))
        assert not np.array_equal(whole, phase.batch(1, slice(0, 4))[key])


@pytest.mark.parametrize("name", ["base", "gist", "lens", "mof"])
def test_it_is_judged_on_held_out_text(name):
    phase, state, _ = compiled(name)
    values = phase.evaluate(state.params, phase.frozen)
    assert values and all(np.isfinite(value) for value in values.values())
    heard = Compilations()
    assert phase.evaluate(state.params, phase.frozen) == values and not heard.count


def test_a_mixture_of_levels_that_no_gist_has_is_refused():
    config = shrunk("gist", 4)
    config.mixture.levels = (0.5, 0.25, 0.25)
    with pytest.raises(UserError, match="3 levels, but gist.fanouts only 2"):
        importlib.import_module("mctx.training.gist").phase(config, SOURCES)


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("gist", {"focus": FOCUS | {"capacity": 3}}, "raise the capacity of 3"),
        ("mof", {"focus": FOCUS | {"budget": 5}}, "raise the budget of 5"),
        ("lens", {"far": 8}, "far=8 tokens are not whole windows of 16"),
    ],
)
def test_sizes_that_no_history_fits_are_refused(name, change, sentence):
    config = shrunk(name)
    config.update(change)
    with pytest.raises(UserError, match=sentence):
        importlib.import_module(f"mctx.training.{name}").phase(config, SOURCES)


def test_nothing_is_recovered_where_history_helps_nothing():
    def of(none, full):
        losses = {"none": none, "full": full, "lod1": 2.5}
        return recovered({name: np.full((2, 3), nll) for name, nll in losses.items()})

    assert of(3.0, 2.0)["recovered_lod1"] == 0.5
    for full in (2.0, 2.02):
        assert np.isnan(of(2.0, full)["recovered_lod1"])


def test_a_head_wants_the_best_that_no_head_before_it_shows():
    shape = BankShape(GIST, 6)
    labels = jnp.array([[5.0, 1.0, -2.0, 3.0]])  # two recent blocks follow
    first = jnp.array([9.0, 0.0, 0.0, 8.0])  # the first head shows blocks 0 and 3
    scores = jnp.stack([first, first, first])[None]  # two heads and the staging context
    goals = np.asarray(_goals(shape, labels, scores, best=2))[0]
    blocks = slice(shape.first_node[1], shape.first_node[1] + 6)
    np.testing.assert_array_equal(goals[0, blocks], [5, 1, -2, 3, 0, 0])
    np.testing.assert_array_equal(goals[1, blocks], [0, 1, -2, 0, 0, 0])
    np.testing.assert_array_equal(goals[2], goals[0])
    pairs = slice(shape.first_node[2], shape.first_node[2] + 3)
    np.testing.assert_array_equal(goals[:2, pairs], [[5, 3, 0], [1, 0, 0]])


def test_poisson_is_least_at_the_label_and_finite_beyond_the_bound():
    goal, valid = jnp.array([[[3.0, -2.0, 50.0]]]), jnp.array([[True, True, False]])
    best = jnp.log(jnp.array([[[[3.0, 1e-6], [1e-6, 2.0], [1.0, 1.0]]]]))
    slope = jax.grad(poisson)(best, goal, valid)
    np.testing.assert_allclose(slope, 0.0, atol=1e-5)
    assert poisson(best + 0.1, goal, valid) > poisson(best, goal, valid)
    far = jnp.full_like(best, 20.0)
    assert np.isfinite(poisson(far, goal, valid))
    assert (jax.grad(poisson)(far, goal, valid)[:, :, :2] > 0).all()  # and it comes back


def test_captured_is_the_share_of_the_best_in_hindsight():
    labels = jnp.array([[4.0, 3.0, 1.0, -1.0], [-2.0, -1.0, -4.0, -3.0]])
    np.testing.assert_allclose(captured(labels, labels, 2), [[7.0, -3.0]] * 2)
    guess = jnp.array([[1.0, 0.0, 2.0, 0.0]] * 2)
    np.testing.assert_allclose(captured(guess, labels, 2), [[5.0, -6.0], [7.0, -3.0]])


def test_recall_is_of_the_rows_that_have_support():
    support = jnp.array([[True, True, False, False], [False, False, False, False]])
    guess = jnp.array([[4.0, 0.0, 3.0, 1.0]] * 2)
    assert recall(guess, support, 2) == 0.5 and recall(guess, support, 4) == 1
    assert recall(guess, jnp.zeros_like(support), 2) == 0


def test_the_last_rows_of_a_batch_are_questions():
    phase, state, step = compiled("lens")
    batch = phase.batch(0, slice(0, 4))
    np.testing.assert_array_equal(batch["support"].sum(axis=1), [0, 0, 0, 1])
    far = batch["distance"][3]
    assert far[-1] == 0 and (np.diff(far) <= 0).all() and far[0] >= 11  # stretched
    losses = []
    for _ in range(12):  # what is known is learnt, through what the finders say as well
        state, metrics = step(state, phase.frozen, batch, int(state.step))
        losses.append(float(metrics["poisson"]))
    assert losses[-1] < 0.7 * losses[0]
    assert all(jnp.abs(state.params[name]["kernel"]).max() > 0 for name in ("found", "told"))
    found = phase.evaluate(state.params, phase.frozen)
    assert 0 <= found["recall_lens"] <= 1 and 0 <= found["recall_recency"] <= 1


def test_a_history_that_begins_near_is_all_that_is_seen():
    phase, state, _ = compiled("lens")
    config = shrunk("lens")
    far = config.groups * config.far // GIST.block
    batch = phase.batch(0, slice(0, 4))
    some = batch["first"] > 0
    assert set(batch["first"]) == {0, far} and not batch["support"][some, :far].any()
    shape = BankShape(GIST, batch["distance"].shape[1])
    other = batch["tokens"].copy()
    other[:, : far * GIST.block] = (other[:, : far * GIST.block] + 1) % tiny.BASE.vocab_size

    @jax.jit
    def scores(batch):
        seen = look(MODEL, shape, config.recent, phase.frozen, batch)
        logs = MODEL.lensnet.apply({"params": state.params}, seen.query, seen.nodes)
        return jnp.where(seen.nodes.valid[:, None, :, None], logs, 0.0)

    one, two = (np.asarray(scores(batch | {"tokens": x})) for x in (batch["tokens"], other))
    np.testing.assert_allclose(one[some], two[some], atol=1e-5)
    assert np.abs(one[~some] - two[~some]).max() > 1e-3


def test_labels_of_a_history_that_begins_near_are_of_that_alone():
    phase, config = compiled("lens")[0], shrunk("lens")
    batch = phase.batch(0, slice(0, 4))
    far = config.groups * config.far // GIST.block
    first = np.array([far, far, 0, 0], np.int32)
    other = batch["tokens"].copy()
    other[:, : far * GIST.block] = (other[:, : far * GIST.block] + 1) % tiny.BASE.vocab_size
    shape = BankShape(GIST, batch["distance"].shape[1])

    @jax.jit
    def labels(tokens):
        told = batch | {"tokens": tokens, "first": first}
        seen = look(MODEL, shape, config.recent, phase.frozen, told)
        return gated(MODEL, config, phase.frozen, seen, 4, jax.random.key(0))

    one, two = (np.asarray(labels(tokens)) for tokens in (batch["tokens"], other))
    np.testing.assert_allclose(one[:2], two[:2], atol=1e-6)
    assert not one[:2, :far].any() and np.abs(one[:2, far:]).min() > 0
    assert np.abs(one[2:, far:] - two[2:, far:]).max() > 1e-3


def test_a_share_of_questions_must_be_whole_rows():
    config = shrunk("lens")
    assert texts_of(config, 4) == 3
    with pytest.raises(UserError, match="no whole number of rows"):
        texts_of(config, 2)
    with pytest.raises(UserError, match="no questions"):
        importlib.import_module("mctx.training.lens").phase(
            config, SOURCES._replace(held_questions=None)
        )
