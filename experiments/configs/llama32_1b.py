"""GistNet and LensNet around Llama-3.2-1B, frozen, imported from Hugging Face.

Import:   JAX_PLATFORMS=cpu python -m experiments.import_hf Llama-3.2-1B runs/llama32_1b/base
Command:  python -m experiments.train --config=experiments/configs/llama32_1b.py:gist \
              --workdir=runs/llama32_1b --config.corpus=runs/llama32_1b/corpus
          then :lens, and if wanted :mof and :lora (docs/wrap-your-own-model.md)
Hardware: not run, and not compiled for a TPU to its end. What a device needs in all is told by
          `python -m experiments.aot experiments/configs/llama32_1b.py:gist
          experiments/configs/llama32_1b.py:lens --topology=v5e:2x4`; what follows, by
          `--topology=cpu:8 --shapes` in its place.
Memory:   2.8 and 2.6 GiB a device for base, parameters and optimizer of gist and lens;
          activations come on top.
Time:     a step of gist and of lens is 294 and 529 TFLOP, which would be
          33 and 51 minutes of one H100 for all steps, at .3 of its 989 TFLOP/s.
"""

from ml_collections import ConfigDict

from experiments.configs import wrapping

BASE = dict(
    vocab_size=128256,
    d_model=2048,
    n_layers=16,
    n_heads=32,
    n_kv_heads=8,
    head_dim=64,
    d_ff=8192,
    rope_theta=500000.0,
    rope_scaling=dict(
        factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_window=8192
    ),
    norm_eps=1e-05,
    window=131072,
    prefix=(128000,),
)


def get_config(phase: str = "gist") -> ConfigDict:
    return wrapping.config(
        phase,
        BASE,
        gist=dict(d_model=512, d_ff=1024),
        lens=dict(d_model=384, d_ff=768),
        batch_size=32,
    )
