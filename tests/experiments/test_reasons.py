"""reasons: what is told to have pulled a block did, and the page shows it."""

import json

import numpy as np
import pytest
from PIL import Image

from experiments import pictures, reasons
from experiments.pictures.page import chosen, lines_of
from mctx.models import finder
from tests.runtime import small, test_finding


class Texts(small.Letters):
    def decode(self, ids):
        return "".join(chr(ord("A") + int(i)) for i in ids)


@pytest.fixture(scope="module", params=["gists alone", "finders"])
def session(request):
    of = small if request.param == "gists alone" else test_finding
    made = of.session()
    made.ingest(small.text(60 * small.BLOCK))
    return made


def test_a_pull_is_the_slope_of_the_utility_along_a_token_s_states(session):
    blocks, at = np.array([3, 17, 40]), 6
    worth, pull = reasons.pulls(session, blocks)
    assert worth.shape == (3,) and pull.shape == (3, session.model.lens.query)
    query, step = session.query, 1e-2
    apart = query - query.mean(axis=1, keepdims=True)
    ends = []
    for sign in (1, -1):
        session.query = query.at[:, at].add(sign * step * apart[:, at])
        ends.append(reasons.pulls(session, blocks)[0])
    session.query = query
    slope = (ends[0] - ends[1]) / (2 * step)
    np.testing.assert_allclose(pull[:, at], slope, atol=2e-2 * np.abs(pull).max())
    assert np.abs(slope).max() > 1e-4


def test_finders_tell_here_what_they_tell_a_refocus():
    made = test_finding.session()
    made.ingest(small.text(60 * small.BLOCK))
    keys, live = reasons._looked_over(made)
    assert live.sum() == 60 - made.focus.recent and len(live) == 64
    again = finder.found_among(made.model, made.params["base"], made.query, keys, live)
    np.testing.assert_allclose(again[:58], test_finding.found(made)[:58], atol=1e-4)


def test_reasons_are_of_old_blocks_that_are_shown_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(reasons, "EVERY", 1)
    monkeypatch.setattr(reasons, "LATE", 8)
    path, made = tmp_path / "reasons.jsonl", small.session()
    made.opened = made.opened._replace(tokenizer=Texts())
    told = reasons.Reasons(path)
    made.on_refocus = lambda session, report: told.refocused(session)
    made.ingest(small.text(40 * small.BLOCK))
    made.predict(small.text(6 * small.BLOCK, 1))
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert records
    for one in records:
        assert one["block"] < one["position"] // small.BLOCK - 8
        assert len(one["words"]) == len(one["pull"]) == made.model.lens.query
        start = one["block"] * small.BLOCK
        assert one["text"] == Texts().decode(made.tree.tokens(start, start + small.BLOCK))


def reason(block, utility, words=("if", " x", ":\n")):
    known = dict(position=160, of=4, text="a\n", pull=[0.0, 2.0, -1.0])
    return {**known, "block": block, "utility": utility, "words": words}


def test_a_page_tells_each_block_once_and_marks_the_words_that_pulled():
    many = [reason(block, 0.1 * block) for block in range(12)] + [reason(5, 9.0)]
    told = chosen(many)
    assert [one["block"] for one in told[:2]] == [5, 11] and len(told) == 8
    ((first, second, third),) = lines_of(reason(3, 1.0))
    assert first == (0, "if", 0.0) and second == (2, " x", 1.0) and third == (4, ":¶", 0.0)
    long = lines_of(reason(3, 1.0, ("a" * 100, "b" * 100, "c")))
    assert [[word[0] for word in line] for line in long] == [[0], [0, 100]]


def test_a_page_is_drawn_of_what_a_run_logged(tmp_path):
    layouts = [
        dict(position=p, level=[0, 1, 0], index=[0, 1, p // 4 - 1], shown=[True, True, True],
             fanouts=(4, 2, 2)) for p in (16, 160)
    ]  # fmt: skip
    scalars = [{"step": s, "refocus/swap_rate": 0.5, "refocus/coverage/8": 0.1} for s in (16, 160)]
    pictures.page(layouts, scalars, [reason(3, 1.0)], "title", tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as picture:
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 8
