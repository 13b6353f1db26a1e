"""Items are restored alone, on one device, and damage is told in a sentence."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mctx import checkpoint, sharding
from mctx.errors import UserError

# Orbax leaves its other reads unobserved when one of a damaged item fails.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

CONFIG = {"base": {"d_model": 4}, "lensnet": {"heads": 2}}
SMALL = {"a": np.ones(2)}, {"step": np.int32(0)}  # parameters and train state


def tree(seed: int, size: int = 64):
    random = np.random.default_rng(seed)
    return {
        "embed": {"table": random.normal(size=(size, 8)).astype(np.float32)},
        "ids": np.arange(5, dtype=np.int32),
    }


def assert_equal(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)
    assert [x.dtype for x in jax.tree.leaves(left)] == [x.dtype for x in jax.tree.leaves(right)]


def write(directory, step, item, params, config=CONFIG):
    with checkpoint.manager(directory) as manager:
        checkpoint.save(manager, step, item, params, {"step": jnp.int32(step)}, config)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A workdir with two phases, written from a mesh of eight devices; the base last."""
    directory = tmp_path_factory.mktemp("run")
    placed = sharding.place(tree(1), sharding.mesh(fsdp=8), _split)
    write(directory / "lens", 20, "lensnet", placed)
    for step in (5, 30):
        write(directory / "base", step, "base", tree(step), {"base": {"d_model": step}})
    (directory / "base" / "40").mkdir()  # what a crash can leave: no step
    (directory / "notes").mkdir()
    return directory


def _split(shape, mesh):
    return jax.sharding.PartitionSpec("fsdp" if shape[0] % 8 == 0 else None)


def test_load_only_what_is_wanted_without_knowing_the_mesh(workdir, monkeypatch):
    read = []
    load = checkpoint._load
    monkeypatch.setattr(checkpoint, "_load", lambda path, *a: read.append(path) or load(path, *a))
    items, config = checkpoint.load_items(workdir, ("lensnet",))
    assert [path.name for path in read] == ["lensnet"] and set(items) == {"lensnet"}
    assert_equal(items["lensnet"], tree(1))
    assert items["lensnet"]["embed"]["table"].devices() == {jax.devices()[0]}
    assert config == CONFIG


def test_newest_of_each_item_and_what_was_written_last_gives_the_config(workdir):
    items, config = checkpoint.load_items(workdir, ("base", "lensnet"))
    assert_equal(items, {"base": tree(30), "lensnet": tree(1)})
    assert config == {"base": {"d_model": 30}, "lensnet": {"heads": 2}}


def test_a_phase_folder_and_a_step_can_be_named(workdir):
    items, _ = checkpoint.load_items(workdir / "base", ("base",), step=5)
    assert_equal(items["base"], tree(5))


def test_other_type_for_floats_alone(workdir):
    items, _ = checkpoint.load_items(workdir, ("base",), dtype=jnp.bfloat16)
    assert items["base"]["embed"]["table"].dtype == jnp.bfloat16
    assert items["base"]["ids"].dtype == jnp.int32


def test_empty_step_folder_is_no_step_and_is_in_nobodys_way(tmp_path):
    write(tmp_path, 3, "base", tree(3))
    (tmp_path / "4").mkdir()
    assert checkpoint.latest_step(tmp_path, "base") == 3
    write(tmp_path, 4, "base", tree(4))
    assert_equal(checkpoint.load_items(tmp_path, ("base",))[0]["base"], tree(4))


def test_holds_and_latest_step(workdir, tmp_path):
    assert checkpoint.holds(workdir, "base") and not checkpoint.holds(workdir, "gistnet")
    assert not checkpoint.holds(tmp_path / "none", "base")
    assert checkpoint.latest_step(workdir / "base", "base") == 30
    assert checkpoint.latest_step(tmp_path / "none", "base") is None


@pytest.mark.parametrize(
    ("items", "step", "sentence"),
    [
        (("base", "gistnet"), "latest", r"holds no gistnet, only base, lensnet: .* phase 'gist'"),
        (("base",), 7, "holds no base at step 7, only at .*30: name one of these"),
        (("router",), "latest", "holds no router, .* items are"),
    ],
)
def test_missing_items(workdir, items, step, sentence):
    with pytest.raises(UserError, match=sentence):
        checkpoint.load_items(workdir, items, step)


def test_missing_and_empty_directories(tmp_path):
    with pytest.raises(UserError, match="there is no directory"):
        checkpoint.load_items(tmp_path / "none", ("base",))
    with pytest.raises(UserError, match="holds no finished checkpoint"):
        checkpoint.load_items(tmp_path, ("base",))


def _largest_file(directory):
    return max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


@pytest.mark.parametrize(
    "damage",
    [
        lambda item: os.truncate(_largest_file(item), 100),
        lambda item: _largest_file(item).unlink(),
        lambda item: (item / "_METADATA").write_text("{}"),
        lambda item: (item / "_METADATA").unlink(),
    ],
)
def test_damaged_item(tmp_path, damage):
    write(tmp_path, 1, "base", tree(0, size=2048))
    damage(tmp_path / "1" / "base")
    says = "1/base is truncated or was not written as a 'base' item: copy or train it again.$"
    with pytest.raises(UserError, match=says):
        checkpoint.load_items(tmp_path, ("base",))


def test_damaged_config(tmp_path):
    write(tmp_path, 1, "base", tree(0))
    (tmp_path / "1" / "config" / "metadata").write_text('{"base": {')
    with pytest.raises(UserError, match="1/config is not a readable config item"):
        checkpoint.load_items(tmp_path, ("base",))


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"commit_times'])
def test_a_step_that_another_program_wrote_or_whose_marker_is_torn(tmp_path, content):
    write(tmp_path, 1, "base", tree(0))
    (tmp_path / "1" / "_CHECKPOINT_METADATA").write_text(content)
    with pytest.raises(UserError, match="1/_CHECKPOINT_METADATA is truncated or was not written"):
        checkpoint.load_items(tmp_path, ("base",))


def test_the_item_that_cannot_be_resumed_is_named(tmp_path):
    for step in (1, 2):
        write(tmp_path, step, "base", jax.device_put(tree(0, size=2048)))
    os.truncate(_largest_file(tmp_path / "2" / "train"), 10)
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree(0, size=2048))
    train = {"step": jax.ShapeDtypeStruct((), jnp.int32)}
    with checkpoint.manager(tmp_path) as manager:
        with pytest.raises(UserError, match=f"2/train is truncated .* delete {tmp_path}/2 "):
            checkpoint.restore_train_state(manager, 2, "base", wanted, train)
        with pytest.raises(UserError, match="1/gistnet is truncated or cannot be resumed"):
            checkpoint.restore_train_state(manager, 1, "gistnet", wanted, train)


def test_the_newest_and_the_best_are_kept(tmp_path):
    scores = {1: 3.0, 2: 1.0, 3: float("nan"), 4: 2.0, 5: None}
    with checkpoint.manager(tmp_path, keep=1, keep_best=1) as manager:
        for step, score in scores.items():
            checkpoint.save(manager, step, "base", *SMALL, CONFIG, score)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.isdigit()) == ["2", "5"]
    with checkpoint.manager(tmp_path, keep=1, keep_best=1) as manager:  # it remembers
        checkpoint.save(manager, 6, "base", *SMALL, CONFIG, 1.5)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.isdigit()) == ["2", "6"]


def test_resuming_with_another_shape_is_refused(tmp_path):
    write(tmp_path, 1, "base", jax.device_put(tree(0)))
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct((*x.shape, 2), x.dtype), tree(0))
    train = {"step": jax.ShapeDtypeStruct((), jnp.int32)}
    with checkpoint.manager(tmp_path) as manager, pytest.raises(UserError, match="be resumed with"):
        checkpoint.restore_train_state(manager, 1, "base", wanted, train)


def test_a_bundle_that_was_killed_on_its_way_is_none(tmp_path, monkeypatch):
    def killed(item):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "_compact", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save_bundle(tmp_path, {"base": tree(1)}, CONFIG, {})
    assert not checkpoint.holds(tmp_path, "base")
    monkeypatch.undo()
    checkpoint.save_bundle(tmp_path, {"base": tree(1)}, CONFIG, {})
    assert checkpoint.holds(tmp_path, "base")


def test_bundle_round_trip_is_bfloat16_on_disk_and_float32_in_hand(tmp_path):
    tmp_path = tmp_path / "a%20folder #1?"  # of which a URL would make something else
    items = {"base": tree(1), "gistnet": tree(2)}
    checkpoint.save_bundle(tmp_path, items, CONFIG, {"CARD.md": b"# a model\n"})
    found, config = checkpoint.load_items(tmp_path, ("base", "gistnet"))
    rounded = jax.tree.map(
        lambda x: x.astype(jnp.bfloat16).astype(x.dtype) if x.dtype == np.float32 else x, items
    )
    assert_equal(found, rounded)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(found))
    assert config == CONFIG
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0", "CARD.md"]
    files = [p for p in (tmp_path / "0").rglob("*") if p.is_file()]
    assert len(files) <= 3 + 6 * len(items)
    content = b"".join(p.read_bytes() for p in files)
    assert str(tmp_path).encode() not in content  # no path of the machine that wrote it
    with pytest.raises(UserError, match="already holds a checkpoint"):
        checkpoint.save_bundle(tmp_path, items, CONFIG, {})


def test_bundle_of_seven_million_parameters_fits_14_2_megabytes(tmp_path):
    random = np.random.default_rng(0)
    params = {f"w{i}": random.normal(size=(7, 1000, 100)).astype(np.float32) for i in range(10)}
    checkpoint.save_bundle(tmp_path, {"base": params}, {}, {})
    size = sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file())
    assert size <= 14.2e6
    assert json.loads((tmp_path / "0" / "_CHECKPOINT_METADATA").read_text())["item_handlers"]
