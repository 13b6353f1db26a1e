"""What people would use instead: the same decoder trained by PyTorch, compiled, with SDPA.

    python -m experiments.bench.stock_training '{"base": {…}, "rows": …, "steps": …}'

Prints one line of JSON: seconds of a step, repeated. A process of its own: JAX and PyTorch each
want the accelerator.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time

from experiments.bench.stock import llama

LIMIT = 240  # seconds, most of them for compiling
REPETITIONS = 5


def measured(base: dict, rows: int, steps: int) -> list[float] | str:
    """Seconds of a step on `rows` windows, mean of `steps`, repeated; or why they are not known."""
    command = [sys.executable, "-m", "experiments.bench.stock_training"]
    ask = json.dumps(dict(base=base, rows=rows, steps=steps))
    try:
        done = subprocess.run([*command, ask], capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return f"not done within {LIMIT} seconds"
    told = [line for line in done.stdout.splitlines() if line.startswith("[")]
    return json.loads(told[-1]) if told else (done.stderr.strip().splitlines() or ["nothing"])[-1]


def _seconds(base: dict, rows: int, steps: int) -> list[float]:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    model = llama(base, "float32", device).train()
    model.config.use_cache = False
    optimizer = torch.optim.AdamW(
        model.parameters(), 1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=device == "cuda"
    )
    tokens = torch.randint(base["vocab_size"], (rows, base["window"]), device=device)
    compiled = torch.compile(model)

    def step():
        with torch.autocast(device, torch.bfloat16):
            loss = compiled(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    for _ in range(3):
        step().item()
    found = []
    for _ in range(REPETITIONS):
        began = time.perf_counter()
        for _ in range(steps):
            loss = step()
        loss.item()
        found.append((time.perf_counter() - began) / steps)
    return found


def main() -> None:
    print(json.dumps(_seconds(**json.loads(sys.argv[1]))))


if __name__ == "__main__":
    main()
