"""Scalars of a run: one JSON object a line is the truth, TensorBoard lies beside it.

Weights & Biases may get them too; it is a package of its own, `pip install wandb`.
"""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mctx.errors import UserError

METRICS_FILE = "metrics.jsonl"


class Telemetry:
    """Appends scalars to DIR/metrics.jsonl and to TensorBoard files in DIR/tensorboard.

    Each line is flushed as it is written, so a killed run loses at most the line it was writing;
    the next Telemetry on the same directory drops that torn line and goes on.
    """

    def __init__(self, directory: str | Path, wandb: str | None = None):
        """`wandb` names a project of Weights & Biases; a resumed run goes on in the same run.

        Raises UserError when that is asked for and the package is not installed.
        """
        # Not at the top: it imports torch where that is installed, which takes seconds.
        from tensorboardX import SummaryWriter

        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / METRICS_FILE
        _drop_torn_line(path)
        self._lines = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(directory / "tensorboard"), flush_secs=10)
        self._wandb = _wandb_run(wandb, directory) if wandb else None

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes {"step", "time" (Unix seconds), **values}; a value that is not finite is null."""
        numbers = {name: float(value) for name, value in values.items()}
        line = {name: n if math.isfinite(n) else None for name, n in numbers.items()}
        self._lines.write(json.dumps({"step": step, "time": time.time(), **line}) + "\n")
        self._lines.flush()
        for name, number in numbers.items():
            self._board.add_scalar(name, number, step)
        if self._wandb:
            self._wandb.log(numbers, step=step)

    def close(self) -> None:
        self._lines.close()
        self._board.close()
        if self._wandb:
            self._wandb.finish()


def _wandb_run(project: str, directory: Path):
    try:
        import wandb
    except ImportError:
        raise UserError(
            "wandb is not installed: `pip install wandb`, or train without train.wandb."
        ) from None
    name = "-".join(directory.resolve().parts[-2:])
    return wandb.init(project=project, name=name, id=name, dir=str(directory), resume="allow")


def _drop_torn_line(path: Path) -> None:
    if path.exists():
        with path.open("rb+") as file:
            whole = file.read().rfind(b"\n") + 1
            file.truncate(whole)


def read_scalars(directory: str | Path) -> list[dict]:
    """The rows of DIR/metrics.jsonl, one a step, in order of steps.

    Lines of one step are merged and the later value wins: a resumed run repeats the steps between
    its checkpoint and the kill.
    """
    rows: dict[int, dict] = {}
    for line in (Path(directory) / METRICS_FILE).read_text(encoding="utf-8").splitlines(True):
        if line.endswith("\n"):  # the last line of a killed run may be torn
            row = json.loads(line)
            rows.setdefault(row["step"], {}).update(row)
    return [rows[step] for step in sorted(rows)]


class ProgressBar:
    """A bar with ETA in a terminal; elsewhere (a log file, a scheduler) one line a report."""

    def __init__(self, name: str, total: int, visible: bool = True):
        self._console = Console(stderr=True, quiet=not visible)
        self._name, self._total = name, total
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[report]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )

    def begin(self, step: int) -> None:
        """Shows the bar, `step` steps done already."""
        self._task = self._progress.add_task(
            self._name, total=self._total, completed=step, report=""
        )
        self._progress.start()

    def advance(self, step: int) -> None:
        self._progress.update(self._task, completed=step)

    def note(self, text: str) -> None:
        """Prints one line above the bar."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def report(self, step: int, text: str) -> None:
        """Shows `text` behind the bar, or prints it where there is no bar."""
        self._progress.update(self._task, report=text)
        if not self._console.is_terminal:
            self.note(f"{self._name} {step}/{self._total}  {text}")

    def close(self) -> None:
        self._progress.stop()
