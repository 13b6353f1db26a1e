"""What people would use instead: `transformers`' Llama with SDPA and a cache of keys and values.

    python -m experiments.bench.stock '{"base": {…}, "dtype": …, "cases": [[lanes, length], …], …}'

Prints one line of JSON a case. A process of its own: JAX and PyTorch each want the accelerator.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mctx.models.wrapped import Wrapped

LIMIT = 90  # seconds for all cases
KINDS = ("DynamicCache", "StaticCache")  # what `generate` takes, and what is written in place


class Told(NamedTuple):
    """One case. seconds: of a token, repeated; bytes: of keys and values; error: why not."""

    lanes: int
    kind: str
    seconds: tuple[float, ...] = ()
    bytes: int = 0
    error: str = ""


def measured(
    model: Wrapped, cases: Sequence[tuple[int, int]], tokens: int, repetitions: int
) -> list[Told]:
    """Seconds of a decoded token behind `length` tokens, `lanes` at once, of every case and kind.

    What cannot be measured (no such package, no memory) is told as an error.
    """
    ask = dict(
        base=model.base.to_dict(), dtype=model.dtype, cases=cases, tokens=tokens,
        repetitions=repetitions,
    )
    command = [sys.executable, "-m", "experiments.bench.stock", json.dumps(ask)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
        out, error = done.stdout, (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    except subprocess.TimeoutExpired as late:
        out = (late.stdout or b"").decode()
        error = f"not done within {LIMIT} seconds"
    told = [Told(**json.loads(line)) for line in out.splitlines() if line.startswith("{")]
    known = {(one.lanes, one.kind) for one in told}
    wanted = [(lanes, kind) for lanes, _ in cases for kind in KINDS]
    return told + [Told(*one, error=error) for one in wanted if one not in known]


def llama(base: dict, dtype: str, device: str):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=base["vocab_size"],
        hidden_size=base["d_model"],
        intermediate_size=base["d_ff"],
        num_hidden_layers=base["n_layers"],
        num_attention_heads=base["n_heads"],
        num_key_value_heads=base["n_kv_heads"],
        head_dim=base["head_dim"],
        tie_word_embeddings=base["tied"],
        max_position_embeddings=2**20,
        attn_implementation="sdpa",
    )
    with torch.device(device):
        return LlamaForCausalLM(config).to(getattr(torch, dtype)).eval()


def _filled(kind: str, model, lanes: int, length: int, room: int):
    """A cache whose `length` tokens nobody read, with room for some more."""
    import torch
    import transformers

    c, like = model.config, model.lm_head.weight
    how = {"StaticCache": dict(max_cache_len=length + room)}.get(kind, {})
    cache = getattr(transformers, kind)(config=c, **how)
    shape = lanes, c.num_key_value_heads, length, c.head_dim
    at = {"cache_position": torch.arange(length, device=like.device)}
    for layer in range(c.num_hidden_layers):
        k, v = (torch.randn(shape, dtype=like.dtype, device=like.device) for _ in range(2))
        cache.update(k, v, layer, at)
    return cache


def _seconds(kind: str, model, lanes: int, length: int, tokens: int, times: int) -> list[float]:
    """Of a token, mean of `tokens`, repeated; each follows from the one before (greedy)."""
    import torch

    device = model.lm_head.weight.device
    cache = _filled(kind, model, lanes, length, (times + 1) * tokens)
    last = torch.ones((lanes, 1), dtype=torch.long, device=device)
    found = []
    for number in range(times + 1):
        began = time.perf_counter()
        for at in range(number * tokens, (number + 1) * tokens):
            place = torch.full((lanes, 1), length + at, device=device)
            out = model(last, position_ids=place, past_key_values=cache, use_cache=True)
            last = out.logits[:, -1:].argmax(-1)
        last.sum().item()  # until it is there
        found.append((time.perf_counter() - began) / tokens)
    return found[1:]


def _cases(ask: dict) -> Iterator[Told]:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    base = ask["base"]
    model = llama(base, ask["dtype"], device)
    one = 2 * base["n_layers"] * base["n_kv_heads"] * base["head_dim"] * model.dtype.itemsize
    for lanes, length in ask["cases"]:
        for kind in KINDS:
            try:
                sizes = lanes, length, ask["tokens"], ask["repetitions"]
                spent = _seconds(kind, model, *sizes)
                yield Told(lanes, kind, tuple(spent), one * lanes * length)
            except Exception as error:  # out of memory, or another version of the package
                yield Told(lanes, kind, error=f"{type(error).__name__}: {error}"[:200])
            if device == "cuda":
                torch.cuda.empty_cache()


def main() -> None:
    import torch

    with torch.inference_mode():
        for told in _cases(json.loads(sys.argv[1])):
            print(json.dumps(told._asdict()), flush=True)


if __name__ == "__main__":
    main()
