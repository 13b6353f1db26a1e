"""The methods by name: all at one budget, through one interface."""

from __future__ import annotations

from experiments.methods import choosing, gradients, plain
from experiments.methods.focused import (
    first_config,
    gists_config,
    heads_config,
    mean_rows,
    shown,
    staged_config,
    tokens_config,
    uniform,
)
from experiments.methods.gradients import gated, hindsight, left_in
from experiments.methods.standing import Method

LENS = ("base", "gistnet", "lensnet")
HEADS = (*LENS, "mof")


def _blocks(worth, **how) -> Method:
    """A method that chooses blocks by their worth, all in the same way."""
    return Method(shown(tokens_config, worth), **how)


METHODS: dict[str, Method] = {
    "full": Method(plain.full),
    "recent": Method(plain.recent),
    "sinks+recent": Method(plain.sinks_recent),
    "random": _blocks(choosing.random),
    "bm25": _blocks(choosing.bm25),
    "cosine": _blocks(choosing.cosine),
    "attention": _blocks(choosing.attention),
    "query gradient": _blocks(gradients.query_gradient),
    "mean-pooled gists": Method(uniform(mean_rows)),
    "uniform": Method(uniform(), ("base", "gistnet")),
    "lens": Method(shown(tokens_config), LENS),
    "lens+gists": Method(shown(gists_config), LENS),
    "lens+gists+first": Method(shown(first_config), LENS),
    "two heads": Method(shown(heads_config), HEADS),
    "heads+staging": Method(shown(staged_config), HEADS),
    "hindsight": Method(hindsight(gated, crossed=False), sees_future=True),
    "hindsight crossfit": Method(hindsight(gated, crossed=True), sees_future=True),
    "leave-one-in crossfit": Method(hindsight(left_in, crossed=True), sees_future=True),
    "handed": _blocks(choosing.handed),
}
