"""EleutherAI's lm-evaluation-harness with the model `megacontext`; every flag is its own.

    python -m experiments.peers.harness run --model megacontext \\
        --model_args checkpoint=data/checkpoints/pico,method=focus,budget=512 \\
        --tasks niah_single_1,ruler_vt --limit 8 \\
        --metadata '{"tokenizer": "DIR/hf", "max_seq_lengths": [1024]}'

Needs `requirements.txt` and `requirements-peers.txt` in one environment. Tasks that make prompts of
a given length ask Transformers for the tokenizer: DIR/hf is the checkpoint as
`experiments.export_hf` writes it. Model arguments: see `experiments.peers.lm_eval_adapter`.
"""

from experiments import entry
from mctx.errors import UserError


def main() -> None:
    try:
        from lm_eval.__main__ import cli_evaluate

        import experiments.peers.lm_eval_adapter  # noqa: F401 (it registers the model)
    except ImportError as error:
        raise UserError(
            f"there is no {error.name} in this environment: "
            "`pip install -r requirements.txt -r requirements-peers.txt`."
        ) from error
    cli_evaluate()


if __name__ == "__main__":
    entry.run(main)
