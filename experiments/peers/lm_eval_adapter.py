"""A language model for EleutherAI's harness: the base behind full attention, a window, or a focus.

    python -m experiments.peers.harness run --model megacontext \\
        --model_args checkpoint=DIR,method=full|window|focus,budget=512 --tasks NAME …

The methods are those of `experiments.score`, and so are the numbers; how a request is answered is
told in `experiments.peers.answers`. The checkpoint's tokenizer encodes, the base's prefix stands
before everything.
"""

from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from tqdm import tqdm

from experiments.peers.answers import Answers


@register_model("megacontext")
class MegaContextLM(TemplateLM):
    """One checkpoint under one method of `experiments.score`.

    Args:
      checkpoint, method, budget: those of `Answers`.
      batch_size, max_batch_size, device: the harness names them to every model; requests are read
        one after the other, on JAX's default device.

    Raises:
      UserError: a setting or the checkpoint is not usable.
    """

    def __init__(
        self,
        checkpoint: str,
        method: str = "focus",
        budget: int = 512,
        batch_size: Any = None,
        max_batch_size: Any = None,
        device: str | None = None,
    ):
        super().__init__()
        self.answers = Answers(checkpoint, method, budget)

    # -- what the harness asks of a model's tokenizer ----------------------------------------

    @property
    def eot_token_id(self) -> int:
        return self.answers.tokenizer.eot_id

    @property
    def tokenizer_name(self) -> str:
        return self.answers.tokenizer.fingerprint

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_) -> list[int]:
        """Ids of a text; no special tokens are added: the base's prefix is not part of it."""
        return self.answers.encode(string).tolist()

    # -- requests --------------------------------------------------------------------------

    def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, **_):
        found = []
        for (context, continuation), known, asked in tqdm(requests, disable=disable_tqdm):
            if not context:  # the prefix predicts the first token, no token stands in for it
                known, asked = [], self.tok_encode(continuation)
            found.append(self.answers.likelihood(known, asked))
            self.cache_hook.add_partial("loglikelihood", (context, continuation), found[-1])
        return found

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        """Of whole texts, each token given all that the method shows before it."""
        found = []
        for request in tqdm(requests, disable=disable_tqdm):
            nll = self.answers.nll(self.answers.encode(request.args[0]))
            found.append(-float(nll.sum()))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, found[-1])
        return found

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        found = []
        for request in tqdm(requests, disable=disable_tqdm):
            found.append(self.answers.continuation(*request.args))
            self.cache_hook.add_partial("generate_until", request.args, found[-1])
        return found
