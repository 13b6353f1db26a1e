"""eval: segments are what they say, rows follow from per-segment numbers, files are results."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.text import Document
from experiments import eval as evaluation
from experiments.report import load_result
from experiments.statistics import Interval, interval
from experiments.suites import base, choices, gists, results, rows
from experiments.suites.segments import Segments, cut, document_streams
from experiments.suites.texts import source_streams
from mctx.errors import UserError
from mctx.focus.bank import read_history
from mctx.models.base import Read, Rows
from mctx.tokenizer import Tokenizer
from tests import tiny
from tests.experiments import tiny_checkpoint
from tests.experiments.test_score import plain_nll

OPENED = tiny_checkpoint.opened()


def segments_of(tokens):
    return Segments(tokens, tuple(f"package {i // 2}" for i in range(len(tokens))))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_checkpoint.write(tmp_path_factory.mktemp("eval") / "bundle")


@given(st.lists(st.integers(0, 60), min_size=1, max_size=5), st.integers(1, 20), st.integers(1, 9))
def test_segments_lie_within_streams_and_apart(sizes, length, count):
    parts = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    streams = {str(number): part for number, part in enumerate(parts)}
    places = sum(size // length for size in sizes)
    if places < 2:
        with pytest.raises(UserError, match="more text"):
            cut(streams, length, count, 0)
        return
    found, names = cut(streams, length, count, 0)
    assert found.shape == (min(count, places), length)
    assert len(np.unique(found)) == found.size  # no token twice
    for segment, name in zip(found, names, strict=True):
        assert np.isin(segment, streams[name]).all()
        np.testing.assert_array_equal(np.diff(segment), 1)
    # In turns: no stream gives two more than another that could have given as many.
    given = {name: names.count(name) for name in streams}
    spare = [name for name, tokens in streams.items() if len(tokens) // length > given[name]]
    assert all(given[name] + 1 >= max(given.values()) for name in spare)


def test_a_bootstrap_draws_packages_where_there_are_several():
    tokens = np.zeros((3, 2), np.int32)
    many, one = Segments(tokens, ("b", "a", "b")), Segments(tokens, ("a", "a", "a"))
    np.testing.assert_array_equal(many.units, [1, 0, 1])
    np.testing.assert_array_equal(one.units, [0, 1, 2])
    assert many.interval.endswith("packages or authors") and one.interval.endswith("segments")


@given(st.lists(st.sampled_from("abcd"), min_size=2, max_size=24))
def test_everyone_has_a_partner_of_another_group_where_there_is_one(groups):
    partners = Segments(np.zeros((len(groups), 1), np.int32), tuple(groups)).partners
    assert len(partners) == len(groups)
    for at, other in enumerate(partners):
        assert groups[other] != groups[at] if len(set(groups)) > 1 else other != at


def test_documents_end_with_the_end_of_text(bundle, tmp_path):
    (tmp_path / "a.txt").write_text("w1 w2")
    tokenizer = Tokenizer.load(bundle)
    streams, notes = source_streams([str(tmp_path / "a.txt")], tmp_path, tokenizer, 0)
    (stream,) = streams.values()
    assert "nobody knows" in notes[0]
    np.testing.assert_array_equal(stream, [1, 2, tokenizer.eot_id])


def test_documents_of_an_author_are_joined_wherever_they_stand(bundle):
    tokenizer = Tokenizer.load(bundle)
    end = tokenizer.eot_id
    told = (("Bo", "w3"), ("Al", "w1 w2"), ("Bo", "w4"), ("Al", "w5"))
    streams = document_streams([Document(author, "", words) for author, words in told], tokenizer)
    assert list(streams) == ["Bo", "Al"]
    np.testing.assert_array_equal(streams["Bo"], [3, end, 4, end])
    np.testing.assert_array_equal(streams["Al"], [1, 2, end, 5, end])


@pytest.mark.parametrize("n", [1, 4, 6])
def test_batches_are_the_whole(n):
    tokens = np.arange(n * 3).reshape(n, 3)
    found = rows.in_batches(lambda one, two: {"sum": one.sum(axis=1) + two}, tokens, tokens[:, 0])
    np.testing.assert_array_equal(found["sum"], tokens.sum(axis=1) + tokens[:, 0])


def test_recovered_is_the_ratio_of_means_where_there_is_something_to_recover():
    none, full = np.array([3.0, 2.0, 3.0]), np.array([1.0, 1.0, 2.0])
    half = {"half": (none + full) / 2}
    groups = np.arange(3)
    recent, way, whole = rows.recovered_rows(none, full, half, groups, seed=0)
    assert (recent["recovered"], way["recovered"], whole["recovered"]) == (0, 0.5, 1)
    assert way["recovered_low"] == way["recovered_high"] == 0.5
    assert way["value"] == pytest.approx(2.0) and way["low"] < 2.0 < way["high"]
    assert "recovered" not in rows.recovered_rows(full, none, half, groups, seed=0)[1]
    unlike = np.array([2.0, 3.0, 2.0])  # of two groups, one gains nothing: nothing is told
    assert "recovered" not in rows.recovered_rows(unlike, full, half, groups // 2, seed=0)[1]


def test_base_nll_by_position_is_the_bases_own(monkeypatch):
    monkeypatch.setattr(base, "BORDERS", (0, 8, 32))
    tokens = np.asarray(tiny.tokens(5, base.length(tiny.MODEL)))
    found = base.measure(OPENED, segments_of(tokens), 0)["base"]
    names = ["position 0–8", "position 8–32", "position 32–62", "all positions"]
    assert [row["what"] for row in found[:4]] == names
    expected = np.mean([plain_nll(segment)[31:].mean() for segment in tokens])  # ids 32 to 61
    assert found[2]["value"] == pytest.approx(expected, abs=1e-4)
    assert found[2]["n"] == 5 and found[2]["low"] <= expected <= found[2]["high"]


def test_a_base_without_a_prefix_is_not_asked_for_the_first_token(monkeypatch):
    monkeypatch.setattr(base, "BORDERS", (0, 8, 32))
    bare = dataclasses.replace(tiny.MODEL, base=dataclasses.replace(tiny.BASE, prefix=()))
    opened = OPENED._replace(model=bare, params={"base": OPENED.params["base"]})
    tokens = np.asarray(tiny.tokens(4, base.length(bare)))
    told = base.measure(opened, segments_of(tokens), 0)["base"]
    found = {row["what"]: row["value"] for row in told}
    nll = np.asarray(base.tail_of_base(bare, tokens.shape[1], opened.params["base"], tokens))
    assert found["all positions"] == pytest.approx(nll.mean(), abs=1e-4)
    assert found["position 0–8"] == pytest.approx(nll[:, :7].mean(), abs=1e-4)
    assert found["position 8–32"] == pytest.approx(nll[:, 7:31].mean(), abs=1e-4)


def test_base_nll_of_the_same_tokens_behind_less_and_more():
    tokens = np.asarray(tiny.tokens(5, base.length(tiny.MODEL)))
    found = {r["what"]: r for r in base.measure(OPENED, segments_of(tokens), 0)["base"]}
    near = np.array([plain_nll(segment[-22:])[-7:].mean() for segment in tokens])
    far = np.array([plain_nll(segment)[-7:].mean() for segment in tokens])
    assert found["last 7, behind 15"]["value"] == pytest.approx(near.mean(), abs=1e-4)
    assert found["last 7, behind 55"]["value"] == pytest.approx(far.mean(), abs=1e-4)
    difference = found["last 7, difference"]
    assert difference["value"] == pytest.approx(np.mean(far - near), abs=1e-4)
    pairs = interval(far - near, segments_of(tokens).units)  # not of the texts
    assert difference["low"] == pytest.approx(pairs.low, abs=1e-3)
    assert difference["high"] == pytest.approx(pairs.high, abs=1e-3)


def test_gists_tell_every_level_and_full_sees_what_none_does_not():
    protocol = gists.Protocol(history=16, tail=8, scored=8, ratios=(8, 1))
    tokens = np.asarray(tiny.tokens(6, gists.length(tiny.MODEL, protocol)))
    found = gists.measure(OPENED, segments_of(tokens), 0, protocol)["gists"]
    near = "the last 8 as tokens"
    assert {row["what"]: row["entries"] for row in found} == {
        "recent": 0, "lod1": 4, "lod2": 2, "lod3": 1, near: 8, f"{near}, lod2 before": 9,
        "lod1 of another text": 4, "full": 16,
        **{f"{how} 1 in {n}": 16 // n for n in (8, 1) for how in gists.PLAIN},
    }  # fmt: skip
    untrained = {f"{how} 1 in {n}" for n in (8, 1) for how in gists.PLAIN}
    assert {row["what"] for row in found if not row["trained"]} == untrained
    value = {row["what"]: row["value"] for row in found}
    expected = np.mean([plain_nll(segment)[16:].mean() for segment in tokens])
    alone = np.mean([plain_nll(segment[16:]).mean() for segment in tokens])
    assert value["recent"] == pytest.approx(alone, abs=1e-4)
    for every in ("full", *(f"{how} 1 in 1" for how in gists.PLAIN)):  # all rows
        assert value[every] == pytest.approx(expected, abs=1e-4)  # law 2: one window is the base
    few = itertools.combinations([f"{how} 1 in 8" for how in gists.PLAIN], 2)
    pairs = ("lod1", "lod1 of another text"), (near, f"{near}, lod2 before")
    for some, other in (*few, *pairs):
        assert abs(value[some] - value[other]) > 1e-4


@given(st.integers(1, 3), st.sampled_from([1, 2, 4]), st.integers(0, 2**31))
@settings(max_examples=20)
def test_most_looked_at_are_the_best_of_each_stretch_in_order(stretches, count, seed):
    rng = np.random.default_rng(seed)
    layers, heads, of = 2, 2, 4
    worth = rng.permuted(np.arange(stretches * of * layers * heads, dtype=np.float32))
    worth = worth.reshape(1, stretches * of, layers, heads)
    where = np.broadcast_to(
        np.arange(stretches * of, dtype=np.float32)[:, None, None],
        (layers, 1, stretches * of, heads, 1),
    )
    kept = gists.most_looked_at(Rows(where, where), worth, of, count).k  # where each stood
    for layer, head, stretch in np.ndindex(layers, heads, stretches):
        mine = worth[0, stretch * of : (stretch + 1) * of, layer, head]
        best = np.sort(np.argsort(-mine)[:count]) + stretch * of
        found = kept[layer, 0, stretch * count : (stretch + 1) * count, head, 0]
        np.testing.assert_array_equal(found, best)


def test_rows_are_chosen_among_more_and_more_tokens(monkeypatch):
    protocol = gists.Protocol(history=16, tail=8, scored=8, ratios=(4, 1))
    tokens = np.asarray(tiny.tokens(6, gists.length(tiny.MODEL, protocol)))
    of = OPENED, segments_of(tokens), 0, protocol, (4, 8, 16)
    assert choices.measure(*of) == {}  # a drawn base gains nothing of which a share could be told
    monkeypatch.setattr(choices, "interval", lambda *_: Interval(1.0, 1.0, 1.0))
    found = choices.measure(*of)["choices"]
    value = {(r["view"], r["what"], r["among"]): r["value"] for r in found}
    wide = [("1 in 4", by, of) for by in choices.BY for of in (4, 8, 16)]
    assert set(value) == {*wide, *(("1 in 1", *where[1:]) for where in wide)}
    assert all(value["1 in 1", *where[1:]] == pytest.approx(1, abs=1e-3) for where in wide)
    told = gists.measure(OPENED, segments_of(tokens), 0, protocol)["gists"]
    nll = {row["what"]: row["value"] for row in told}
    room = nll["recent"] - nll["full"]
    for by, name in (("repetition", "repetition's"), ("hindsight", "hindsight")):  # of 4, a block's
        gained = nll["recent"] - nll[f"{name} 1 in 4"]
        assert value["1 in 4", by, 4] == pytest.approx(gained / room, abs=1e-3)
    assert len({round(value[where], 6) for where in wide}) == len(wide)


def test_the_last_tokens_look_back_as_who_reads_them_behind_the_rest(monkeypatch):
    monkeypatch.setattr(choices, "LAST", 4)
    model, params = OPENED.model, OPENED.params
    text = np.asarray(tiny.tokens(2, 16))
    rows, states, prefix = read_history(model, params, text)
    found = choices.looked_back(model, params, prefix, Read(None, rows, states))
    first = Rows(*(x[:, :, :12] for x in rows))
    wanted = gists.looks(model, params, prefix, first, text[:, 12:])
    np.testing.assert_allclose(found[:, :12], wanted, atol=1e-5)
    assert np.all(found[:, 12:-1].max(axis=(2, 3)) > 0)  # they look at each other too
    assert not np.any(found[:, -1])  # and not at themselves


def test_other_tokens_of_a_continuation_look_where_they_look():
    model, params = OPENED.model, OPENED.params
    rows, _, prefix = read_history(model, params, np.asarray(tiny.tokens(2, 16)))
    tail = np.asarray(tiny.tokens(2, 8)) % 7 + 1  # another text
    by_odd, by_even = choices.looked_by_others(model, params, prefix, rows, tail)
    every = gists.looks(model, params, prefix, rows, tail)
    np.testing.assert_allclose(np.maximum(by_odd, by_even), every, atol=1e-6)
    first = gists.looks(model, params, prefix, rows, tail[:, :1])
    assert np.all(by_even >= first - 1e-6)  # the first token is even
    assert np.any(by_odd < first - 1e-6)


def test_only_the_last_tokens_of_a_longer_tail_are_told_of():
    protocol = gists.Protocol(history=16, tail=8, scored=3, ratios=(1,))
    tokens = np.asarray(tiny.tokens(4, gists.length(tiny.MODEL, protocol)))
    found = gists.far(OPENED, segments_of(tokens), 0, protocol)["gists_far"]
    expected = np.mean([plain_nll(segment)[-3:].mean() for segment in tokens])
    assert found[-1]["value"] == pytest.approx(expected, abs=1e-4)


def test_blocks_are_told_again_from_their_own_gists_alone():
    protocol = gists.Protocol(history=8)
    tokens = np.asarray(tiny.tokens(4, 9))
    alone, behind = gists.said_again(OPENED, segments_of(tokens), 0, protocol)
    blocks = tokens[:, :8].reshape(-1, tiny.GIST.block)
    expected = np.mean([plain_nll(block).mean() for block in blocks])
    assert alone["value"] == pytest.approx(expected, abs=1e-4)
    assert abs(behind["value"] - alone["value"]) > 1e-4
    assert 0 <= behind["accuracy"] <= 1 and behind["entries"] == tiny.GIST.entries[0]


def test_gists_of_another_text_are_those_of_the_partner_s_history():
    """Of five segments, so that the last batch is padded, in groups larger than a step aside."""
    protocol = gists.Protocol(history=16, tail=8, scored=8, ratios=(8,))
    tokens = np.asarray(tiny.tokens(5, gists.length(tiny.MODEL, protocol)))
    segments = Segments(tokens, ("a", "a", "a", "b", "b"))
    history = tokens[segments.partners, : protocol.history]
    swapped = np.concatenate([history, tokens[:, protocol.history :]], axis=1)

    def told(tokens):
        found = gists.measure(OPENED, segments._replace(tokens=tokens), 0, protocol)["gists"]
        return {row["what"]: row["value"] for row in found}

    strange = told(tokens)["lod1 of another text"]
    assert strange == pytest.approx(told(swapped)["lod1"], abs=1e-5)


def test_results_are_written_for_what_the_checkpoint_can_do(
    bundle, tmp_path, capsys, monkeypatch
):
    (tmp_path / "in.txt").write_text(tiny_checkpoint.text(400))
    arguments = [
        f"--checkpoint={bundle}",
        f"--input={tmp_path / 'in.txt'}",
        f"--out={tmp_path / 'eval'}",
        f"--json={tmp_path / 'all.json'}",
        "--smoke",
    ]
    # Where files differ from the commit, all is measured again.
    monkeypatch.setattr(results.entry, "git_commit", lambda: "4f2bbbb")
    evaluation.main(arguments)
    printed = capsys.readouterr()
    assert "gists: left out" in printed.err and "lens: left out" in printed.err
    assert {path.name for path in (tmp_path / "eval").iterdir()} == {"base.json", "segments.jsonl"}
    result = load_result(tmp_path / "eval" / "base.json")
    assert result["name"] == "base" and result["rows"][0]["n"] == evaluation.SMOKE_SEGMENTS
    everything = load_result(tmp_path / "all.json")
    assert everything["rows"][0]["what"] == f"base: {result['rows'][0]['what']}"
    again = base.SUITE._replace(measure=None)  # run again, nothing is measured again
    monkeypatch.setitem(evaluation.SUITES, "base", again)
    evaluation.main(arguments)
    assert load_result(tmp_path / "eval" / "base.json")["rows"] == result["rows"]


@pytest.mark.parametrize(
    "more, says",
    [
        (["--input=/nowhere"], "no file or folder"),
        (["--corpus=/nowhere"], "no corpus"),
        ([], "does not say what it was trained on"),
        (["--step=7"], "at step 7"),
        (["--step=new"], "step"),
        (["--segments=1"], "two segments"),
        (["--corpus=a", "--input", "b"], "not allowed with"),
    ],
)
def test_bad_arguments_are_refused_in_words(bundle, tmp_path, more, says):
    with pytest.raises(UserError, match=says):
        evaluation.main([f"--checkpoint={bundle}", f"--out={tmp_path}", *more])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("where", ["--out=", "--json="])
def test_a_place_that_cannot_be_written_is_refused_before_the_work(bundle, tmp_path, where):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is a file, where a folder is needed"):
        evaluation.main([f"--checkpoint={bundle}", f"{where}{tmp_path / 'file' / 'x.json'}"])
