"""Ablations: rows are groups of seeds, named by what makes the reference's command theirs."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from experiments import ablations, entry, tables, train
from experiments.configs import pico_gist, pico_lens, pico_lora
from experiments.report import load_result
from mctx.errors import UserError


def plain(config):
    return json.loads(json.dumps(config.to_dict()))


def run(folder, value, phase="gist", steps=20, rows=(), **settings):
    """A run as `experiments.train` leaves it."""
    config = ConfigDict({"phase": phase, "width": 8, "train": {"steps": 20, "seed": 0}})
    config.update_from_flattened_dict(settings)
    place = folder / phase
    place.mkdir(parents=True)
    (place / "config.json").write_text(json.dumps(config.to_dict()))
    told = {"eval/recovered_lod1": value, "eval/recovered_lod1/code": 2 * value}
    lines = [{"step": 10, "steps_per_s": 0.5, "loss": 1.0, "eval/recovered_lod1": -1.0}, *rows]
    lines += [{"step": steps, "steps_per_s": 1.0, **told}]
    (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_curve_has_a_row_for_every_evaluation(tmp_path):
    runs = [run(tmp_path / "a", 0.25), run(tmp_path / "b", 0.5, **{"train.seed": 3})]
    rows = make(tmp_path, *runs, "--by-step", measures="recovered_lod1,loss")["rows"]
    assert [(row["steps"], row["value"], row["loss"]) for row in rows] == [
        (10, -1.0, 1.0), (20, 0.375, 1.0),
    ]
    assert [row["seconds"] for row in rows] == [20, 30]


def make(tmp_path, *arguments, measures="recovered_lod1,recovered_lod1/code"):
    out = tmp_path / "ablations.json"
    ablations.main([*map(str, arguments), "--measures", measures, "--json", str(out)])
    return load_result(out)


def test_seeds_are_one_row_with_their_spread(tmp_path):
    runs = [
        run(tmp_path / "a", 0.25),
        run(tmp_path / "b", 0.5, **{"width": 16, "train.seed": 3}),
        run(tmp_path / "c", 0.75, **{"train.seed": 2}),
    ]
    result = make(tmp_path, *runs)
    first, second = result["rows"]
    assert first == {
        "what": "reference", "value": 0.5, "low": 0.25, "high": 0.75, "unit": "recovered_lod1",
        "recovered_lod1/code": 1.0, "recovered_lod1/code_low": 0.5, "recovered_lod1/code_high": 1.5,
        "steps": 20, "seconds": 30, "seeds": "0, 2",
    }
    assert second["what"] == "--config.width=16" and second["seeds"] == "3"
    assert second["value"] == 0.5 and "low" not in second
    heading, line, other = tables.table_cells(result)
    assert heading == ["", "recovered lod1", "recovered lod1/code", "steps", "seconds", "seeds"]
    assert line[1:3] == ["0.50 [0.25, 0.75]", "1.00 [0.50, 1.50]"]
    assert other[1:3] == ["0.5000", "1.000"]
    assert "least and most of the seeds" in tables.markdown_table(result)


def test_a_run_says_all_its_settings(tmp_path):
    config = train.over_defaults(pico_gist.get_config())
    config.corpus, config.train.steps = tmp_path.as_posix(), 20
    folder = run(tmp_path / "a", 0.5) / "gist"
    train.save_config(config, folder)
    found, told = ablations.load_run(folder), ablations.flat(plain(config))
    assert found.seed == told.pop("train.seed") == 1 and found.settings == told


def test_a_run_may_lack_a_measure_that_another_has(tmp_path):
    runs = [
        run(tmp_path / "a", 0.25),
        run(tmp_path / "b", 0.5, rows=[{"step": 11, "mfu": 0.5}], width=16),
    ]
    rows = make(tmp_path, *runs, measures="mfu,recovered_lod1")["rows"]
    assert [row["value"] for row in rows] == [None, 0.5]


def test_a_row_with_a_seed_that_diverged_has_no_number(tmp_path):
    runs = [run(tmp_path / str(i), v, **{"train.seed": i}) for i, v in enumerate((0.5, 0.7, 0.9))]
    metrics = runs[2] / "gist/metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('recovered_lod1": 0.9', 'recovered_lod1": null'))
    (row,) = make(tmp_path, *runs)["rows"]
    assert row["value"] is None and "low" not in row and row["seeds"] == "0, 1, 2"
    assert row["recovered_lod1/code"] == pytest.approx(1.4)
    assert make(tmp_path, runs[2], measures="recovered_lod1")["rows"][0]["value"] is None


SHIPPED = [plain(config.get_config()) for config in (pico_gist, pico_lens, pico_lora)]
LEAVES = sorted({name for config in SHIPPED for name in ablations.flat(config)})


@given(st.sampled_from(SHIPPED), st.sets(st.sampled_from(LEAVES)), st.integers(2, 9))
def test_overrides_make_the_reference_the_run(config, changed, n):
    """Parsed over the reference as the train command does, a row's name gives the row's settings"""
    reference = ablations.flat(config)
    wanted = reference | {name: _other(reference[name], n) for name in changed & set(reference)}
    typed = ConfigDict(config, convert_dict=True)
    for name, value in reference.items():  # a config file has tuples where JSON has lists
        if isinstance(value, list):
            typed.update_from_flattened_dict({name: tuple(value)})
    made = entry.override(typed, ablations.overrides(wanted, reference))
    assert ablations.flat(plain(made)) == wanted


def _other(value, n):
    if isinstance(value, bool):
        return not value
    if isinstance(value, list):
        return [[n, 0], [1, n]] if value and isinstance(value[0], list) else value[: n % 3]
    return f"{value}{n}" if isinstance(value, str | None) else value + n


def test_bad_runs_get_one_sentence(tmp_path):
    good = run(tmp_path / "good", 0.5)
    (tmp_path / "empty").mkdir()
    two = run(run(tmp_path / "two", 0.5), 0.5, "lens")
    bare = run(tmp_path / "bare", 0.5)
    (bare / "gist/config.json").unlink()
    bad = [
        ([tmp_path / "empty"], "is no training run"),
        ([tmp_path / "nowhere"], "is no training run"),
        ([two], "several phases: name one of them, as .*two/lens"),
        ([bare], "config.json cannot be read"),
        ([run(tmp_path / "young", 0.5, steps=15)], "at step 15 of 20"),
        ([good, two / "lens"], "of phase 'lens', .* of phase 'gist'"),
        ([good, run(tmp_path / "again", 0.5)], "are one run"),
    ]
    for runs, why in bad:
        with pytest.raises(UserError, match=why):
            make(tmp_path, *runs)
    with pytest.raises(UserError, match="'nll': there are loss, recovered_lod1, recovered_lod1/c"):
        make(tmp_path, good, measures="nll")
    assert len(make(tmp_path, good / "gist")["rows"]) == 1


def test_a_table_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path):
    (tmp_path / "file").touch()
    given = ["none", "--measures=nll", f"--json={tmp_path / 'file' / 'x.json'}"]
    with pytest.raises(UserError, match="file is a file, where a folder is needed"):
        ablations.main(given)
