"""A session that reads, commits and saves until it is killed: something to kill.

    python -m tests.runtime.doomed TREE

Prints how many tokens are stored, whenever more are.
"""

import sys

from tests.runtime.small import BLOCK, CONFIG, WINDOW, session, text


def main() -> None:
    made = session(CONFIG, sys.argv[1])
    tokens = text(14 * WINDOW + 3, seed=1)
    for at in range(0, len(tokens), BLOCK - 1):
        made.predict(tokens[at : at + BLOCK - 1])
        print(made.length, flush=True)
        made.save()
    sys.stdin.read()


if __name__ == "__main__":
    main()
