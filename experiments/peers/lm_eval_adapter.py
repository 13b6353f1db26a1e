"""A language model for EleutherAI's harness: the base behind full attention, a window, or a focus.

    python -m experiments.peers.harness run --model megacontext \\
        --model_args checkpoint=DIR,method=full|window|focus,budget=512 --tasks NAME …

The methods are those of `experiments.score`, and so are the numbers. The checkpoint's tokenizer
encodes, the base's prefix stands before everything. Each request is a history of its own: nothing
that one was read with is there for the next, but compiled programs and the prefix. So answers to
one question read it once each: a context kept from another request would already have focused on
the first answer, wherever that completed a block.
"""

import contextlib
import itertools
import logging
import os
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore as ts
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from tqdm import tqdm

from experiments import score
from experiments.peers.windowed import Windowed
from experiments.sessions import ensure_room
from mctx.errors import UserError
from mctx.models.wrapped import read
from mctx.opened import Opened, open_checkpoint
from mctx.runtime import Session, SessionConfig, generation, reading
from mctx.tree.arrays import open_kvstore
from mctx.tree.ingest import Reader

log = logging.getLogger(__name__)
ROOM = 1024  # full attention gets rows in steps of so many, so that few shapes are compiled
MAX_GEN_TOKS = 256  # where a task does not say
_numbers = itertools.count()


@register_model("megacontext")
class MegaContextLM(TemplateLM):
    """One checkpoint under one method of `experiments.score`.

    Args:
      checkpoint: checkpoint directory or training workdir.
      method: full, window or focus. budget: entries before the tail (window, focus).
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
        if method not in score.METHODS:
            raise UserError(f"method must be one of {', '.join(score.METHODS)}, not '{method}'.")
        self.method, self.budget = method, int(budget)
        self.opened = open_checkpoint(checkpoint, score.METHODS[method][1])
        self.readers = Reader(self.opened.model, self.opened.params) if method == "focus" else None
        if method == "window":
            score.check_window(self.budget, self.opened.model.gist.block)
        self.begin = _after_prefix(self.opened)
        self._warned = False

    # -- what the harness asks of a model's tokenizer ----------------------------------------

    @property
    def eot_token_id(self) -> int:
        return self.opened.tokenizer.eot_id

    @property
    def tokenizer_name(self) -> str:
        return self.opened.tokenizer.fingerprint

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_) -> list[int]:
        """Ids of a text; no special tokens are added: the base's prefix is not part of it."""
        return self.opened.tokenizer.encode(string).tolist()

    # -- requests --------------------------------------------------------------------------

    def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, **_):
        found = []
        for (context, continuation), known, asked in tqdm(requests, disable=disable_tqdm):
            if not context:  # the prefix predicts the first token, no token stands in for it
                known, asked = [], self.tok_encode(continuation)
            nll, greedy = self.answer(np.array(known + asked, np.int32), len(known))
            found.append((-float(nll.sum()), bool(greedy.all())))
            self.cache_hook.add_partial("loglikelihood", (context, continuation), found[-1])
        return found

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        """Of whole texts, each token given all that the method shows before it."""
        found = []
        for request in tqdm(requests, disable=disable_tqdm):
            ids = np.array(self.tok_encode(request.args[0]), np.int32)
            found.append(-float(self.nll(ids).sum()))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, found[-1])
        return found

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        found = []
        for request in tqdm(requests, disable=disable_tqdm):
            context, settings = request.args
            found.append(self.continuation(context, settings))
            self.cache_hook.add_partial("generate_until", request.args, found[-1])
        return found

    # -- one request -----------------------------------------------------------------------

    def nll(self, ids: np.ndarray) -> np.ndarray:
        """NLL of every token of a text, float64 [n]; of the first, given the prefix."""
        if not len(ids):
            return np.zeros(0)
        first = self._judged(self.begin, ids[0])[0]
        with self._history(len(ids)) as history:
            rest = history.read_tokens(ids)[1:]
        return np.concatenate([[first], rest]).astype(np.float64)

    def answer(self, ids: np.ndarray, start: int) -> tuple[np.ndarray, np.ndarray]:
        """NLL of ids[start:], and whether each is the likeliest token there."""
        judged = []
        with self._history(len(ids)) as history:
            history.read_tokens(ids[:start])
            for at in range(start, len(ids)):
                judged.append(self._judged(history.tail.last if at else self.begin, ids[at]))
                history.read_tokens(ids[at : at + 1])
        nll, greedy = zip(*judged, strict=True) if judged else ((), ())
        return np.array(nll), np.array(greedy, bool)

    def continuation(self, context: str, settings: dict) -> str:
        """Text up to a string of `until`, the end of the text, or `max_gen_toks` tokens."""
        until = settings.get("until") or ()
        until = (until,) if isinstance(until, str) else tuple(filter(None, until))
        tokens = int(settings.get("max_gen_toks", MAX_GEN_TOKS))
        warm = float(settings.get("temperature") or 0.0) if settings.get("do_sample", True) else 0.0
        how = {"temperature": warm, "top_p": float(settings.get("top_p", 1.0)), "stop": until}
        ids = np.array(self.tok_encode(context) or [self.eot_token_id], np.int32)
        with self._history(len(ids) + tokens) as history:
            history.read_tokens(ids)
            return "".join(generation.stream(history, tokens, **how))

    def _judged(self, last: jax.Array, token: int) -> tuple[float, bool]:
        """NLL of a token given the hidden state before it, and whether it is the likeliest."""
        logits = np.asarray(reading.next_logits(self.opened.params["base"], last), np.float64)
        highest = logits.max()
        nll = highest + np.log(np.exp(logits - highest).sum()) - logits[token]
        return float(nll), int(logits.argmax()) == int(token)

    @contextlib.contextmanager
    def _history(self, length: int) -> Iterator[Windowed | Session]:
        """An empty history with room for `length` tokens; gone when its request is answered."""
        model = self.opened.model
        trained = model.base.window - len(model.base.prefix)
        if self.method == "full" and length > trained and not self._warned:
            log.warning("some requests are longer than the %d tokens trained on", trained)
            self._warned = True
        if self.method == "full":
            yield Windowed(self.opened, -(-length // ROOM) * ROOM, 0)
        elif self.method == "window":
            yield Windowed(self.opened, self.budget, model.gist.block)
        else:
            uri = f"memory://lm-eval-{os.getpid()}-{next(_numbers)}"
            session = Session(self.opened, uri, SessionConfig(budget=self.budget), self.readers)
            ensure_room(session.focus, 0, length // model.gist.block)
            yield session
            session.tree.close()
            open_kvstore(uri).delete_range(ts.KvStore.KeyRange()).result()


def _after_prefix(opened: Opened) -> jax.Array:
    """[D], what predicts the first token of a text; after <eot> where a base has no prefix."""
    ids = jnp.asarray(opened.model.base.prefix or (opened.tokenizer.eot_id,), jnp.int32)[None]
    positions = jnp.arange(ids.shape[1])[None]
    return read(opened.model, opened.params, ids, positions).hidden[0, -1].astype(jnp.float32)
