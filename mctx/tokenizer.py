"""Text to token ids and back: a thin wrapper of a Hugging Face `tokenizer.json`."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers

from mctx.errors import UserError

# The names that a special token goes by, most specific first: ours, Llama, Qwen, SmolLM, Mistral.
_BOS = ("<bos>", "<|begin_of_text|>", "<s>")
_EOT = ("<eot>", "<|end_of_text|>", "<|endoftext|>", "</s>")
_PAD = ("<pad>", "<|finetune_right_pad_id|>")


class Tokenizer:
    """Encodes and decodes; text that spells a special token is encoded as plain text.

    Attributes:
      vocab_size: number of ids; every id is below it.
      eot_id: the id that ends a document.
      bos_id: the id that begins a text, or None where the vocabulary has none.
      pad_id: an id for places that nothing reads (`eot_id` where the vocabulary has none).
      fingerprint: SHA-256 of the JSON text: equal exactly when the tokenizers are.
    """

    def __init__(self, json: str):
        """Make a tokenizer of the text of a `tokenizer.json`.

        Raises:
          UserError: the text is no tokenizer, or its vocabulary has no end-of-text token.
        """
        try:
            self._backend = tokenizers.Tokenizer.from_str(json)
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"This is no tokenizer.json: {error}.") from error
        self._backend.encode_special_tokens = True
        self._backend.no_truncation()
        self._backend.no_padding()
        self._json = json
        ids = self._backend.get_vocab(with_added_tokens=True)
        self.vocab_size = max(ids.values()) + 1
        self.bos_id, eot_id, pad_id = (
            next((ids[name] for name in names if name in ids), None) for names in (_BOS, _EOT, _PAD)
        )
        if eot_id is None:
            raise UserError(f"The tokenizer needs one of the tokens {', '.join(_EOT)}.")
        self.eot_id, self.pad_id = eot_id, eot_id if pad_id is None else pad_id
        self.fingerprint = hashlib.sha256(json.encode()).hexdigest()

    @classmethod
    def load(cls, path: str | Path, vocab_size: int | None = None) -> "Tokenizer":
        """Load a `tokenizer.json`, or the one in a checkpoint directory.

        Args:
          path: the file, or a directory that holds `tokenizer.json`.
          vocab_size: rows of the model's embedding table, if ids are to be checked against it.

        Raises:
          UserError: there is no such file, it is no tokenizer, or it has ids past `vocab_size`.
        """
        path = Path(path)
        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.is_file():
            raise UserError(f"There is no tokenizer at {file}; name a checkpoint that has one.")
        tokenizer = cls(file.read_text(encoding="utf-8"))
        if vocab_size is not None and tokenizer.vocab_size > vocab_size:
            raise UserError(
                f"The tokenizer {file} has {tokenizer.vocab_size} ids, but the model knows only "
                f"{vocab_size}; use the tokenizer that belongs to the model."
            )
        return tokenizer

    def save(self, directory: str | Path) -> Path:
        """Write `tokenizer.json` into a directory; returns its path."""
        file = Path(directory) / "tokenizer.json"
        file.write_text(self._json, encoding="utf-8")
        return file

    def encode(self, text: str) -> np.ndarray:
        """Token ids of a text, int32 [n]; no special tokens are added."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of each text, int32 [n]; texts are encoded in parallel.

        Raises:
          UserError: one is no text, or holds half of a character (a lone surrogate).
        """
        try:
            encoded = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        except TypeError as error:
            raise UserError(
                "This is no Unicode text: give a str without lone surrogates (U+D800 to U+DFFF)."
            ) from error
        return [np.array(one.ids, np.int32) for one in encoded]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of ids [n]; special tokens are written out by name."""
        return self._backend.decode(np.asarray(ids).tolist(), skip_special_tokens=False)
