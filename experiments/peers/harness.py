"""EleutherAI's lm-evaluation-harness with the model `megacontext`; every flag is its own.

    python -m experiments.export_hf data/checkpoints/pico DIR
    python -m experiments.peers.harness run --model megacontext \\
        --model_args checkpoint=data/checkpoints/pico,method=focus,budget=512 \\
        --tasks niah_single_1,niah_multikey_2,niah_multikey_3,ruler_vt,ruler_cwe,ruler_fwe \\
        --metadata '{"tokenizer": "DIR", "max_seq_lengths": [1024]}' --limit 8 --output_path OUT

Needs `requirements.txt` and `requirements-peers.txt` in one environment. RULER's tasks make prompts
of a given length and ask Transformers for the tokenizer: DIR has it. These six are those of them
that need no download; the others hide in essays, or ask of Wikipedia, which they fetch. Model
arguments: see `experiments.peers.lm_eval_adapter`.
"""

from experiments import entry
from mctx.errors import UserError


def main() -> None:
    try:
        import httpx
        import requests
        from lm_eval.__main__ import cli_evaluate

        import experiments.peers.lm_eval_adapter  # noqa: F401 (it registers the model)
    except ImportError as error:
        raise UserError(
            f"there is no {error.name} in this environment: "
            "`pip install -r requirements.txt -r requirements-peers.txt`."
        ) from error
    try:
        cli_evaluate()
    except (httpx.HTTPError, requests.RequestException, ConnectionError) as error:
        raise UserError(
            f"a task wants to download its text and cannot reach it ({error}): take tasks that "
            "need no download (`python -m pydoc experiments.peers.harness` names those of RULER)."
        ) from error


if __name__ == "__main__":
    entry.run(main)
