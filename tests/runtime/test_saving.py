"""A session that is saved goes on bit for bit, and fits nothing but its own tree."""

import dataclasses
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from mctx.errors import UserError
from mctx.runtime import Session, saving
from mctx.tree.store import Tree
from mctx.tree.verify import verify
from tests.runtime.small import (
    BLOCK,
    CONFIG,
    TWO,
    WINDOW,
    opened,
    place,
    reader,
    session,
    text,
)

REPOSITORY = Path(__file__).parents[2]
TEXT = text(14 * WINDOW + 3, seed=1)
MORE = text(5 * WINDOW + 2, seed=2)
# What has an age or is there only once: cooldown, several blocks a refocus, decoded rows, a cache
# that has given up most; and heads over a staging view that lags behind.
AGED = dataclasses.replace(CONFIG, cooldown=3, every=2, tail="keep", cache_bytes=2**12)
STAGED = dataclasses.replace(TWO, staging=96, staging_capacity=48, staging_every=3)
AHEAD = dataclasses.replace(CONFIG, decide="ahead")


def loaded(tree, name="session", **how):
    return Session.load(opened(), str(tree), name, reader=reader(), **how)


def told(made):
    """What a session goes on to say, and what it shows then."""
    nll, said = made.predict(MORE), made.generate(tokens=9, temperature=1.0, seed=3)
    return nll, said, jax.device_get((made.layouts, made.tail, made.assembly.buffer))


@pytest.mark.parametrize("config", [AGED, STAGED, AHEAD])
def test_a_saved_session_goes_on_bit_for_bit(config, tmp_path):
    made = session(config, tmp_path / "tree")
    made.predict(TEXT)
    made.generate(tokens=2)  # the tail has rows of its own, and tokens wait for their block
    made.save("one")
    shutil.copytree(tmp_path / "tree", tmp_path / "copy")
    assert made.fresh or config.every == 1
    assert len(made.ingestion.waiting) and int(made.tail.length)
    again = loaded(tmp_path / "copy", "one")
    assert again.config == config and again.refocuses == made.refocuses
    got, want = told(again), told(made)
    jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A tree with a saved session, whose writer is gone."""
    tree = tmp_path_factory.mktemp("saved") / "tree"
    made = session(tree=tree)
    made.ingest(TEXT)
    made.save()
    made.tree.close()
    return tree


@pytest.fixture
def tree(kept, tmp_path):
    return shutil.copytree(kept, tmp_path / "tree")


def refused(words, tree, models=None, name="session", **how):
    before = (tree / "HEAD").read_bytes()
    with pytest.raises(UserError, match=words):
        Session.load(models or opened(), str(tree), name, reader=reader(), **how)
    assert (tree / "HEAD").read_bytes() == before  # a live writer was not disturbed


def test_what_is_another_one_is_refused_in_words(tree):
    lens = jax.tree.map(lambda x: x + 1, opened().params["lensnet"])
    changed = opened().params | {"lensnet": lens}
    refused("other models", tree, opened()._replace(fingerprint="other"))
    refused("other models", tree, opened()._replace(params=changed))
    refused("budget=64, not 48", tree, config=dataclasses.replace(CONFIG, budget=48))
    refused("no saved session two", tree, name="two")
    refused("letters, digits", tree, name="../HEAD")
    refused("nothing of the caller's, not with worths", tree, worths=lambda made: np.zeros(9))
    refused("other mounts", tree, mounts=[session().tree])
    faster = dataclasses.replace(CONFIG, cache_bytes=2**20, commit_every=3)
    assert loaded(tree, config=faster).length == len(TEXT)


def test_a_setting_that_a_record_does_not_know_is_the_default(tree):
    path = tree / "session-session"
    saved = saving.decode(path.read_bytes(), "")
    del saved.facts["config"]["find"]
    path.write_bytes(saving.encode(saved))
    refused("find=True, not False", tree, config=dataclasses.replace(CONFIG, find=False))
    assert loaded(tree).length == len(TEXT)


def test_a_tree_that_went_on_or_is_another_one_is_refused(tree, tmp_path):
    session(tree=tree).predict(MORE)
    refused("has gone on since .* held 224", tree)
    new = session(tree=tmp_path / "new")
    new.ingest(TEXT)
    new.tree.close()
    shutil.copy(tree / "session-session", tmp_path / "new")
    refused("another tree", tmp_path / "new")


def test_a_damaged_record_is_refused(tree):
    record = tree / "session-session"
    intact = record.read_bytes()
    for place_ in (0, 25, len(intact) // 2, len(intact) - 1):
        damaged = bytearray(intact)
        damaged[place_] ^= 1
        record.write_bytes(damaged)
        refused("damaged", tree)
    now = b"session %d " % saving.FORMAT
    for other, words in ((saving.FORMAT + 1, "newer format"), (saving.FORMAT - 1, "older program")):
        record.write_bytes(intact.replace(now, b"session %d " % other, 1))
        refused(words, tree)
    record.write_bytes(intact)
    assert not verify(str(tree)).problems and not verify(str(tree)).foreign


def test_what_a_killed_writer_left_of_a_longer_record_does_not_count(tree):
    made = loaded(tree)
    (tree / "session-session.__lock").write_bytes(b"x" * 10_000_000)
    made.save()
    assert loaded(tree).length == made.length


def test_mounts_are_part_of_what_is_saved(tmp_path):
    book = session()
    book.ingest(text(3 * WINDOW, seed=5))
    made = session(tree=tmp_path / "tree", mounts=[book.tree.uri])
    made.predict(MORE)
    made.save()
    shutil.copytree(tmp_path / "tree", tmp_path / "copy")
    again = loaded(tmp_path / "copy", mounts=[book.tree.uri])
    np.testing.assert_array_equal(again.predict(TEXT), made.predict(TEXT))
    book.ingest(text(WINDOW, seed=6))
    with pytest.raises(UserError, match="gone on"):
        loaded(tmp_path / "copy", mounts=[book.tree.uri])


def test_a_session_outlives_its_process_through_its_tree(tmp_path):
    """Killed while it reads and saves: the tree is a prefix of the text, and is gone on with."""
    tree = tmp_path / "tree"
    command = [sys.executable, "-m", "tests.runtime.doomed", str(tree)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        told = [int(process.stdout.readline()) for _ in range(6)]
        process.send_signal(signal.SIGKILL)
    stored = Tree.open(tree).length
    assert stored >= told[-1] // BLOCK * BLOCK > 0
    np.testing.assert_array_equal(Tree.open(tree).tokens(0, stored), TEXT[:stored])
    try:
        resumed = loaded(tree)  # saved, and killed before it went on
        assert resumed.length >= stored
    except UserError as error:
        assert "gone on" in str(error)
    again, plain = session(tree=tree), session()
    plain.ingest(TEXT[:stored])
    np.testing.assert_allclose(again.predict(MORE), plain.predict(MORE), atol=1e-4)


def test_a_session_over_a_tree_in_memory_is_saved_beside_it():
    made = session(tree=place())
    made.ingest(TEXT[:30])
    made.save()
    assert loaded(made.tree.uri).length == 30
