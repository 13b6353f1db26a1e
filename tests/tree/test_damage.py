"""A damaged file is an error that says what was lost, never a wrong row."""

from pathlib import Path

import numpy as np
import pytest

from mctx.tree.store import Tree, TreeError
from tests.tree import history
from tests.tree.history import SPEC


@pytest.fixture
def folder(tmp_path) -> Path:
    with Tree.create(tmp_path, SPEC) as tree:
        history.append(tree, 400)
    return tmp_path


def shard(folder: Path, array: str) -> Path:
    """The one file that holds an array's rows."""
    (path,) = folder.glob(f"*/{array}/c.*")
    return path


@pytest.mark.parametrize("array", ["tokens", "lod1", "lod3"])
def test_a_flipped_bit_anywhere_names_level_and_rows(folder, array):
    path = shard(folder, array)
    intact = path.read_bytes()
    places = np.random.default_rng(0).integers(0, len(intact), 40)
    for place in [0, len(intact) - 1, *places]:
        damaged = bytearray(intact)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        tree = Tree.open(folder)
        if array == "tokens":
            with pytest.raises(TreeError, match="Level 0, rows 100 to 199 of .* cannot be read"):
                tree.tokens(100, 200)
        else:
            level = int(array[-1])
            with pytest.raises(TreeError, match=f"Level {level}, rows 3 to 9 of .* cannot be read"):
                tree.gather(level, np.array([9, 3, 4]))
    path.write_bytes(intact)
    history.check(Tree.open(folder))


def test_the_rest_of_a_damaged_tree_is_still_read(folder):
    path = shard(folder, "lod1")
    path.write_bytes(b"\0" * path.stat().st_size)
    tree = Tree.open(folder)
    np.testing.assert_array_equal(tree.tokens(0, 400), history.tokens(0, 400))
    np.testing.assert_array_equal(tree.gather(2, np.arange(33)), history.gists(2, 0, 33))


def test_a_lost_file_is_an_error_and_not_zeros(folder):
    shard(folder, "lod1").unlink()
    with pytest.raises(TreeError, match="Level 1, rows 0 to 5"):
        Tree.open(folder).gather(1, np.arange(6))


def test_a_writer_does_not_carry_damage_into_new_files(folder):
    """Adding rows to a shard rewrites it; a bad chunk must not come out of that with a good sum."""
    writer = Tree.open(folder, mode="w")
    history.append(writer, 4)
    writer.commit()
    path = max(folder.glob("*/lod1/c.*"), key=str)
    damaged = bytearray(path.read_bytes())
    damaged[3] ^= 1
    path.write_bytes(damaged)
    history.append(writer, 4)
    with pytest.raises(TreeError, match="level 1"):
        writer.commit()
    assert Tree.open(folder).length == 404


def test_any_changed_byte_of_an_array_s_metadata_is_an_error_or_harmless(folder):
    path = next(folder.glob("*/lod1/zarr.json"))
    intact, refused = path.read_bytes(), 0
    for place in range(len(intact)):
        damaged = bytearray(intact)
        damaged[place] ^= 2
        path.write_bytes(damaged)
        try:
            found = Tree.open(folder).gather(1, np.array([9, 3, 4]))
        except TreeError as error:
            refused += "lod1" in str(error) or "Level 1" in str(error)
        else:
            np.testing.assert_array_equal(found, history.gists(1, 0, 10)[[9, 3, 4]])
    assert refused > 0.9 * len(intact)
