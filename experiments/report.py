"""Tables and pictures of result files, and the tables of RESULTS.md.

    python -m experiments.report RUN… [--results RESULTS.md] [--out DIR]

RUN is a result file, or a workdir with `summary.json` or `eval/*.json`. Each result is printed as
a table and written to DIR (default: RUN/report) as NAME.md and NAME.png; a workdir's metrics and
layouts become curves and a focus map there. With --results, the text between
`<!-- table:NAME -->` and `<!-- end:NAME -->` is replaced by the result of that name.
"""

import argparse
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments import pictures
from experiments.entry import Parser, run
from mctx.errors import UserError
from mctx.telemetry import METRICS_FILE

REQUIRED = ("name", "command", "seed", "commit", "machine", "rows")
LAYOUTS_FILE = "layouts.jsonl"  # one layout record a refocus, beside metrics.jsonl
HEADINGS = {"what": "", "delta_nll": "ΔNLL"}
ENDS = [end for ends in pictures.INTERVALS.values() for end in ends]
SHOWN_ELSEWHERE = {"unit", "trained", *ENDS}  # in another column's heading or cells


def result_files(run: Path) -> list[Path]:
    """The result files of RUN: itself, or its summary.json and eval/*.json. UserError if none."""
    if run.is_file():
        return [run]
    files = [*run.glob("summary.json"), *sorted(run.glob("eval/*.json"))]
    if not files:
        raise UserError(f"{run} holds no summary.json and no eval/*.json: name a result or a run.")
    return files


def load_result(path: Path) -> dict:
    """Reads and checks one result file; a UserError says what is wrong with it."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as reason:
        raise UserError(f"{path} is not readable JSON ({reason}).") from None
    fault = _fault(result)
    if fault:
        raise UserError(f"{path} is not a result file: {fault}.")
    return result


def _fault(result) -> str | None:
    """What breaks the law of result files, in words, or None."""
    if not isinstance(result, dict):
        return "it is no JSON object"
    missing = [key for key in REQUIRED if key not in result]
    if missing:
        return f"it has no {', '.join(missing)}"
    if not re.fullmatch(r"[\w.+-]+", str(result["name"])):
        return f"its name {result['name']!r} is not made of letters, digits, '.', '_', '+' and '-'"
    rows = result["rows"]
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        return "its rows are not a list of objects"
    for number, row in enumerate(rows, 1):
        if not isinstance(row.get("what"), str) or "value" not in row:
            return f"row {number} has no what or no value"
        for key, (low, high) in pictures.INTERVALS.items():
            values = [row[k] for k in (key, low, high) if row.get(k) is not None]
            if not all(type(v) in (int, float) and math.isfinite(v) for v in values):
                return f"row {number} has a {key} that is no finite number"
            if len(values) == 3 and values[1] > values[2]:
                return f"row {number} has an interval of {key} that is upside down"
    return None


def number_text(value: float, half_width: float | None = None) -> str:
    """A number to two digits of its interval's half width, else to four digits; whole as it is."""
    if half_width:
        digits = 1 - math.floor(math.log10(half_width))
    elif isinstance(value, int) or not value:
        digits = 0
    else:
        digits = 3 - math.floor(math.log10(abs(value)))
    text = f"{value:,.{min(max(digits, 0), 6)}f}"
    is_zero = not text.strip("-0.")
    return text.lstrip("-") if is_zero else text.replace("-", "−")


def _cell(row: Mapping, key: str) -> str:
    value = row.get(key)
    if key == "what":
        bound = " (bound)" if value in pictures.BOUNDS else ""
        return value + bound + (" (untrained)" if row.get("trained") is False else "")
    if value is None:
        return "—"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float):
        return str(value)
    low, high = (row.get(end) for end in pictures.INTERVALS.get(key, ("", "")))
    if low is None or high is None:
        return number_text(value)
    half = (high - low) / 2 or None
    return f"{number_text(value, half)} [{number_text(low, half)}, {number_text(high, half)}]"


def table_cells(result: Mapping) -> list[list[str]]:
    """A result as text, the heading first. What all rows share (unit, n) is said once."""
    rows = result["rows"]
    units = {row.get("unit") for row in rows}
    keys = [k for k in dict.fromkeys(k for row in rows for k in row) if k not in SHOWN_ELSEWHERE]
    if len({row.get("n") for row in rows}) == 1 and "n" in keys:
        keys.remove("n")
    headings = [HEADINGS.get(key, key.replace("_", " ")) for key in keys]
    cells = [[_cell(row, key) for key in keys] for row in rows]
    at = keys.index("value")
    if len(units) == 1:
        headings[at] = units.pop() or "value"
    else:
        for row, line in zip(rows, cells, strict=True):
            line[at] += f" {row.get('unit') or ''}".rstrip()
    return [headings, *cells]


def footer(result: Mapping) -> list[str]:
    """Where the numbers come from: one line of facts, then the result's own notes."""
    counts = {row.get("n") for row in result["rows"]} - {None}
    facts = [f"`{result['command']}`", f"seed {result['seed']}"]
    facts += [f"commit {_short(result['commit'])}", _machine(result["machine"])]
    facts += [f"n = {n:,}" for n in counts if len(counts) == 1]
    if any(row.get(end) is not None for row in result["rows"] for end in ENDS):
        facts.append(f"[low, high]: {result.get('interval', pictures.INTERVAL)}")
    return [" · ".join(facts), *result.get("notes", [])]


def _short(commit: str) -> str:
    return commit[:10] + ("+" if commit.endswith("+") else "")


def _machine(machine: Mapping | str) -> str:
    if isinstance(machine, str):
        return machine
    parts = [machine.get("cpu"), f"{machine.get('cores')} cores", machine.get("devices")]
    return ", ".join([*filter(None, parts), f"jax {machine.get('versions', {}).get('jax')}"])


def markdown_table(result: Mapping) -> str:
    """The table as Markdown, with its footer."""
    heading, *lines = ([_escape(cell) for cell in line] for line in table_cells(result))
    rule = ["---", *["---:"] * (len(heading) - 1)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in (heading, rule, *lines))
    return "\n\n".join([table, *footer(result)]) + "\n"


def _escape(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")


def print_table(result: Mapping, console: Console) -> None:
    heading, *lines = table_cells(result)
    table = Table(title=Text(result["name"], "bold"), title_justify="left", box=box.SIMPLE_HEAD)
    for column, name in enumerate(heading):
        table.add_column(Text(name), justify="right" if column else "left")
    for line in lines:
        table.add_row(*map(Text, line))
    console.print(table)
    for line in footer(result):
        console.print(Text(line, "dim"))


def replace_tables(text: str, tables: Mapping[str, str], name: str) -> str:
    """`text` with the lines between each table's markers replaced. UserError on a marker amiss."""
    for table, content in tables.items():
        begin, end = f"<!-- table:{table} -->", f"<!-- end:{table} -->"
        if (text.count(begin), text.count(end)) != (1, 1) or text.index(begin) > text.index(end):
            raise UserError(f"{name} needs the markers {begin} and {end} once each, in this order.")
        before, after = text[: text.index(begin) + len(begin)], text[text.index(end) :]
        text = f"{before}\n{content.strip()}\n{after}"
    return text


def write_whole(path: Path, text: str) -> None:
    """Replaces a file at once: a reader sees the old text or the new, never half of one."""
    path = path.resolve()
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def draw_run(run: Path, out: Path) -> None:
    """Draws what a workdir logged: losses, refocuses and layouts, those that are there."""
    metrics = sorted(run.rglob(METRICS_FILE))
    losses = [path for path in metrics if any(map(pictures.is_loss, pictures.scalar_names(path)))]
    if losses:
        pictures.training_curves(losses, out / "training.png")
    for path in metrics:
        if any(map(pictures.is_refocus, pictures.scalar_names(path))):
            pictures.telemetry_curves(path, out / _log_name("refocus", path, run))
    for path in sorted(run.rglob(LAYOUTS_FILE)):
        pictures.focus_map(_records(path), out / _log_name("focus", path, run))


def _log_name(what: str, log: Path, run: Path) -> str:
    return "-".join([what, *log.relative_to(run).parent.parts]) + ".png"


def _records(path: Path) -> list[dict]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except ValueError:
        raise UserError(f"{path} cannot be read as one JSON object a line.") from None


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(
        prog="python -m experiments.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--results", type=Path, help="a Markdown file with table markers")
    parser.add_argument("--out", type=Path, help="where tables and pictures go")
    args = parser.parse_args(argv)

    found = [(path, load_result(file)) for path in args.runs for file in result_files(path)]
    tables = {result["name"]: markdown_table(result) for _, result in found}
    if len(tables) < len(found):
        raise UserError("two of these results have the same name: report on one of them.")
    if args.results and not args.results.is_file():
        raise UserError(f"{args.results} does not exist: name the Markdown file with the markers.")
    if args.results:
        text = args.results.read_text(encoding="utf-8")
        text = replace_tables(text, tables, str(args.results))

    console = Console()
    for path, result in found:
        name, out = result["name"], _out(path, args.out)
        print_table(result, console)
        write_whole(out / f"{name}.md", tables[name])
        if pictures.chart_measure(result):
            pictures.bar_chart(result, out / f"{name}.png")
    for path in filter(Path.is_dir, args.runs):
        draw_run(path, _out(path, args.out))
    if args.results:
        write_whole(args.results, text)


def _out(run: Path, out: Path | None) -> Path:
    """The folder for what is written about a run, made where it is missing."""
    folder = out or (run if run.is_dir() else run.parent) / "report"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


if __name__ == "__main__":
    run(main)
