"""Makes, fills, inspects and mends MegaContext trees.

    python -m experiments.tree create   URI --checkpoint=DIR
    python -m experiments.tree append   URI --checkpoint=DIR --input=SOURCE [--as-documents]
    python -m experiments.tree delete   URI --checkpoint=DIR --name=NAME
    python -m experiments.tree stats    URI
    python -m experiments.tree verify   URI [--checkpoint=DIR]
    python -m experiments.tree compact  URI [--least=SHARE] [--grace=SECONDS]
    python -m experiments.tree rebuild  URI --checkpoint=DIR
    python -m experiments.tree export   URI --output=PATH [--checkpoint=DIR]

URI is a path, file://, gs:// or s3://. SOURCE is a file, a folder of text files, a collection in
JSON lines, or `package:NAME`. With --as-documents each of its texts becomes a document, which can
be replaced: those that are in the tree with another text are replaced, the others added, all in
one commit. Text is committed as it is read, every few seconds: an append that was interrupted has
lost no more.
Tokens short of a block at the end of a text are not stored.

`rebuild` makes all gists anew by the models of another checkpoint; interrupted, it goes on. With
the checkpoint's LoRA (--lora) or in another --dtype the models are others: give both flags as they
are given to `experiments.stream`.
`compact` copies what is in use out of epochs of which more than --least is waste (0: all that
have any) and deletes what was retired --grace seconds ago or earlier: until then readers of an
older state are not disturbed. With --grace=0 the room is given back at once, and readers that hold
a replaced document are told to refresh.
`export` writes text to a .txt, else tokens and gists as NumPy arrays to a folder.
`verify` ends with status 2 where something is wrong. --json prints one object, for scripts.

Several processes fill one tree together when each is started with the same arguments and
--coordinator=HOST:PORT --processes=N --process=I (see `mctx.tree.hosts`).
"""

import argparse
import contextlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from data import text
from experiments import entry
from mctx.errors import UserError
from mctx.opened import DTYPES, Opened, open_checkpoint
from mctx.tokenizer import Tokenizer
from mctx.tree.arrays import row_shape
from mctx.tree.compact import GRACE, compact
from mctx.tree.hosts import append_together
from mctx.tree.ingest import Ingest, Reader, tree_spec
from mctx.tree.mirror import MirrorConfig
from mctx.tree.rebuild import rebuild
from mctx.tree.store import Tree
from mctx.tree.verify import verify

COMMIT_SECONDS = 10.0  # lost at most; oftener, and files that are not full are written many times
EXPORT_ROWS = 2**16  # at once
NO_MIRROR = MirrorConfig(limit=2**24, load=False)  # each gist is looked at once
Tell = Callable[[int, int], None]  # done, of all


# -- what can be done; each returns facts to print ---------------------------------------------


def create(args) -> dict:
    opened = _open(args)
    spec = tree_spec(opened.model, opened.fingerprint)
    with Tree.create(args.uri, spec) as tree:
        return tree.stats()


def append(args) -> dict:
    if args.coordinator:
        return _append_together(args)
    opened, documents = _open(args), _documents(args)
    with Tree.open(
        args.uri, "w", fingerprint=opened.fingerprint, bulk=True, mirror=NO_MIRROR
    ) as tree:
        fill = Ingest(_reader(opened), tree, pad=opened.tokenizer.eot_id)
        with _bar(args, "documents" if args.as_documents else "tokens") as tell:
            if args.as_documents:
                made = _append_documents(fill, opened.tokenizer, documents, tell)
            else:
                made = _append_text(fill, _tokens(opened.tokenizer, documents), tell)
        return made | tree.stats()


def delete(args) -> dict:
    opened = _open(args)
    with Tree.open(args.uri, "w", fingerprint=opened.fingerprint, mirror=NO_MIRROR) as tree:
        Ingest(_reader(opened), tree).delete_document(args.name)
        tree.commit()
        return {"deleted": args.name} | tree.stats()


def stats(args) -> dict:
    tree = Tree.open(args.uri, mirror=NO_MIRROR)
    names = [tree.documents[name]._asdict() for name in tree.documents]
    return tree.stats() | ({"documents": names} if args.json else {})


def check(args) -> dict:
    fingerprint = _open(args).fingerprint if args.checkpoint else None
    with _bar(args, "bytes") as tell:
        return verify(args.uri, fingerprint, tell)._asdict()


def pack(args) -> dict:
    if not (0 <= args.least < 1 and args.grace >= 0):
        raise UserError("--least is a share from 0 to below 1, --grace a number of seconds from 0.")
    with Tree.open(args.uri, "w", bulk=True, mirror=NO_MIRROR) as tree:
        with _bar(args, "bytes") as tell:
            return compact(tree, args.least, args.grace, tell)._asdict()


def remake(args) -> dict:
    opened = _open(args)
    with _bar(args, "blocks") as tell:
        remade = rebuild(args.uri, _reader(opened), opened.fingerprint, progress=tell)
    return {"rebuilt": remade} | Tree.open(args.uri, mirror=NO_MIRROR).stats()


def export(args) -> dict:
    tree, output = Tree.open(args.uri, mirror=NO_MIRROR), args.output
    if output.exists():
        raise UserError(f"{output} exists: choose a new path.")
    draft = output.with_name(f".{output.name}.draft")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with _bar(args, "rows") as tell:
            if output.suffix == ".txt":
                _export_text(tree, draft, args.checkpoint, tell)
            else:
                _export_arrays(tree, draft, tell)
        draft.rename(output)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(
            f"{output} cannot be written ({reason}): choose another --output."
        ) from error
    finally:
        if draft.is_dir():
            shutil.rmtree(draft)
        with contextlib.suppress(OSError):
            draft.unlink()
    return {"exported": str(output)} | tree.stats()


# -- text and documents ------------------------------------------------------------------------


def _documents(args) -> list[text.Document]:
    """All texts, read before anything is written; UserError where one is not to be had."""
    documents = text.load(args.input)
    if args.as_documents:
        names = [document.name for document in documents]
        if len(set(names)) < len(names):
            raise UserError(f"two texts of {args.input} have one name: a document has its own.")
    return documents


def _tokens(tokenizer: Tokenizer, documents: list[text.Document]) -> np.ndarray:
    """One text after the other, each ended where there are several."""
    found = tokenizer.encode_batch([document.text for document in documents])
    end = [tokenizer.eot_id] if len(found) > 1 else []
    return np.concatenate([np.append(each, end) for each in found]).astype(np.int32)


def _append_text(fill: Ingest, tokens: np.ndarray, tell: Tell) -> dict:
    before, committed = fill.tree.length, time.monotonic()
    for _ in fill.feed(tokens, rows=0):
        tell(fill.tree.length - before, len(tokens))
        if time.monotonic() - committed >= COMMIT_SECONDS:
            fill.tree.commit()
            committed = time.monotonic()
    fill.tree.commit()
    return {"appended": fill.tree.length - before, "not stored": len(fill.waiting)}


def _append_documents(fill: Ingest, tokenizer: Tokenizer, documents, tell: Tell) -> dict:
    """Documents that are new, or have another text than the tree's."""
    counts = {"added": 0, "replaced": 0, "unchanged": 0}
    tokens = tokenizer.encode_batch([document.text for document in documents])
    for number, (document, ids) in enumerate(zip(documents, tokens, strict=True), 1):
        name, tree = document.name, fill.tree
        span = tree.documents[name] if name in tree.documents else None
        if span is None:
            fill.add_document(name, ids)
            counts["added"] += 1
        elif np.array_equal(tree.tokens(span.start, span.start + span.length), ids):
            counts["unchanged"] += 1
        else:
            fill.replace_document(name, ids)
            counts["replaced"] += 1
        tell(number, len(documents))
    fill.tree.commit()
    return counts


def _append_together(args) -> dict:
    if args.as_documents:
        raise UserError("several processes append text, not documents: leave one of them out.")
    jax.distributed.initialize(args.coordinator, args.processes, args.process)
    opened, documents = _open(args), _documents(args)
    tokens = _tokens(opened.tokenizer, documents)
    with _bar(args, "tokens") as tell:
        added = append_together(
            args.uri, _reader(opened), tokens, opened.fingerprint, progress=tell
        )
    if args.process:
        return {"read by this process": added}
    return {"appended": added} | Tree.open(args.uri, mirror=NO_MIRROR).stats()


# -- export ------------------------------------------------------------------------------------


def _export_text(tree: Tree, draft: Path, checkpoint: Path | None, tell: Tell) -> None:
    if checkpoint is None:
        raise UserError("text wants its tokenizer: give --checkpoint, or a folder as --output.")
    tokenizer = open_checkpoint(checkpoint, ("base", "gistnet")).tokenizer
    live = np.repeat(_alive(tree), tree.spec.fanouts[0])
    tokens = tree.tokens(0, len(live))[live]
    draft.write_text(tokenizer.decode(tokens), encoding="utf-8")
    tell(tree.length, tree.length)


def _alive(tree: Tree) -> np.ndarray:
    alive = np.ones(tree.blocks, bool)
    for start, stop in tree.dead.tolist():
        alive[start:stop] = False
    return alive


def _export_arrays(tree: Tree, draft: Path, tell: Tell) -> None:
    """tokens.npy int32, lod1.npy … float32, tree.json."""
    draft.mkdir()
    counts = [tree.length, *(tree.count(level) for level in range(1, tree.spec.levels + 1))]
    done = 0
    for level, count in enumerate(counts):
        shape = row_shape(tree.spec, level)
        path = draft / (f"lod{level}.npy" if level else "tokens.npy")
        dtype = np.float32 if level else np.int32
        if not count:
            np.save(path, np.zeros((0, *shape), dtype))
            continue
        array = np.lib.format.open_memmap(path, "w+", dtype, (count, *shape))
        for start in range(0, count, EXPORT_ROWS):
            stop = min(start + EXPORT_ROWS, count)
            rows = tree.gather(level, np.arange(start, stop)) if level else tree.tokens(start, stop)
            array[start:stop] = rows
            done += stop - start
            tell(done, sum(counts))
        array.flush()
    names = [tree.documents[name]._asdict() for name in tree.documents]
    facts = tree.stats() | {"documents": names, "dead": tree.dead.tolist()}
    (draft / "tree.json").write_text(json.dumps(facts, indent=1) + "\n")


# -- the terminal ------------------------------------------------------------------------------


def _open(args) -> Opened:
    if args.checkpoint is None:
        raise UserError("this wants the models: give --checkpoint=DIR.")
    how = dict(lora=args.lora, dtype=args.dtype)
    return open_checkpoint(args.checkpoint, ("base", "gistnet"), **how)


def _reader(opened: Opened) -> Reader:
    return Reader(opened.model, opened.params)


@contextlib.contextmanager
def _bar(args, unit: str) -> Iterator[Tell]:
    """A bar on standard error, where that is a terminal and nobody asked for JSON."""
    columns = TextColumn(args.action), BarColumn(), MofNCompleteColumn(), TextColumn(unit)
    shown = not args.json and sys.stderr.isatty()
    console = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not shown) as bars:
        task = bars.add_task(args.action, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def show(facts: dict, as_json: bool) -> None:
    if as_json:
        print(json.dumps(facts))
        return
    table = Table(show_header=False, box=None)
    for name, value in facts.items():
        for line, one in enumerate(_lines(value)):
            table.add_row("" if line else name.replace("_", " "), one)
    Console().print(table)


def _lines(value) -> list[str]:
    if isinstance(value, dict):
        return [f"{key}: {one:,}" for key, one in value.items()] or ["none"]
    if isinstance(value, list):
        return [str(one) for one in value] or ["none"]
    return [f"{value:,}" if isinstance(value, int) and value is not True else str(value)]


ACTIONS = {
    "create": create,
    "append": append,
    "delete": delete,
    "stats": stats,
    "verify": check,
    "compact": pack,
    "rebuild": remake,
    "export": export,
}


def flags() -> argparse.ArgumentParser:
    parser = entry.Parser(
        prog="python -m experiments.tree",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", choices=ACTIONS)
    parser.add_argument("uri", metavar="URI", help="where the tree lies or will lie")
    parser.add_argument("--checkpoint", type=Path, help="checkpoint or workdir")
    parser.add_argument("--lora", action="store_true", help="apply the checkpoint's LoRA")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the base")
    parser.add_argument("--input", help="a file, a folder, a .jsonl, or package:NAME")
    parser.add_argument("--as-documents", action="store_true", help="each text can be replaced")
    parser.add_argument("--name", help="of the document to delete")
    parser.add_argument("--output", type=Path, help="a .txt, or a folder to make")
    parser.add_argument("--least", type=float, default=0.0, help="compact: waste of an epoch")
    parser.add_argument("--grace", type=float, default=GRACE, help="compact: seconds")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="of a job of many processes")
    parser.add_argument("--processes", type=int, help="of the job")
    parser.add_argument("--process", type=int, help="this one's number, from 0")
    return parser


WANTED = {"append": "input", "delete": "name", "export": "output"}


def main(arguments: Sequence[str] | None = None) -> None:
    args = flags().parse_args(arguments)
    wanted = WANTED.get(args.action)
    if wanted and getattr(args, wanted) is None:
        raise UserError(f"{args.action} wants --{wanted}; see `{flags().prog} --help`.")
    if args.coordinator and (args.processes is None or args.process is None):
        raise UserError("--coordinator wants --processes and --process with it.")
    try:
        facts = ACTIONS[args.action](args)
    except KeyboardInterrupt:
        sys.exit(
            "\ninterrupted: the tree holds what was committed. Rebuild and compact go on when they "
            "are run again. An append would begin with its first token: append the rest alone "
            "(`stats` tells how many tokens are there), or make the tree anew."
        )
    show(facts, args.json)
    if facts.get("problems"):
        raise UserError(f"{args.uri} has {len(facts['problems'])} problems, listed above.")


if __name__ == "__main__":
    entry.run(main)
