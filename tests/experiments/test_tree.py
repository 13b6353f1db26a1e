"""The tree's command: what it makes, shows and mends, and what it refuses in words."""

import copy
import functools
import json
from pathlib import Path

import numpy as np
import pytest

from experiments import entry
from experiments import tree as command
from mctx import checkpoint
from mctx.errors import UserError
from mctx.tokenizer import Tokenizer
from mctx.tree.ingest import Reader
from mctx.tree.store import Tree
from mctx.tree.verify import verify
from tests import tiny
from tests.experiments import tiny_checkpoint


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_checkpoint.write(tmp_path_factory.mktemp("tree") / "bundle")


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A checkpoint of the same shapes and another GistNet."""
    folder = tmp_path_factory.mktemp("tree") / "other"
    params = {"base": tiny.params()["base"], "gistnet": tiny.drawn(tiny.MODEL, "gistnet", 1)}
    files = {"tokenizer.json": tiny_checkpoint.tokenizer_json()}
    checkpoint.save_bundle(folder, params, tiny.MODEL.to_dict(), files, np.float32)
    return folder


@functools.cache
def compiled() -> Reader:
    return Reader(tiny.MODEL, tiny.params())


@pytest.fixture(autouse=True)
def compiled_once(monkeypatch):
    """The two checkpoints differ in numbers only: one reader's programs serve both."""

    def reader(opened):
        made = copy.copy(compiled())
        made.params = {name: opened.params[name] for name in ("base", "gistnet")}
        return made  # the bases are equal, and so is the prefix

    monkeypatch.setattr(command, "_reader", reader)


@pytest.fixture
def run(bundle, tmp_path, capsys):
    uri = str(tmp_path / "tree")

    def run(action, *more, checkpoint=bundle):
        models = [f"--checkpoint={checkpoint}"] if checkpoint else []
        try:
            command.main([action, uri, "--json", *models, *map(str, more)])
        finally:
            run.printed = capsys.readouterr()
        return json.loads(run.printed.out)

    run.uri, run.folder = uri, tmp_path
    return run


def write(path: Path, words: int, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(tiny_checkpoint.text(words, seed))
    return path


def test_text_goes_in_is_shown_verified_and_comes_out(run, bundle):
    assert run("create")["length"] == 0
    text = write(run.folder / "in.txt", 90)
    facts = run("append", f"--input={text}")
    assert (facts["appended"], facts["not stored"], facts["length"]) == (88, 2, 88)
    run("append", f"--input={write(run.folder / 'more.txt', 44, 1)}")
    facts = run("stats", checkpoint=None)
    assert facts["counts"] == {"0": 33, "1": 33, "2": 16, "3": 8} and facts["documents"] == []
    assert run("verify")["problems"] == []

    run("export", f"--output={run.folder / 'out.txt'}")
    ids = Tokenizer.load(bundle).encode(text.read_text())
    tree = Tree.open(run.uri)
    np.testing.assert_array_equal(tree.tokens(0, 88), ids[:88])
    words = (run.folder / "out.txt").read_text().split()
    assert words[:88] == text.read_text().split()[:88] and len(words) == 132
    run("export", f"--output={run.folder / 'arrays'}", checkpoint=None)
    arrays = {path.stem: np.load(path) for path in (run.folder / "arrays").glob("*.npy")}
    np.testing.assert_array_equal(arrays["tokens"], tree.tokens(0, 132))
    np.testing.assert_array_equal(arrays["lod2"], tree.gather(2, np.arange(16)))
    assert json.loads((run.folder / "arrays" / "tree.json").read_text())["length"] == 132


def test_a_folder_of_documents_is_kept_up_to_date(run):
    run("create")
    folder = run.folder / "code"
    for number in range(3):
        write(folder / f"part/{number}.txt", 30 + number, number)
    arguments = "append", f"--input={folder}", "--as-documents"
    facts = run(*arguments)
    assert (facts["added"], facts["replaced"], facts["unchanged"]) == (3, 0, 0)
    write(folder / "part/1.txt", 25, 9)
    write(folder / "part/3.txt", 10, 3)
    facts = run(*arguments)
    assert (facts["added"], facts["replaced"], facts["unchanged"]) == (1, 1, 2)
    run("delete", "--name=part/0.txt")
    names = [span["name"] for span in run("stats")["documents"]]
    assert names == ["part/1.txt", "part/2.txt", "part/3.txt"]
    before = verify(run.uri)
    assert not run("compact", "--least=0.99", checkpoint=None)["copied"]
    packed = run("compact", "--grace=0", checkpoint=None)
    assert packed["copied"] and packed["wasted"] and packed["deleted"] and not packed["retired"]
    report = verify(run.uri)
    assert report.problems == [] and report.counts == before.counts


def test_other_models_are_refused_until_the_tree_is_rebuilt(run, other):
    run("create")
    text = write(run.folder / "in.txt", 90)
    run("append", f"--input={text}")
    old = Tree.open(run.uri)
    for action, more in (("append", f"--input={text}"), ("delete", "--name=x")):
        with pytest.raises(UserError, match="made by models"):
            run(action, more, checkpoint=other)
    with pytest.raises(UserError, match="1 problems"):
        run("verify", checkpoint=other)
    facts = run("rebuild", checkpoint=other)
    assert facts["rebuilt"] and facts["fingerprint"] != old.spec.fingerprint
    assert not run("rebuild", checkpoint=other)["rebuilt"]
    new = Tree.open(run.uri)
    np.testing.assert_array_equal(new.tokens(0, 88), old.tokens(0, 88))
    assert (new.gather(1, np.arange(22)) != old.gather(1, np.arange(22))).any()
    assert run("append", f"--input={text}", checkpoint=other)["appended"] == 88


def test_the_base_with_its_lora_or_in_another_type_is_other_models(run, bundle):
    """The command says so and names `rebuild`, which takes the same flags."""
    run("create", "--dtype=bfloat16")
    with pytest.raises(UserError, match="experiments.tree rebuild"):
        run("delete", "--name=x")
    assert run("verify", "--dtype=bfloat16")["problems"] == []
    with pytest.raises(UserError, match="lora"):
        run("rebuild", "--lora")
    assert run("rebuild")["rebuilt"] and not run("rebuild")["rebuilt"]


def test_damage_is_listed_and_ends_with_an_error(run):
    run("create")
    run("append", f"--input={write(run.folder / 'in.txt', 90)}")
    next(Path(run.uri).glob("*/lod2/c.*")).unlink()
    with pytest.raises(UserError, match="has 1 problems"):
        run("verify", checkpoint=None)
    (problem,) = json.loads(run.printed.out)["problems"]
    assert "Level 2, rows 0 to 10" in problem


WRONG = {
    "no checkpoint": (["append", "--input=in.txt"], None, "give --checkpoint"),
    "no input": (["append"], ..., "append wants --input"),
    "no such input": (["append", "--input=missing"], ..., "no file or folder missing"),
    "no output": (["export"], ..., "export wants --output"),
    "no tokenizer": (["export", "--output=x.txt"], None, "--checkpoint"),
    "no such document": (["delete", "--name=x"], ..., "no document 'x'"),
    "no time at all": (["compact", "--grace=-1"], None, "--grace a number of seconds"),
    "half a job": (["append", "--input=in.txt", "--coordinator=a:1"], ..., "--processes"),
    "there already": (["create"], ..., "already"),
    "there already, too": (["export", "--output=in.txt"], ..., "exists"),
    "no place": (["export", "--output=in.txt/out"], ..., "in.txt/out cannot be written"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_one_sentence_and_changes_nothing(run, bundle, monkeypatch, case):
    (action, *more), models, says = WRONG[case]
    monkeypatch.chdir(run.folder)
    run("create")
    write(run.folder / "in.txt", 10)
    there = sorted(run.folder.iterdir())
    with pytest.raises(UserError, match=says) as caught:
        run(action, *more, checkpoint=bundle if models is ... else None)
    assert "\n" not in str(caught.value)
    assert Tree.open(run.uri).length == 0 and sorted(run.folder.iterdir()) == there


def test_a_file_that_is_not_text_stops_a_folder_before_anything_is_written(run):
    run("create")
    write(run.folder / "code/a.txt", 20)
    (run.folder / "code/b.txt").write_bytes(b"caf\xe9 \xff")
    with pytest.raises(UserError, match="b.txt is not UTF-8"):
        run("append", f"--input={run.folder / 'code'}", "--as-documents")
    assert Tree.open(run.uri).length == 0
    with pytest.raises(UserError, match="no MegaContext tree"):
        command.main(["stats", str(run.folder / "elsewhere")])


@pytest.mark.parametrize("seconds", [0.0, float("inf")])
def test_text_is_committed_from_time_to_time_as_it_is_read(run, monkeypatch, seconds):
    run("create")
    text, calls, gists = write(run.folder / "in.txt", 1000), [], Reader.window_gists

    def interrupted(reader, tokens):
        calls.append(tokens)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return gists(reader, tokens)

    monkeypatch.setattr("mctx.tree.ingest.AT_ONCE", 4)
    monkeypatch.setattr(Reader, "window_gists", interrupted)
    monkeypatch.setattr(command, "COMMIT_SECONDS", seconds)
    with pytest.raises(SystemExit, match="interrupted"):
        run("append", f"--input={text}")
    report = verify(run.uri)
    assert report.problems == [] and not report.missing
    assert report.counts[0] < 1000 and bool(report.counts[0]) == (seconds == 0)


def test_a_person_reads_lines_and_a_failure_has_status_two(run, monkeypatch, capsys):
    run("create")
    command.main(["stats", run.uri])
    assert "fanouts" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["tree", "stats", run.uri + "x"])
    with pytest.raises(SystemExit) as ended:
        entry.run(command.main)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: There is no MegaContext tree")


def test_a_process_of_a_job_appends_its_part(run, monkeypatch):
    """A job of one process; of two, of which one is killed: tests/tree/test_hosts.py."""
    run("create")
    text = write(run.folder / "in.txt", 4 * 16 * 16 + 30)
    joined = []
    monkeypatch.setattr("jax.distributed.initialize", lambda *where: joined.append(where))
    monkeypatch.setattr("mctx.tree.hosts.WINDOWS", 16)
    job = "--coordinator=localhost:1", "--processes=1", "--process=0"
    assert run("append", f"--input={text}", *job)["appended"] == 4 * 16 * 16 + 28
    assert joined == [("localhost:1", 1, 0)]
    report = verify(run.uri)
    assert report.problems == [] and not report.missing
    with pytest.raises(UserError, match="not documents"):
        run("append", f"--input={text}", "--as-documents", *job)
