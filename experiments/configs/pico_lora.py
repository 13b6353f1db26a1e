"""LoRA for the pico base, optional: rank 4 on the attention, .84 % of the base's parameters.

Command:  python -m experiments.train --config=experiments/configs/pico_lora.py \
              --workdir=runs/pico --config.corpus=runs/corpus
Hardware: one H200; 140 s for 1,000 steps.
Reached:  nothing over the gists before the present ones: .525 of code at 8:1 (.529 without),
          .681 of books (.682); at 32:1 .351 (.346) and .438 (.423).
Use:      open_checkpoint("runs/pico", lora=True), or --lora of stream, eval and
          export_hf, or --config.with_lora=True to train the lens on it. Without it nothing changes.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            phase="lora",
            corpus=config_dict.placeholder(str),
            domains=dict(code=0.48, books=0.48, tasks=0.04),
            lora=dict(rank=4, targets=("q", "k", "v", "o")),
            along=True,  # GistNet goes on learning with it, in the same item
            window=512,
            dtype="bfloat16",
            history=2048,
            tail=128,
            blocks=4,
            reconstruction=0.05,
            teacher=0.0,  # share of the continuation that is learned from the base behind tokens
            mixture=dict(levels=(0.2, 0.4, 0.2, 0.2), recent=(0, 0, 0, 4), allocator=0.25),
            focus=dict(sink=1, recent=4, budget=768, capacity=128, max_edits=128),
            batch_size=48,
            eval_segments=64,
            train=dict(
                steps=1000,
                learning_rate=5e-4,
                warmup=50,
                weight_decay=0.0,
                b2=0.98,
                clip=1.0,
                seed=4,
                save_every=1000,
                log_every=50,
                eval_every=500,
            ),
        )
    )
