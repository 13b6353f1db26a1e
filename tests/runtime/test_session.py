"""Laws of the streaming session, on a tiny wrapped model."""

import dataclasses
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mctx.errors import UserError
from mctx.focus import layout
from mctx.focus.bank import Bank, BankShape, context_of, shown_nodes
from mctx.models.base import Context, Rows, token_nll
from mctx.models.wrapped import gist_rows, prefix_rows, read, read_windows, tail_nll
from mctx.runtime import Session, SessionConfig
from tests.runtime.small import (
    BLOCK,
    CONFIG,
    MODEL,
    ONE_OF_TWO,
    TWO,
    WINDOW,
    opened,
    place,
    reader,
    session,
    text,
    worths,
)

PARAMS = opened().params
TAIL = 9
TEXT = text(20 * WINDOW + 5, seed=1)
STREAM = 6 * WINDOW + 3
POLICIES = ("window", "keep", "reread")
EXACT = [dict(tail="window"), dict(tail="reread", reread=CONFIG.recent * BLOCK)]


windows = jax.jit(lambda tokens: read_windows(MODEL, PARAMS, tokens))


def config(**changes) -> SessionConfig:
    return dataclasses.replace(CONFIG, **changes)


def close(got, want, atol=1e-5):
    np.testing.assert_allclose(got, want, atol=atol)


@jax.jit
def own_nll(tokens):
    """The base alone, behind its prefix: NLL of every token but the first."""
    prefix = jnp.asarray(MODEL.base.prefix, jnp.int32)
    whole = jnp.concatenate([prefix, tokens])[None]
    hidden = read(MODEL, PARAMS, whole, jnp.arange(whole.shape[1])[None]).hidden
    return token_nll(PARAMS["base"], hidden[:, :-1], whole[:, 1:])[0, len(prefix) :]


@jax.jit
def nll_behind(tail, context, start):
    return tail_nll(MODEL, PARAMS, tail[None], context, start)[0]


def standing(length, at=CONFIG, **how):
    """A session that has ingested the first `length` tokens."""
    made = session(at, **how)
    made.ingest(TEXT[:length])
    return made


# -- law 2 -----------------------------------------------------------------------------------


def test_a_history_in_one_window_reads_like_the_base():
    tail = TEXT[WINDOW : WINDOW + TAIL]
    got = standing(WINDOW).peek(tail)
    close(got, own_nll(TEXT[: WINDOW + TAIL])[-(TAIL - 1) :], atol=1e-4)


@pytest.mark.parametrize("tail", POLICIES)
def test_streaming_one_window_reads_like_the_base(tail):
    got = session(config(tail=tail, reread=BLOCK)).predict(TEXT[:WINDOW])
    assert np.isnan(got[0])
    close(got[1:], own_nll(TEXT[:WINDOW]), atol=1e-4)


def test_a_longer_history_reads_like_the_base_under_the_windows_mask():
    length = 3 * WINDOW
    tail = TEXT[length : length + TAIL]
    made = standing(length)
    assert not np.any(made.layouts.level[0][: made.layouts.count[0]])  # all of it fits
    rows, _ = windows(TEXT[None, :length])
    pairs = zip(prefix_rows(MODEL, PARAMS), rows, strict=True)
    rows = Rows(*(jnp.concatenate(pair, axis=2) for pair in pairs))
    behind = rows.k.shape[2]
    context = Context(rows, jnp.arange(behind)[None], jnp.zeros((1, behind)))
    close(made.peek(tail), nll_behind(tail, context, jnp.array([behind])), atol=1e-4)


# -- one layout, one reading -----------------------------------------------------------------


def bank_of(tree) -> tuple[BankShape, Bank]:
    """A bank of the gists that the tree holds (as stored, in bfloat16)."""
    shape = BankShape(MODEL.gist, tree.blocks)
    rows, states = windows(tree.tokens(0, tree.length)[None])
    levels = range(1, MODEL.gist.levels + 1)
    gists = [tree.gather(level, np.arange(tree.count(level)))[None] for level in levels]
    parts = [rows, *(gist_rows(MODEL, PARAMS, g) for g in gists if g.shape[1])]
    rows = Rows(*(jnp.concatenate(xs, axis=2) for xs in zip(*parts, strict=True)))
    return shape, Bank(rows, gists, states, prefix_rows(MODEL, PARAMS))


def test_a_buffer_reads_like_a_mask_over_a_bank():
    length = 16 * WINDOW
    made = standing(length, worths=worths(1))
    assert len(set(made.layouts.level[0][: made.layouts.count[0]])) > 2
    shape, bank = bank_of(made.tree)
    tail = TEXT[length : length + TAIL]
    context, start = context_of(shape, bank, shown_nodes(shape, made.layouts))
    close(made.peek(tail), nll_behind(tail, context, start), atol=1e-4)


@pytest.mark.parametrize("how", EXACT)
def test_two_ways_to_one_layout_read_alike(how):
    straight = standing(0, config(**how), worths=worths(1))
    straight.ingest(TEXT[: 10 * WINDOW])
    around = session(config(**how), worths=worths(2))
    around.predict(TEXT[: 10 * WINDOW])
    assert not np.array_equal(around.layouts.index, straight.layouts.index)
    straight.refocus()
    around.layouts, around.worths = straight.layouts, straight.worths
    straight.refocus()
    around.refocus()
    np.testing.assert_array_equal(around.layouts.index, straight.layouts.index)
    tail = TEXT[:TAIL]
    close(around.peek(tail), straight.peek(tail), atol=1e-4)


@pytest.mark.parametrize("how", EXACT)
@settings(max_examples=4, derandomize=True)
@given(st.randoms(use_true_random=False))
def test_what_is_held_can_be_dropped_at_any_moment(how, random):
    def drop(made, _):
        for forget in random.sample([made.cache.drop, made.assembly.forget], random.randint(0, 2)):
            forget()

    plain = session(config(**how), worths=worths(3)).predict(TEXT[:STREAM])
    dropped = session(config(**how), worths=worths(3), on_refocus=drop).predict(TEXT[:STREAM])
    close(dropped[1:], plain[1:])


def test_tails_differ_only_after_a_refocus_and_only_across_windows():
    nll = {
        tail: session(config(tail=tail, reread=2 * BLOCK), worths=worths(4)).predict(TEXT[:STREAM])
        for tail in POLICIES
    }
    same = WINDOW + BLOCK  # the first block of the second window is read behind the same rows
    for tail in POLICIES:
        close(nll[tail][1:same], nll["window"][1:same], atol=1e-4)
        assert np.all(np.isfinite(nll[tail][1:]))
    for one, other in (("window", "keep"), ("window", "reread"), ("keep", "reread")):
        assert np.abs(nll[one][same:] - nll[other][same:]).max() > 1e-3


# -- law 5 and law 7 -------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, dict(staging=96, staging_capacity=48, staging_every=3)])
def test_every_layout_that_is_shown_keeps_the_law(changes):
    seen = []

    def check(made, report):
        for head in range(made.config.heads):
            one = layout.Layout(*(x[head] for x in made.layouts))
            layout.check(made.focus, one, made.blocks)
        seen.append(report["refocus/rows_written"])

    made = session(dataclasses.replace(TWO, **changes), on_refocus=check)
    made.predict(TEXT[:STREAM])
    assert len(seen) == 1 + STREAM // BLOCK


def test_a_refocus_writes_what_changed_and_nothing_else():
    held, counts = [set()], []

    def watch(made, report):
        one = layout.Layout(*(x[0] for x in made.layouts))
        shown = set(made.assembly.wanted(one).tolist())
        counts.append((report["refocus/rows_written"], len(shown - held[-1])))
        held.append(shown)

    session(worths=worths(5), on_refocus=watch).predict(TEXT[:STREAM])
    written, new = zip(*counts, strict=True)
    assert written == new
    assert max(written[20:]) < CONFIG.budget


# -- heads -----------------------------------------------------------------------------------


def test_one_head_through_the_merger_is_that_head():
    plain = session(worths=worths(6)).predict(TEXT[:STREAM])
    merged = session(config(merger="learned"), worths=worths(6)).predict(TEXT[:STREAM])
    close(merged[1:], plain[1:])


@pytest.mark.parametrize("merger", ["learned", "average"])
def test_equal_heads_merge_to_that_head(merger):
    one = session(worths=worths(6)).predict(TEXT[:STREAM])
    two = dataclasses.replace(TWO, merger=merger)
    close(session(two, worths=worths(6)).predict(TEXT[:STREAM])[1:], one[1:], atol=1e-4)


def test_the_utility_router_runs_the_head_that_shows_most():
    def table(made):
        poor = np.full(made.blocks, 0.01)
        rich = np.random.default_rng(0).exponential(size=4096)[: made.blocks]
        return np.stack([poor, rich])

    made = standing(10 * WINDOW, dataclasses.replace(ONE_OF_TWO, router="utility"), worths=table)
    assert made.tail.heads.tolist() == [1]
    static = standing(10 * WINDOW, ONE_OF_TWO, worths=table)
    assert static.tail.heads.tolist() == [0]


def test_the_learned_router_follows_its_scores():
    made = standing(10 * WINDOW, dataclasses.replace(ONE_OF_TWO, router="learned"))
    gate = made.tail.gate[0]
    both = standing(10 * WINDOW, dataclasses.replace(TWO, router="learned"))
    assert both.tail.heads.tolist() == [0, 1]  # all heads stand as they lie, whoever is best
    best = int(np.argmax(both.tail.gate))
    close(gate, both.tail.gate[best], atol=1e-4)
    assert made.tail.heads[0] == both.tail.heads[best]


# -- a session's life ------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [5 * WINDOW, 5 * WINDOW + 2 * BLOCK])
def test_a_reopened_tree_continues_as_if_never_closed(stop):
    first = standing(stop, worths=worths(7))
    want = first.predict(TEXT[stop : stop + STREAM])
    other = standing(stop, worths=worths(7))
    uri = other.tree.uri
    other.tree.close()
    again = session(tree=uri, worths=worths(7))
    assert again.blocks == stop // BLOCK
    close(again.predict(TEXT[stop : stop + STREAM]), want, atol=1e-4)


def test_predictions_do_not_depend_on_the_pieces():
    whole = session(worths=worths(8)).predict(TEXT[:STREAM])
    cut = session(worths=worths(8))
    pieces = np.split(TEXT[:STREAM], [1, 2, 9, 30, 31, 77])
    got = np.concatenate([cut.predict(piece) for piece in pieces])
    close(got[1:], whole[1:])
    assert cut.tree.length == STREAM // BLOCK * BLOCK


@pytest.mark.parametrize("tail", POLICIES)
def test_tokens_that_wait_are_read_after_what_was_ingested(tail):
    start, at = 2 * WINDOW, config(tail=tail, reread=BLOCK)
    plain, next_ = standing(start, at), TEXT[start + 2 : start + BLOCK]
    plain.predict(TEXT[start : start + 2])
    close(standing(start + 2, at).predict(next_), plain.predict(next_), atol=1e-4)


def test_peek_leaves_everything_as_it_was():
    made = standing(8 * WINDOW + 2)
    first = made.peek(TEXT[:TAIL])
    close(made.peek(TEXT[:TAIL]), first, atol=0)
    plain = standing(8 * WINDOW + 2)
    more = TEXT[8 * WINDOW + 2 :][:STREAM]
    close(made.predict(more), plain.predict(more))


def test_a_refocus_with_nothing_new_keeps_what_was_decoded():
    made, reports = session(dataclasses.replace(CONFIG, tail="keep"), worths=worths(1)), []
    made.predict(text(6 * WINDOW))
    want = made.peek(text(9, seed=5))
    made.on_refocus = lambda _, report: reports.append(report)
    made.refocus()
    assert reports[-1]["refocus/rows_written"] == 0 == reports[-1]["refocus/expanded"]
    np.testing.assert_array_equal(made.peek(text(9, seed=5)), want)


def test_tokens_that_wait_are_read_again_behind_a_layout_that_is_placed():
    made = session(worths=worths(1))
    made.predict(text(6 * WINDOW + 3))
    want = made.peek(text(9, seed=5))
    made.place(made.layouts)
    np.testing.assert_allclose(made.peek(text(9, seed=5)), want, atol=2e-5)


def test_fewer_than_two_tokens_have_no_nll_to_peek_at():
    made = session()
    made.predict(text(BLOCK))
    assert made.peek(text(1)).shape == made.peek(text(0)).shape == (0,)


def test_ids_are_streamed_without_a_tokenizer():
    bare = Session(opened()._replace(tokenizer=None), place(), CONFIG, reader=reader())
    np.testing.assert_array_equal(
        bare.predict(text(2 * WINDOW)), session().predict(text(2 * WINDOW))
    )


def test_what_a_refocus_reports_adds_up():
    reports = []
    made = session(on_refocus=lambda _, report: reports.append(report))
    made.predict(TEXT[:STREAM])
    for report in reports[1:]:
        assert 0 <= report["refocus/residency"] <= 1
        assert report["refocus/entries"] <= CONFIG.budget
    assert made.refocuses == len(reports)


# -- what a person can get wrong -------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong, words",
    [
        (dict(tail="sometimes"), "tail must be one of"),
        (dict(router="best"), "router must be one of"),
        (dict(every=0), "every must be a whole number from 1 on"),
        (dict(top=2), "top must lie between"),
        (dict(heads=5, top=1), "lens has 2 heads"),
        (dict(router="learned"), "learned router knows 2 heads"),
        (dict(tail="reread", reread=BLOCK + 1), "whole blocks"),
        (dict(tail="reread", reread=99 * BLOCK), "inside the recent"),
    ],
)
def test_settings_that_mean_nothing_are_refused(wrong, words):
    with pytest.raises(UserError, match=words):
        session(config(**wrong))


def test_a_budget_below_what_must_be_shown_is_refused():
    tree = standing(10 * WINDOW).tree
    with pytest.raises(UserError, match="raise the budget of 12"):
        session(config(budget=12), tree=tree)


def test_an_empty_text_is_refused():
    with pytest.raises(UserError, match="empty"):
        session().ingest("")
    with pytest.raises(UserError, match="nothing to continue"):
        session().generate()


def test_a_tree_of_other_models_is_refused():
    tree = standing(WINDOW).tree
    other = opened()._replace(fingerprint="other")
    with pytest.raises(UserError, match="other"):
        Session(other, tree.uri, CONFIG)
    with pytest.raises(UserError, match="other models"):
        Session(other, tree, CONFIG)


def test_a_session_inside_its_history_does_not_read_on():
    made = standing(4 * WINDOW)
    made.seek(3)
    with pytest.raises(UserError, match="seek its end"):
        made.predict(TEXT[:3])
    made.seek(made.tree.blocks)
    assert len(made.predict(TEXT[:3])) == 3


def test_a_session_that_is_let_go_frees_its_memory_at_once():
    made = session()
    made.ingest(text(2 * WINDOW))
    made.generate("ABC", tokens=2 * BLOCK)
    left = made.stream("BCD", tokens=4 * BLOCK, temperature=5.0)  # begun, and left
    next(left, "")
    del left
    seen = weakref.ref(made)
    gc.collect()
    gc.disable()
    try:
        del made
        assert seen() is None
    finally:
        gc.enable()


def test_a_history_that_outgrows_its_capacity_is_refused():
    made = session(dataclasses.replace(CONFIG, capacity=8))
    with pytest.raises(UserError, match="raise the capacity of 8"):
        made.predict(text(100))
