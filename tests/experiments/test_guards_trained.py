"""Guards that need a trained model: what is shown, and who chose it, must make a difference."""

import functools

import jax
import numpy as np

from data import minhash
from data.text import Document, held_out_packages
from experiments.methods import METHODS, Method, Protocol, Scorer
from experiments.methods.focused import uniform
from experiments.methods.gradients import gated
from experiments.quickstart import SHIPPED
from experiments.suites import texts
from mctx.models.base import token_nll
from mctx.models.finder import nothing_found
from mctx.models.lensnet import Nodes, seen, utility
from mctx.models.wrapped import read
from mctx.opened import open_checkpoint
from mctx.runtime.assembly import trained_rows
from mctx.runtime.finding import Finding
from mctx.tree.ingest import Reader

HISTORY, TAIL, SEGMENTS = 1024, 64, 6
PROTOCOL = Protocol(budget=256, recent=4)
SHOWN, DRAWS = 4, 200  # blocks that are chosen, and how often by chance


@functools.cache
def opened():
    return open_checkpoint(SHIPPED)


@functools.cache
def segments() -> list[tuple[Scorer, np.ndarray]]:
    """Places in packages that the checkpoint never saw, and what follows each."""
    checkpoint, length = opened(), HISTORY + TAIL + 1
    documents = held_out_packages(SHIPPED, SEGMENTS * length, checkpoint.tokenizer, 2 * length)
    encoded = [checkpoint.tokenizer.encode(document.text) for document in documents]
    pieces = np.concatenate(encoded)[: SEGMENTS * length].reshape(SEGMENTS, length)
    reader = Reader(checkpoint.model, checkpoint.params)
    return [(Scorer(checkpoint, p[:HISTORY], PROTOCOL, reader), p[HISTORY:]) for p in pieces]


def anothers_gists(place: int):
    """`gist_rows` of a session: those of another history, node by node."""

    def source(scorer):
        other = segments()[place - 1][0]
        return trained_rows(other.model, other.params, other.history.tree)

    return source


def test_shuffled_gists_hurt(monkeypatch):
    """Gists of other texts, in the same places, predict worse than a text's own."""
    only_gists = Protocol(budget=HISTORY // 32, recent=0, sink=0)
    told = []
    for place, (scorer, tail) in enumerate(segments()):
        monkeypatch.setitem(METHODS, "shuffled", Method(uniform(anothers_gists(place))))
        one = Scorer(opened(), scorer.tokens(), only_gists, scorer.reader)
        told.append([one.nll(name, tail).mean() for name in ("uniform", "shuffled")])
        assert not len(one.layout("uniform"))  # nothing is told but by gists
    own, others = np.mean(told, axis=0)
    assert others > own + 0.02


def found(scorer: Scorer, query: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """What its finders tell the lens of all blocks, if it has some: [1, blocks, F]."""
    if not scorer.model.lens.finders:
        return nothing_found(scorer.model, (1, len(blocks)))
    of = scorer.model, scorer.params, scorer.history.tree, scorer.history.cache
    finding = Finding(*of, PROTOCOL.recent, len(blocks))
    gather = finding.look(query, len(blocks), np.zeros((0, 2), np.int64))  # none is dead
    return gather(np.ones_like(blocks), blocks)[None]


def lens_worths(scorer: Scorer) -> np.ndarray:
    """What the lens thinks of every block before the recent ones: [old]."""
    model, blocks = scorer.model, scorer.blocks
    every, query = np.arange(blocks), scorer.history.cache.states(blocks, model.lens.query)
    gists = scorer.history.tree.gather(1, every)  # slots behind each other
    nodes = Nodes(
        gists=seen(gists.reshape(1, blocks, -1, model.gist.width)),
        level=np.ones((1, blocks), np.int32),
        distance=(blocks - 1 - every)[None].astype(np.int32),
        valid=(every < blocks - PROTOCOL.recent)[None],
        found=found(scorer, query, every),
    )
    lens = {"params": scorer.params["lensnet"]}
    logs = apply_lens(model, lens, query[:, None], nodes)
    return np.asarray(utility(logs))[0, 0, : blocks - PROTOCOL.recent]


@functools.partial(jax.jit, static_argnums=0)
def apply_lens(model, lens, query, nodes):
    return model.lensnet.apply(lens, query, nodes, np.zeros((1, 1), np.int32))


def test_a_lens_with_shuffled_scores_falls_to_random():
    """In nats of the blocks it would show, by gated-gradient labels of the true future."""
    got = {"lens": [], "shuffled": [], "random": [], "best": []}
    drawn = np.random.default_rng(0)
    for scorer, tail in segments():
        old = np.arange(scorer.blocks - PROTOCOL.recent)
        recent = np.arange(len(old), scorer.blocks)
        labels = gated(scorer, old, recent, tail, np.ones(TAIL, np.float32))
        scores = lens_worths(scorer)

        def best(worth, labels=labels):
            return labels[np.argsort(worth)[-SHOWN:]].sum()

        got["lens"].append(best(scores))
        got["shuffled"].append(np.mean([best(drawn.permutation(scores)) for _ in range(DRAWS)]))
        got["random"].append(SHOWN * labels.mean())
        got["best"].append(best(labels))
    lens, shuffled, chance, most = (np.sum(got[name]) for name in got)
    assert lens > chance + 0.04 * most
    assert abs(shuffled - chance) < 0.02 * most


def test_full_attention_is_the_plain_base_here_too():
    scorer, tail = segments()[0]
    tokens = np.concatenate([opened().model.base.prefix, scorer.tokens(), tail])[None]
    positions = np.arange(tokens.shape[1], dtype=np.int32)[None]
    hidden = read(opened().model, opened().params, tokens.astype(np.int32), positions).hidden
    nll = token_nll(opened().params["base"], hidden[:, :-1], tokens[:, 1:])[0, -TAIL:]
    np.testing.assert_allclose(scorer.nll("full", tail), nll, atol=1e-3)


def test_nothing_evaluated_was_trained_on(tmp_path):
    """A text that the checkpoint's sketch knows is left out, as is one that is nearly the same."""
    known = "\n".join(f"def function_{i}(x):\n    return x + {i * i}" for i in range(200))
    fresh = "\n".join(f"class Thing{i}:\n    value = {i * 7}" for i in range(200))
    np.save(tmp_path / "sketch.npy", minhash.sketch(minhash.signature(known)[None]))
    documents = [Document("", "known", known), Document("", "fresh", fresh)]
    left, refused = texts.unseen(documents, tmp_path)
    assert [document.name for document in left] == ["fresh"] and refused == 1
