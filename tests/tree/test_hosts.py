"""Two processes write one timeline; one is killed, and the tree is what was published last."""

import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mctx.tree import hosts
from mctx.tree.head import TreeError
from mctx.tree.hosts import append_together
from mctx.tree.ingest import Ingest, tree_spec
from mctx.tree.store import Tree
from mctx.tree.verify import verify
from tests.runtime.small import place, text
from tests.tree.plain import BLOCK, MODEL, WINDOW, PlainReader
from tests.tree.together import SAYS

REPOSITORY = Path(__file__).parents[2]
PIECE = 2 * WINDOW
TOKENS = text(9 * PIECE + 3 * BLOCK + 2)
BEFORE = text(WINDOW + BLOCK, seed=5)  # the tree ends inside a window


@pytest.fixture
def uri(tmp_path) -> str:
    with Tree.create(tmp_path, tree_spec(MODEL, "models")) as tree:
        for _ in Ingest(PlainReader(), tree).feed(BEFORE):
            pass
    return str(tmp_path)


def assert_history(uri: str, added: int) -> None:
    """The tree is what one process would have made of the first tokens, and sound."""
    expected = Tree.create(place(), tree_spec(MODEL, "models"))
    whole = np.concatenate([BEFORE, TOKENS[:added]])
    for _ in Ingest(PlainReader(), expected).feed(whole):
        pass
    tree = Tree.open(uri)
    assert tree.length == expected.length == len(BEFORE) + added
    np.testing.assert_array_equal(tree.tokens(0, tree.length), whole)
    for level in range(1, tree.spec.levels + 1):
        every = np.arange(expected.count(level))
        np.testing.assert_array_equal(tree.gather(level, every), expected.gather(level, every))
    report = verify(uri)
    assert report.problems == [] and not report.missing


def start(port: int, process: int, uri: str, *stuck) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.tree.together", str(port), str(process), uri]
    command += [str(len(TOKENS)), *map(str, stuck)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=pipe, stderr=pipe, text=True)


def line(process: subprocess.Popen) -> str:
    """What our own code says next, or nothing."""
    said = (each.partition(SAYS) for each in process.stdout)
    return next((words.rstrip("\n") for _, mark, words in said if mark), "")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def test_two_processes_write_what_one_would(uri):
    port = free_port()
    lead, worker = (start(port, process, uri) for process in (0, 1))
    added = len(TOKENS) // BLOCK * BLOCK
    assert int(line(lead)) == added and 0 < int(line(worker)) < added
    assert [process.wait(60) for process in (lead, worker)] == [0, 0]
    assert_history(uri, added)
    assert len({epoch for _, epoch, _, _ in Tree.open(uri).extents(1)}) == 3
    assert not list(Path(uri).glob("*/part-*"))


def test_a_process_is_killed_and_what_was_published_stays(uri):
    port = free_port()
    lead, worker = start(port, 0, uri), start(port, 1, uri, 2)
    assert line(worker) == "stuck"
    worker.kill()
    worker.communicate()
    said = line(lead)
    lead.kill()  # it would wait a while for the dead one
    lead.communicate()
    rest = 2 * WINDOW - len(BEFORE)  # read alone, up to a window's border
    published = rest + 5 * PIECE  # the lead's 0, 2 and 4, the worker's 1 and 3
    assert f"Process 1 did not deliver its piece of {uri}" in said
    assert f"{published} of {len(TOKENS)} tokens were added" in said
    assert_history(uri, published)


def job(monkeypatch, process: int, processes: int = 2) -> None:
    there = SimpleNamespace(process_index=lambda: process, process_count=lambda: processes)
    monkeypatch.setattr(hosts, "jax", there)


def test_pieces_come_in_any_order_and_a_lead_that_died_is_succeeded(uri, monkeypatch):
    """The worker is ahead of a lead that dies at once; the next call begins anew."""
    said = []
    job(monkeypatch, 0)

    def lead_dies(value):
        said.append(value)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        append_together(uri, PlainReader(), TOKENS, "models", windows=2, agree=lead_dies)
    job(monkeypatch, 1)
    append_together(uri, PlainReader(), TOKENS, "models", windows=2, agree=lambda _: said[0])
    rest = 2 * WINDOW - len(BEFORE)
    assert_history(uri, rest)  # what the lead read alone; the worker's rows are nobody's

    job(monkeypatch, 0, processes=1)
    append_together(uri, PlainReader(), TOKENS[rest:], "models", windows=2, agree=lambda _: None)
    assert_history(uri, len(TOKENS) // BLOCK * BLOCK)
    assert verify(uri).orphans == [2]


def test_a_damaged_part_record_is_refused(uri, monkeypatch):
    job(monkeypatch, 0)

    def worker_wrote(value):
        name = hosts._part_name(int(value[0]) - 1, 1)
        Path(uri, name).parent.mkdir(parents=True)
        Path(uri, name).write_bytes(b'00000000 {"epoch": 2, "row": 0, "blocks": 8}')

    with pytest.raises(TreeError, match="part-00000001 .* is damaged"):
        append_together(uri, PlainReader(), TOKENS, "models", windows=2, agree=worker_wrote)
