"""docs/tree-format.md is enough to read a tree: this reader knows that page and nothing of ours."""

import json
import shutil
import zlib

import numpy as np
import pytest

from mctx.tree import head as heads
from mctx.tree.head import encode
from mctx.tree.ingest import Ingest
from mctx.tree.store import Tree
from tests.tree.codebase import PAD, SPEC, WINDOW, Reader, tokens_of

zarr = pytest.importorskip("zarr")


def read_head(folder) -> dict:
    line, body, *_ = (folder / "HEAD").read_bytes().split(b"\n")
    magic, version, checksum = line.split(b" ")
    assert magic == b"megacontext-tree" and int(checksum, 16) == zlib.crc32(
        version + b"\n" + body
    )
    assert int(version) <= 3
    head = json.loads(body)
    if "index" in head:
        record = (folder / head["index"]["name"]).read_bytes()
        assert zlib.crc32(record) == head["index"]["checksum"]
        index = json.loads(record)
        kept = zip(index["extents"], head["index"]["kept"], head["extents"], strict=True)
        head["extents"] = [old[:n] + new for old, n, new in kept]
        head.setdefault("documents", index["documents"])
    return head


def read_rows(folder, head, level) -> np.ndarray:
    """All rows of a level: tokens, or float32 gists."""
    spec = head["spec"]
    shape = (spec["slots"][level - 1], spec["gist_width"]) if level else ()
    found = [np.zeros((0, *shape), np.float32 if level else np.int32)]
    for _, epoch, row, length in head["extents"][level]:
        if epoch == 0:
            found.append(np.zeros((length, *shape), found[0].dtype))
            continue
        name = f"lod{level}" if level else "tokens"
        array = zarr.open_array(folder / f"epoch-{epoch:08d}" / name, mode="r")
        rows = array[row : row + length]
        found.append((rows.astype(np.uint32) << 16).view(np.float32) if level else rows)
    return np.concatenate(found)


@pytest.mark.parametrize("inline", [64, 3])
def test_a_reader_written_from_the_page_reads_what_we_read(tmp_path, monkeypatch, inline):
    monkeypatch.setattr(heads, "INLINE", inline)
    tree = Tree.create(tmp_path, SPEC)
    for i in range(3):
        ingest = Ingest(Reader(), tree, pad=PAD)
        list(ingest.feed(tokens_of(i, 30)))
        ingest.add_document(f"{i}.py", tokens_of(10 + i, 2 * WINDOW + 1))
        if i:
            ingest.replace_document("0.py", tokens_of(20 + i, 2 * WINDOW - 7 * i))
        tree.commit()
        tree = Tree.open(tmp_path, mode="w")
    Ingest(Reader(), tree, pad=PAD).delete_document("1.py")
    tree.commit()
    list(Ingest(Reader(), tree, pad=PAD).feed(tokens_of(9, 8)))
    tree.commit()
    head = read_head(tmp_path)
    assert ("index" in head) == (inline < 64)
    np.testing.assert_array_equal(read_rows(tmp_path, head, 0), tree.tokens(0, tree.length))
    for level in range(1, SPEC.levels + 1):
        every = np.arange(tree.count(level))
        np.testing.assert_array_equal(read_rows(tmp_path, head, level), tree.gather(level, every))
    spans = {span[0]: span for span in head["documents"] if span[0]}
    assert spans == {name: list(tree.documents[name]) for name in tree.documents}
    name, version, start, stop, length = spans["0.py"]
    assert version == 3 and stop - start == 3 * WINDOW
    text = read_rows(tmp_path, head, 0)[start : start + length]
    np.testing.assert_array_equal(text, tokens_of(22, 2 * WINDOW - 14))


def test_a_tree_of_format_1_is_read_and_taken_over(tmp_path):
    """As written before there were documents: no newline at the end, and four fields."""
    with Tree.create(tmp_path, SPEC) as tree:
        list(Ingest(Reader(), tree).feed(tokens_of(1, 5 * WINDOW)))
    body = encode(tree.head).split(b"\n")[1]
    fields = {name: json.loads(body)[name] for name in ("spec", "epoch", "writer", "extents")}
    fields["spec"]["slots"] = SPEC.slots[0]  # one number stood for all levels
    body = json.dumps(fields).encode()
    line = b"megacontext-tree 1 %08x\n" % zlib.crc32(b"1\n" + body)
    (tmp_path / "HEAD").write_bytes(line + body)
    old = Tree.open(tmp_path)
    np.testing.assert_array_equal(old.tokens(0, old.length), tokens_of(1, 5 * WINDOW))
    with Tree.open(tmp_path, mode="w") as tree:
        Ingest(Reader(), tree).add_document("a", tokens_of(2, 9))
    assert (tmp_path / "HEAD").read_bytes().startswith(b"megacontext-tree 3 ")
    assert old.refresh() and old.documents["a"].length == 9
    (tmp_path / "HEAD").write_bytes(line + body + b" ")
    with pytest.raises(heads.TreeError, match="damaged"):
        Tree.open(tmp_path)
    shutil.rmtree(tmp_path)
