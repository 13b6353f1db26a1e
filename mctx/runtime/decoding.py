"""Tokens drawn one after another, behind the working contexts of one session or of several.

Each step is one call of one program, which draws a token in every lane and reads it, and hands the
next step what it needs on the device. So many steps are under way that the device never waits
inside a block: the host learns a token while the next one is being made. What turns out to lie
past the end (a stop string, the end of the text, a reader who leaves) is forgotten: rows past a
tail's length are not read by anything.
"""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from mctx.runtime import growing, reading, tailing
from mctx.runtime.ahead import TRYING
from mctx.runtime.reading import Draws, Said
from mctx.runtime.rows import Tail
from mctx.runtime.sampling import Sampling
from mctx.runtime.steps import Steps, more

AHEAD = 2  # steps under way behind the one whose token is waited for


class Line:
    """One session's continuation under way, in pieces that end where its refocus is due.

    Attributes:
      count: how many tokens it may come to; number: how many are history.
      ended: whether it is over. error: what ended it, if that was an error.
      steps: of the piece under way; said: those begun; handed: tokens that were handed out.
    """

    def __init__(self, session, count: int, sampling: Sampling):
        self.session, self.count, self.sampling = session, count, sampling
        self.number, self.ended, self.error = 0, False, None
        self.steps, self.said, self.handed = 0, [], []
        self.waiting: deque[Said] = deque()
        self.drawing: Drawing | None = None
        self.busy = False

    @property
    def lane(self) -> int:
        return self.session.lane

    @property
    def wants(self) -> bool:
        """Whether another step may be begun before a refocus."""
        return not self.ended and len(self.said) < self.steps

    @property
    def over(self) -> bool:
        """Whether a piece is, and a refocus is due or the end is reached."""
        return not self.ended and not self.wants

    def begin(self) -> None:
        """A piece begins where the session stands; what the tail was is kept to go back to."""
        self.before = self.session.tail._replace(rows=None)
        self.steps = min(self.session.due, self.count - self.number)
        self.said, self.handed = [], []
        self.waiting.clear()
        self.ended = not self.steps

    def foresee(self) -> None:
        """All steps of a piece are under way: what its end will ask of the device is asked for. Of
        pieces of one length, that no other compiles anything."""
        whole = len(self.said) == self.session.interval
        if not whole or len(self.session.ingestion.waiting):
            return
        with TRYING:
            tokens = reading.tokens_of([said.token for said in self.said], np.int32(self.lane))
            self.session.ahead.foresee(self.session, tokens)

    def close(self) -> None:
        """Ends it here: what was handed out is history, what was drawn behind it is forgotten."""
        if self.busy:  # whoever asks was called by the line's own refocus
            return
        if self.drawing:
            self.drawing.close(self)
        self.ended = True


class Drawing:
    """Tokens of lines whose sessions stand side by side, each drawn in one step with the others'.

    What goes wrong in one session ends its line alone; it is raised when all lines are over.
    """

    def __init__(self, lines: Sequence[Line]):
        self._lines, one = list(lines), lines[0].session
        self._lanes, self._room = one.lanes, one.room
        kinds = {line.sampling.kind for line in lines}
        self._kind = kinds.pop() if len(kinds) == 1 else "cut"
        self._static = one.model, one.config.merger == "learned", self._kind
        self._params, self._prefix_bias = one.params, jnp.asarray(one.prefix_bias)
        self._draws, self._count = self._settings(), itertools.count()
        self._tails: Tail | None = None

    def tokens(self) -> Iterator[tuple[Line, int]]:
        """Up to `count` of every line, or to the end of its text, as they become known."""
        try:
            self._begin()
            while any(not line.ended for line in self._lines):
                with self._room():
                    self._step(self._wanting())
                for line in self._lines:
                    yield from self._known(line)
                self._go_on([line for line in self._lines if line.over])
        except GeneratorExit:
            self._finish()
            raise
        except BaseException:  # an interrupt too
            for line in self._lines:  # what a step was reading is lost with it
                if not line.ended:
                    line.session.owed.unread += line.handed
                line.ended = True
            self._let_go()
            raise
        self._finish()

    def end(self, line: Line) -> None:
        """Ends a line where it is; should that fail, the others go on."""
        self._guarded(line, self.close)

    def close(self, line: Line) -> None:
        """As `end`, and raises what fails."""
        if self._tails is not None and not line.ended:
            line.ended, steps = True, self._keep(line)
            while _step_of(steps, line):
                pass

    def _settings(self) -> Draws:
        """Of every lane; numbers and active change at every step."""
        lanes = self._lanes.count
        seeds, settings = [0] * lanes, [reading.settings_of(Sampling())] * lanes
        for line in self._lines:
            seeds[line.lane] = line.sampling.seed
            settings[line.lane] = reading.settings_of(line.sampling, self._kind)
        by = _by(tuple(seeds), tuple(settings))
        return Draws(by[0], np.zeros(lanes, np.int32), by[1], np.zeros(lanes, bool))

    def _begin(self):
        for line in self._lines:
            self._guarded(line, self._first_piece)
        tails = [self._lines[0].session.tail] * self._lanes.count
        for line in self._lines:
            tails[line.lane] = line.session.tail
        self._tails = reading.side_by_side(tails)

    def _first_piece(self, line):
        tailing.stand_at_end(line.session)
        line.drawing = self
        line.begin()

    def _wanting(self) -> list[Line]:
        """Lines that want a step, each on its rows: those that another has lost are made again."""
        for line in self._lines:
            if line.wants and not line.session.assembly.stands:
                self._guarded(line, _remade)
        return [line for line in self._lines if line.wants]

    def _step(self, lines):
        """One step of these lines; their tokens are known some steps later."""
        if not lines:
            return
        numbers, active = np.zeros_like(self._draws.numbers), np.zeros_like(self._draws.active)
        for line in lines:
            numbers[line.lane], active[line.lane] = line.number + len(line.said), True
        rows, tails = self._tails.rows, self._tails._replace(rows=None)
        draws = self._draws._replace(numbers=numbers, active=active)
        behind = self._lanes.whole(), rows, tails, draws, self._prefix_bias
        self._tails, said = reading.say(*self._static, self._params, *behind)
        said.token.copy_to_host_async()  # of its NLL a probe asks, some pieces later
        for line in lines:
            line.session.spending.read(1)
            line.said.append(said)
            line.waiting.append(said)
            if not line.wants:
                line.foresee()
        # One line thinks ahead a step: no more than the steps under way hide from the device.
        session = lines[next(self._count) % len(lines)].session
        if not session.ahead.think(session):
            session.ahead.prepare(session)

    def _known(self, line) -> Iterator[tuple[Line, int]]:
        """Tokens of a line that are waited for; where they are the piece's last, it is history."""
        while line.waiting and not line.ended and (len(line.waiting) > AHEAD or not line.wants):
            token = int(np.asarray(line.waiting.popleft().token)[line.lane])
            if token == line.session.opened.tokenizer.eot_id:
                self.end(line)
                return
            line.handed.append(token)
            yield line, token
            if line.ended:
                return

    def _go_on(self, lines):
        """What lines have said becomes history and their next pieces begin, side by side: all ask
        the device before any waits for it."""
        under_way = [(line, self._next_piece(line)) for line in lines]
        while under_way:
            under_way = [
                (line, steps)
                for line, steps in under_way
                if self._guarded(line, partial(_step_of, steps)) and not line.ended
            ]

    def _next_piece(self, line) -> Steps[None]:
        line.number += len(line.handed)
        yield from self._keep(line)
        line.begin()
        if not line.ended:
            self._tails = reading.with_tail(self._tails, line.lane, line.session.tail)

    def _keep(self, line) -> Steps[None]:
        """Takes what was handed out into the session's history, and forgets what is behind it."""
        session, said, handed = line.session, line.said, line.handed
        tail = reading.tail_of(self._tails, line.lane)
        if len(handed) < len(said):
            last = line.before.last
            if handed:
                last = np.asarray(said[len(handed) - 1].last)[line.lane]
            length = np.asarray(line.before.length) + np.int32(len(handed))
            tail = tailing.changed(session, tail, length=length, last=last)
        at = slice(line.lane, line.lane + 1)
        nll = ((np.asarray(one.nll)[at], 1) for one in said[: len(handed)])
        session.owed.torn = bool(handed)
        session.tail = tail
        if handed:
            session.take(np.array(handed, np.int32), nll)
        line.said, line.handed = [], []
        if handed:
            yield from growing.growing(session)

    def _guarded(self, line, action):
        """What an action returns; what fails is this line's alone."""
        try:
            with line.session.room():
                return action(line)
        except Exception as error:
            line.ended, line.error = True, error

    def _let_go(self):
        for line in self._lines:
            self.end(line)
            line.drawing = None

    def _finish(self):
        self._let_go()
        errors = [line.error for line in self._lines if line.error]
        if errors:
            raise errors[0]


def _remade(line: Line) -> None:
    line.session.assembly.remake(line.session.tail.heads)


def _step_of(steps: Steps[None], line: Line) -> bool:
    """One step of what a line does; whether another may follow."""
    line.busy = True
    try:
        return more(steps)
    finally:
        line.busy = False


@functools.lru_cache(maxsize=64)
def _by(seeds: tuple, settings: tuple) -> tuple:
    """Keys and settings of all lanes: on the device once, not at every step nor at every text."""
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    return keys, tuple(jnp.asarray(np.array(each)) for each in zip(*settings, strict=True))


def drawn(line: Line) -> Iterator[int]:
    """The tokens of one line alone."""
    for _, token in Drawing([line]).tokens():
        yield token
