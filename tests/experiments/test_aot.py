"""Shapes alone are enough to compile, and what is told of the memory follows the mesh."""

import dataclasses
import json

import pytest

from experiments import aot, train
from mctx import sharding
from mctx.errors import UserError
from tests import tiny
from tests.training.test_phases import shrunk

CONFIG = """
from ml_collections import ConfigDict, config_dict

def get_config():
    return ConfigDict(dict(
        phase="base", corpus=config_dict.placeholder(str), base={base}, window=16,
        dtype="float32", batch_size=8, eval_segments=8, eval_batch=8,
        gist={gist}, lens={lens}, train=dict(steps=1, learning_rate=1e-3),
    ))
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "toy.py"
    lens = dataclasses.replace(tiny.LENS, finders=((1, 0),), find_query=4)
    sections = dict(base=tiny.BASE.to_dict(), gist=tiny.GIST.to_dict(), lens=lens.to_dict())
    path.write_text(CONFIG.format(**sections))
    return str(path)


def rows(config, tmp_path, *more):
    path = tmp_path / "result.json"
    aot.main([config, "--topology=cpu:8", f"--json={path}", *more])
    return json.loads(path.read_text())["rows"]


def test_parameters_split_over_the_devices_take_less_of_each(config, tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, "LARGE", 64)
    (whole,) = rows(config, tmp_path)
    (split,) = rows(config, tmp_path, "--config.train.fsdp=8")
    assert whole["what"] == split["what"] == "train step of phase base"
    assert 0 < split["arguments"] < whole["arguments"] / 2
    assert whole["GFLOP a device"] == split["GFLOP a device"] > 0
    (known,) = rows(config, tmp_path, "--config.train.fsdp=8", "--shapes")
    assert known["value"] == pytest.approx(split["arguments"], rel=1e-3)
    assert known["TFLOP of all"] == pytest.approx(8e-3 * split["GFLOP a device"])


@pytest.mark.parametrize("name", ["gist", "lens", "mof"])
def test_every_phase_has_the_inputs_of_its_step_as_shapes(name):
    configs = [train.over_defaults(shrunk(phase, 8)) for phase in ("base", "gist", "lens", name)]
    config = configs[-1]
    config.train.update(steps=1, learning_rate=1e-3)
    program = aot.train_program(config, aot.known_parts(configs), sharding.mesh(data=8))
    assert program.what == f"train step of phase {name}"


def test_what_a_session_runs_compiles(config, tmp_path):
    found = rows(config, tmp_path, "--inference", "--budget=64")
    assert [row["what"].partition(":")[0].split()[0] for row in found] == [
        "ingest",
        "refocus",
        "refocus",
        "refocus",
        "refocus",
        "decode",
    ]
    assert all(row["value"] > 0 for row in found)


@pytest.mark.parametrize(
    ("topology", "sentence"),
    [("v9:2x2", "topology 'v9:2x2' is unknown"), ("v5e:lots", "no TPU compiler for v5e:lots")],
)
def test_topologies_that_cannot_be_had(topology, sentence):
    with pytest.raises(UserError, match=sentence):
        aot.devices_of(topology)
