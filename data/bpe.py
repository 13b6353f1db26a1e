"""Training of the project's own tokenizer: byte-level BPE with pieces cut to suit Python."""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from mctx.tokenizer import Tokenizer as MctxTokenizer

SPECIAL = ("<bos>", "<eot>", "<pad>")  # ids 0, 1, 2

# GPT-4's pattern with three changes: a line break takes the next line's indentation along, so that
# "\n        " is one token; digits go in pairs (a small vocabulary has no room for triples); and
# English contractions are left out.
PIECES = (
    r"\s*[\r\n]+[ \t]*"
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"
    r"|\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{N}]+"
    r"|\s+(?!\S)"
    r"|\s+"
)


def train(texts: Iterable[str], vocab_size: int) -> MctxTokenizer:
    """Train a byte-level BPE of `vocab_size` ids (`SPECIAL` and the 256 bytes among them)."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return MctxTokenizer(backend.to_str())
