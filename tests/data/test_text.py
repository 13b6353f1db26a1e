import json
import lzma
import re

import numpy as np
import pytest

from data import bpe, minhash, sources, text
from data.provenance import shipped_provenance
from mctx.errors import UserError
from tests.data.conftest import code, edited


@pytest.fixture(scope="module")
def tokenizer():
    return bpe.train([code(0)], 400)


def test_a_file(tmp_path):
    (tmp_path / "a.log").write_text("Grüße\n", encoding="utf-8")
    assert text.load(tmp_path / "a.log") == [text.Document("", "a.log", "Grüße\n")]


@pytest.mark.parametrize("name", ["books.jsonl", "books.jsonl.xz"])
def test_json_lines(tmp_path, name):
    lines = [{"author": "A", "title": "T", "text": "one"}, {"text": "two"}, {"text": " "}]
    raw = "\n".join(map(json.dumps, lines)).encode()
    (tmp_path / name).write_bytes(lzma.compress(raw) if name.endswith("xz") else raw)
    assert text.load(str(tmp_path / name)) == [("A", "T", "one"), ("", "2", "two")]


def test_a_folder(tmp_path):
    (tmp_path / "in").mkdir()
    for file in ("in/b.txt", "in/a.md", "z.txt", "empty.txt"):
        (tmp_path / file).write_text(file.removeprefix("empty.txt"))
    own = tmp_path.name
    assert text.load(tmp_path) == [
        ("in", "in/a.md", "in/a.md"), ("in", "in/b.txt", "in/b.txt"), (own, "z.txt", "z.txt")
    ]


def test_a_package(make_site, monkeypatch):
    site = make_site({"Pack_A": {"pack/b.py": code(1), "pack/a.py": code(0), "pack/c.py": "x"}})
    monkeypatch.setattr(sources, "site_folders", lambda: [site])
    assert text.load("package:pack.a") == [
        ("pack-a", "pack/a.py", code(0)), ("pack-a", "pack/b.py", code(1))
    ]
    with pytest.raises(UserError, match="nothing_like_it"):
        text.load("package:nothing_like_it")


@pytest.mark.parametrize("name, raw, message", [
    ("none.txt", None, "no file or folder"),
    ("empty.txt", b" \n\n", "holds no text"),
    ("latin.txt", b"caf\xe9", "not UTF-8 at byte 3"),
    ("bad.jsonl", b'{"text": "a"}\n{"title": "b"}', "Line 2"),
    ("list.jsonl", b'[1]', "Line 1"),
    ("null.jsonl", b'{"text": null}', '"text" in line 1'),
    ("year.jsonl", b'{"text": "a"}\n{"title": 1984, "text": "b"}', '"title" in line 2'),
    ("nobody.jsonl", b'{"author": null, "text": "a"}', '"author" in line 1'),
    ("latin.jsonl", b'{"text": "caf\xe9"}', "Line 1"),
])
def test_errors_say_where_in_one_sentence(tmp_path, name, raw, message):
    if raw is not None:
        (tmp_path / name).write_bytes(raw)
    with pytest.raises(UserError, match=message) as caught:
        text.load(tmp_path / name)
    assert name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["in/mine.txt", "in", "mine.jsonl"])
def test_what_may_not_be_read_is_named(tmp_path, monkeypatch, name):
    def refused(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "in").mkdir()
    for file in ("in/mine.txt", "mine.jsonl"):
        (tmp_path / file).write_text("{}")
    monkeypatch.setattr("pathlib.Path.read_bytes", refused)
    monkeypatch.setattr("pathlib.Path.open", refused)
    with pytest.raises(UserError, match=r"mine\.\w+ cannot be read \(Perm") as caught:
        text.load(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.fixture
def checkpoint(tmp_path):
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    (directory / "manifest.json").write_text(json.dumps({"packages": [{"name": "trained"}]}))
    trained = np.stack([minhash.signature(code(seed)) for seed in range(5)])
    np.save(directory / "sketch.npy", minhash.sketch(trained))
    return directory


@pytest.fixture
def unseen_site(make_site, monkeypatch):
    site = make_site({
        "trained": {"trained/new.py": code(20)},
        "networkx": {"networkx/a.py": code(21)},  # in the validation group
        "aaa": {"aaa/a.py": code(30), "aaa/copy.py": code(1), "aaa/near.py": edited(code(2), 0.02)},
        "rich": {"rich/a.py": code(31)},
        "flax": {"flax/a.py": code(32), "flax/b.py": code(33)},
    })
    monkeypatch.setattr(sources, "site_folders", lambda: [site])


def test_held_out_packages_are_unseen_and_in_order(checkpoint, unseen_site, tokenizer):
    size = len(tokenizer.encode(code(32)))
    one = text.held_out_packages(checkpoint, size, tokenizer)
    assert one == [("flax", "flax/a.py", code(32))]
    more = text.held_out_packages(checkpoint, int(3.8 * size), tokenizer)
    assert [d.name for d in more] == ["flax/a.py", "flax/b.py", "rich/a.py", "aaa/a.py"]


def test_held_out_packages_fall_back_on_the_standard_library(
    checkpoint, unseen_site, tokenizer, monkeypatch, tmp_path
):
    (tmp_path / "lib.py").write_text(code(40))
    package = sources.Package("python", "3", tmp_path, ("lib.py",))
    monkeypatch.setattr(sources, "standard_library", lambda: package)
    size = len(tokenizer.encode(code(32)))
    last = text.held_out_packages(checkpoint, int(4.5 * size), tokenizer)[-1]
    assert last == ("python", "lib.py", code(40))
    with pytest.raises(UserError, match="has only"):
        text.held_out_packages(checkpoint, 100 * size, tokenizer)


def test_a_checkpoint_must_say_what_it_was_trained_on(tmp_path, tokenizer):
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        text.held_out_packages(tmp_path, 1, tokenizer)


def test_a_manifest_that_is_half_written_is_named(checkpoint, tokenizer):
    whole = (checkpoint / "manifest.json").read_text()
    for part in ("", whole[:-5]):
        (checkpoint / "manifest.json").write_text(part)
        for asked in (
            lambda: text.held_out_packages(checkpoint, 1, tokenizer),
            lambda: shipped_provenance(checkpoint),
        ):
            with pytest.raises(UserError, match="checkpoint/manifest.json is not whole JSON"):
                asked()
