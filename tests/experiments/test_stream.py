"""stream: text arrives whole however it is cut, the tree grows, and what is shown is told."""

import io
import json
import signal
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from experiments import report, stream
from experiments.display import Clock, Display, Moment, strip
from experiments.focus_raster import UNWRITTEN
from experiments.pictures.curves import PANELS, is_refocus
from mctx.errors import UserError
from mctx.runtime import saving
from mctx.telemetry import read_scalars
from mctx.tokenizer import Tokenizer
from mctx.tree.store import Tree
from tests.experiments import tiny_checkpoint

LAYOUT = {
    "position": 16,
    "level": [0, 1, 2, 0],
    "index": [0, 1, 1, 3],
    "shown": [True, True, False, True],
    "fanouts": (4, 2, 2),
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_checkpoint.write(tmp_path_factory.mktemp("stream") / "bundle")


class Drip(io.BytesIO):
    """Bytes that arrive a few at a time."""

    def read1(self, size):
        return self.read(min(size, 3))


@given(st.text())
def test_pieces_are_the_text_and_end_at_lines(text):
    found = list(stream.pieces(Drip(text.encode()), "x"))
    assert "".join(found) == text
    assert all(piece.endswith("\n") for piece in found[:-1])


def test_a_long_line_is_not_waited_for():
    found = list(stream.pieces(Drip(b"x" * 9000), "x"))
    assert "".join(found) == "x" * 9000 and max(map(len, found)) < stream.LONGEST + 4


@pytest.mark.parametrize("content", [b"caf\xe9 au lait", b"caf\xc3"])
def test_other_encodings_are_refused(content):
    with pytest.raises(UserError, match="not UTF-8"):
        list(stream.pieces(Drip(content), "x"))


def test_a_tree_is_made_continued_and_told_about(bundle, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(stream, "AT_ONCE", 32)
    tree, workdir = str(tmp_path / "tree"), tmp_path / "run"
    text = tiny_checkpoint.text(44)
    (tmp_path / "in.txt").write_text(text)
    common = [f"--checkpoint={bundle}", f"--tree={tree}", "--budget=40", f"--workdir={workdir}"]
    stream.main([*common, f"--input={tmp_path / 'in.txt'}"])
    ids = Tokenizer.load(bundle).encode(text)
    np.testing.assert_array_equal(Tree.open(tree).tokens(0, 44), ids)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[:2]] == ["tokens 32", "tokens 44"]
    assert lines[-1] == f"{tree} holds 44 tokens."

    rows = {row["step"]: row for row in read_scalars(workdir)}
    assert set(rows) == set(range(0, 45, 4))  # a refocus a block, and the empty tree's
    assert all(row["refocus/entries"] <= 40 for row in rows.values())
    assert rows[44]["stream/nll"] > 0
    told = {name.split("/")[1] for row in rows.values() for name in row if is_refocus(name)}
    assert set(PANELS) - {"delta_nll"} <= told  # that one only of refocuses that are probed
    layouts = (workdir / report.LAYOUTS_FILE).read_text().splitlines()
    assert [json.loads(line)["position"] for line in layouts] == sorted(rows)

    common.append("--session=mine")
    stream.main([*common, "--generate=5", "--prompt=w3 w4"])
    assert capsys.readouterr().out.startswith("w3 w4")
    assert Tree.open(tree).length in (44, 48)  # the model may end the text at once
    waiting = Tree.open(tree).length
    stream.main([*common, "--generate=1", "--prompt=w3 w4", "--stop=w5"])  # goes on inside a block
    assert Tree.open(tree).length == waiting + 4
    with pytest.raises(UserError, match="budget=40, not 48"):
        stream.main([*common, "--generate=1", "--budget=48"])


def test_a_page_is_drawn_of_what_was_streamed(bundle, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("experiments.reasons.EVERY", 1)
    monkeypatch.setattr("experiments.reasons.LATE", 2)
    (tmp_path / "in.txt").write_text(tiny_checkpoint.text(120))
    workdir, tree = tmp_path / "run", f"--tree={tmp_path / 'tree'}"
    common = [f"--checkpoint={bundle}", tree, "--budget=28", "--recent=2"]
    common += [f"--input={tmp_path / 'in.txt'}", "--page"]
    with pytest.raises(UserError, match="--workdir"):
        stream.main(common)
    stream.main([*common, f"--workdir={workdir}"])
    made = {path.name for path in (workdir / "report").iterdir()}
    assert {"page.png", "focus.png", "refocus.png"} <= made
    assert (workdir / report.REASONS_FILE).read_text().count("\n") > 0


def test_standard_input_is_read_as_it_comes(bundle, tmp_path, monkeypatch, capsys):
    source = Drip(tiny_checkpoint.text(64).encode())
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=source))
    stream.main([f"--checkpoint={bundle}", f"--tree={tmp_path}/tree", "--input=-", "--budget=40"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 9 and lines[-1].endswith("holds 64 tokens.")


@pytest.mark.parametrize(
    "content, more, says",
    [
        (b"", [], "is empty"),
                (tiny_checkpoint.text(64).encode(), ["--budget=16"], "raise the budget"),
        (b"w1", ["--every=0"], "every"),
        (tiny_checkpoint.text(64).encode(), ["--capacity=3"], "capacity of 3"),
    ],
)
def test_bad_input_is_refused_in_words(bundle, tmp_path, content, more, says):
    (tmp_path / "in.txt").write_bytes(content)
    common = [f"--checkpoint={bundle}", f"--tree={tmp_path}/tree"]
    with pytest.raises(UserError, match=says):
        stream.main([*common, f"--input={tmp_path}/in.txt", *more])


def test_settings_are_refused_before_anything_is_read(bundle, tmp_path):
    (tmp_path / "text.py").write_text("abc " * 50)
    given = [f"--checkpoint={bundle}", f"--tree={tmp_path / 'tree'}", f"--input={tmp_path}/text.py"]
    for wrong in ("--generate=-3", "--top_p=3", "--temperature=-1"):
        with pytest.raises(UserError, match="must"):
            stream.main([*given, "--generate=2", wrong])
    assert not (tmp_path / "tree").exists()


def test_nothing_to_do_and_nothing_to_continue_are_refused(bundle, tmp_path):
    common = [f"--checkpoint={bundle}", f"--tree={tmp_path}/tree"]
    with pytest.raises(UserError, match="nothing to do"):
        stream.main(common)
    with pytest.raises(UserError, match="nothing to continue"):
        stream.main([*common, "--generate=3"])


def test_the_strip_is_the_layout_and_a_terminal_sees_it():
    np.testing.assert_array_equal(strip(LAYOUT, 4), [0, 1, 4, 0])
    assert (strip(LAYOUT | {"position": 0}, 4) == UNWRITTEN).all()
    console = Console(file=io.StringIO(), force_terminal=True, width=60)
    with Display(console, "history", budget=20) as display:
        display.show(Moment(16, 9, float("nan"), 1.25, 300.0, LAYOUT))
    shown = console.file.getvalue()
    assert "history" in shown and "9/20" in shown and "1.250" in shown and "LOD1" in shown
    assert "nan" not in shown


def test_the_clock_tells_the_rate_of_the_last_reads(monkeypatch):
    now = iter([0.0, 1.0, 2.0, 3.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    clock = Clock(reads=2)
    assert [clock.rate(n) for n in (10, 20, 60)] == [10.0, 15.0, 40.0]


def test_room_for_what_is_generated_is_asked_for_before_anything_is_read(bundle, tmp_path):
    (tmp_path / "in.txt").write_text(tiny_checkpoint.text(40))
    tree = str(tmp_path / "tree")
    given = [f"--checkpoint={bundle}", f"--tree={tree}", f"--input={tmp_path}/in.txt"]
    with pytest.raises(UserError, match="31 bits|raise the"):
        stream.main([*given, "--budget=40", "--generate=99999999999"])
    assert Tree.open(tree).length == 0


def test_tokens_short_of_a_block_are_told_of(bundle, tmp_path, capsys):
    (tmp_path / "in.txt").write_text("w1 w2 w3\n")
    given = [f"--checkpoint={bundle}", f"--input={tmp_path}/in.txt", "--budget=40"]
    stream.main([*given, f"--tree={tmp_path}/a"])
    assert "3 tokens short of a block are not stored: give --session" in capsys.readouterr().err
    stream.main([*given, f"--tree={tmp_path}/b", "--session=x"])
    assert "not stored" not in capsys.readouterr().err
    with pytest.raises(UserError, match="session's name"):
        stream.main([*given, f"--tree={tmp_path}/c", "--session="])


@pytest.mark.parametrize("name, kept", [("--session=x", 22), (None, 20)])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_stores_what_was_read_and_says_how_much(
    bundle, tmp_path, monkeypatch, name, kept, number
):
    def cut(source, _):
        yield tiny_checkpoint.text(22)
        signal.raise_signal(number)
        yield "w1"

    monkeypatch.setattr(stream, "pieces", cut)
    (tmp_path / "in.txt").write_text("w1")
    given = [f"--checkpoint={bundle}", f"--tree={tmp_path}/tree", f"--input={tmp_path}/in.txt"]
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit, match=f"{kept} tokens of .*in.txt are stored.*only the rest"):
        stream.main([*given, "--budget=40", *[name] * bool(name)])
    assert signal.getsignal(signal.SIGTERM) is before
    assert Tree.open(f"{tmp_path}/tree").length == 20
    assert saving.exists(f"{tmp_path}/tree", "x") == bool(name)
