"""A checkpoint of the tiny model, with a tokenizer of as many words, for the commands' tests."""

import dataclasses
import json
from pathlib import Path

import numpy as np

from mctx import checkpoint
from mctx.opened import Opened
from mctx.tokenizer import Tokenizer
from tests import tiny

WORDS = tiny.BASE.vocab_size
SHIPPED = Path(__file__).parents[2] / "data" / "checkpoints" / "pico"


def tokenizer_json(words: int = WORDS) -> bytes:
    vocabulary = {f"w{i}": i for i in range(words - 1)} | {"<|endoftext|>": words - 1}
    return json.dumps(
        {
            "version": "1.0",
            "added_tokens": [],
            "pre_tokenizer": {"type": "WhitespaceSplit"},
            "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"},
        }
    ).encode()


def text(length: int, seed: int = 0) -> str:
    """As many words, eight a line, none of them the end of a text."""
    ids = np.random.default_rng(seed).integers(1, WORDS - 1, length)
    lines = [" ".join(f"w{i}" for i in ids[at : at + 8]) for at in range(0, length, 8)]
    return "\n".join(lines) + "\n"


def write(
    directory: Path,
    items: tuple[str, ...] = ("base", "gistnet", "lensnet"),
    tokenizer: bytes | None = None,
) -> Path:
    """Writes a bundle in float32; `tokenizer` b"" for none."""
    content = tokenizer_json() if tokenizer is None else tokenizer
    params = {item: tiny.params()[item] for item in items}
    files = {"tokenizer.json": content} if content else {}
    checkpoint.save_bundle(directory, params, tiny.MODEL.to_dict(), files, np.float32)
    return directory


def opened() -> Opened:
    """The tiny model and its parameters, without a tokenizer: for what reads ids."""
    return Opened(tiny.MODEL, tiny.params(), None, "tiny", tiny.MODEL.to_dict())


def write_reader(directory: Path, window: int = tiny.BASE.window) -> Path:
    """A bundle that reads any text, with the shipped tokenizer; its values are random."""
    tokenizer = (SHIPPED / "tokenizer.json").read_bytes()
    words = Tokenizer.load(SHIPPED).vocab_size
    model = dataclasses.replace(
        tiny.MODEL, base=dataclasses.replace(tiny.BASE, vocab_size=words, window=window)
    )
    params = {part: tiny.drawn(model, part) for part in ("base", "gistnet", "lensnet")}
    files = {"tokenizer.json": tokenizer}
    checkpoint.save_bundle(directory, params, model.to_dict(), files, np.float32)
    return directory
