"""What the configs of imported bases share: the phases around a frozen base, by name.

Not a config itself: `qwen3_0p6b.py` and the others call it with their base and their sizes.
"""

from ml_collections import ConfigDict, config_dict

from mctx.errors import UserError


def config(
    phase: str,
    base: dict,
    gist: dict,
    lens: dict,
    batch_size: int,
    lora: dict | None = None,
    **train: object,
) -> ConfigDict:
    """The config of one phase around a frozen base.

    Args:
      phase: 'gist', 'lens', 'mof' or 'lora'.
      base: what `import_hf` reads from its config.json; the imported base's own wins.
      gist, lens: settings of the parts where they differ from `GIST` and `LENS`, and a gist's width
        from `kept_width`.
      batch_size: histories a step, over all devices.
      train: settings of `TrainSettings` beside those of the phase.

    Raises:
      UserError: no such phase.
    """
    if phase not in PHASES:
        raise UserError(f"there is no config for phase '{phase}': use one of {', '.join(PHASES)}.")
    gist = GIST | dict(width=kept_width(base)) | gist
    parts = dict(gist=gist, lens=LENS | lens, lora=lora or dict(rank=8, targets=QKVO))
    own = PHASES[phase]
    return ConfigDict(
        dict(
            phase=phase,
            corpus=config_dict.placeholder(str),
            domains=dict(code=0.48, books=0.48, tasks=0.04),
            base=base,
            base_dtype="bfloat16",
            **{name: parts[name] for name in own["parts"]},
            window=512,
            dtype="bfloat16",
            remat=True,
            batch_size=batch_size,
            eval_segments=64,
            **own["sizes"],
            train=TRAIN | own["train"] | train,
        )
    )


def kept_width(base: dict) -> int:
    """Of a gist that keeps rows of this base: three numbers for every four of each head's keys and
    values, which is what loses next to nothing (RESULTS.md)."""
    return base["n_layers"] * base["n_kv_heads"] * (2 * base["head_dim"] * 3 // 4)


QKVO = ("q", "k", "v", "o")
GIST = dict(  # as pico's once were: an entry for 8, 32 and 256 tokens, chosen among 32 to 1,024
    fanouts=(32, 4, 8),
    trained=3,
    slots=(4,),
    d_model=192,
    d_ff=384,
    n_layers=2,
    n_heads=8,
    inject="kv",
    pools="rows",
)
LENS = dict(
    heads=4,
    query=128,
    d_model=256,
    d_ff=512,
    n_layers=2,
    n_heads=4,
    best=32,
    rank=16,
    finders=(),  # (layer, key/value head) of those that `python -m experiments.finders` names
    find_query=64,
)
TRAIN = dict(weight_decay=0.01, b2=0.98, clip=1.0, save_every=500, log_every=20, eval_every=500)
READING = dict(
    history=2048,
    tail=128,
    blocks=4,  # reconstructed per history
    reconstruction=0.05,
    teacher=0.0,  # share of the continuation that is learned from the base behind tokens
    mixture=dict(levels=(0.5, 0.35, 0.15), recent=(0, 0, 0, 4), allocator=0.25),
    focus=dict(sink=1, recent=4, budget=512, capacity=128, max_edits=128),
)
PHASES = {
    "gist": dict(
        parts=("gist",),
        sizes=READING,
        train=dict(steps=2000, learning_rate=1e-3, warmup=200, seed=1),
    ),
    "lens": dict(
        parts=("lens",),
        sizes=dict(
            near=2048,
            far=2048,
            groups=2,
            reach=131_072,
            tail=128,
            recent=4,
            sets=4,
            novel=8,
            questions=0.0,  # of the rows; for finders they are needed (docs/wrap-your-own-model.md)
            support=6.0,
        ),
        train=dict(steps=1700, learning_rate=1e-3, warmup=100, seed=2),
    ),
    "mof": dict(
        parts=(),
        sizes=dict(
            history=2048,
            tail=128,
            top=2,
            routing=0.1,
            temperature=1.0,
            focus=dict(
                sink=1, recent=4, budget=256, capacity=128, max_edits=128, show=(True, False)
            ),
        ),
        train=dict(steps=400, learning_rate=1e-3, warmup=50, seed=3),
    ),
    "lora": dict(
        parts=("lora",),
        sizes=READING | dict(along=True),
        train=dict(steps=500, learning_rate=2e-4, warmup=50, weight_decay=0.0, seed=4),
    ),
}
