"""Books: what a train corpus must not hold of held-out ones, and what it says about the others."""

import json
import lzma
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from data import books, corpus, minhash, pieces, text
from data.provenance import provenance
from data.sampling import Corpus
from data.written import workers
from mctx.errors import UserError
from mctx.tokenizer import Tokenizer
from tests.data.conftest import SYLLABLES, code


def book(seed: int, paragraphs: int = 100) -> str:
    """Prose like no other seed's, some 500 characters a paragraph."""
    rng = np.random.default_rng(seed)
    words = iter("".join(w) for w in rng.choice(SYLLABLES, (paragraphs * 80, 3)).tolist())
    return "\n\n".join(" ".join(next(words) for _ in range(80)) for _ in range(paragraphs)) + "\n"


def chapter(whole: str, first: int, last: int) -> str:
    return "\n\n".join(whole.split("\n\n")[first:last])


def changed(whole: str, seed: int = 0) -> str:
    """With one word in a hundred replaced."""
    rng = np.random.default_rng(seed)
    return re.sub(r"\w+", lambda m: "changed" if rng.uniform() < 0.01 else m[0], whole)


def lines(path, entries) -> None:
    raw = "\n".join(json.dumps(dict(author=a, title=t, text=x)) for a, t, x in entries).encode()
    path.write_bytes(lzma.compress(raw) if path.suffix == ".xz" else raw)


QUOTING = chapter(book(7), 0, 50) + "\n\n" + chapter(book(1), 20, 60) + "\n\n" + book(8)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("books")
    (root / "site/pkg").mkdir(parents=True)
    for i in range(6):
        (root / f"site/pkg/{i}.py").write_text(code(i))
    (root / "site/val").mkdir()
    (root / "site/val/a.py").write_text(code(20))
    lines(root / "valid.jsonl", [("V. One", "Held", book(1))])
    lines(root / "test.jsonl", [("T. Two", "Secret", book(2))])
    lines(root / "train.jsonl.xz", [
        ("Zoe", "Last", book(3)), ("Ann", "First", book(4)), ("V One", "Other", book(5)),
        ("t. two", "Another", book(6)), ("Bob", "Quoting", QUOTING),
        ("Cat", "Stolen", changed(book(2))), ("Dan", "First again", changed(book(4), 1)),
    ])
    given = corpus.Books(root / "train.jsonl.xz", root / "valid.jsonl", (root / "test.jsonl",))
    written = corpus.build(root / "out", root / "site", (), ("val",), vocab_size=400,
                           processes=2, books_from=given)
    return root, written


def texts(directory) -> list[tuple[str, str]]:
    loaded, tokenizer = Corpus.load(directory), Tokenizer.load(directory)
    names = [package["name"] for package in loaded.manifest["packages"]]
    return [(names[p], tokenizer.decode(loaded.tokens[a : b - 1])) for a, b, p in loaded.documents]


def test_authors_and_copies_of_held_out_books_are_left_out_of_train(built):
    root, written = built
    found = texts(root / "out/books/train")
    assert list(dict.fromkeys(n for n, _ in found)) == ["Ann/First", "Bob/Quoting", "Zoe/Last"]
    assert texts(root / "out/books/valid") == [("V. One/Held", book(1))]
    assert dict(found)["Zoe/Last"] == book(3) and dict(found)["Ann/First"] == book(4)
    manifest = Corpus.load(root / "out/books/train").manifest
    dropped = dict(manifest["dropped"])
    assert dropped.pop(books.QUOTED) >= 3
    assert dropped == {books.AUTHOR: 2, books.COPY: 2}
    assert manifest["tokens"] == written["books/train"]


def test_a_quoted_chapter_is_cut_out_of_the_book_that_quotes_it(built):
    root, _ = built
    left = [text for name, text in texts(root / "out/books/train") if name == "Bob/Quoting"]
    quoted = chapter(book(1), 20, 60).split("\n\n")
    kept = [paragraph for paragraph in quoted if any(paragraph in part for part in left)]
    assert len(left) >= 2 and not kept
    own = [p for p in QUOTING.split("\n\n") if p not in quoted]
    assert np.mean([any(p.strip() in part for part in left) for p in own]) > 0.7


def test_pieces_join_to_the_text_and_do_not_depend_on_what_stands_around():
    whole = book(11)
    cut = pieces.cut(whole)
    assert len(cut.stops) > 3 and cut.stops[-1] == len(whole) == len(whole.encode())
    (run, signatures), = pieces.runs(whole, cut, np.zeros(len(cut.stops), bool))
    assert run == whole and len(signatures) == len(cut.stops)
    assert pieces.runs(whole, cut, np.ones(len(cut.stops), bool)) == []
    moved = pieces.cut(book(12, 7) + "\n" + whole)
    same = (moved.signatures[:, None] == cut.signatures[None]).all(-1).any(0)
    assert same.mean() > 0.6


def test_domains_share_a_tokenizer_and_say_together_what_they_hold(built):
    root, _ = built
    manifest, sketch, tokenizer = provenance(root / "out")
    parts = [Corpus.load(root / "out" / name / "train").manifest for name in ("books", "code")]
    assert parts[0]["tokenizer"] == parts[1]["tokenizer"] == Tokenizer(tokenizer).fingerprint
    assert manifest["tokens"] == sum(part["tokens"] for part in parts)
    assert [(p["domain"], p["name"]) for p in manifest["packages"]] == [
        ("books", "Ann/First"), ("books", "Bob/Quoting"), ("books", "Zoe/Last"), ("code", "pkg")
    ]
    known = [code(0), code(20)]
    assert minhash.in_sketch(sketch, np.stack(list(map(minhash.signature, known)))).tolist() == [
        True, False
    ]
    for seed, inside in ((3, True), (1, False), (2, False)):
        found = minhash.in_sketch(sketch, pieces.cut(book(seed)).signatures)
        assert found.all() if inside else not found.any()


def test_the_sample_for_the_tokenizer_has_as_much_of_each_domain(monkeypatch):
    small, large = [code(i) for i in range(9)], [book(i) for i in range(3)]
    total = sum(map(len, small))
    for most, share in ((10**9, total), (10_000, 5_000)):
        monkeypatch.setattr(corpus, "TOKENIZER_SAMPLE", most)
        sample = corpus.tokenizer_sample([small, large])
        mine = sum(len(one) for one in sample if one in small)
        others = sum(map(len, sample)) - mine
        assert abs(mine - share) < 6_000 and abs(others - share) <= corpus.SLICE


def test_the_command_cleans_a_source_of_what_another_has(tmp_path, capsys):
    lines(tmp_path / "a.jsonl", [("A", "Copy", changed(book(1))), ("B", "Quote", QUOTING)])
    lines(tmp_path / "b.jsonl", [("C", "Held", book(1))])
    arguments = ["--text", str(tmp_path / "a.jsonl"), "--against", str(tmp_path / "b.jsonl")]
    out = tmp_path / "new/clean.jsonl.xz"
    assert pieces.main([*arguments, "--out", str(out), "--processes", "1"]) == 0
    (kept,) = text.load(out)
    assert (kept.package, kept.name) == ("B", "Quote") and len(kept.text) < 0.9 * len(QUOTING)
    assert "1 of 2 documents" in capsys.readouterr().out
    assert pieces.main([*arguments, "--out", str(tmp_path / "clean.txt")]) == 2
    assert "--out" in capsys.readouterr().err


def test_a_document_of_which_nothing_is_left_is_left_out(monkeypatch):
    def every_second(cuts, _):  # with those beside them, all
        return [np.arange(len(one.stops)) % 2 == 1 for one in cuts]

    monkeypatch.setattr(pieces, "copied", every_second)
    monkeypatch.setattr(pieces, "MOSTLY", 0.9)
    with ThreadPoolExecutor(1) as pool:
        assert pieces.distinct([text.Document("me", "t", book(1))], [], pool) == []


def test_the_command_writes_all_or_nothing(tmp_path, monkeypatch):
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    lines(a, [("A", "T", book(4))])
    lines(b, [("B", "U", book(5))])
    before = a.read_bytes()

    def fails(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pieces.json, "dumps", fails)
    with pytest.raises(KeyboardInterrupt):
        pieces.main(["--text", f"{a}", "--against", f"{b}", "--out", f"{a}", "--processes", "1"])
    assert a.read_bytes() == before


def test_a_domain_without_text_is_an_error(tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site/a.py").write_text(code(1))
    lines(tmp_path / "same.jsonl", [("A", "T", book(1))])
    given = corpus.Books(tmp_path / "same.jsonl", tmp_path / "same.jsonl")
    with pytest.raises(UserError, match="books"):
        corpus.build(tmp_path / "out", tmp_path / "site", (), (), vocab_size=300, processes=1,
                     books_from=given)
    assert corpus.main(["--out", str(tmp_path), "--books-valid", "x"]) == 2


def test_books_without_an_author_are_nobodys(tmp_path):
    lines(tmp_path / "a.jsonl", [("", "T", book(1))])
    lines(tmp_path / "b.jsonl", [("", "U", book(2))])
    with workers(1) as pool:
        parts = books.gather(tmp_path / "a.jsonl", tmp_path / "b.jsonl", (), pool)
    assert [d.package for d in parts["train"].documents] == ["T"]


@pytest.mark.parametrize(
    "one, other",
    [
        ("R. D. Blackmore", "R.D. blackmore"),
        ("Charlotte Brontë", "Bronte, Charlotte, 1816-1855"),
        ("Charlotte Bronte\u0308", "Charlotte Brontë"),
        ("O'Brien", "O’Brien"),
    ],
)
def test_an_author_is_one_however_spelled(one, other):
    assert books.author_key(one) == books.author_key(other) != ""
    assert books.author_key("h5py") != books.author_key("py")  # packages are told apart by it, too
