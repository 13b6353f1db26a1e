"""GistNet for the pico base: an entry for 4, 8, 32 and 128 tokens; rows are kept, base frozen.

Command:  python -m experiments.train --config=experiments/configs/pico_gist.py \
              --workdir=runs/pico --config.corpus=runs/corpus
Hardware: one H200; 410 s for 3,500 steps, seed 1; compiling comes on top.
Reached:  of what 512 tokens of history are worth, .726 recovered by their LOD1 gists alone (4:1),
          .663 by LOD2 (8:1; .618 of code, .801 of books), .444 by LOD3 (32:1; .413, .541).
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            phase="gist",
            corpus=config_dict.placeholder(str),
            domains=dict(code=0.48, books=0.48, tasks=0.04),
            gist=dict(
                fanouts=(32, 8, 2, 4),
                trained=4,
                # A node chooses among all its rows: the wider it is, the better (RESULTS.md).
                slots=(8, 32, 16, 16),
                width=1536,  # 96 numbers of every layer and key/value head
                d_model=256,
                d_ff=512,
                n_layers=2,
                n_heads=4,
                inject="kv",
                pools="rows",
                mix="sum",
                refine=0,
            ),
            window=512,
            dtype="bfloat16",
            history=2048,
            tail=128,
            blocks=4,  # reconstructed per history
            reconstruction=0.05,
            teacher=0.0,  # share of the continuation that is learned from the base behind tokens
            mixture=dict(levels=(0.2, 0.4, 0.2, 0.2), recent=(0, 0, 0, 4), allocator=0.25),
            focus=dict(sink=1, recent=4, budget=768, capacity=128, max_edits=128),
            batch_size=48,
            eval_segments=96,
            train=dict(
                steps=3500,
                learning_rate=2e-3,
                warmup=200,
                weight_decay=0.01,
                b2=0.98,
                clip=1.0,
                seed=1,
                save_every=3500,
                log_every=50,
                eval_every=1000,
            ),
        )
    )
