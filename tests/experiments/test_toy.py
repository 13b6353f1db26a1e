"""The toy is trained by the configs that ship, every setting in its place."""

import pytest

from experiments import toy, train
from mctx.focus.bank import focus_for
from mctx.focus.layout import validate
from mctx.models.gistnet import GistConfig
from mctx.training.loop import TrainSettings


@pytest.mark.parametrize("phase", toy.PHASES)
def test_a_toy_phase_has_every_setting(phase, tmp_path):
    config = toy.config(phase, tmp_path)
    assert set(train.defaults()) <= set(config) and config.phase == phase
    settings = TrainSettings(**config.train)
    assert 0 < settings.steps <= 60 and settings.data == train.defaults()["train"]["data"]
    assert train.on_mesh(config)["place"]((2, 2)).mesh.size >= 1


def test_the_toy_s_gists_are_shown_and_fit_its_history(tmp_path):
    config = toy.config("gist", tmp_path)
    gist = GistConfig.from_dict(config.gist.to_dict())
    assert len(config.mixture.levels) == gist.levels == gist.trained
    validate(focus_for(gist, **config.focus), config.history // gist.block)
