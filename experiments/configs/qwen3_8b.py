"""GistNet and LensNet around Qwen3-8B-Base, frozen, imported from Hugging Face.

Import:   JAX_PLATFORMS=cpu python -m experiments.import_hf Qwen3-8B-Base runs/qwen3_8b/base
Command:  python -m experiments.train --config=experiments/configs/qwen3_8b.py:gist \
              --workdir=runs/qwen3_8b --config.corpus=runs/qwen3_8b/corpus
          then :lens, and if wanted :mof and :lora (docs/wrap-your-own-model.md)
Hardware: not run. Its gist step was compiled for a v5e 16x16 with fsdp 16 and a batch of 256, where
          it takes 14 GiB a device: `python -m experiments.aot experiments/configs/qwen3_8b.py:gist
          --topology=v5e:16x16 --config.train.fsdp=16 --config.batch_size=256`. What follows:
          `python -m experiments.aot experiments/configs/qwen3_8b.py:gist
          experiments/configs/qwen3_8b.py:lens --topology=cpu:8 --shapes`.
Memory:   2.4 and 2.1 GiB a device for base, parameters and optimizer of gist and lens with fsdp=8;
          activations come on top.
Time:     a step of gist and of lens is 1,913 and 3,572 TFLOP, which would be
          3.6 and 5.7 hours of one H100 for all steps, at .3 of its 989 TFLOP/s.
"""

from ml_collections import ConfigDict

from experiments.configs import wrapping

BASE = dict(
    vocab_size=151936,
    d_model=4096,
    n_layers=36,
    n_heads=32,
    n_kv_heads=8,
    head_dim=128,
    d_ff=12288,
    rope_theta=1000000.0,
    qk_norm=True,
    tied=False,
    window=32768,
    prefix=(151643,),
)


def get_config(phase: str = "gist") -> ConfigDict:
    return wrapping.config(
        phase,
        BASE,
        gist=dict(d_model=1024, d_ff=2048),
        lens=dict(d_model=512, d_ff=1024),
        batch_size=32,
        fsdp=8,
    )
