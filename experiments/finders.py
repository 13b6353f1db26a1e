"""Which heads of a base find: what `lens.finders` of a config should name.

    python -m experiments.finders --checkpoint=DIR --questions=DIR [--count=64] [--json]

Of every key/value head, on questions made by `python -m data.questions --split=validation`: the
share of the supporting blocks before the recent ones that are among the best `--best`, by the
largest share of attention that any of the last tokens gives to each block
(`mctx.models.finder`). Mean over the questions that have such blocks; best heads first.
"""

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from data.questions import Questions
from experiments import entry
from mctx.errors import UserError
from mctx.models import finder
from mctx.models.wrapped import Wrapped, read_windows
from mctx.opened import open_checkpoint
from mctx.training.lens import recall

RECENT = 4  # blocks that are no candidates


def every_head(model: Wrapped) -> Wrapped:
    """The model with a lens that all key/value heads of the base find for."""
    base = model.base
    heads = tuple((i, k) for i in range(base.n_layers) for k in range(base.n_kv_heads))
    return dataclasses.replace(model, lens=dataclasses.replace(model.lens, finders=heads))


@functools.partial(jax.jit, static_argnums=(0, 4))
def recalls(model: Wrapped, params: dict, tokens, support, best: int) -> jax.Array:
    """Of one question, by finder: tokens [T], support [blocks] -> [P]."""
    rows, states = read_windows(model, params, tokens[None])
    blocks = len(support)
    live = np.arange(blocks) < blocks - RECENT
    query = finder.looking(model, params["base"], states[:, 0])
    each = finder.attended(query, finder.kept(model.lens, rows.k[:, 0]), live)
    shares = finder.log_shares(each, jax.nn.logsumexp(each, axis=-1)).max(axis=1)  # [P, blocks]
    there = jnp.broadcast_to(support & live, shares.shape)
    return jax.vmap(lambda guess, wanted: recall(guess[None], wanted[None], best))(shares, there)


def measure(model: Wrapped, params: dict, questions: Questions, count: int, best: int) -> list:
    """Rows {layer, head, recall}, best first, over the first `count` questions that can tell.

    Raises:
      UserError: the questions have blocks of another size, or none can tell.
    """
    length, block = questions.manifest["length"], questions.manifest["block"]
    if block != model.gist.block:
        raise UserError(f"the checkpoint has blocks of {model.gist.block} tokens, the questions of "
                        f"{block}: make others with `python -m data.questions`.")
    chosen = np.flatnonzero(questions.support[:, :-RECENT].any(axis=1))[:count]
    if not len(chosen):
        raise UserError("no question has its answer before the recent blocks: make longer ones.")
    model = every_head(model)
    each = [
        recalls(model, params, jnp.asarray(questions.tokens[i, :length], jnp.int32),
                questions.support[i], best)
        for i in chosen
    ]
    mean = np.mean(jax.device_get(each), axis=0)
    rows = [
        {"layer": layer, "head": head, "recall": round(float(value), 4)}
        for (layer, head), value in zip(model.lens.finders, mean, strict=True)
    ]
    return sorted(rows, key=lambda row: -row["recall"])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = entry.Parser(prog="python -m experiments.finders", description=__doc__)
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help="a checkpoint or a training workdir")
    add("--questions", type=Path, required=True, help="a folder made by data.questions")
    add("--count", type=int, default=64, help="questions to ask")
    add("--best", type=int, default=8, help="blocks that a head may name")
    add("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args(arguments)
    opened = open_checkpoint(args.checkpoint, ("base",))
    questions = Questions.load(args.questions)
    if questions.manifest["tokenizer"] != opened.tokenizer.fingerprint:
        raise UserError("the questions have another tokenizer: make them with the checkpoint's.")
    rows = measure(opened.model, opened.params, questions, args.count, args.best)
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    table = Table("layer", "head", f"recall of {args.best}")
    for row in rows:
        table.add_row(str(row["layer"]), str(row["head"]), f"{row['recall']:.3f}")
    Console().print(table)


if __name__ == "__main__":
    entry.run(main)
