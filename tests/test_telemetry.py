"""Metrics outlive the process that wrote them."""

import json
import sys
from types import SimpleNamespace

import pytest

from mctx.errors import UserError
from mctx.telemetry import METRICS_FILE, Telemetry, read_scalars


def test_rows_are_readable_while_the_writer_lives(tmp_path):
    telemetry = Telemetry(tmp_path)
    telemetry.scalars(1, {"loss": 2.5})
    assert read_scalars(tmp_path)[0]["loss"] == 2.5  # flushed, not closed
    telemetry.close()
    assert any((tmp_path / "tensorboard").iterdir())


def test_append_after_a_kill_drops_the_torn_line_and_the_later_value_wins(tmp_path):
    first = Telemetry(tmp_path)
    first.scalars(1, {"loss": 3})
    first.scalars(2, {"loss": 2})
    first.close()
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"step": 3, "lo')
    assert [row["step"] for row in read_scalars(tmp_path)] == [1, 2]
    second = Telemetry(tmp_path)
    second.scalars(2, {"loss": 1, "eval/nll": 4})
    second.scalars(2, {"speed": 5})
    second.close()
    rows = read_scalars(tmp_path)
    assert [row["step"] for row in rows] == [1, 2]
    assert (rows[1]["loss"], rows[1]["eval/nll"], rows[1]["speed"]) == (1, 4, 5)


def test_weights_and_biases_get_the_same_or_are_missed_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="wandb is not installed: `pip install wandb`"):
        Telemetry(tmp_path / "run", wandb="mine")
    said = []
    run = SimpleNamespace(
        log=lambda values, step: said.append((step, values)), finish=lambda: said.append("end")
    )
    fake = SimpleNamespace(init=lambda **how: said.append(how["project"]) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    telemetry = Telemetry(tmp_path / "run", wandb="mine")
    telemetry.scalars(3, {"loss": 2})
    telemetry.close()
    assert said == ["mine", (3, {"loss": 2.0}), "end"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_still_json(tmp_path, value):
    telemetry = Telemetry(tmp_path)
    telemetry.scalars(1, {"loss": value})
    telemetry.close()
    text = (tmp_path / METRICS_FILE).read_text()
    assert json.loads(text, parse_constant=pytest.fail)["loss"] is None
