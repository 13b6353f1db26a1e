"""A tree gives back what was committed to it, and says clearly what it cannot do."""

import itertools
import json
import threading

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mctx.errors import UserError
from mctx.tree import head as heads
from mctx.tree.arrays import array_folder, open_kvstore, row_shape
from mctx.tree.checks import MAX_BLOCKS
from mctx.tree.extents import Extent
from mctx.tree.head import Head, TreeError
from mctx.tree.store import Tree, TreeSpec
from tests.tree import history
from tests.tree.history import SPEC

names = itertools.count()


def fresh_uri() -> str:
    return f"memory://store-{next(names)}"


# Rows of 4 KiB: 8 to a chunk and 256 to a shard, so that a few hundred tokens cross both borders.
WIDE = TreeSpec((2, 3), slots=(2, 1), gist_width=1024, fingerprint="wide", vocab_size=50_000)
operations = st.one_of(
    st.tuples(
        st.just("append"),
        st.integers(0, 40) | st.integers(0, 1500),
        st.tuples(st.floats(0, 1), st.floats(0, 1)),
    ),
    st.tuples(st.sampled_from(["commit", "reopen", "close cleanly"])),
)


class Model:
    """What the tree should hold: plain arrays, committed or not."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        gists = [np.empty((0, *row_shape(WIDE, level)), np.float32) for level in (1, 2)]
        self.now = self.committed = (np.empty(0, np.int32), *gists)

    def append(self, tree: Tree, count: int, shares: tuple[float, float]) -> None:
        """Random tokens, and of each level a share of the gists that may follow."""
        new = [self.rng.integers(0, WIDE.vocab_size, count, np.int32)]
        length = len(self.now[0]) + count
        for level, share in enumerate(shares, 1):
            room = length // WIDE.span(level) - len(self.now[level])
            bits = self.rng.integers(0, 0x7F80, (round(room * share), *self.now[level].shape[1:]))
            new.append(bits.astype(np.uint16).view(ml_dtypes.bfloat16).astype(np.float32))
        tree.append(new[0], {1: new[1], 2: new[2]})
        self.now = tuple(np.concatenate(pair) for pair in zip(self.now, new, strict=True))

    def check(self, tree: Tree, rows: tuple[np.ndarray, ...]) -> None:
        assert tree.length == len(rows[0])
        low, high = sorted(self.rng.integers(0, len(rows[0]) + 1, 2))
        for start, stop in ((low, high), (0, len(rows[0]))):
            assert np.array_equal(tree.tokens(start, stop), rows[0][start:stop])
        for level in (1, 2):
            assert tree.count(level) == len(rows[level])
            some = self.rng.permutation(len(rows[level]))[:50]
            for indices in (some, np.arange(len(rows[level]))):
                assert np.array_equal(tree.gather(level, indices), rows[level][indices])


@settings(max_examples=40)
@given(st.lists(operations, max_size=12), st.integers(0, 2**32))
def test_reads_back_exactly_what_was_committed(steps, seed):
    uri, model = fresh_uri(), Model(seed)
    tree, follower = Tree.create(uri, WIDE), Tree.open(uri)
    for step, *arguments in steps:
        if step == "append":
            model.append(tree, *arguments)
        elif step == "commit":
            tree.commit()
            model.committed = model.now
        elif step == "reopen":
            tree, model.now = Tree.open(uri, mode="w"), model.committed
        else:
            with tree:
                model.committed = model.now
            tree = Tree.open(uri, mode="w")
        model.check(tree, model.now)
        follower.refresh()
        model.check(follower, model.committed)
    model.check(Tree.open(uri), model.committed)


def test_plain_path_and_file_uri_are_one_tree(tmp_path):
    with Tree.create(tmp_path / "a tree", SPEC) as tree:
        history.append(tree, 100)
    history.check(Tree.open(f"file://{tmp_path}/a%20tree"))


@pytest.mark.parametrize("scheme, driver", [("gs", "gcs"), ("s3", "s3")])
@pytest.mark.parametrize("written, path", [("a/tree", "a/tree/"), ("a/tree/", "a/tree/"), ("", "")])
def test_a_bucket_s_uri_is_the_place_it_names(scheme, driver, written, path):
    """Nothing is asked of a network before something is read."""
    kvstore = open_kvstore(f"{scheme}://my-bucket/{written}")
    array = (kvstore / array_folder(1, 3)).spec().to_json()
    assert array == {"driver": driver, "bucket": "my-bucket", "path": f"{path}epoch-00000003/lod1/"}
    assert (kvstore / "HEAD").url == f"{scheme}://my-bucket/{path}HEAD"


def test_gists_are_rounded_to_bfloat16():
    spec = TreeSpec(fanouts=(2,), slots=1, gist_width=1000, fingerprint="", vocab_size=2)
    values = np.random.default_rng(0).normal(size=(1, 1, 1000)).astype(np.float32) * 1e6
    with Tree.create(fresh_uri(), spec) as tree:
        tree.append(np.zeros(2, np.int32), {1: values})
    np.testing.assert_allclose(tree.gather(1, np.array([0])), values, rtol=2**-8)


def test_zarr_for_python_opens_the_arrays(tmp_path):
    zarr = pytest.importorskip("zarr")
    with Tree.create(tmp_path / "tree", SPEC) as tree:
        history.append(tree, 100)
    folder = tmp_path / "tree" / "epoch-00000001"
    tokens = zarr.open_array(folder / "tokens", mode="r")
    np.testing.assert_array_equal(tokens[:100], history.tokens(0, 100))
    bits = zarr.open_array(folder / "lod2", mode="r")[:8]
    np.testing.assert_array_equal(bits.view(ml_dtypes.bfloat16), history.gists(2, 0, 8))


def test_a_context_left_by_an_error_commits_nothing():
    uri = fresh_uri()
    with pytest.raises(ZeroDivisionError), Tree.create(uri, SPEC) as tree:
        history.append(tree, 10)
        raise ZeroDivisionError
    assert tree.length == Tree.open(uri).length == 0


def test_many_small_commits_keep_head_small_and_rewrite_at_most_a_shard(tmp_path):
    tree = Tree.create(tmp_path, SPEC)
    sizes = []
    for _ in range(60):
        history.append(tree, 4)
        tree.commit()
        sizes.append((tmp_path / "HEAD").stat().st_size)
    assert sizes[-1] - sizes[10] < 20  # digits, not extents
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) < 20  # not one per commit
    history.check(Tree.open(tmp_path))


def test_one_read_serves_all_misses_and_hits_need_none(monkeypatch):
    uri = fresh_uri()
    with Tree.create(uri, SPEC) as tree:
        history.append(tree, 4 * 1000)
    tree, asked = Tree.open(uri), []
    read_pages, size = tree._arrays.read_pages, 128  # rows of 32 bytes, pages of 4 KiB
    monkeypatch.setattr(
        tree._arrays, "read_pages", lambda *a: asked.append(a[2].tolist()) or read_pages(*a)
    )
    for indices in ([5, 7 * size + 1, 5], [7 * size + 9, 5, 6], [3 * size, 7, 2 * size - 1]):
        found = tree.gather(1, np.array(indices))
        np.testing.assert_array_equal(found, history.gists(1, 0, 1000)[indices])
    assert asked == [[0, 7], [1, 3]]


@pytest.mark.parametrize("bulk", [False, True])
def test_only_read_only_arrays_are_kept_as_they_are(bulk):
    """Large enough to be kept: 2 MiB of tokens, and of gists."""
    count = 2**19
    tokens, constant = np.arange(count, dtype=np.int32) % 1000, np.ones(count, np.int32)
    gists = np.ones((2**16, 2, 8), ml_dtypes.bfloat16)
    constant.flags.writeable = False
    tree = Tree.create(fresh_uri(), SPEC, bulk=bulk)
    tree.append(tokens, {1: gists})
    tokens[:] = 7
    gists[:] = 7
    tree.append(constant, {1: gists.astype(np.float32)})
    for state in (tree, Tree.open(tree.uri)):
        if state is not tree:
            tree.commit()
            state.refresh()
        expected = np.concatenate([np.arange(count) % 1000, constant])
        np.testing.assert_array_equal(state.tokens(0, 2 * count), expected)
        assert (state.gather(1, np.arange(2**16)) == 1).all()
        assert (state.gather(1, np.arange(2**16, 2**17)) == 7).all()


def test_threads_share_a_handle_while_it_is_written():
    tree, failures = Tree.create(fresh_uri(), SPEC), []
    done = threading.Event()

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            while not done.is_set():
                indices = rng.integers(0, max(tree.count(1), 1), 20)[: tree.count(1)]
                expected = history.gists(1, 0, tree.count(1))[indices]
                np.testing.assert_array_equal(tree.gather(1, indices), expected)
                stop = tree.length
                np.testing.assert_array_equal(tree.tokens(0, stop), history.tokens(0, stop))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(100):
            history.append(tree, 13)
            tree.commit()
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert not failures


def test_stats_count_what_is_there():
    with Tree.create(fresh_uri(), SPEC) as tree:
        history.append(tree, 100)
        assert tree.stats()["uncommitted"] == 100
    stats = tree.stats()
    assert stats["counts"] == {0: 25, 1: 25, 2: 8, 3: 4} and tree.blocks == 25
    assert stats["bytes"] == {0: 400, 1: 25 * 32, 2: 8 * 64, 3: 4 * 32}
    assert (stats["length"], stats["epoch"], stats["uncommitted"]) == (100, 1, 0)
    assert (stats["fanouts"], stats["fingerprint"]) == (SPEC.fanouts, "models")


WRONG = {
    "gists before their tokens": (np.zeros(7), {1: np.zeros((2, 2, 8))}, "make 1 complete nodes"),
    "gists of another shape": (np.zeros(8), {1: np.zeros((2, 8))}, r"must be \[m, 2, 8\]"),
    "no such level": (np.zeros(8), {4: np.zeros((0, 2, 8))}, "has 1 to 3"),
    "tokens as gists": (np.zeros(8), {0: np.zeros((0, 2, 8))}, "has 1 to 3"),
    "NaN": (np.zeros(8), {1: np.full((1, 2, 8), np.nan)}, "NaN"),
    "token past the vocabulary": (np.full(8, 1000), {}, "vocabulary of 1000"),
    "negative token": (np.full(8, -1), {}, "vocabulary"),
    "tokens in rows": (np.zeros((2, 4)), {}, r"integers \[n\]"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_append_changes_nothing(case):
    tokens, gists, sentence = WRONG[case]
    tree = Tree.create(fresh_uri(), SPEC)
    with pytest.raises(UserError, match=sentence):
        tree.append(tokens.astype(np.int64), gists)
    assert tree.length == tree.count(1) == 0


def test_reading_past_the_end_is_a_clear_error():
    tree = Tree.create(fresh_uri(), SPEC)
    history.append(tree, 10)
    for start, stop in ((0, 11), (-1, 3), (5, 4)):
        with pytest.raises(UserError, match="holds 10"):
            tree.tokens(start, stop)
    for index in (-1, 2):
        with pytest.raises(UserError, match="level 1 were asked of .* holds 2"):
            tree.gather(1, np.array([0, index]))
    with pytest.raises(UserError, match="has 1 to 3"):
        tree.gather(0, np.array([0]))


def test_past_the_last_index_is_a_clear_error():
    uri = fresh_uri()
    length = MAX_BLOCKS * SPEC.fanouts[0] - 1
    full = Head(SPEC, 1, "", ((Extent(0, 1, 0, length),), (), (), ()))
    open_kvstore(uri).write("HEAD", heads.encode(full)).result()
    tree = Tree.open(uri, mode="w")
    tree.append(np.zeros(1, np.int32))
    assert tree.blocks == MAX_BLOCKS
    with pytest.raises(UserError, match=r"2\*\*31 blocks"):
        tree.append(np.zeros(1, np.int32))


def test_a_reader_cannot_write():
    uri = fresh_uri()
    Tree.create(uri, SPEC).close()
    for tree in (Tree.open(uri), Tree.create(fresh_uri(), SPEC)):
        tree.close()
        with pytest.raises(UserError, match="mode 'w'"):
            tree.append(np.zeros(1, np.int32))
        with pytest.raises(UserError, match="mode 'w'"):
            tree.commit()


def sentence_of(action) -> str:
    with pytest.raises(UserError) as caught:
        action()
    sentence = str(caught.value)
    assert sentence.endswith(".") and "\n" not in sentence
    return sentence


def test_what_is_not_a_tree_is_said_in_one_sentence(tmp_path):
    (tmp_path / "file").write_text("text")
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / "HEAD").write_text("ref: refs/heads/main\n")
    assert "no MegaContext tree" in sentence_of(lambda: Tree.open(tmp_path / "missing"))
    assert "no MegaContext tree" in sentence_of(lambda: Tree.open(tmp_path))
    assert "no MegaContext tree" in sentence_of(lambda: Tree.open(tmp_path / "file"))
    assert "not that of a MegaContext tree" in sentence_of(
        lambda: Tree.open(tmp_path / "repository")
    )
    assert "folder of its own" in sentence_of(lambda: Tree.create(tmp_path / "file", SPEC))
    assert "give a path" in sentence_of(lambda: Tree.open("nowhere://x"))
    assert "mode 'r' or 'w'" in sentence_of(lambda: Tree.open(tmp_path, mode="a"))


def test_create_refuses_what_is_there(tmp_path):
    with Tree.create(tmp_path, SPEC) as tree:
        history.append(tree, 10)
    assert "already" in sentence_of(lambda: Tree.create(tmp_path, SPEC))
    (tmp_path / "HEAD").unlink()
    assert "without its HEAD" in sentence_of(lambda: Tree.create(tmp_path, SPEC))


def test_a_tree_needs_a_folder_of_its_own(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(TreeError, match="holds other files"):
        Tree.create(tmp_path, SPEC)
    assert [one.name for one in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(TreeError, match="needs a place"):
        Tree.create("", SPEC)
    Tree.create(tmp_path / "own", SPEC).close()


def test_foreign_models_are_refused():
    uri = fresh_uri()
    Tree.create(uri, SPEC)
    assert "'models', not by 'others'" in sentence_of(lambda: Tree.open(uri, fingerprint="others"))
    Tree.open(uri, fingerprint="models")


def test_a_newer_format_is_told_from_a_damaged_head(monkeypatch):
    uri = fresh_uri()
    with monkeypatch.context() as later:
        later.setattr(heads, "FORMAT", heads.FORMAT + 1)
        Tree.create(uri, SPEC)
    assert f"format {heads.FORMAT + 1}" in sentence_of(lambda: Tree.open(uri))


def test_any_changed_byte_of_head_is_noticed():
    uri = fresh_uri()
    with Tree.create(uri, SPEC) as tree:
        history.append(tree, 10)
    kvstore = open_kvstore(uri)
    record = kvstore.read("HEAD").result().value
    for place in range(len(record)):
        damaged = bytearray(record)
        damaged[place] ^= 1
        kvstore.write("HEAD", bytes(damaged)).result()
        assert "HEAD" in sentence_of(lambda: Tree.open(uri))
    for length in range(len(record)):
        kvstore.write("HEAD", record[:length]).result()
        assert "HEAD" in sentence_of(lambda: Tree.open(uri, mode="w"))
    assert json.loads(record.split(b"\n")[1])["epoch"] == 1


NO_SPEC = {"fanouts": ()}, {"fanouts": (8, 1)}, {"slots": 0}, {"slots": (2, 6, 2)}


@pytest.mark.parametrize("fields", NO_SPEC)
def test_a_spec_that_makes_no_tree_is_refused(fields):
    sentence_of(lambda: TreeSpec(**{**vars(SPEC), **fields}))
