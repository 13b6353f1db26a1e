"""Suites of trials: the same question to every method, kept as it goes, told as it was."""

import dataclasses
import functools
import itertools
import json
import types

import numpy as np
import pytest

from data.tasks.sample import rule_score
from experiments import eval as evaluation
from experiments import report
from experiments.methods import Protocol, Scorer
from experiments.suites import (
    Suite,
    blocks,
    descent,
    edits,
    kv,
    labels,
    lens,
    long_nll,
    results,
    retrieval,
    robustness,
    shift,
    trials,
)
from experiments.suites.asking import covered, measure_rows, runs
from experiments.suites.below import below_random
from experiments.suites.records import Log, fingerprints
from experiments.suites.texts import Stream
from experiments.suites.trials import Plan
from experiments.suites.views import share
from mctx.models.base import token_nll
from mctx.models.wrapped import read
from mctx.opened import open_checkpoint
from mctx.tree.ingest import Reader
from tests.experiments import tiny_checkpoint
from tests.experiments.test_eval import segments_of

LENGTH, BUDGET = 640, 64


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_checkpoint.write_reader(tmp_path_factory.mktemp("suites") / "bundle")


@pytest.fixture(scope="module")
def plan(bundle):
    opened = open_checkpoint(bundle, ("base", "gistnet", "lensnet"))
    reader = Reader(opened.model, opened.params)
    return Plan(opened, reader, Protocol(budget=BUDGET), ("lens", "handed"), (LENGTH,))


def arguments(bundle, out, *more):
    sizes = [f"--lengths={LENGTH}", f"--budget={BUDGET}", "--smoke"]
    return [f"--checkpoint={bundle}", f"--out={out}", *sizes, *more]


def book(author, seed):
    rng = np.random.default_rng(seed)
    words = ["sea", "ship", "wind", "old", "captain", "said", "night", "and", "the", "of"]
    return {"author": author, "text": " ".join(rng.choice(words, 2400))}


@pytest.fixture(scope="module")
def books(tmp_path_factory):
    path = tmp_path_factory.mktemp("books") / "books.jsonl"
    lines = [book(author, seed) for seed, author in enumerate(["Ann", "Bob"])]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def make_short(monkeypatch):
    """The suites that take long, with as many blocks as on a real base, which has larger ones."""
    sizes = {"history": 48 * 4, "seen": 8 * 4, "scored": 8 * 4}
    short = {
        "lens": (lens, {"protocol": blocks.Protocol(**sizes)}),
        "labels": (labels, {"protocol": labels.Single(**sizes)}),
        "robustness": (robustness, {"protocol": robustness.Harm(**sizes)}),
        "shift": (shift, {"turn": shift.Turn(before=24, away=24, streamed=4, back=4)}),
    }
    for name, (module, how) in short.items():
        (one,) = how.values()
        measure = functools.partial(module.measure, **how)
        suite = module.SUITE._replace(measure=measure, length=getattr(one, "fits", one.length))
        monkeypatch.setitem(evaluation.SUITES, name, suite)


def test_every_suite_has_a_smoke_run_and_its_report(books, tmp_path, capsys, monkeypatch):
    make_short(monkeypatch)
    bundle = tiny_checkpoint.write_reader(tmp_path / "bundle", window=2048)
    more = ["--methods", "lens", "--suite", "all", "--label=small"]
    evaluation.main(arguments(bundle, tmp_path / "eval", f"--input={books}", *more))
    for name in ("base", "gists", "lens", "lens-gap", "labels", "robustness", "shift"):
        result = report.load_result(tmp_path / "eval" / f"{name}-small.json")
        assert result["name"] == f"{name}-small"
        assert result["rows"] and result["records"]["file"] == results.SEGMENTS
    for name in evaluation.ASKING:
        result = report.load_result(tmp_path / "eval" / f"{name}-small.json")
        assert result["name"] == f"{name}-small"
        lines = (tmp_path / "eval" / result["records"]["file"]).read_text().splitlines()
        assert len(lines) == result["records"]["count"] > 0
        assert {json.loads(line)["settings"] for line in lines} == {result["records"]["settings"]}
        assert set(result["settings"]["fingerprints"]) == {"base", "gistnet", "lensnet"}
        assert result["plan"]["budget"] == BUDGET
        assert "lens" in {cost["what"] for cost in result["costs"]}
        bounded = [cost for cost in result["costs"] if cost["what"] != "full"]
        assert all(cost["entries"] <= BUDGET for cost in bounded)
        methods = {row["what"] for row in result["rows"]}
        if name == "descent":
            assert methods == {descent.DESCENT, descent.FULL}
            continue
        assert "lens" in methods
        assert ("handed" in methods) == (name != "long_nll")  # beside each retrieval result
    named = ("long_nll", "kv", "labels", "robustness", "descent")
    drawn = [str(tmp_path / "eval" / f"{name}-small.json") for name in named]
    report.main([*drawn, "--out", str(tmp_path / "report")])
    made = {path.name for path in (tmp_path / "report").iterdir()}
    assert {"kv-small.md", "long_nll-small.md", "long_nll-small-nll-books.jsonl.png"} <= made
    assert {"labels-small-calibration-lens.png", "robustness-small-noise_delta.png"} <= made
    kv = {"kv-small-overall-cost.png", "kv-small-focus-kv.png"}
    assert kv | {f"kv-small-accuracy-{LENGTH}.png"} <= made
    assert "Share of the supporting blocks" in capsys.readouterr().out


def test_a_killed_run_goes_on_at_the_next_sample(plan, tmp_path, monkeypatch):
    small = dataclasses.replace(plan, depths=(0.0, 1.0), samples=2)
    asked, measured = [], Scorer.answer
    stop = 40

    def counted(self, method, tail, count, support=()):
        if len(asked) == stop:
            raise KeyboardInterrupt
        asked.append(method)
        return measured(self, method, tail, count, support)

    def run(out):
        asked.clear()
        path = results.ask("kv", kv.SUITE, small, "command", tmp_path / out, [])
        return report.load_result(path)

    monkeypatch.setattr(Scorer, "answer", counted)
    with pytest.raises(KeyboardInterrupt):
        run("a")
    before = (tmp_path / "a/kv.jsonl").read_text()
    with (tmp_path / "a/kv.jsonl").open("a") as torn:
        torn.write('{"settings": "a ki')
    stop = None
    resumed, fresh = run("a"), len(asked)
    assert before and (tmp_path / "a/kv.jsonl").read_text().startswith(before)
    run("a")
    assert not asked  # all is known
    whole = run("b")
    assert 0 < fresh < len(asked)
    assert resumed["rows"] == whole["rows"]


def test_other_weights_settings_and_lengths_do_not_share_records(tmp_path):
    weights = {"base": {"a": np.zeros(3)}}
    moved = {"base": {"a": np.array([0, 0, 1e-7])}}
    assert fingerprints(weights) != fingerprints(moved)
    log = Log(tmp_path / "x.jsonl", {"weights": 1})
    log.add({"length": 8, "method": "lens"}, {"exact": np.int64(1)})
    log.add({"length": 8, "method": "full"}, None)
    again, other = (Log(tmp_path / "x.jsonl", {"weights": n}) for n in (1, 2))
    assert again.get({"method": "lens", "length": 8})["found"] == {"exact": 1}
    assert again.get({"method": "full", "length": 8})["found"] is None
    assert again.get({"length": 9, "method": "lens"}) is None
    assert other.get({"length": 8, "method": "lens"}) is None


def test_all_methods_are_asked_for_the_same_and_scored_by_what_they_say(plan):
    facts = retrieval.trials(plan)[2]
    trial = retrieval.make(plan, facts)
    seen = {}

    class Spy(Scorer):
        def answer(self, method, tail, count, support=()):
            seen.setdefault(method, []).append((tuple(tail), count))
            return super().answer(method, tail, count, support)

    spy = Spy(plan.opened, trial.history(), plan.protocol, plan.reader)
    found = {method: trial.ask(spy, method) for method in plan.methods}
    assert seen["lens"] == seen["handed"] and len(seen["lens"]) == 8  # and seven that are wrong
    tail = np.array(seen["lens"][0][0], np.int32)
    np.testing.assert_array_equal(tail, trial.tail)
    for method, one in found.items():
        said = spy.continuation(method, tail[:1], len(tail) - 1, trial.support)
        assert one["exact"] == int((said == tail[1:]).all())
        assert one["nll"] == pytest.approx(float(spy.nll(method, tail, trial.support).sum()))
        assert one["rank"] == 1 + sum(np.array(one["nll_of_others"]) <= one["nll"])
        assert one["rule"] == rule_score("all", one["said"], [one["right"]])
    assert found["handed"]["in_focus"] == 1.0
    shown = spy.layout("handed", None, trial.support)
    assert found["handed"]["blocks"] == runs(shown)
    assert covered(trial.support, shown, plan.block) == 1.0


def test_what_was_in_focus_is_told_in_blocks():
    assert runs(np.array([0, 1, 2, 5, 7, 8])) == [[0, 3], [5, 6], [7, 9]]
    assert runs(np.array([], int)) == []
    assert covered([(3, 9), (16, 17)], np.array([0, 2]), 4) == 0.5 * 2 / 2  # blocks 0, 1, 2, 4
    assert covered([], np.array([0]), 4) is None


def test_the_same_segments_are_scored_at_every_length(plan):
    tokens = np.arange(2000, dtype=np.int32)
    streams = tuple(Stream("s", group, tokens) for group in "ab")
    some = dict(lengths=(64, 256), samples=3, budgets=(32,), streams=streams)
    wide = dataclasses.replace(plan, **some)
    facts = long_nll.trials(wide)
    made = [long_nll.make(wide, one) for one in facts]
    for (_, _group, place), members in itertools.groupby(
        zip(facts, made, strict=True), lambda pair: long_nll._segment(pair[0])
    ):
        one = list(members)
        assert [(f["length"], f["budget"]) for f, _ in one] == [(64, 32), (64, 64), (256, 64)]
        for f, trial in one:
            np.testing.assert_array_equal(trial.tail, tokens[place : place + wide.tail])
            np.testing.assert_array_equal(trial.history(), tokens[place - f["length"] : place])
    for group in "ab":
        places = sorted({f["place"] for f in facts if f["group"] == group})
        assert len(places) == 3 and min(places) >= 256
        assert (np.diff(places) >= wide.tail).all() and max(places) + wide.tail <= len(tokens)


def test_long_nll_of_full_attention_is_the_plain_bases(plan):
    tokens = np.random.default_rng(0).integers(1, 31, 400).astype(np.int32)
    wide = dataclasses.replace(plan, streams=(Stream("s", "a", tokens),), tail=16)
    facts = {"source": "s", "group": "a", "place": 40, "length": 32, "budget": BUDGET}
    trial = long_nll.make(wide, facts)
    found = trial.ask(Scorer(plan.opened, trial.history(), plan.protocol, plan.reader), "full")
    model, params = plan.opened.model, plan.opened.params
    read_at_once = np.array([[*model.base.prefix, *tokens[8:56]]], np.int32)
    positions = np.arange(read_at_once.shape[1], dtype=np.int32)[None]
    hidden = read(model, params, read_at_once, positions).hidden
    nll = token_nll(params["base"], hidden[:, :-1], read_at_once[:, 1:])
    np.testing.assert_allclose(found["each"], nll[0, -15:], atol=1e-4)
    assert found["nll"] == pytest.approx(float(nll[0, -15:].mean()), abs=1e-4)


def record(method, nll, group="a", length=64, budget=32, defined=True, place=1):
    facts = dict(source="s", group=group, place=place, length=length, budget=budget)
    return {"method": method, "nll": nll, "defined": defined, **facts}


def test_long_nll_tells_recovered_where_it_is_defined(plan):
    wide = types.SimpleNamespace(seed=0, protocol=Protocol(budget=64), lengths=(64, 256))
    groups = [
        [
            record("recent", 3.0 + shift, group),
            record("recent", 2.75 + shift, group, budget=64),
            record("sinks+recent", 2.5 + shift, group, budget=64),
            record("lens", 2.25 + shift, group, budget=64),
            record("full", 2.0 + shift, group),
            record("full", 2.0 + shift, group, budget=64),
            record("lens", 2.0 + shift, group, length=256, budget=64),
            record("full", None, group, length=256, budget=64, defined=False),
        ]
        for group, shift in (("a", 0.0), ("b", 0.5))
    ]
    found = long_nll.rows(sum(groups, []), wide)
    by = {(r["view"], r["what"], r.get("length", r.get("budget"))): r for r in found}
    assert by["nll", "lens", 64]["value"] == 2.5 and by["nll", "lens", 64]["groups"] == 2
    low, high = (by["nll", "lens", 64][end] for end in ("low", "high"))
    assert low < 2.25 and high > 2.75 and low + high == pytest.approx(5)  # wider than two groups
    assert by["delta", "lens", 64]["value"] == -0.25
    assert by["recovered", "lens", 64]["value"] == 0.75  # 0 is the least recent window: 3.0
    assert by["recovered", "recent", 64]["value"] == 0.25
    assert by["recovered", "full", 32]["value"] == 1.0
    assert ("nll", "full", 256) not in by and ("delta", "lens", 256) not in by
    flat = [r | {"nll": 2.0} for r in sum(groups, []) if r["defined"]]
    assert not [r for r in long_nll.rows(flat, wide) if r["view"] == "recovered"]


def test_what_is_clearly_worse_than_random_blocks_is_named():
    def one(method, exact, text, **more):
        where = {"text": text, "length": 64, "budget": 32, "defined": True, **more}
        return {"method": method, "exact": exact, "nll": 1.0 - exact, **where}

    hits = (1, 0, 1, 1, 1, 0)
    records = [one("random", hit, text) for text, hit in enumerate(hits)]
    records += [one("lens", hit, text) for text, hit in enumerate(hits)]
    assert "No method" in below_random(records, "exact", "higher", 0)[0]
    poor = records + [one("bm25", 0, text) for text in range(6)]
    for measure, better in (("exact", "higher"), ("nll", "lower")):
        (note,) = below_random(poor, measure, better, 0)
        assert "by: bm25 0.67 [" in note and "(64 tokens, 32 entries)" in note
        assert "lens" not in note
    assert "No method" in below_random(poor, "exact", "lower", 0)[0]  # it is told apart by sign
    few = [r | {"group": r["text"] % 3} for r in poor]
    assert below_random(few, "exact", "higher", 0) == []  # three packages make no interval
    assert below_random(poor[6:], "exact", "higher", 0) == []


def test_a_replaced_document_is_read_as_if_it_had_always_been_there(plan):
    facts = {"seed": 3, "length": LENGTH, "depth": 0.5, "state": "after"}
    trial = edits.make(plan, facts)
    made = edits.whole_windows(plan, facts)
    tree = trial.history()
    prompt = made.after.prompt[:-1]
    np.testing.assert_array_equal(tree.tokens(0, tree.length), prompt)
    edited = Scorer(plan.opened, tree, plan.protocol, plan.reader)
    fresh = Scorer(plan.opened, prompt, plan.protocol, plan.reader)
    for method in ("sinks+recent", "lens", "handed"):
        one, other = (s.nll(method, trial.tail, trial.support) for s in (edited, fresh))
        np.testing.assert_allclose(one, other, atol=2e-4)
    before = edits.make(plan, {**facts, "state": "before"})
    assert before.text != trial.text and len(before.history()) == len(prompt)


def test_an_edit_is_followed_only_where_both_answers_are_right():
    def answer(state, exact, nll=1.0, other=2.0, **more):
        where = {"method": "lens", "length": 8, "seed": 0, "state": state, "defined": True}
        return {**where, "exact": exact, "nll": nll, "nll_of_others": [other], **more}

    pair = [answer("before", 1), answer("after", 1, other=0.5)]
    assert [r["followed"] for r in edits.both(pair)] == [1]
    assert [r["stale"] for r in edits.stale(pair)] == [1]
    missed = [answer("before", 0), answer("after", 1)]
    assert [r["followed"] for r in edits.both(missed)] == [0]
    assert edits.both(pair[:1]) == []


def test_shares_of_few_hits_keep_an_interval():
    some = share(np.ones(5), 0)
    assert some.value == some.high == 1 and some.low == pytest.approx(5 / (5 + 1.959964**2))
    half = share(np.array([0, 1, 0, 1]), 0)
    assert half.low + half.high == pytest.approx(1) and 0.1 < half.low < 0.5
    part = share(np.array([0.25, 0.75, 0.5]), 0)
    assert part.value == 0.5 and 0 <= part.low < 0.3 and 0.7 < part.high <= 1
    thrice, alone = np.repeat([1.0, 0.0, 1.0], 3), np.array([1.0, 0.0, 1.0])
    assert share(thrice, 0, np.repeat(np.arange(3), 3)) == share(alone, 0)  # alike in their group


def test_samples_of_one_text_count_as_one_in_what_is_told_of_all():
    def rows(positions):
        of = {"method": "lens", "defined": True, "length": 8}
        pairs = itertools.product(range(4), range(positions))
        some = [of | {"seed": s, "position": p, "exact": s % 2} for s, p in pairs]
        return [r for r in measure_rows(some, "position", 0, "length") if r["view"] == "overall"]

    (one,), (five,) = rows(1), rows(5)
    assert (one["n"], five["n"]) == (4, 20)
    assert [one[end] for end in ("low", "high")] == [five[end] for end in ("low", "high")]


@pytest.mark.parametrize(("commit", "again"), [("4f2bbbb", 1), ("4f2bbbb+", 2), ("unknown", 2)])
def test_segments_are_measured_anew_by_code_that_no_commit_holds(
    commit, again, tmp_path, monkeypatch
):
    monkeypatch.setattr(results.entry, "git_commit", lambda: commit)
    segments, opened = segments_of(np.ones((2, 4), np.int32)), tiny_checkpoint.opened()
    for version in (1, 2):
        measure = functools.partial(lambda found, *_: {"base": [{"what": found}]}, version)
        suite = Suite(("base",), lambda model: 4, measure)
        found, _ = results.measured("base", suite, opened, segments, 0, tmp_path)
    assert found == {"base": [{"what": again}]}


def test_a_trial_without_parts_is_left_out(plan):
    assert trials.available(plan.opened, ("lens", "two heads")) == ("lens",)
