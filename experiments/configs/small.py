"""A base of 32 M parameters and its gists, on pico's corpus: what grows with a base.

Command:  python -m experiments.train --config=experiments/configs/small.py:base \
              --workdir=runs/small --config.corpus=runs/corpus
          then small.py:gist, in the same workdir
Hardware: one H200; 330 s for the base's 2,300 steps, 210 s for the 1,200 of the gists, both with
          compiling and beside another run on the host, seeds 0 and 1
Reached:  held-out NLL of code 1.91: 2.77 at positions 0–127, 1.77 from 1,024 on; of books 3.48:
          3.77 and 3.44. With the gists' recipe before the present one, of 512 tokens of history
          .601 recovered at 8:1 (code .552, books .730), .395 at 32:1 (.356, .497).
"""

from ml_collections import ConfigDict

from experiments.configs import pico_base, pico_gist
from mctx.errors import UserError

BASE = dict(d_model=512, n_layers=10, n_heads=8, d_ff=1408)
# 96 numbers of every layer and key/value head, as pico's.
GIST = dict(width=96 * BASE["n_layers"] * 2, d_model=256, d_ff=512)


def get_config(phase: str = "base") -> ConfigDict:
    if phase == "base":
        config = pico_base.get_config()
        config.base.update(BASE)
        config.train.update(steps=2300, learning_rate=2e-3)
    elif phase == "gist":
        config = pico_gist.get_config()
        config.gist.update(GIST)
        config.train.update(steps=1200, learning_rate=1.5e-3)
    else:
        raise UserError(f"there is no config for phase '{phase}': use base or gist.")
    return config
