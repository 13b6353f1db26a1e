"""What an earlier run of the quickstart left is used again where it is of the same checkpoint."""

import types

import jax
import pytest

from experiments import comparison, quickstart
from tests.runtime import small


@pytest.mark.parametrize("item", ["base", "gistnet", "lensnet"])
def test_places_are_of_one_checkpoint_with_all_its_parts(item, tmp_path, monkeypatch):
    """A lens that is trained anew leaves the tree as it is, but not what it makes of it."""
    asked = []

    def compare(opened, over, protocol, starts):
        for start in starts:
            asked.append(start)
            yield {"lens": 1.0}, {"lens": 2.0}

    monkeypatch.setattr(comparison, "places", lambda *_: [64, 128])
    monkeypatch.setattr(comparison, "compare", compare)
    session = types.SimpleNamespace(tree=types.SimpleNamespace(length=256))
    opened, protocol = small.opened(), comparison.Protocol(segments=2)

    def run(opened):
        asked.clear()
        return quickstart.compare(opened, session, tmp_path, protocol), list(asked)

    wanted = [{"lens": 1.0}] * 2, [{"lens": 2.0}] * 2
    assert run(opened) == (wanted, [64, 128])
    assert run(opened) == (wanted, [])
    moved = jax.tree.map(lambda x: x + 1, opened.params[item])
    assert run(opened._replace(params={**opened.params, item: moved})) == (wanted, [64, 128])
