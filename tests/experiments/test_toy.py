"""The toy is trained by the configs that ship, every setting in its place."""

import pytest

from experiments import toy, train
from mctx.training.loop import TrainSettings


@pytest.mark.parametrize("phase", toy.PHASES)
def test_a_toy_phase_has_every_setting(phase, tmp_path):
    config = toy.config(phase, tmp_path)
    assert set(train.DEFAULTS) <= set(config) and config.phase == phase
    settings = TrainSettings(**config.train)
    assert 0 < settings.steps <= 60 and settings.data == train.DEFAULTS["train"]["data"]
    assert train.on_mesh(config)["place"]((2, 2)).mesh.size >= 1
