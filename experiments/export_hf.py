"""Exports a base as a Hugging Face checkpoint, which stock Transformers loads.

    python -m experiments.export_hf SRC DST [--dtype=bfloat16] [--family=llama] [--lora]

SRC is a checkpoint directory or a training workdir. DST gets config.json, model.safetensors and
the tokenizer where SRC has one, all of it or nothing. With --lora the base's LoRA is merged into
its weights.
"""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp

from experiments import entry
from mctx import checkpoint
from mctx.errors import UserError
from mctx.models import hf, lora
from mctx.models.base import BaseConfig
from mctx.tokenizer import Tokenizer


def find_tokenizer(source: Path, vocab_size: int) -> Tokenizer | None:
    """The tokenizer of a checkpoint directory, or of the base's in a workdir."""
    for folder in (source, source / checkpoint.TRAINED_BY["base"]):
        if (folder / "tokenizer.json").exists():
            return Tokenizer.load(folder, vocab_size)
    return None


def main(arguments: Sequence[str] | None = None) -> None:
    parser = entry.Parser(
        prog="python -m experiments.export_hf", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("source", type=Path, help="checkpoint directory or training workdir")
    parser.add_argument("destination", type=Path, help="folder to make")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--family", help="model_type; default: the first that fits")
    parser.add_argument("--lora", action="store_true", help="merge the LoRA into the weights")
    args = parser.parse_args(arguments)
    if args.destination.exists():
        raise UserError(f"{args.destination} exists: choose a new directory.")
    entry.check_folder(args.destination.parent)

    wanted, dtype = ("base",) + ("lora",) * args.lora, {"base": jnp.dtype(args.dtype)}
    items, configs = checkpoint.load_items(args.source, wanted, dtype=dtype)
    base = lora.merge(items["base"], items["lora"]["base"]) if args.lora else items["base"]
    config = BaseConfig.from_dict(configs["base"])
    tokenizer = find_tokenizer(args.source, config.vocab_size)
    parent = args.destination.resolve().parent
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix=".export-") as scratch:
        draft = Path(scratch) / "draft"
        hf.save(draft, config, base, args.family, tokenizer and tokenizer.eot_id)
        if tokenizer:
            tokenizer.save(draft)
            # Without this AutoTokenizer goes by the model's family, whose class may not fit.
            settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
            (draft / "tokenizer_config.json").write_text(json.dumps(settings) + "\n")
        draft.rename(args.destination)
    begin = ""
    if len(config.prefix) > 1:  # Transformers adds one token at most
        begin = f"; begin every text with the tokens {list(config.prefix)}"
    print(f"{args.destination}: AutoModelForCausalLM.from_pretrained reads it{begin}")


if __name__ == "__main__":
    entry.run(main)
