"""What single methods choose, make and cost."""

import dataclasses

import numpy as np
import pytest

from experiments import methods
from experiments.methods import choosing, focused
from experiments.methods.standing import Asked
from mctx.errors import UserError
from mctx.models.wrapped import read_windows
from tests import tiny
from tests.experiments.test_guards import BLOCK, SUPPORT, history, scorer, shared, tail
from tests.runtime import small


def test_ranks_ignore_scale_and_prefer_the_later_of_equals():
    ranks = choosing.ranked(np.array([5.0, -1.0, 5.0, 900.0]))
    np.testing.assert_allclose(ranks, [0.5, 0.25, 0.75, 1.0])


def test_what_follows_a_match_is_worth_as_much():
    np.testing.assert_array_equal(choosing.followed(np.array([0.0, 3, 0, 1])), [0, 3, 3, 1])


def test_bm25_finds_rare_words_and_what_follows_them():
    """A block that shares the query's rare tokens, and the one after it, come first."""
    tokens = np.full(20 * BLOCK, 1, np.int32)
    tokens[5 * BLOCK : 6 * BLOCK] = [7, 8, 9, 7]
    tokens[-BLOCK:] = [9, 8, 7, 1]
    one = methods.Scorer(small.opened(), tokens, shared().protocol, small.reader())
    worth = choosing.bm25(one, Asked())
    assert set(np.argsort(worth[:18])[-2:]) == {5, 6}


def test_the_blocks_that_rank_best_are_the_ones_shown():
    """The allocator shows exactly the best, so that a method is its ranking and nothing else."""
    one = shared()
    config = focused.tokens_config(one.model, one.protocol)
    for seed in range(5):
        worth = choosing.ranked(np.random.default_rng(seed).uniform(size=one.blocks))
        best = 1 + np.argsort(worth[1:12])[-3:]
        assert set(one.focused(config, worth).detailed) == {0, 12, 13, *best}


def test_handed_blocks_are_those_of_the_support_and_no_others():
    assert set(shared().layout("handed", support=SUPPORT)) == {0, 1, 2, 12, 13}
    assert set(shared().layout("handed")) == {0, 12, 13}


@pytest.mark.parametrize("options", [{}, {"qkv_bias": True, "qk_norm": True}])
def test_queries_are_made_as_the_base_makes_them(options):
    """With the weights of the keys in their place they are the keys that the base made."""
    base = dataclasses.replace(tiny.BASE, n_kv_heads=tiny.BASE.n_heads, **options)
    model = dataclasses.replace(tiny.MODEL, base=base)
    params = {"base": tiny.drawn(model, "base")}
    rows, states = read_windows(model, params, tiny.tokens(1, 6))
    layers = params["base"]["layers"]
    own = {"q": layers["attn"]["k"], "q_norm": layers["attn"].get("k_norm")}
    found = choosing.queries(model, {**layers, "attn": own}, states[:, 0])
    np.testing.assert_allclose(found[:, :, :, 0].swapaxes(1, 2), rows.k[:, 0], atol=1e-5)


def test_mean_pooled_rows_are_means_of_the_tokens_rows():
    one = shared()
    rows = focused.mean_rows(one)(2, np.array([1]))
    held = one.history.cache.get(np.arange(4, 8))
    np.testing.assert_allclose(rows.k[:, 0], held.k.mean(axis=(0, 2)), atol=1e-6)


def test_a_history_s_gists_and_rows_are_those_of_a_stream():
    """Padded whole windows make what ingest makes block by block."""
    session = small.session()
    session.ingest(history())
    mine = shared().history
    for level in (1, 2):
        nodes = np.arange(session.tree.count(level))
        assert mine.tree.count(level) == len(nodes)
        np.testing.assert_allclose(
            mine.tree.gather(level, nodes), session.tree.gather(level, nodes), rtol=0.02, atol=0.02
        )
    found, wanted = (c.get(np.arange(14)) for c in (mine.cache, session.cache))
    np.testing.assert_allclose(found.k, wanted.k, atol=1e-5)


def test_a_tree_up_to_some_block_is_a_history_like_any_other():
    """Behind a part of a tree stands what stands behind that part alone."""
    tree = shared().history.tree
    part = methods.Scorer(small.opened(), tree, shared().protocol, small.reader(), blocks=12)
    alone = methods.Scorer(
        small.opened(), history()[: 12 * BLOCK], shared().protocol, small.reader()
    )
    for name in ("sinks+recent", "random", "lens", "cosine"):
        np.testing.assert_allclose(part.nll(name, tail()), alone.nll(name, tail()), atol=1e-4)


def test_costs_are_counted():
    fresh, chosen = (shared().cost(name, tail()) for name in ("recent", "lens"))
    assert fresh.tail == "fresh" and chosen.tail == "window"
    assert fresh.tree_bytes == 4 * fresh.entries  # tokens alone
    assert chosen.tree_bytes > 0 and chosen.flops_refocus > 0
    assert fresh.flops_token == chosen.flops_token > 0  # the same rows stand before each
    assert min(fresh.ms_token, fresh.ms_refocus, chosen.ms_token, chosen.host_bytes) > 0


def test_parts_that_a_checkpoint_lacks_leave_methods_out():
    base = small.opened()
    base = base._replace(params={"base": base.params["base"]})
    one = methods.Scorer(base, history(), shared().protocol, small.reader())
    assert one.nll("lens", tail()) is None and one.cost("uniform") is None
    np.testing.assert_allclose(one.nll("random", tail()), shared().nll("random", tail()), atol=1e-5)


def test_a_history_must_be_whole_blocks():
    with pytest.raises(UserError, match="whole blocks"):
        methods.Scorer(small.opened(), history()[:-1], None, small.reader())
    with pytest.raises(UserError, match="a tail is"):
        scorer().nll("recent", tail()[:1])
