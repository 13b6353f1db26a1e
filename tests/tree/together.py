"""One process of a job that writes a tree together: something to start twice, and to kill.

    python -m tests.tree.together PORT PROCESS URI TOKENS [STUCK]

From piece STUCK on, the process reads no more and waits to be killed. What it has to say is on
lines of its own that begin with `SAYS`: libraries print to the same place, and mix their lines.
"""

import sys
import time

import jax

from mctx.errors import UserError
from mctx.tree.hosts import append_together
from tests.runtime.small import text
from tests.tree.plain import PlainReader

WINDOWS = 2
SAYS = "together: "


class Stuck(PlainReader):
    """Reads so many pieces of WINDOWS windows."""

    def __init__(self, pieces: int):
        super().__init__()
        self._left = pieces * WINDOWS

    def full_windows(self, tokens):
        if self.windows >= self._left:
            say("stuck")
            time.sleep(600)
        return super().full_windows(tokens)


def say(what) -> None:
    print(f"\n{SAYS}{what}", flush=True)


def main() -> None:
    port, process, uri, count, *stuck = sys.argv[1:]
    jax.distributed.initialize(
        f"localhost:{port}", 2, int(process), shutdown_timeout_seconds=1
    )
    reader = Stuck(int(stuck[0])) if stuck else PlainReader()
    tokens = text(int(count))
    try:
        added = append_together(uri, reader, tokens, "models", patience=2, windows=WINDOWS)
        say(added)
    except UserError as error:
        say(error)


if __name__ == "__main__":
    main()
