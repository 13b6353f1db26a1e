"""GistNet and LensNet around SmolLM2-135M, frozen, imported from Hugging Face.

Import:   JAX_PLATFORMS=cpu python -m experiments.import_hf SmolLM2-135M runs/smollm2_135m/base
Command:  python -m experiments.train --config=experiments/configs/smollm2_135m.py:gist \
              --workdir=runs/smollm2_135m --config.corpus=runs/smollm2_135m/corpus
          then :lens, and if wanted :mof and :lora (docs/wrap-your-own-model.md)
Hardware: not run. What a device needs in all is told by
          `python -m experiments.aot experiments/configs/smollm2_135m.py:gist
          experiments/configs/smollm2_135m.py:lens --topology=v5e:2x4`; what follows, by
          `--topology=cpu:8 --shapes` in its place.
Memory:   0.4 and 0.3 GiB a device for base, parameters and optimizer of gist and lens; with
          activations some 6 of a TPU v5e, one of eight (docs/scale.md).
Time:     a step of gist and of lens is 37 and 70 TFLOP, which would be
          4 and 7 minutes of one H100 for all steps, at .3 of its 989 TFLOP/s.
"""

from ml_collections import ConfigDict

from experiments.configs import wrapping

BASE = dict(
    vocab_size=49152,
    d_model=576,
    n_layers=30,
    n_heads=9,
    n_kv_heads=3,
    head_dim=64,
    d_ff=1536,
    rope_theta=100000.0,
    norm_eps=1e-05,
    window=8192,
    prefix=(0,),
)


def get_config(phase: str = "gist") -> ConfigDict:
    return wrapping.config(
        phase,
        BASE,
        gist={},
        lens={},
        batch_size=32,
    )
