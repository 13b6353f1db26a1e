"""NLL of a tail behind a cache of keys and values that a method of kvpress has compressed.

    PEER -m experiments.peers.presses DIR [--methods NAME …] [--device=cpu]

DIR is what `experiments.peers.segments` wrote; PEER, the Python of an environment with
`requirements-peers.txt`. Nothing here needs JAX. Writes DIR/presses.json.

The model reads prefix and history under the press, then the tail behind what is left, its keys at
the positions where they were read (kvpress's way; `rerotated` moves them together, as StreamingLLM
does). A press is told a share to remove, so that P + budget rows stay of P + H, with a history of H
tokens: compression_ratio = 1 - (P + budget) / (P + H). How many stayed is counted afterwards. No
press sees the tail. Before any press runs, full attention must give the NLL that our base gave,
token by token.
"""

import argparse
import contextlib
import importlib.metadata
import json
import logging
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mctx.errors import Parser, UserError

SAME = 1e-3  # nats of one token that two float32 implementations may differ by
PROMPT = 48  # tokens, at most, of KVzip's request to repeat a part of the context
PACKAGES = ("kvpress", "transformers", "torch")


class Asked(NamedTuple):
    """Rows that shall stay, of so many, and tokens that the trained window holds besides."""

    kept: int
    rows: int
    free: int

    def ratio(self, slack: float = 1e-3) -> float:
        """The share to remove; `slack` rows are kept more, so that presses that count the kept
        ones with int() come out at `kept`, whatever the rounding."""
        return 1 - (self.kept + slack) / self.rows


class Peer(NamedTuple):
    """Attributes:
    press: (kvpress, what is asked) -> a press, or None where it is not defined.
    moved: its keys stand together, so the tail follows the last of them.
    single: the tail is read token by token. kvpress hides a key behind one that all queries of a
      call turn away from, and finds none for many of them.
    note: how it keeps the budget, where that is not as the others do.
    """

    press: Callable[[Any, Asked], Any]
    moved: bool = False
    single: bool = False
    note: str = ""


WHOLE = Peer(lambda *_: None)  # full attention


def kvzip(kvpress, asked: Asked):
    """Repeats the context in pieces that the trained window still holds, where it holds any.

    It counts the rows that go with int(), over all layers, so the slack is on the other side.
    """
    if asked.free <= 2 * PROMPT:
        return None
    return kvpress.KVzipPress(asked.ratio(-1e-3), chunk_size=asked.free - PROMPT)


PEERS = {
    "StreamingLLM": Peer(lambda k, asked: k.StreamingLLMPress(asked.ratio())),
    "StreamingLLM rerotated": Peer(
        lambda k, asked: k.KeyRerotationPress(k.StreamingLLMPress(asked.ratio())), moved=True
    ),
    "SnapKV": Peer(lambda k, asked: k.SnapKVPress(asked.ratio())),
    "KNorm": Peer(lambda k, asked: k.KnormPress(asked.ratio())),
    "ExpectedAttention": Peer(lambda k, asked: k.ExpectedAttentionPress(asked.ratio())),
    "KVzip": Peer(
        kvzip,
        single=True,
        note="budget kept on average over layers and heads: it hides keys instead of dropping them",
    ),
}


def load_peers(folder: Path, device: str):
    """kvpress and the model in float32. UserError where a library or the export is missing."""
    try:
        import kvpress
        import transformers
    except ImportError as error:
        raise UserError(
            f"there is no {error.name} in this environment: make one for the peers, "
            "`pip install -r requirements-peers.txt`, and run this with its python."
        ) from error
    if not (folder / "hf" / "config.json").is_file():
        raise UserError(f"{folder}/hf is missing: run experiments.peers.segments first.")
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("kvpress").setLevel(logging.ERROR)  # it says at each press what it costs
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder / "hf", dtype="float32", attn_implementation="sdpa"
    )
    return kvpress, model.to(device).eval()


def load_segments(folder: Path) -> dict[str, np.ndarray]:
    path = folder / "segments.npz"
    if not path.is_file():
        raise UserError(f"there is no {path}: run experiments.peers.segments first.")
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def score(model, peer: Peer, press, context: np.ndarray, tail: np.ndarray) -> tuple:
    """NLL of tail[1:] behind a compressed context.

    Args:
      press: what `peer` made, or None for full attention.

    Returns:
      float32 [tail - 1]; rows that were kept, mean over layers and heads; seconds of the prefill.
    """
    import torch
    from transformers import DynamicCache

    def ids(tokens):
        return torch.as_tensor(tokens[None].astype(np.int64), device=model.device)

    cache, logits = DynamicCache(), []
    with torch.no_grad():
        began = time.perf_counter()
        with press(model) if press else contextlib.nullcontext():
            model.model(input_ids=ids(context), past_key_values=cache)
        seconds = time.perf_counter() - began
        kept = rows_kept(model, cache)
        start, read = cache.get_seq_length() if peer.moved else len(context), tail[:-1]
        for piece in np.split(np.arange(len(read)), len(read) if peer.single else 1):
            out = model(
                input_ids=ids(read[piece]),
                past_key_values=cache,
                position_ids=torch.as_tensor(start + piece, device=model.device)[None],
            )
            logits.append(out.logits[0].float())
        nll = torch.nn.functional.cross_entropy(
            torch.cat(logits), ids(tail[1:])[0], reduction="none"
        )
    return nll.cpu().numpy(), kept, seconds


def rows_kept(model, cache) -> float:
    """Rows of a cache that attention will see, mean over layers and heads."""
    kept = []
    for layer, held in zip(model.model.layers, cache.layers, strict=True):
        hidden = getattr(layer.self_attn, "masked_key_indices", None)
        heads = held.keys.shape[1]
        kept.append(held.keys.shape[2] - (len(hidden[2]) / heads if hidden else 0))
    return float(np.mean(kept))


def ensure_same(model, given: dict[str, np.ndarray]) -> tuple[float, list[float]]:
    """Full attention against ours: the largest difference of a token, and NLL by segment."""
    apart, mean = 0.0, []
    for context, tail, ours in segments(given):
        nll, _, _ = score(model, WHOLE, None, context, tail)
        apart = max(apart, float(np.abs(nll - ours).max()))
        mean.append(float(nll.mean()))
    if not apart <= SAME:
        raise UserError(
            f"full attention differs from ours by {apart:.2g} nats on one token: the export and "
            "the segments are not of one checkpoint; run experiments.peers.segments again."
        )
    return apart, mean


def segments(given: dict[str, np.ndarray]):
    """Of each: prefix and history, tail, and our NLL of the tail under full attention."""
    history = int(given["history"])
    for tokens, full in zip(given["tokens"], given["full"], strict=True):
        yield np.concatenate([given["prefix"], tokens[:history]]), tokens[history:], full


def measure(name: str, kvpress, model, given: dict[str, np.ndarray]) -> dict | None:
    """One press on all segments; None where it is not defined for them."""
    free = int(given["window"]) - len(given["prefix"]) - int(given["history"])
    prefix, budget = len(given["prefix"]), int(given["budget"])
    peer, found = PEERS[name], []
    for context, tail, _ in segments(given):
        asked = Asked(prefix + budget, len(context), free)
        press = peer.press(kvpress, asked)
        if press is None:
            return None
        found.append(score(model, peer, press, context, tail))
    nll, kept, seconds = zip(*found, strict=True)
    return {
        "name": name,
        "nll": [float(each.mean()) for each in nll],
        "entries": float(np.mean(kept)) - prefix,
        "ms_prefill": 1e3 * float(np.median(seconds)),
        "compression_ratio": asked.ratio(0),
        "note": peer.note,
    }


def write(path: Path, content: dict) -> None:
    """Writes the file whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    draft.replace(path)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser(
        prog="python -m experiments.peers.presses",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="what experiments.peers.segments wrote")
    parser.add_argument("--methods", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--device", default="cpu", help="of PyTorch (default: cpu)")
    args = parser.parse_args(arguments)
    given = load_segments(args.folder)
    kvpress, model = load_peers(args.folder, args.device)
    apart, full = ensure_same(model, given)
    print(f"full attention: the same as ours, {apart:.1e} nats apart at most")
    found = []
    for name in args.methods:
        row = measure(name, kvpress, model, given)
        if row is None:
            print(f"{name}: left out, the trained window has no room for it.", file=sys.stderr)
            continue
        if math.ceil(row["entries"]) > int(given["budget"]):
            raise RuntimeError(f"{name} kept {row['entries']} entries: over the budget")
        found.append(row)
        print(f"{name}: {np.mean(row['nll']):.4f} nats/token, {row['entries']:.1f} entries")
    versions = {package: importlib.metadata.version(package) for package in PACKAGES}
    given_here = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["PEER", *parser.prog.split()[1:], *map(str, given_here)])
    facts = {"command": command, "versions": versions, "device": args.device}
    facts |= {"largest_difference": apart}
    write(args.folder / "presses.json", {**facts, "full": full, "presses": found})


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
