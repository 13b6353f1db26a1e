"""One checkpoint under one method of `experiments.score`, asked as an evaluation harness asks.

Likelihoods of given text, and greedy or drawn continuations. Each request is a history of its
own: nothing that one was read with is there for the next, but compiled programs and the prefix.
So answers to one question read it once each: a context kept from another request would already
have focused on the first answer, wherever that completed a block. No harness is needed here;
`experiments.peers.lm_eval_adapter` gives all of this to one.
"""

import contextlib
import itertools
import logging
import os
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore as ts

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
MAX_GEN_TOKS = 256  # where a request does not say
_numbers = itertools.count()


class Answers:
    """What a method of `experiments.score` makes of requests.

    Args:
      checkpoint: checkpoint directory or training workdir.
      method: full, window or focus. budget: entries before the tail (window, focus).

    Raises:
      UserError: a setting or the checkpoint is not usable.
    """

    def __init__(self, checkpoint: str, method: str = "focus", budget: int = 512):
        if method not in score.METHODS:
            raise UserError(f"method must be one of {', '.join(score.METHODS)}, not '{method}'.")
        self.method, self.budget = method, int(budget)
        self.opened = open_checkpoint(checkpoint, score.METHODS[method][1])
        self.tokenizer = self.opened.tokenizer
        if method == "window":
            score.check_window(self.budget, self.opened.model.gist.block)
        self._reader = Reader(self.opened.model, self.opened.params) if method == "focus" else None
        self._begin = _after_prefix(self.opened)
        self._warned = False

    def encode(self, text: str) -> np.ndarray:
        """Ids of a text, int32 [n]; the base's prefix is not part of it."""
        return self.tokenizer.encode(text)

    def likelihood(self, known: Sequence[int], asked: Sequence[int]) -> tuple[float, bool]:
        """Log likelihood in nats of ids behind others, and whether greedy decoding says them."""
        nll, greedy = self.answer(np.array([*known, *asked], np.int32), len(known))
        return -float(nll.sum()), bool(greedy.all())

    def nll(self, ids: np.ndarray) -> np.ndarray:
        """NLL of every token of a text, float64 [n]; of the first, given the prefix."""
        if not len(ids):
            return np.zeros(0)
        first = self._judged(self._begin, ids[0])[0]
        with self._history(len(ids)) as history:
            rest = history.read_tokens(ids)[1:]
        return np.concatenate([[first], rest]).astype(np.float64)

    def answer(self, ids: np.ndarray, start: int) -> tuple[np.ndarray, np.ndarray]:
        """NLL of ids[start:], and whether each is the likeliest token there."""
        judged = []
        with self._history(len(ids)) as history:
            history.read_tokens(ids[:start])
            for at in range(start, len(ids)):
                judged.append(self._judged(history.tail.last if at else self._begin, ids[at]))
                history.read_tokens(ids[at : at + 1])
        nll, greedy = zip(*judged, strict=True) if judged else ((), ())
        return np.array(nll), np.array(greedy, bool)

    def continuation(self, context: str, settings: Mapping) -> str:
        """Text up to a string of `until`, the end of the text, or `max_gen_toks` tokens.

        Args:
          settings: as harnesses name them: until, max_gen_toks, do_sample, temperature, top_p.
        """
        until = settings.get("until") or ()
        until = (until,) if isinstance(until, str) else tuple(filter(None, until))
        tokens = int(settings.get("max_gen_toks", MAX_GEN_TOKS))
        warm = float(settings.get("temperature") or 0.0) if settings.get("do_sample", True) else 0.0
        how = {"temperature": warm, "top_p": float(settings.get("top_p", 1.0)), "stop": until}
        ids = self.encode(context)
        ids = ids if len(ids) else np.array([self.tokenizer.eot_id], np.int32)
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
            uri = f"memory://answers-{os.getpid()}-{next(_numbers)}"
            session = Session(self.opened, uri, SessionConfig(budget=self.budget), self._reader)
            try:
                ensure_room(session.focus, 0, length // model.gist.block)
                yield session
            finally:
                session.tree.close()
                open_kvstore(uri).delete_range(ts.KvStore.KeyRange()).result()


def _after_prefix(opened: Opened) -> jax.Array:
    """[D], what predicts the first token of a text; after <eot> where a base has no prefix."""
    ids = jnp.asarray(opened.model.base.prefix or (opened.tokenizer.eot_id,), jnp.int32)[None]
    positions = jnp.arange(ids.shape[1])[None]
    return read(opened.model, opened.params, ids, positions).hidden[0, -1].astype(jnp.float32)
