"""Router and merger for the pico model: two of four heads, hidden states merged.

Command:  python -m experiments.train --config=experiments/configs/pico_mof.py \
              --workdir=runs/pico --config.corpus=runs/corpus
Hardware: one H200; 62 s for 300 steps, seed 3, with compiling and its evaluation.
Reached:  NLL 2.732 of the merged heads; 2.749 of the first two averaged, 2.747 of the best head
          alone, chosen in hindsight for every eight segments.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            phase="mof",
            corpus=config_dict.placeholder(str),
            domains=dict(code=0.48, books=0.48, tasks=0.04),
            window=512,
            dtype="bfloat16",
            history=2048,
            tail=128,
            top=2,
            routing=0.1,
            temperature=1.0,  # nats of the whole tail
            focus=dict(
                sink=1,
                recent=4,
                budget=256,
                capacity=128,
                max_edits=128,
                show=(True, False),  # tokens only, as the sessions of the comparison
            ),
            batch_size=32,
            eval_segments=64,
            train=dict(
                steps=300,
                learning_rate=1e-3,
                warmup=50,
                weight_decay=0.01,
                b2=0.98,
                clip=1.0,
                seed=3,
                save_every=300,
                log_every=20,
                eval_every=300,
            ),
        )
    )
