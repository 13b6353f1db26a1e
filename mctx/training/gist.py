"""Phase `gist`: GistNet learns to say to the frozen base what the past said.

Loss on raw tokens only: the continuation behind a context in which the past is gists (one level
alone, or a layout of the real allocator), and the reconstruction of blocks from their own gists.
The continuation is learned from the tokens that came and, where the config asks for it, from a
teacher: the same base behind all tokens of the past says of every word of the vocabulary how likely
it was (context distillation; Snell et al., arXiv:2209.15189).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mctx.errors import UserError
from mctx.focus.bank import (
    BankShape,
    context_of,
    focus_for,
    make_bank,
    packed_context,
    plain_context,
)
from mctx.focus.layout import validate
from mctx.models.base import token_divergence, token_nll
from mctx.models.gistnet import PACE
from mctx.models.wrapped import (
    Wrapped,
    gist_rows,
    init_part,
    read_behind,
    read_whole,
    read_windows,
    tail_nll,
)
from mctx.sharding import by_rows, whole
from mctx.training import shown as layouts
from mctx.training.attending import choice
from mctx.training.loop import Phase
from mctx.training.sources import Sources, per_domain, ratio, wrapped_from

NEAR = 512  # tokens of history in the evaluation
EXAMPLES = 8  # histories of the corpus from which fresh gists are calibrated
EVAL_BATCH = 16  # segments scored at once
LAYOUTS = 1024  # of the allocator, drawn once: it is slow beside a step, and they fit any text


def phase(config, sources: Sources) -> Phase:
    """See `mctx.training.loop.Phase`; `config` as in experiments/configs/pico_gist.py."""
    frozen, trained = sources.load(("base",))
    # A checkpoint to start from may know of other parts: these are made anew, as the config says.
    anew = "gist", "lens", "window"
    trained = {name: known for name, known in trained.items() if name not in anew}
    model = wrapped_from(config, trained)
    examples = sources.segments(config.history, EXAMPLES, config.train.seed, 0, slice(None))
    return Phase(
        name="gist",
        item="gistnet",
        init=lambda key: init_part(model, "gistnet", key),
        calibrate=lambda params, frozen: calibrated(model, frozen, params, examples),
        frozen=frozen,
        config={**trained, "gist": model.gist.to_dict(), "window": model.window},
        **reading(config, sources, model, lambda params, frozen: {**frozen, "gistnet": params}),
    )


def held_out(config, sources: Sources) -> np.ndarray:
    """Histories with their continuations, [eval_segments, history + tail + 1]."""
    length = config.history + config.tail + 1
    return sources.held_out(length, config.eval_segments, 0, 0, slice(None))


def reading(
    config,
    sources: Sources,
    model: Wrapped,
    join: Callable[[dict, dict], dict],
    gists: bool = True,
) -> dict:
    """The fields of a `Phase` that trains what is read: its batches, loss and evaluation.

    Args:
      join: (what is trained, frozen items) -> the parameters of all parts.
      gists: whether GistNet is among what is trained.
    """
    shape = BankShape(model.gist, config.history // model.gist.block)
    focus = focus_for(model.gist, **config.focus)
    mixture = layouts.Mixture(tuple(config.mixture.levels), tuple(config.mixture.recent))
    if len(mixture.levels) > model.gist.levels:
        raise UserError(
            f"mixture.levels has {len(mixture.levels)} levels, but gist.fanouts only "
            f"{model.gist.levels}: give as many, or fewer."
        )
    if config.history < model.window or config.history % model.window:
        raise UserError(
            f"a history of {config.history} tokens is not one of whole windows of {model.window}: "
            "make config.history a multiple of that."
        )
    validate(focus, shape.blocks)
    length = config.history + config.tail + 1
    capacity = layouts.most_rows(shape, focus, mixture)
    pool = layouts.allocated(shape, focus, jax.random.key(config.train.seed), LAYOUTS)

    def batch(step, rows):
        tokens = sources.segments(length, config.batch_size, config.train.seed, step, rows)
        return {"tokens": tokens}

    def loss(params, frozen, batch, key):
        params = join(params, frozen)
        history, tails = split(batch["tokens"], config.history, model.window, config.tail)
        keys = jax.random.split(key, 2)
        bank = make_bank(model, params, history)
        shown = draw(keys[0], tails.shape[:2])
        hidden = behind(params, bank, shown, tails)  # [J, B, T, D]
        targets = tails[:, :, 1:]
        # Of each tail apart: merged with the batch, what is split by rows would be gathered.
        nll = jax.vmap(functools.partial(token_nll, params["base"]))(hidden, targets).mean()
        again = reconstruction(model, params, bank, history, keys[1], config.blocks).mean()
        parts = {"nll": nll, "reconstruction": again}
        if config.teacher:  # a reading of the whole text, which not everyone wants to pay
            parts["divergence"] = divergence(params, frozen, hidden, batch["tokens"])
            nll = (1 - config.teacher) * nll + config.teacher * parts["divergence"]
        if gists and model.gist.keeps:
            parts["choice"] = choice(model, shape, params, bank, tails[:, :, :-1])
            nll = nll + parts["choice"]  # nothing else teaches what to keep
        return nll + config.reconstruction * again, parts

    def divergence(params, frozen, hidden, tokens):
        """From the teacher. LoRA changes the base that reads gists; who teaches is the base as it
        was."""
        taught = read_whole(model, frozen, tokens[:, :-1])
        taught = split(taught, config.history, model.window, config.tail - 1)[1]
        apart = functools.partial(token_divergence, params["base"])
        return jax.vmap(apart)(hidden, taught).mean()

    def behind(params, bank, shown, tails):
        """What the base makes of every tail behind what is shown of one bank."""

        def one(shown, tail):
            context = packed_context(shape, bank, shown, capacity)
            return read_behind(model, params, tail[:, :-1], *context).hidden

        return jax.vmap(one)(shown, tails)

    def draw(key, size):
        """Layouts [tails, B, N]; some of those before the last tail are the real allocator's."""
        tails, b = size
        *keys, which, real_key = jax.random.split(key, tails + 2)
        per_window = model.window // model.gist.block
        drawn = [
            layouts.one_level(shape, mixture, k, b, (i + 1) * per_window)
            for i, k in enumerate(keys)
        ]
        if not config.mixture.allocator:
            return jnp.stack(drawn)
        real = pool[jax.random.randint(real_key, (b,), 0, len(pool))]
        use_real = jax.random.bernoulli(which, config.mixture.allocator, (b, 1))
        drawn[-1] = jnp.where(use_real, real, drawn[-1])
        return jnp.stack(drawn)

    tokens = held_out(config, sources)

    def evaluate(params, frozen):
        nll = nll_by_level(model, shape, join(params, frozen), tokens)
        return per_domain(
            sources.domains, lambda rows: recovered({k: v[rows] for k, v in nll.items()})
        )

    return dict(loss=loss, batch=batch, batch_size=config.batch_size, evaluate=evaluate)


def split(tokens: jax.Array, history: int, window: int, tail: int) -> tuple[jax.Array, jax.Array]:
    """A history, and the continuation at the end of each of its windows.

    [B, history + tail + 1, …] -> [B, history, …] and [J, B, tail + 1, …].
    """
    ends = range(window, history + 1, window)
    return tokens[:, :history], jnp.stack([tokens[:, e : e + tail + 1] for e in ends])


def calibrated(model, frozen: dict, params: dict, tokens: np.ndarray) -> dict:
    """Fresh parameters under which a gist's rows start as an average token's.

    The keys of a trained base have a large common part; rows without it are unlike anything that
    the base has attended to, and learning it by gradient takes longer than all the rest. Gists that
    keep rows start as those rows, as nearly as their width can hold them: as the principal
    components of rows.
    """
    if model.gist.inject != "kv":
        return params
    rows, _ = read_windows(model, frozen, tokens)
    both = jnp.stack([rows.k, rows.v], axis=1).astype(jnp.float32)  # [L, 2, B, T, K, H]
    both = jnp.moveaxis(both, (2, 3), (0, 1))  # [B, T, L, 2, K, H]
    mean, spread = both.mean(axis=(0, 1)), both.std(axis=(0, 1)) + 1e-6  # [L, 2, K, H]
    if model.gist.keeps:
        return {**params, "codes": coded(both, mean, spread, params["codes"]["inward"].shape[-1])}
    emit = params["rows"]
    return {**params, "rows": {"kernel": emit["kernel"] * spread, "bias": mean}}


def coded(both: jax.Array, mean: jax.Array, spread: jax.Array, size: int) -> dict:
    """Codes of rows [B, T, L, 2, K, H] that hold as much of each layer and head as `size` can."""
    apart = jnp.moveaxis((both - mean) / spread, -3, -2)  # [B, T, L, K, 2, H]
    layers, heads, _, h = apart.shape[2:]
    flat = jnp.moveaxis(apart.reshape(-1, layers, heads, 2 * h), 0, 2)  # [L, K, n, 2·H]
    found = jax.vmap(jax.vmap(lambda x: principal(x, size)))(flat)  # [L, K, size, 2·H]
    basis = jnp.moveaxis(found, 2, 3).reshape(layers, heads, 2, h, size)
    wide = jnp.moveaxis(spread, -3, -2)[..., None]  # [L, K, 2, H, 1]
    middle = jnp.moveaxis(mean, -3, -2)
    return {"inward": basis / wide / PACE, "outward": basis * wide / PACE, "mean": middle}


def principal(x: jax.Array, count: int, rounds: int = 4) -> jax.Array:
    """The first `count` principal directions of centred x [n, d]: orthonormal rows [count, d].

    By subspace iteration (Halko, Martinsson and Tropp, arXiv:0909.4061), because d is tens of
    thousands for a large base. Beyond what n and d can tell they are zero.
    """
    known = min(count, *x.shape)
    basis = jax.random.normal(jax.random.key(0), (x.shape[1], known))
    for _ in range(rounds):
        basis = jnp.linalg.qr(x.T @ (x @ basis))[0]
    return jnp.pad(basis.T, ((0, count - known), (0, 0)))


def reconstruction(model, params, bank, history, key, blocks: int) -> jax.Array:
    """NLL of blocks behind nothing but the prefix and their own gist: [B·blocks, K_1 - 1] nats.

    `blocks` blocks of every history are drawn. The first token of each is given: anything else
    that could start the reading (a second prefix) would tell the base that a new text begins.
    """
    b, k = history.shape[0], model.gist.block
    chosen = jax.random.randint(key, (b, blocks), 0, history.shape[1] // k)
    words = jnp.take_along_axis(history.reshape(b, -1, k), chosen[..., None], axis=1)
    gists = jnp.take_along_axis(bank.gists[0], chosen[..., None, None], axis=1)
    n = b * blocks
    own = gist_rows(model, params, gists.reshape(n, 1, *gists.shape[2:]))
    context, start = plain_context(bank.prefix, own)
    return tail_nll(model, params, words.reshape(n, k), context, start)


def nll_by_level(model, shape: BankShape, params: dict, tokens: np.ndarray) -> dict:
    """NLL of the tail behind the last tokens' gists alone, level by level: {name: [n, T]}.

    The last `NEAR` tokens of the history are all there is; `none` shows nothing of them, `full`
    all.
    """
    length = shape.blocks * model.gist.block
    history, tail = tokens[:, :length], tokens[:, length:]
    near = shape.node_block * model.gist.block >= length - NEAR
    choices = {"none": np.zeros_like(near), "full": near & (shape.node_level == 0)}
    for level in range(1, model.gist.levels + 1):
        if model.gist.span(level) <= NEAR:
            choices[f"lod{level}"] = near & (shape.node_level == level)

    def each(chosen):
        pieces = [slice(i, i + EVAL_BATCH) for i in range(0, len(history), EVAL_BATCH)]
        of = model, shape, params
        return np.concatenate([_nll_behind(*of, history[i], tail[i], chosen) for i in pieces])

    return {name: each(chosen) for name, chosen in choices.items()}


@functools.partial(jax.jit, static_argnums=(0, 1))  # here, or every evaluation would compile it
def _nll_behind(model, shape, params, history, tail, chosen):
    history, tail = by_rows((history, tail))
    bank = make_bank(model, params, history)
    shown = jnp.broadcast_to(chosen, (len(history), len(chosen)))
    context, start = context_of(shape, bank, shown)
    return whole(tail_nll(model, params, tail, context, start))


def recovered(losses: dict[str, np.ndarray]) -> dict[str, float]:
    """Mean NLLs and what each level recovers (design: recovered), a ratio of means; NaN where the
    history helps nothing."""
    nll = {name: float(value.mean()) for name, value in losses.items()}
    gain = nll["none"] - nll["full"]
    shares = {
        f"recovered_{name}": ratio(nll["none"] - value, gain)
        for name, value in nll.items()
        if name.startswith("lod")
    }
    return {**{f"nll_{k}": v for k, v in nll.items()}, **shares}
