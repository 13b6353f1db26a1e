"""score: full is the base, window is sinks and recent rows, focus is a session."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import score
from mctx.errors import UserError
from mctx.models.base import Context, Rows, token_nll
from mctx.models.wrapped import prefix_rows, read
from mctx.opened import open_checkpoint
from mctx.runtime import Session, SessionConfig
from tests import tiny
from tests.experiments import tiny_checkpoint

BLOCK = tiny.GIST.block
BASE = {"base": tiny.params()["base"]}
reading = jax.jit(functools.partial(read, tiny.MODEL))
likelihood = jax.jit(functools.partial(token_nll, BASE["base"]))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_checkpoint.write(tmp_path_factory.mktemp("score") / "bundle")


@pytest.fixture(scope="module")
def base_only(tmp_path_factory):
    folder = tmp_path_factory.mktemp("score") / "base"
    return tiny_checkpoint.write(folder, ("base",), tokenizer=b"")


def run(checkpoint, source, out, *more):
    score.main([f"--checkpoint={checkpoint}", f"--input={source}", f"--out={out}", *more])
    return np.load(out)


def ids_file(path, length, seed=0):
    ids = np.asarray(tiny.tokens(1, length, seed)[0])
    np.save(path, ids)
    return path, ids


def plain_nll(ids):
    """The base over prefix and ids in one call: the NLL of ids[1:]."""
    entries = jnp.asarray(np.concatenate([tiny.BASE.prefix, ids]))[None]
    positions = jnp.arange(entries.shape[1])[None]
    hidden = reading(BASE, entries, positions).hidden[:, len(tiny.BASE.prefix) : -1]
    return np.asarray(likelihood(hidden, jnp.asarray(ids)[None, 1:]))[0]


def streamed_nll(ids, budget):
    """Sinks and recent rows chunk by chunk, with rows in a plain list and no fixed shapes."""
    prefix = prefix_rows(tiny.MODEL, BASE)
    kept, nll = [], []
    for at in range(0, len(ids) - 1, BLOCK):
        shown = kept[:1] + kept[1:][-(budget // BLOCK - 1) :]
        rows = Rows(*(jnp.concatenate(xs, axis=2) for xs in zip(prefix, *shown, strict=True)))
        held = rows.k.shape[2]
        assert held <= budget + prefix.k.shape[2]
        context = Context(rows, jnp.arange(held)[None], jnp.zeros((1, held)))
        positions = held + jnp.arange(BLOCK)[None]
        out = reading(BASE, jnp.asarray(ids[at : at + BLOCK])[None], positions, context)
        kept.append(out.rows)
        nll.append(likelihood(out.hidden, jnp.asarray(ids[at + 1 : at + BLOCK + 1])[None])[0])
    return np.concatenate(nll)


def test_full_is_the_base_and_needs_nothing_else(base_only, tmp_path):
    source, ids = ids_file(tmp_path / "ids.npy", score.PREFILL + 70)
    found = run(base_only, source, tmp_path / "out.npz", "--method=full")
    assert set(found) == {"ids", "nll"}
    np.testing.assert_array_equal(found["ids"], ids)
    assert len(found["nll"]) == len(ids) and np.isnan(found["nll"][0])
    np.testing.assert_allclose(found["nll"][1:], plain_nll(ids), atol=1e-4)


def test_window_shows_sinks_and_recent_entries_within_the_budget(base_only, tmp_path):
    source, ids = ids_file(tmp_path / "ids.npy", 41)
    found = run(base_only, source, tmp_path / "out.npz", "--method=window", "--budget=12")
    np.testing.assert_allclose(found["nll"][1:], streamed_nll(ids, 12), atol=1e-4)
    assert np.abs(found["nll"][1:] - plain_nll(ids)).max() > 0.01  # it did forget something


def test_a_window_that_holds_everything_is_full(base_only, tmp_path):
    source, ids = ids_file(tmp_path / "ids.npy", 40)
    found = run(base_only, source, tmp_path / "out.npz", "--method=window", "--budget=64")
    np.testing.assert_allclose(found["nll"][1:], plain_nll(ids), atol=1e-4)


def test_nothing_is_compiled_for_a_longer_text(base_only):
    opened = score.open_for_ids(base_only, ("base",))
    score.window(opened, np.arange(1, 20), 16)
    compiled = score.read_chunk._cache_size()
    score.window(opened, np.arange(1, 90) % 32, 16)
    assert score.read_chunk._cache_size() == compiled


def test_focus_is_a_session(bundle, tmp_path):
    (tmp_path / "in.txt").write_text(tiny_checkpoint.text(90))
    arguments = ("--method=focus", "--budget=40", f"--json={tmp_path / 'out.json'}")
    found = run(bundle, tmp_path / "in.txt", tmp_path / "out.npz", *arguments)
    opened = open_checkpoint(bundle, ("base", "gistnet", "lensnet"))
    session = Session(opened, f"memory://{tmp_path}", SessionConfig(budget=40))
    expected = session.predict(tiny_checkpoint.text(90))
    np.testing.assert_allclose(found["nll"], expected, atol=1e-5)
    result = json.loads((tmp_path / "out.json").read_text())
    (row,) = result["rows"]
    assert (row["what"], row["n"], row["entries"]) == ("focus", 89, 40)
    assert row["value"] == pytest.approx(np.nanmean(expected), abs=1e-4)
    assert row["low"] <= row["value"] <= row["high"]
    assert "--method=focus" in result["command"]


@pytest.mark.parametrize(
    "name, content, more, says",
    [
        ("a.txt", b"", ["--method=full"], "0 tokens"),
        ("a.txt", b"w1 \xff w2", ["--method=full"], "UTF-8 at byte 3"),
        ("a.npy", b"text", ["--method=full"], "not a readable .npy"),
        ("a.npy", np.array([1, 32]), ["--method=full"], "the id 32"),
        ("a.npy", np.array([1, -1]), ["--method=full"], "the id -1"),
        ("a.npy", np.ones(4), ["--method=full"], "one row of integers"),
        ("a.npy", np.ones(9, int), ["--method=window", "--budget=7"], "at least 8"),
        ("a.npy", np.ones(99, int), ["--method=focus", "--budget=16"], "raise the budget"),
    ],
)
def test_bad_input_is_refused_in_words_and_leaves_nothing(
    bundle, tmp_path, name, content, more, says
):
    source = tmp_path / name
    if isinstance(content, bytes):
        source.write_bytes(content)
    else:
        np.save(source, content)
    with pytest.raises(UserError, match=says):
        run(bundle, source, tmp_path / "out" / "x.npz", *more)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_lacks_a_part_or_has_a_foreign_tokenizer_is_refused(base_only, tmp_path):
    source, _ = ids_file(tmp_path / "ids.npy", 20)
    with pytest.raises(UserError, match="holds no gistnet"):
        run(base_only, source, tmp_path / "x.npz", "--method=focus")
    (tmp_path / "a.txt").write_text("w1 w2")
    with pytest.raises(UserError, match="no tokenizer"):
        run(base_only, tmp_path / "a.txt", tmp_path / "x.npz", "--method=full")
    large = tiny_checkpoint.tokenizer_json(words=40)
    foreign = tiny_checkpoint.write(tmp_path / "foreign", ("base",), tokenizer=large)
    with pytest.raises(UserError, match="belongs to the model"):
        run(foreign, tmp_path / "a.txt", tmp_path / "x.npz", "--method=full")


@pytest.mark.parametrize(
    "out, says",
    [
        ("nll.csv", "nll.csv would hold .* ending in .npz"),
        ("file/nll.npz", "file is a file, where a folder is needed"),
    ],
)
def test_an_output_that_cannot_be_is_refused_before_anything_is_read(tmp_path, out, says):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=says):
        run(tmp_path / "none", tmp_path / "none.npy", tmp_path / out, "--method=full")


def test_a_write_that_fails_keeps_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "x.npz"
    score.save(path, np.arange(2), np.zeros(2))

    def full_disk(file, **_):
        file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(OSError, match="no space left"):
        score.save(path, np.arange(9), np.zeros(9))
    assert len(np.load(path)["ids"]) == 2
    assert [file.name for file in tmp_path.iterdir()] == ["x.npz"]
