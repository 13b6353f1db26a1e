"""What a few heads of the base find in the history: details that no gist can show.

Some heads of a base look for what was said before ("retrieval heads", Wu et al. 2024,
arXiv:2404.15574; `python -m experiments.finders` measures which). The queries of the last tokens
look over their keys of every token, unrotated, as though positions were nothing; the shares of
attention that a block gets are features of it for LensNet, whose gists cannot hold such details
(design: LensNet). A long history is looked over in pieces:

    each = attended(query, keys, live)       of every piece; their totals by `logaddexp`
    shares = log_shares(each, total)         of every piece; the best of all by `maximum`
    block_features(shares, best, before)     of every piece

Axes: P key/value heads that find, Q tokens that look, G query heads of each, n blocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mctx.models.base import BaseConfig, RMSNorm
from mctx.models.lensnet import LensConfig

if TYPE_CHECKING:
    from mctx.models.wrapped import Wrapped

FAINT = -8.0  # log of a share below which all shares are alike
KINDS = 4  # features that a block has of each query head


def width(lens: LensConfig, base: BaseConfig) -> int:
    """Features of a block; 0 where no head finds."""
    return KINDS * len(lens.finders) * (base.n_heads // base.n_kv_heads)


def nothing_found(model: Wrapped, shape: tuple[int, ...]) -> np.ndarray:
    """Features [*shape, F] of blocks that got no attention: what is not looked for is not found."""
    return np.zeros((*shape, width(model.lens, model.base)), np.float32)


def queries_of(base: BaseConfig, layer: dict, states: jax.Array) -> jax.Array:
    """The base's queries in one layer, before rotation.

    Args:
      layer: its parameters. states: [..., T, D], before it.

    Returns:
      [..., T, K, G, h].
    """
    own, norm = layer["attn"], RMSNorm(base.norm_eps)
    x = norm.apply({"params": layer["attn_norm"]}, states)
    project = nn.DenseGeneral(
        (base.n_heads, base.head_dim), use_bias=base.qkv_bias, dtype=states.dtype
    )
    q = project.apply({"params": own["q"]}, x)  # [..., T, N, h]
    if "q_lora_a" in own:
        down, up = (own[f"q_lora_{i}"].astype(x.dtype) for i in "ab")
        q = q + jnp.tensordot(x @ down, up, 1)
    if base.qk_norm:
        q = norm.apply({"params": own["q_norm"]}, q)
    return q.reshape(*q.shape[:-2], base.n_kv_heads, -1, base.head_dim)


def looking(model: Wrapped, base: dict, states: jax.Array) -> jax.Array:
    """The queries, before rotation, with which the finders look from the last tokens.

    Args:
      base: its parameters. states: [L + 1, ..., T, D], of which the last `find_query` tokens look.

    Returns:
      [..., P, Q, G, h].
    """
    found = []
    for layer, head in model.lens.finders:
        own = jax.tree.map(lambda leaf, at=layer: leaf[at], base["layers"])
        last = states[layer, ..., -model.lens.find_query :, :]
        found.append(queries_of(model.base, own, last)[..., head, :, :])
    return jnp.stack(found, axis=-4)


def kept(lens: LensConfig, keys: jax.Array) -> jax.Array:
    """The keys that are looked over, of unrotated ones of all heads: [L, ..., T, K, h] ->
    [..., P, T, h]; NumPy's stay so."""
    stack = np.stack if isinstance(keys, np.ndarray) else jnp.stack
    return stack([keys[layer, ..., head, :] for layer, head in lens.finders], axis=-3)


def attended(query: jax.Array, keys: jax.Array, live: jax.Array) -> jax.Array:
    """Log of the summed exponentials of a query's logits over each block.

    Args:
      query: [..., P, Q, G, h]. keys: [..., P, T, h], of whole blocks.
      live: bool [..., n], the blocks there is a choice of.

    Returns:
      [..., P, Q, G, n], float32, -inf for the others.
    """
    logits = jnp.einsum(
        "...qgh,...th->...qgt", query, keys, preferred_element_type=jnp.float32
    )
    logits = logits.reshape(*logits.shape[:-1], live.shape[-1], -1) * query.shape[-1] ** -0.5
    return jnp.where(live, jax.nn.logsumexp(logits, axis=-1), -jnp.inf)


def log_shares(each: jax.Array, total: jax.Array) -> jax.Array:
    """Log of the largest share of any token's attention that each block gets.

    Args:
      each: [..., P, Q, G, n], of `attended`. total: [..., P, Q, G], the same of all blocks at once.

    Returns:
      [..., P, G, n], -inf for blocks that are not live.
    """
    share = jnp.where(jnp.isneginf(each), -jnp.inf, each - total[..., None])
    return jnp.max(share, axis=-3)


def block_features(shares: jax.Array, best: jax.Array, before: jax.Array) -> jax.Array:
    """What LensNet is told of each block: 0 where nothing is found, 1 at most.

    Of every query head: how near the share is to 1, and to the best of all blocks, in logs of
    which `FAINT` is 0; the share; and that of the block before, because what followed something
    like the present may follow now (RETRO's neighbours, Borgeaud et al. 2022, arXiv:2112.04426).

    Args:
      shares: [..., P, G, n], of `log_shares`, blocks in time order.
      best: [..., P, G], the greatest over all blocks.
      before: [..., P, G], the share of the block before the first; -inf where there is none.

    Returns:
      [..., n, F], F = `width`.
    """
    some = jnp.where(jnp.isneginf(best), 0.0, best)[..., None]
    last = jnp.concatenate([before[..., None], shares[..., :-1]], axis=-1)
    faint = [1.0 - jnp.maximum(log, FAINT) / FAINT for log in (shares, shares - some)]
    found = jnp.stack([*faint, jnp.exp(shares), jnp.exp(last)], axis=-1)  # [..., P, G, n, KINDS]
    found = jnp.moveaxis(found, -2, -4)
    return found.reshape(*found.shape[:-3], -1)


def diluted(each: jax.Array, total: jax.Array, times: jax.Array) -> jax.Array:
    """Totals as of a history so many times as long: its best block once, all else over and over.

    Short histories stand for long ones in training; without this, what is found in a long one
    gets shares so small that a lens has never seen them.

    Args:
      each: [..., P, Q, G, n]. total: [..., P, Q, G]. times: [...], 1 or more.
    """
    best = jnp.max(each, axis=-1)
    rest = jnp.log(jnp.maximum(-jnp.expm1(best - total), 1e-6))  # of the total, beside the best
    return jnp.logaddexp(best, total + rest + jnp.log(times)[..., None, None, None])


def found_in(
    model: Wrapped,
    base: dict,
    states: jax.Array,
    keys: jax.Array,
    live: jax.Array,
    times: jax.Array | None = None,
) -> jax.Array:
    """Features of all blocks of a history at once: [..., n, F].

    Args:
      base: its parameters. states: [L + 1, ..., T', D], of the last tokens.
      keys: [L, ..., T, K, h], unrotated, of whole blocks.
      live: bool [n], or [..., 1, 1, 1, n] where it differs; see `attended`.
      times: [...], see `diluted`; None for a history that is what it is.
    """
    return found_among(model, base, states, kept(model.lens, keys), live, times)


def found_among(
    model: Wrapped,
    base: dict,
    states: jax.Array,
    keys: jax.Array,
    live: jax.Array,
    times: jax.Array | None = None,
) -> jax.Array:
    """As `found_in`, of the keys that are `kept`: [..., P, T, h]."""
    each = attended(looking(model, base, states), keys, live)
    total = jax.nn.logsumexp(each, axis=-1)
    if times is not None:
        total = diluted(each, total, times)
    shares = log_shares(each, total)
    best = jnp.max(shares, axis=-1)
    return block_features(shares, best, jnp.full_like(best, -jnp.inf))
