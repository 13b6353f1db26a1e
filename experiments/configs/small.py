"""A base of 32 M parameters with its gists and its lens, on pico's corpus: what grows with a base.

Command:  python -m experiments.train --config=experiments/configs/small.py:base \
              --workdir=runs/small --config.corpus=runs/corpus
          then small.py:gist and small.py:lens, in the same workdir
Hardware: one H200
"""

from ml_collections import ConfigDict

from experiments.configs import pico_base, pico_gist, pico_lens
from mctx.errors import UserError

BASE = dict(d_model=512, n_layers=10, n_heads=8, d_ff=1408)
PHASES = dict(base=pico_base, gist=pico_gist, lens=pico_lens)


def get_config(phase: str = "base") -> ConfigDict:
    if phase not in PHASES:
        raise UserError(f"there is no config for phase '{phase}': use one of {', '.join(PHASES)}.")
    config = PHASES[phase].get_config()
    if phase == "base":
        config.base.update(BASE)
        config.train.update(steps=2300, learning_rate=2e-3)
    if phase == "gist":
        config.gist.update(width=80 * BASE["n_layers"] * 2, d_model=256, d_ff=512)
        config.train.update(steps=1500, learning_rate=1.5e-3)
    return config
