"""Phase `lora`: the base's light fine-tuning, optional: it learns to read gists better.

What is trained is a low-rank term beside the base's projections (`mctx.models.lora`), by the
loss of phase `gist` and nothing else: the continuation behind gists, and blocks from their own
gists. The base itself stays as it is (design: law 4). With `along`, GistNet goes on learning with
it; that GistNet belongs to the `lora` item and replaces nothing unless the LoRA is applied.

The rows of a history are read with the LoRA too, since a merged base will do so, but the gradient
is that of what reads them: the tail, as in every phase (`mctx.focus.bank.read_history`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mctx.errors import UserError
from mctx.models import lora
from mctx.models.base import count_parameters
from mctx.models.wrapped import Wrapped, init_part
from mctx.training.gist import reading
from mctx.training.loop import Phase
from mctx.training.sources import Sources, wrapped_from

MOST = 0.01  # share of the base's parameters: more is no light fine-tuning


def phase(config, sources: Sources) -> Phase:
    """See `mctx.training.loop.Phase`; `config` as in experiments/configs/pico_lora.py."""
    frozen, trained = sources.load(("base", "gistnet"))
    model = wrapped_from(config, trained)
    settings = lora.LoraConfig.from_dict(config.lora)
    base = jax.eval_shape(lambda key: init_part(model, "base", key), jax.random.key(0))
    own = jax.eval_shape(lambda key: lora.init(settings, base, key), jax.random.key(0))
    share = count_parameters(own) / count_parameters(base)
    if share > MOST:
        raise UserError(
            f"a LoRA of rank {settings.rank} would be {100 * share:.2g} % of the base: lower "
            f"lora.rank or name fewer lora.targets, to at most {100 * MOST:g} %."
        )

    def join(params, frozen):
        return lora.tuned({**frozen, "lora": params})

    def calibrate(params, frozen):
        if not config.along:
            return params
        # A copy, because the state is given away at every step and frozen items are not.
        return params | {"gistnet": jax.tree.map(lambda x: jnp.array(x), frozen["gistnet"])}

    return Phase(
        name="lora",
        item="lora",
        init=lambda key: fresh(model, settings, base, config.along, key),
        calibrate=calibrate,
        frozen=frozen,
        config={**trained, "lora": settings.to_dict() | {"along": config.along}},
        **reading(config, sources, model, join, gists=config.along),
    )


def fresh(model: Wrapped, settings: lora.LoraConfig, base: dict, along: bool, key) -> dict:
    """The `lora` item: {"base": a LoRA}, and a "gistnet" where that is trained along."""
    item = {"base": lora.init(settings, base, key)}
    return item | ({"gistnet": init_part(model, "gistnet", key)} if along else {})
