import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from data import bpe, corpus, exercises, minhash, packages, questions, sources, written
from data.sampling import Corpus
from data.written import put, workers
from mctx.tokenizer import Tokenizer
from tests.data.conftest import code, edited

LEAKED = 50  # seed of a test package's file that others have copied


@pytest.fixture
def built(make_site, tmp_path, monkeypatch):
    """Corpora of three train packages, one for validation, and a held-out one that was copied."""
    stdlib = tmp_path / "stdlib"
    stdlib.mkdir()
    (stdlib / "heap.py").write_text(code(60))
    package = sources.Package("python", "3", stdlib, ("heap.py",))
    monkeypatch.setattr(sources, "standard_library", lambda: package)
    site = make_site({
        "alpha": {f"alpha/{i}.py": code(i) for i in range(6)},
        "beta": {
            "beta/a.py": code(10), "beta/copy.py": code(0), "beta/heapcopy.py": code(60),
            "beta/near.py": edited(code(1), 0.03), "beta/leak.py": edited(code(LEAKED), 0.03),
        },
        "Gamma_X": {"gamma/a.py": code(20), "gamma/valid.py": code(31), "gamma/tiny.py": "x = 1"},
        "val": {"val/a.py": code(30), "val/b.py": code(31), "val/leak.py": code(LEAKED)},
        "secret": {"secret/a.py": code(LEAKED)},
    })
    out = tmp_path / "out"
    written = corpus.build(
        out, site, held_out=["Secret", "python"], validation=["val"], vocab_size=400, processes=2
    )
    return SimpleNamespace(out=out / "code", site=site, written=written)


def texts(directory) -> dict[str, list[str]]:
    """The documents of a corpus as read back from its tokens, by package."""
    loaded, tokenizer = Corpus.load(directory), Tokenizer.load(directory)
    found: dict[str, list[str]] = {}
    for start, stop, package in loaded.documents:
        assert loaded.tokens[stop - 1] == tokenizer.eot_id
        text = tokenizer.decode(loaded.tokens[start : stop - 1])
        found.setdefault(loaded.manifest["packages"][package]["name"], []).append(text)
    return found


def test_what_is_kept_is_kept_whole_and_in_order(built):
    assert texts(built.out / "train") == {
        "alpha": [code(i) for i in range(6)], "beta": [code(10)], "gamma-x": [code(20)]
    }
    assert texts(built.out / "valid") == {"val": [code(30), code(31)]}


def test_the_manifest_says_what_is_in_and_what_is_out(built):
    train = Corpus.load(built.out / "train")
    manifest = train.manifest
    assert manifest["dropped"] == {"exact copy": 3, "near copy": 2, "small": 1}
    assert manifest["held_out"] == ["python", "secret"] and manifest["validation"] == ["val"]
    assert sum(package["tokens"] for package in manifest["packages"]) == manifest["tokens"]
    assert manifest["tokens"] == len(train.tokens) == built.written["code/train"]
    assert [package["files"] for package in manifest["packages"]] == [6, 1, 1]
    assert [np.diff(span)[0] for span in train.packages] == [
        package["tokens"] for package in manifest["packages"]
    ]
    tokenizer = Tokenizer.load(built.out / "valid")
    assert tokenizer.fingerprint == manifest["tokenizer"] and tokenizer.vocab_size == 400
    assert (tokenizer.bos_id, tokenizer.eot_id, tokenizer.pad_id) == (0, 1, 2)
    assert train.tokens.dtype == np.uint16 and train.documents.dtype == np.int64


def test_the_sketch_knows_the_training_texts_alone(built):
    sketch = np.load(built.out / "train" / "sketch.npy")
    known = [minhash.in_sketch(sketch, minhash.signature(code(seed))[None])[0]
             for seed in (0, 5, 10, 20, 30, 31, LEAKED)]
    assert known == [True] * 4 + [False] * 3


def test_the_same_sources_give_the_same_corpus_and_a_tokenizer_can_be_reused(built, tmp_path):
    again = tmp_path / "again"
    corpus.build(again, built.site, ["secret", "python"], ["val"],
                 tokenizer=built.out / "train" / "tokenizer.json", processes=1)
    for file in ("tokens.npy", "documents.npy", "sketch.npy", "manifest.json", "tokenizer.json"):
        for kind in ("train", "valid"):
            copy, first = again / "code" / kind / file, built.out / kind / file
            assert copy.read_bytes() == first.read_bytes()


def test_training_a_tokenizer_twice_gives_the_same_one():
    samples = [code(i) for i in range(5)]
    prints = {corpus.bpe.train(samples, 350).fingerprint for _ in range(2)}
    assert len(prints) == 1


def test_thinning_keeps_about_the_share_asked_for(tmp_path):
    names = tuple(f"{i}.py" for i in range(400))
    for name in names:
        (tmp_path / name).write_text("x" * 100)
    package = sources.Package("p", "", tmp_path, names)
    (half,), (whole,) = packages.thin([package], 20_000), packages.thin([package], 1e9)
    assert 150 < len(half.files) < 250 and set(half.files) < set(names) and whole == package


def test_an_order_of_groups_decides_which_copy_stays(tmp_path):
    (tmp_path / "a.py").write_text(code(1))
    a, z = (sources.Package(name, "", tmp_path, ("a.py",)) for name in "az")
    with workers(1) as pool:
        found = packages.read_all([(packages.TRAIN, a), (packages.HELD_OUT, z)], pool)
    marked = {s.package.name: s.reading.fault for s in packages.deduplicate(found)}
    assert marked == {"a": "exact copy", "z": ""}


def test_the_command_explains_what_is_wrong(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for arguments in (["--packages", str(tmp_path / "nowhere")],
                      ["--packages", str(tmp_path / "empty")],
                      ["--tokenizer", str(tmp_path / "none.json")],
                      ["--exclude-file", str(tmp_path / "none.txt")]):
        assert corpus.main(["--out", str(tmp_path / "out"), *arguments]) == 2
        message = capsys.readouterr().err.strip()
        assert message.startswith("error: ") and arguments[1] in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("given, says", [
    (["--max-tokens=-1"], "--max-tokens is a number from 1, not -1"),
    (["--max-tokens=many"], "--max-tokens"),
    (["--wrong"], "unrecognized arguments: --wrong"),
    (["--out=afile"], "The folder afile cannot be made (File exists)"),
    (["--out=afile/in"], "The folder afile/in cannot be made (Not a directory)"),
])
def test_wrong_flags_are_one_line_before_any_reading(tmp_path, capsys, monkeypatch, given, says):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(packages, "gather", lambda *_: pytest.fail("a source was read"))
    Path("afile").write_text("mine")
    assert corpus.main(["--out=out", *given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and says in line
    assert [path.name for path in tmp_path.iterdir()] == ["afile"]


@pytest.mark.parametrize("kind", ["text", "tasks", "questions"])
def test_what_is_written_anew_and_killed_is_no_corpus(tmp_path, monkeypatch, kind):
    """Else its old tokens would lie beside the new tokenizer."""
    (tmp_path / "manifest.json").write_text("{}")
    tokenizer = bpe.train([code(0)], 300)

    class Killed:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def map(self, *_):
            raise KeyboardInterrupt

    monkeypatch.setattr(questions, "workers", lambda _: Killed())
    with pytest.raises(KeyboardInterrupt):
        if kind == "text":
            written.write(tmp_path, written.Part([], {}), tokenizer, Killed())
        elif kind == "tasks":
            exercises.write(tmp_path, 9, (1, 2), [code(0)], tokenizer, 0, Killed())
        else:
            questions.write(tmp_path, tokenizer, 1)
    assert not (tmp_path / "manifest.json").exists() and (tmp_path / "tokenizer.json").exists()


def test_a_folder_that_is_written_over_is_the_old_one_or_none_or_the_new_one(tmp_path, monkeypatch):
    def write(size):
        put(tmp_path, {"a": np.full(size, size), "b": np.ones(size)}, {"size": size})

    write(1000)
    mapped, replace = np.load(tmp_path / "a.npy", mmap_mode="r"), Path.replace
    for stop in range(3):
        done = []

        def fails(self, target, done=done, stop=stop):
            if len(done) == stop:
                raise KeyboardInterrupt
            done.append(target)
            return replace(self, target)

        monkeypatch.setattr(Path, "replace", fails)
        with pytest.raises(KeyboardInterrupt):
            write(3)
        assert not (tmp_path / "manifest.json").exists()
        assert (mapped == 1000).all() and len(mapped) == 1000
    monkeypatch.setattr(Path, "replace", replace)
    write(5)
    assert json.loads((tmp_path / "manifest.json").read_text()) == {"size": 5}
    assert len(np.load(tmp_path / "a.npy")) == 5 and (mapped == 1000).all()
