"""A Windowed is what `experiments.score` measures, in pieces of any size, and can be continued."""

import numpy as np
import pytest

from experiments import score
from experiments.peers.windowed import Windowed
from mctx.opened import open_checkpoint
from mctx.runtime import generation, reading
from tests import tiny
from tests.experiments import tiny_checkpoint

BLOCK = tiny.GIST.block


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    folder = tiny_checkpoint.write(tmp_path_factory.mktemp("windowed") / "base", ("base",))
    return open_checkpoint(folder, ("base",))


@pytest.mark.parametrize("method, budget, sinks", [("full", 256, 0), ("window", 12, BLOCK)])
def test_pieces_of_any_size_give_the_numbers_of_score(opened, method, budget, sinks):
    ids = np.asarray(tiny.tokens(1, 45)[0])
    reader = Windowed(opened, budget, sinks)
    pieces = np.split(ids, [1, 3, 4, 9, 24, 25, 44])
    nll = np.concatenate([reader.read_tokens(piece) for piece in pieces])
    expected = score.METHODS[method][0](opened, ids, budget)
    np.testing.assert_allclose(nll[1:], expected, atol=1e-4)


def test_it_is_continued_by_what_is_likeliest(opened):
    ids = np.asarray(tiny.tokens(1, 21)[0])
    reader = Windowed(opened, 64, 0)
    reader.read_tokens(ids)
    said = "".join(generation.stream(reader, 6))
    expected = list(ids)
    for _ in range(6):
        plain = Windowed(opened, 64, 0)
        plain.read_tokens(np.array(expected))
        logits = reading.next_logits(opened.params["base"], plain.tail.last)
        expected.append(int(np.argmax(logits)))
        if expected[-1] == opened.tokenizer.eot_id:
            expected.pop()
            break
    assert len(expected) > len(ids)
    decode = opened.tokenizer.decode
    assert decode(list(ids)) + said == decode(expected)
