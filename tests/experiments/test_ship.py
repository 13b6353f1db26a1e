"""Shipping: new parts on those of a checkpoint, what is said of them, and what is refused."""

import dataclasses
import json
import re
import shutil

import jax
import numpy as np
import pytest

from data import minhash
from data.provenance import provenance, shipped_provenance, union
from experiments import ship
from mctx import checkpoint
from mctx.errors import UserError
from tests import tiny
from tests.experiments.tiny_checkpoint import SHIPPED, tokenizer_json

MODEL = tiny.MODEL.to_dict()
REACHED = {"base": (1.0, 2.0), "gist": (1.5, 2.0), "lens": (0.5, 0.25), "mof": (1.75, 1.5)}
OLD = "def old(x):\n    return x + 1\n" * 9
NEW = "class New:\n    value = 3\n" * 9


def corpus(folder, domain, text, name, tokenizer=None):
    """What is told of a corpus of one text: there is no need for its tokens here."""
    part = folder / domain / "train"
    part.mkdir(parents=True)
    package = {"name": name, "version": "1", "files": 1, "tokens": len(text), "sha256": name * 9}
    (part / "manifest.json").write_text(
        json.dumps({"tokens": len(text), "documents": 1, "packages": [package]})
    )
    np.save(part / "sketch.npy", minhash.sketch(minhash.signature(text)[None]))
    (part / "tokenizer.json").write_bytes(tokenizer or tokenizer_json())
    return folder


def train(workdir, phase, seed=1, **config):
    """A phase as training leaves it: a step of its item, and metrics."""
    item = ship.ITEM[phase]
    params = tiny.drawn(tiny.MODEL, item, seed)
    with checkpoint.manager(workdir / phase) as manager:
        checkpoint.save(manager, 9, item, params, {"n": np.zeros(1)}, MODEL | config)
    measure, control, _ = ship.JUDGED[phase]
    value, without = REACHED[phase]
    rows = [{"step": 3, "steps_per_s": 0.05}, {"step": 9, "steps_per_s": 0.05}]
    rows[-1] |= {measure: value, control: without}
    (workdir / phase / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return params


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A workdir of all phases, a corpus, and the checkpoint that was made of them."""
    root = tmp_path_factory.mktemp("whole")
    for phase in ship.JUDGED:
        train(root / "phases", phase)
    there = corpus(root / "corpus", "code", OLD, "old")
    ship.ship(root / "phases", there, root / "shipped", "two H200")
    return root


@pytest.fixture
def bare(whole, tmp_path):
    """The same checkpoint as it was made before hardware was recorded."""
    init = tmp_path / "init"
    shutil.copytree(whole / "shipped", init)
    path = init / "0/config/metadata"
    config = json.loads(path.read_text())
    for judged in config["trained"].values():
        del judged["hardware"]
    path.write_text(json.dumps(config))
    return init


def trained_of(init):
    return {"trained": checkpoint.read_config(init, 0)["trained"]}


def test_all_phases_of_a_workdir_are_judged_and_shipped(whole):
    config = checkpoint.read_config(whole / "shipped", 0)
    assert {p: j["value"] for p, j in config["trained"].items()} == {
        phase: value for phase, (value, _) in REACHED.items()
    }
    assert [j["better"] for j in config["trained"].values()] == [True, True, True, False]
    assert {j["minutes"] for j in config["trained"].values()} == {3.0}
    assert "Hardware: two H200." in (whole / "shipped/CARD.md").read_text()


def test_what_was_trained_on_a_lora_is_not_shipped_without_it(whole, tmp_path):
    shutil.copytree(whole / "phases", tmp_path / "w")
    shutil.rmtree(tmp_path / "w/mof")
    train(tmp_path / "w", "mof", 2, lora={"rank": 1, "along": True})
    with pytest.raises(UserError, match="'mof' of .* with --config.with_lora=False"):
        ship.ship(tmp_path / "w", whole / "corpus", tmp_path / "out", "here")
    assert not (tmp_path / "out").exists()


def test_time_between_a_stop_and_its_resumption_is_not_counted():
    rows = [{"step": 10, "time": 60.0, "steps_per_s": 0.5}, {"step": 15, "time": 95.0},
            {"step": 20, "time": 86400.0, "steps_per_s": 0.25}]
    assert ship.seconds(rows) == 20 + 40
    assert ship.seconds(rows[1:2]) == 0


def test_a_base_is_judged_by_the_end_of_its_window():
    rows = [{"eval/nll": 1, "eval/nll_0_128": 1}, {"eval/nll_1024_4095": 1, "eval/nll_128_1024": 1,
            "eval/nll_1024_4095/code": 1}]
    assert ship.measure_of("base", rows) == "eval/nll_1024_4095"
    assert ship.measure_of("mof", rows) == "eval/nll"


def test_nothing_is_said_of_a_base_that_was_imported(whole, tmp_path):
    base = {"base": tiny.drawn(tiny.MODEL, "base")}
    checkpoint.save_bundle(tmp_path / "w/base", base, {"base": MODEL["base"]}, {})
    for phase in ("gist", "lens", "mof"):
        train(tmp_path / "w", phase)
    told = ship.ship(tmp_path / "w", whole / "corpus", tmp_path / "out", "one H200")
    assert list(told["trained"]) == ["gist", "lens", "mof"]
    card = (tmp_path / "out/CARD.md").read_text()
    assert "An imported base" in card and re.search(r"base \(base\) \| [\d,]+ \| imported \|", card)
    train(tmp_path / "v", "mof", 2, trained=json.loads(json.dumps(told["trained"])))
    again = ship.ship(tmp_path / "v", whole / "corpus", tmp_path / "on", "", tmp_path / "out")
    assert list(again["trained"]) == ["gist", "lens", "mof"]


def test_what_cannot_be_judged_is_not_shipped(whole, tmp_path):
    shutil.copytree(whole / "phases", tmp_path / "w")
    metrics = tmp_path / "w/lens/metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('captured_lens": 0.5', 'captured_lens": null'))
    with pytest.raises(UserError, match="of phase 'lens' of .* has no number for eval/captured"):
        ship.ship(tmp_path / "w", whole / "corpus", tmp_path / "out", "")
    for phase in ("lens", "base"):
        (tmp_path / "w" / phase / "metrics.jsonl").unlink()
        with pytest.raises(UserError, match=f"train phase '{phase}' there"):
            ship.ship(tmp_path / "w", whole / "corpus", tmp_path / "out", "")


def test_a_corpus_with_another_tokenizer_is_not_that_of_the_phases(whole, tmp_path):
    shutil.copytree(whole / "phases", tmp_path / "w")
    file = tmp_path / "w/gist/tokenizer.json"
    file.write_bytes(tokenizer_json(30))
    with pytest.raises(UserError, match="another tokenizer than phase 'gist'"):
        ship.ship(tmp_path / "w", whole / "corpus", tmp_path / "out", "")
    file.write_bytes(tokenizer_json())
    ship.ship(tmp_path / "w", whole / "corpus", tmp_path / "out", "")


def test_what_went_on_behind_its_evaluation_is_not_shipped(whole, tmp_path):
    shutil.copytree(whole / "phases", tmp_path / "w")
    with checkpoint.manager(tmp_path / "w/mof") as manager:
        params = tiny.drawn(tiny.MODEL, "mof", 3)
        checkpoint.save(manager, 12, "mof", params, {"n": np.zeros(1)}, MODEL)
    with pytest.raises(UserError, match="judged at step 9 and stopped at 12: finish it"):
        ship.ship(tmp_path / "w", whole / "corpus", tmp_path / "out", "here")


@pytest.mark.parametrize("new", [("mof",), ("gist", "lens", "mof")])
def test_what_a_workdir_lacks_is_the_checkpoints_as_it_is(bare, tmp_path, new):
    fresh = {ship.ITEM[p]: train(tmp_path / "w", p, 2, **trained_of(bare)) for p in new}
    there = corpus(tmp_path / "corpus", "books", NEW, "new")
    told = ship.ship(tmp_path / "w", there, tmp_path / "out", "one H200", bare)
    before, _ = checkpoint.load_items(bare, ship.ITEMS)
    after, config = checkpoint.load_items(tmp_path / "out", ship.ITEMS)
    rounded = jax.tree.map(lambda x: x.astype("bfloat16").astype("float32"), fresh)
    assert jax.tree.all(jax.tree.map(np.array_equal, after, before | rounded))
    assert config == json.loads(json.dumps(told)) and list(config["trained"]) == list(ship.JUDGED)
    assert {name: config[name] for name in MODEL} == json.loads(json.dumps(MODEL))
    for phase, judged in config["trained"].items():
        assert judged["hardware"] == ("one H200" if phase in new else "not recorded")
    card = (tmp_path / "out/CARD.md").read_text()
    old = ", ".join(phase for phase in ship.JUDGED if phase not in new)
    assert f"Hardware: not recorded ({old}); one H200 ({', '.join(new)})." in card
    assert "Trained on (books): new==1." in card and "Trained on (code): old==1." in card
    signatures = np.stack([minhash.signature(text) for text in (OLD, NEW, "another " * 50)])
    sketch = shipped_provenance(tmp_path / "out")[1]
    assert minhash.in_sketch(sketch, signatures).tolist() == [True, True, False]


WIDER = dataclasses.replace(tiny.MODEL, base=dataclasses.replace(tiny.BASE, rope_theta=7.0))
FINER = dataclasses.replace(tiny.MODEL, window=32)


@pytest.mark.parametrize(
    ("phases", "config", "why"),
    [
        ((), {}, "nothing new to ship"),
        (("gist",), {}, "has a new gist, which the lens of .* was not trained with"),
        (("lens",), {}, "has a new lens, which the mof of .* was not trained with"),
        (("mof",), WIDER.to_dict(), "trained on another base than that of .*init"),
        (("mof",), FINER.to_dict(), "trained on another gist than that of .*init"),
        (("mof",), {"trained": {}}, "trained on another base than that of .*init"),
        (("mof", "lens"), {}, "the mof of .* was trained on another lens than that of .*w"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(bare, tmp_path, phases, config, why):
    for phase in phases:  # in this order of time
        train(tmp_path / "w", phase, **trained_of(bare) | config)
    there = corpus(tmp_path / "corpus", "code", NEW, "new")
    with pytest.raises(UserError, match=why):
        ship.ship(tmp_path / "w", there, tmp_path / "out", "", bare)
    assert not (tmp_path / "out").exists()


def test_settings_that_an_old_checkpoint_lacks_are_as_ever(bare, tmp_path):
    path = bare / "0/config/metadata"
    config = json.loads(path.read_text())
    assert config["gist"].pop("refine") == 0 and config["lens"].pop("finders") == []
    path.write_text(json.dumps(config))
    train(tmp_path / "w", "mof", **trained_of(bare))
    there = corpus(tmp_path / "corpus", "code", NEW, "new")
    ship.ship(tmp_path / "w", there, tmp_path / "out", "", bare)


def test_only_a_shipped_checkpoint_lends_its_parts(whole, tmp_path):
    train(tmp_path / "w", "mof", **trained_of(whole / "shipped"))
    there = corpus(tmp_path / "corpus", "code", NEW, "new")
    with pytest.raises(UserError, match="another base than that of .*phases"):
        ship.ship(tmp_path / "w", there, tmp_path / "out", "", whole / "phases")
    train(tmp_path / "v", "mof")
    with pytest.raises(UserError, match="does not say what its base reached"):
        ship.ship(tmp_path / "v", there, tmp_path / "out", "", whole / "phases")
    with pytest.raises(UserError, match=r"was not shipped, it has no manifest\.json"):
        shipped_provenance(whole / "phases")
    with pytest.raises(UserError, match="train phase 'base' there"):
        ship.ship(tmp_path / "w", there, tmp_path / "out", "")


def test_what_two_corpora_share_is_told_once(tmp_path):
    first = provenance(corpus(tmp_path / "a", "code", OLD, "old"))
    folder = corpus(tmp_path / "b", "code", NEW, "new")
    second = provenance(corpus(folder, "books", OLD, "old"))
    manifest, sketch, _ = union(first, second)
    named = [(package["domain"], package["name"]) for package in manifest["packages"]]
    assert named == [("code", "old"), ("code", "new")]  # it is code, whatever else it is called
    assert manifest["domains"]["code"]["tokens"] == len(OLD) + len(NEW)
    assert manifest["domains"]["code"]["before"] == first[0]["domains"]["code"]
    assert np.array_equal(sketch, first[1] | second[1])
    other = provenance(corpus(tmp_path / "c", "code", NEW, "new", tokenizer_json(40)))
    with pytest.raises(UserError, match="another tokenizer"):
        union(first, other)


def test_what_was_shipped_is_the_union_with_itself():
    told = shipped_provenance(SHIPPED)
    again = union(told, told)
    assert again[0] == told[0] and again[2] == told[2] and np.array_equal(again[1], told[1])


def test_questions_are_told_of_like_tasks(tmp_path):
    folder = corpus(tmp_path / "a", "code", OLD, "old")
    asked = folder / "questions/train"
    asked.mkdir(parents=True)
    np.save(asked / "support.npy", np.zeros((2, 3), bool))
    about = {"count": 2, "length": 4, "tail": 2, "seed": 0}
    place = tmp_path.parent / "elsewhere/code/train"
    (asked / "manifest.json").write_text(json.dumps(about | {"hay": [str(place)]}))
    manifest, _, _ = provenance(folder)
    assert manifest["tokens"] == len(OLD) + 12 and str(tmp_path.parent) not in json.dumps(manifest)
    assert [p["name"] for p in manifest["packages"]] == ["old", "questions 0"]
    trained = {p: dict(measure="m", value=1, control=2, steps=1, minutes=1) for p in ["base"]}
    text = ship.card({"trained": trained}, manifest, {"base": 10})
    assert "12 tokens of questions, generated by seed" in text and "questions 0" not in text
    (asked / "manifest.json").write_text(json.dumps(about | {"hay": ["/x/music/train"]}))
    with pytest.raises(UserError, match="hidden in music/train"):
        provenance(folder)
