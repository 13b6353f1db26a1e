"""Other people's methods and harness, with the same weights on the same text.

The presses of kvpress, one table with ours (needs `requirements-peers.txt` in an environment of
its own, which has no JAX; PEER below is its interpreter, DIR a new folder):

    python -m experiments.peers.segments --checkpoint=data/checkpoints/pico --out=DIR
    PEER -m experiments.peers.presses DIR
    python -m experiments.peers.table DIR
    python -m experiments.report DIR/peers.json

The harness lm-eval on a MegaContext session: see `experiments.peers.lm_eval_adapter`.
"""
