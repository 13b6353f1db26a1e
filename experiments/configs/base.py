"""Bases to train from nothing, from pico's big sister to 8 billion parameters.

Command:  python -m experiments.train --config=experiments/configs/base.py:30m \
              --workdir=runs/30m --config.corpus=runs/corpus
          `data.corpus --vocab-size=32768` makes a corpus for them; 30m, 300m, 1b or 8b
Hardware: not run but for steps of 300m (docs/scale.md). What a device needs in all is told by
          `python -m experiments.aot experiments/configs/base.py:8b --topology=v5e:16x16`; what
          follows, by `--topology=cpu:8 --shapes` in its place (8b: `cpu:256`).
Memory:   0.3, 3.3, 1.5 and 0.4 GiB a device for parameters and optimizer of 30m, 300m, 1b on 8
          and 8b on 256 devices; activations come on top.
Time:     a step is 93, 1,568, 9,509 and 67,273 TFLOP, which would be 12 minutes, 16 hours, 7 and
          394 days of one H100 for all steps, at .3 of its 989 TFLOP/s. Steps are for about 20
          tokens a parameter.

Shapes follow Llama 3: heads of 64 or 128, four queries to a key.
"""

from ml_collections import ConfigDict, config_dict

from mctx.errors import UserError

# d_model, layers, heads, key heads, head_dim, d_ff, tied; batch, steps, peak learning rate, fsdp.
SIZES = {
    "30m": (384, 10, 6, 2, 64, 1152, True, 128, 2_300, 3e-3, 1),
    "300m": (1024, 22, 16, 4, 64, 3072, True, 256, 11_000, 1e-3, 1),
    "1b": (2048, 18, 16, 4, 128, 7168, True, 512, 19_000, 6e-4, 8),
    "8b": (4096, 40, 32, 8, 128, 12_288, False, 512, 150_000, 3e-4, 256),
}


def get_config(size: str = "30m") -> ConfigDict:
    if size not in SIZES:
        raise UserError(f"there is no size '{size}': use one of {', '.join(SIZES)}.")
    width, layers, heads, key_heads, head_dim, d_ff, tied, batch, steps, rate, fsdp = SIZES[size]
    return ConfigDict(
        dict(
            phase="base",
            corpus=config_dict.placeholder(str),
            domains=dict(code=0.46, books=0.46, tasks=0.08),
            base=dict(
                vocab_size=32_768,
                d_model=width,
                n_layers=layers,
                n_heads=heads,
                n_kv_heads=key_heads,
                head_dim=head_dim,
                d_ff=d_ff,
                tied=tied,
                rope_theta=500_000.0,
                window=2048,
                prefix=(0,),
            ),
            window=512,
            dtype="bfloat16",
            remat=True,
            batch_size=batch,
            eval_segments=128,
            eval_batch=16,
            train=dict(
                steps=steps,
                learning_rate=rate,
                warmup=500,
                schedule="wsd",
                weight_decay=0.1,
                b2=0.95,
                clip=1.0,
                seed=0,
                save_every=1000,
                log_every=20,
                eval_every=1000,
                fsdp=fsdp,
            ),
        )
    )
