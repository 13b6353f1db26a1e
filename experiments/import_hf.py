"""Imports a Hugging Face checkpoint as a base.

    python -m experiments.import_hf SRC DST [--dtype=bfloat16]

SRC holds config.json, safetensors and, best, tokenizer.json (families: Llama, Mistral, Qwen2,
Qwen3, SmolLM2, SmolLM3). DST becomes a checkpoint that every command reads as its base; as
WORKDIR/base it is the base of the phases that are trained in WORKDIR. With JAX_PLATFORMS=cpu no
accelerator is asked for room.
"""

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from experiments import entry
from mctx import checkpoint
from mctx.errors import UserError
from mctx.models import hf
from mctx.models.base import count_parameters
from mctx.tokenizer import Tokenizer

CARD = """# {name}, as a base

{parameters:,} parameters in {dtype}, imported from the Hugging Face checkpoint `{name}` by
`python -m experiments.import_hf`. The licence is the one that it came with.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = entry.Parser(
        prog="python -m experiments.import_hf", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("source", type=Path, help="folder of a Hugging Face checkpoint")
    parser.add_argument("destination", type=Path, help="checkpoint directory to make")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: as in SRC")
    args = parser.parse_args(arguments)
    if args.destination.exists():
        raise UserError(f"{args.destination} exists: choose a new directory.")

    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    config, params = hf.load(args.source, args.dtype and jnp.dtype(args.dtype), lambda _: here)
    dtype = params["embed"]["embedding"].dtype
    card = CARD.format(
        name=args.source.resolve().name, parameters=count_parameters(params), dtype=dtype
    )
    files = {"CARD.md": card.encode()}
    tokenizer = args.source / "tokenizer.json"
    if tokenizer.exists():
        Tokenizer.load(tokenizer, config.vocab_size)  # refuses one that the commands cannot use
        files["tokenizer.json"] = tokenizer.read_bytes()
    checkpoint.save_bundle(
        args.destination, {"base": params}, {"base": config.to_dict()}, files, dtype
    )
    without = "" if tokenizer.exists() else ", without a tokenizer: add a tokenizer.json"
    print(f"{args.destination}: {count_parameters(params):,} parameters in {dtype}{without}")


if __name__ == "__main__":
    entry.run(main)
