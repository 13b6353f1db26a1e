"""Texts of a data set of the Hugging Face hub, PG-19 say, through the library `datasets`.

A data set that is a script, as `deepmind/pg19` is, wants `datasets<4`; later ones read its copies
in Parquet.
"""

from collections.abc import Iterator

from mctx.errors import UserError

PREFIX = "hf:"
SPLIT = "test"
MOST = 100_000_000  # characters that are taken of a split
GROUPS = ("author", "short_book_title", "title", "url")  # fields by which texts are grouped


def texts(source: str) -> Iterator[tuple[str, str, str]]:
    """(group, name, text) of `hf:NAME[@SPLIT]` in its order; a row needs the field `text`.

    The group is the row's author where it has one, else its title, else its number.

    Raises:
      UserError: the library is not installed, the data set cannot be reached, or it has no text.
    """
    name, _, split = source.removeprefix(PREFIX).partition("@")
    try:
        from datasets import load_dataset  # large, and nothing else needs it
    except ImportError:
        raise UserError(
            f"{source} needs the library `datasets`: install it, or name a file or folder."
        ) from None
    count = 0
    try:
        rows = load_dataset(name, split=split or SPLIT, streaming=True)
        for number, row in enumerate(rows):
            group = next((str(row[field]) for field in GROUPS if row.get(field)), str(number))
            yield group, str(row.get("title", number)), row["text"]
            count += len(row["text"])
            if count >= MOST:
                return
    except (KeyError, TypeError):
        raise UserError(f"{source} has rows without a text: name another data set.") from None
    except Exception as reason:  # whatever the hub, the network or a broken file raises
        first = (str(reason).splitlines() or [type(reason).__name__])[0]
        raise UserError(
            f"{source} cannot be read here ({first}): name a data set that can be reached, or a "
            "file or folder."
        ) from None
