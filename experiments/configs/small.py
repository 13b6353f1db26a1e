"""A base of 32 M parameters and its gists, on pico's corpus: what grows with a base.

Command:  python -m experiments.train --config=experiments/configs/small.py:base \
              --workdir=runs/small --config.corpus=runs/corpus
          then small.py:gist, in the same workdir
Hardware: one H200; 335 s for the base's 2,300 steps, 75 s for the first 400 of the gists' 1,200,
          seeds 0 and 1; compiling comes on top
Reached:  held-out NLL of code 1.92: 2.76 at positions 0–127, 1.77 from 1,024 on; of books 3.53:
          3.84 and 3.49 (113 of the 150 books). Of 512 tokens of history .766 recovered at 4:1, .681
          at 8:1 (code .651, books .763), .464 at 32:1 (.433, .547), after 400 steps; pico's have
          .688, .611 and .400 then (RESULTS.md, gists-curves).
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
