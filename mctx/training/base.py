"""Phase `base`: the decoder itself, next-token prediction on windows of its full length."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from mctx.models.base import token_nll
from mctx.models.wrapped import init_part
from mctx.sharding import by_rows, whole
from mctx.training.loop import Phase
from mctx.training.sources import Sources, per_domain, wrapped_from

POSITIONS = (0, 128, 512, 1024, 2048)  # edges of the buckets in which held-out NLL is reported


def phase(config, sources: Sources) -> Phase:
    """See `mctx.training.loop.Phase`; `config` as in experiments/configs/pico_base.py."""
    model = wrapped_from(config, {})
    prefix = np.asarray(model.base.prefix, np.int32)
    length = model.base.window - len(prefix)

    def with_prefix(tokens):
        rows = np.broadcast_to(prefix, (tokens.shape[0], len(prefix)))
        return np.concatenate([rows, tokens], axis=1)

    def batch(step, rows):
        tokens = sources.windows(length, config.batch_size, config.train.seed, step, rows)
        return {"tokens": with_prefix(tokens)}

    def nll(params, tokens):  # [B, T] -> [B, T - 1]
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        # The whole window is read, its last prediction dropped: fused kernels want even lengths.
        hidden = model.decoder.apply({"params": params}, tokens, positions).hidden
        return token_nll(params, hidden[:, :-1], tokens[:, 1:])

    def loss(params, frozen, batch, key):
        value = jnp.mean(nll(params, batch["tokens"]))
        return value, {"nll": value}

    tokens = with_prefix(sources.held_out(length, config.eval_segments, 0, 0, slice(None)))
    score = jax.jit(lambda params, tokens: whole(nll(params, by_rows(tokens))))

    def evaluate(params, frozen):
        pieces = np.array_split(tokens, max(1, len(tokens) // config.eval_batch))
        losses = np.concatenate([np.asarray(score(params, piece)) for piece in pieces])
        edges = [e for e in POSITIONS if e < losses.shape[1]] + [losses.shape[1]]
        spans = {f"nll_{a}_{b}": slice(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)}
        spans = {"nll": slice(None), **spans}
        return per_domain(
            sources.domains,
            lambda rows: {name: float(losses[rows, at].mean()) for name, at in spans.items()},
        )

    return Phase(
        name="base",
        item="base",
        init=lambda key: init_part(model, "base", key),
        loss=loss,
        batch=batch,
        batch_size=config.batch_size,
        config={"base": model.base.to_dict()},
        evaluate=evaluate,
    )
