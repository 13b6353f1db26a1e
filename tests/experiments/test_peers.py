"""The peers read the same weights and the same segments, keep the same budget, and land in the
same table."""

import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.peers import presses, segments, table
from mctx.errors import UserError
from mctx.models.base import token_nll
from mctx.models.wrapped import read
from tests import tiny
from tests.experiments import tiny_checkpoint

HISTORY, TAIL, BUDGET = 40, 10, 16
PREFIX = len(tiny.BASE.prefix)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three segments and the export, as `experiments.peers.segments` writes them."""
    root = tmp_path_factory.mktemp("peers")
    tiny_checkpoint.write(root / "bundle")
    (root / "in.txt").write_text(tiny_checkpoint.text(3 * (HISTORY + TAIL) + 5))
    lengths = f"--history={HISTORY}", f"--tail={TAIL}", f"--budget={BUDGET}", "--segments=3"
    where = f"--checkpoint={root / 'bundle'}", f"--out={root / 'run'}"
    segments.main([*where, "--input", str(root / "in.txt"), *lengths])
    return root / "run"


@pytest.fixture(scope="module")
def given(folder):
    return presses.load_segments(folder)


def stock(folder):
    """The export in stock Transformers."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(folder / "hf", dtype="float32")


def test_segments_say_what_the_plain_base_makes_of_them(given):
    assert given["tokens"].shape == (3, HISTORY + TAIL)
    assert (given["history"], given["budget"], given["window"]) == (HISTORY, BUDGET, 64)
    np.testing.assert_array_equal(given["prefix"], tiny.BASE.prefix)
    ids = jnp.concatenate([given["prefix"], given["tokens"][1]])[None]
    hidden = read(tiny.MODEL, tiny.params(), ids, jnp.arange(ids.shape[1])[None]).hidden
    nll = token_nll(tiny.params()["base"], hidden[:, :-1], ids[:, 1:])[0]
    np.testing.assert_allclose(given["full"][1], nll[1 - TAIL :], atol=1e-4)


@pytest.mark.parametrize(
    "flag, says",
    [
        ("--history=42", "whole blocks of 4"),
        ("--history=60", "lower --history"),
        ("--tail=1", "only read"),
        ("--budget=40", "less than --history"),
    ],
)
def test_lengths_that_cannot_be_compared_are_refused(folder, flag, says, tmp_path):
    where = f"--checkpoint={folder.parent / 'bundle'}", f"--out={tmp_path / 'run'}"
    lengths = f"--history={HISTORY}", f"--tail={TAIL}", f"--budget={BUDGET}"
    with pytest.raises(UserError, match=says):
        segments.main([*where, *lengths, flag])
    assert not (tmp_path / "run").exists()


def test_stock_transformers_gives_our_numbers_and_anything_else_is_refused(folder, given):
    model = stock(folder)
    apart, mean = presses.ensure_same(model, given)
    assert apart < presses.SAME
    np.testing.assert_allclose(mean, given["full"].mean(axis=1), atol=1e-4)
    shifted = given | {"full": np.roll(given["full"], 1, axis=1)}  # targets off by one
    without = given | {"prefix": given["prefix"][:0]}
    for wrong in (shifted, without):
        with pytest.raises(UserError, match="not of one checkpoint"):
            presses.ensure_same(model, wrong)


def test_the_peers_process_needs_no_jax():
    code = "import sys, experiments.peers.presses; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_missing_library_is_one_sentence(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "kvpress", None)
    with pytest.raises(UserError, match="requirements-peers.txt"):
        presses.main([str(folder)])


def test_a_wrong_flag_is_one_sentence(folder):
    with pytest.raises(UserError, match="invalid choice: 'none'"):
        presses.main([str(folder), "--methods", "none"])


def test_presses_that_round_down_keep_exactly_what_is_asked():
    for rows in (100, 1537, 8193, 131_073):
        for kept in range(1, rows, max(rows // 97, 1)):
            asked = presses.Asked(kept, rows, 0)
            assert int(rows * (1 - asked.ratio())) == kept
            every = 16 * rows  # as KVzip counts: what goes, over layers and heads
            assert every - int(every * asked.ratio(-1e-3)) == 16 * kept


@pytest.mark.parametrize("name", presses.PEERS)
def test_a_press_keeps_the_budget_and_sees_no_tail(name, folder):
    pytest.importorskip("kvpress")
    kvpress, model = presses.load_peers(folder, "cpu")
    ids = np.asarray(tiny.tokens(1, 100)[0])
    context, tail = ids[:90], ids[90:]  # longer than what SnapKV looks back at
    peer, asked = presses.PEERS[name], presses.Asked(70, len(context), 1000)
    press = peer.press(kvpress, asked)
    nll, kept, _ = presses.score(model, peer, press, context, tail)
    assert kept == asked.kept
    full, everything, _ = presses.score(model, presses.WHOLE, None, context, tail)
    assert everything == len(context)
    assert np.abs(nll - full).max() > 1e-3  # it did forget something
    other = np.concatenate([tail[:4], (tail[4:] + 1) % 30])
    again, _, _ = presses.score(model, peer, press, context, other)
    np.testing.assert_allclose(again[:3], nll[:3], atol=1e-4)


def pressed(given, **changes):
    """A presses.json: one peer as good as full attention."""
    full = given["full"].mean(axis=1).tolist()
    peer = {"name": "SnapKV", "nll": full, "entries": 15.5, "note": "hides keys"}
    facts = {"command": "PEER -m presses", "versions": {"kvpress": "0"}, "largest_difference": 0.0}
    return {**facts, "full": full, "presses": [peer]} | changes


def test_the_table_has_ours_and_theirs_on_the_same_tokens(folder, given):
    (folder / "presses.json").write_text(json.dumps(pressed(given)))
    table.main([str(folder), "--methods", "sinks+recent"])
    result = json.loads((folder / "peers.json").read_text())
    rows = {row["what"]: row for row in result["rows"]}
    assert list(rows) == ["recent", "sinks+recent", "kvpress: SnapKV", "full"]
    assert rows["kvpress: SnapKV"]["value"] == pytest.approx(rows["full"]["value"], abs=1e-4)
    assert rows["kvpress: SnapKV"]["note"] == "hides keys"
    entries = [row["entries"] for row in rows.values()]
    assert entries == [BUDGET, BUDGET, 15.5, HISTORY]
    difference = rows["full"]["value"] - rows["sinks+recent"]["value"]
    assert rows["full"]["delta_nll"] == pytest.approx(difference, abs=1e-6)
    for step in ("peers.segments", "PEER -m presses", "peers.table"):
        assert step in result["command"]


def test_a_table_of_two_runs_is_refused(folder, given):
    for changes, says in (
        ({"full": [0.0] * 3}, "not of one run"),
        ({"presses": [{"name": "KNorm", "nll": [1.0]}]}, "of other segments"),
    ):
        (folder / "presses.json").write_text(json.dumps(pressed(given, **changes)))
        with pytest.raises(UserError, match=says):
            table.main([str(folder), "--methods", "recent"])


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match="experiments.peers.segments first"):
        presses.main([str(tmp_path)])


def test_a_peer_without_room_is_left_out():
    assert presses.PEERS["KVzip"].press(None, presses.Asked(10, 20, presses.PROMPT)) is None
