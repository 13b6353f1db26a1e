"""GistNet and LensNet around Qwen3-0.6B-Base, frozen, imported from Hugging Face.

Import:   JAX_PLATFORMS=cpu python -m experiments.import_hf Qwen3-0.6B-Base runs/qwen3_0p6b/base
Command:  python -m experiments.train --config=experiments/configs/qwen3_0p6b.py:gist \
              --workdir=runs/qwen3_0p6b --config.corpus=runs/qwen3_0p6b/corpus
          then :lens, and if wanted :mof and :lora (docs/wrap-your-own-model.md)
Hardware: not run, and not compiled for a TPU to its end. What a device needs in all is told by
          `python -m experiments.aot experiments/configs/qwen3_0p6b.py:gist
          experiments/configs/qwen3_0p6b.py:lens --topology=v5e:2x4`; what follows, by
          `--topology=cpu:8 --shapes` in its place.
Memory:   1.8 and 1.5 GiB a device for base, parameters and optimizer of gist and lens;
          activations come on top.
Time:     a step of gist and of lens is 156 and 283 TFLOP, which would be
          17 and 27 minutes of one H100 for all steps, at .3 of its 989 TFLOP/s.
"""

from ml_collections import ConfigDict

from experiments.configs import wrapping

BASE = dict(
    vocab_size=151936,
    d_model=1024,
    n_layers=28,
    n_heads=16,
    n_kv_heads=8,
    head_dim=128,
    d_ff=3072,
    rope_theta=1000000.0,
    qk_norm=True,
    window=32768,
    prefix=(151643,),
)


def get_config(phase: str = "gist") -> ConfigDict:
    return wrapping.config(
        phase,
        BASE,
        gist={},
        lens={},
        batch_size=32,
    )
