"""The small twin of `bench tree`: no fault in what is killed or followed, and a result file."""

import pytest

from experiments import report
from experiments.bench import __main__ as bench
from experiments.bench import tree
from mctx.errors import UserError

PARTS = ["bulk", "live", "gather", "large", "kill", "follow"]  # `replace` compiles a model


def test_the_small_run_writes_a_result_without_faults(tmp_path):
    path = tmp_path / "result.json"
    where = [f"--workdir={tmp_path / 'work'}", f"--json={path}", f"--only={','.join(PARTS)}"]
    bench.main(["tree", "--smoke", *where])
    rows = {row["what"]: row for row in report.load_result(path)["rows"]}
    faults = [row for row in rows.values() if row["goal"] == "0"]
    assert len(rows) == 14 and len(faults) == 4
    assert all(row["value"] == 0 and row["reached"] for row in faults)
    assert not list((tmp_path / "work").iterdir())  # what was written is gone


def test_every_part_is_known_and_others_are_refused(tmp_path):
    assert set(PARTS) < set(tree.PARTS)
    with pytest.raises(UserError, match="no part speed"):
        bench.main(["tree", "--only=speed", f"--json={tmp_path / 'x.json'}"])
