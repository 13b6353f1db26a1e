"""Tables and pictures of result files, and the tables of RESULTS.md.

    python -m experiments.report RUN… [--results RESULTS.md] [--out DIR]

RUN is a result file, or a folder: with results, `*.json` there or in its `eval`, or logs. Each
result is printed as tables and written to DIR (default: RUN/report) as NAME.md and NAME.png (bars;
curves where it has panels), one with views as NAME-VIEW….png; a workdir's metrics and layouts
become curves and a focus map there, and one page of both where a session told its reasons
(`experiments.stream --page`).
With --results, the text between `<!-- table:NAME -->` and `<!-- end:NAME -->` is replaced by the
result of that name.
"""

import argparse
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from experiments import pictures
from experiments.entry import Parser, check_folder, run
from experiments.tables import by_split, fact_text, markdown_table, print_table
from mctx.errors import UserError
from mctx.telemetry import METRICS_FILE, read_scalars

REQUIRED = ("name", "command", "seed", "commit", "machine", "rows")
BY_SPLIT = {"lines": pictures.lines, "calibration": pictures.calibration}  # of a view
LAYOUTS_FILE = "layouts.jsonl"  # one layout record a refocus, beside metrics.jsonl
REASONS_FILE = "reasons.jsonl"  # what was brought back and why, beside them (experiments.reasons)


def result_files(run: Path) -> list[Path]:
    """The result files of RUN: itself, or its summary.json, the other *.json there that have rows,
    and its eval/*.json; none where it has only logs. UserError where there is nothing to tell."""
    if run.is_file():
        return [run]
    summary = run / "summary.json"
    own = [path for path in sorted(run.glob("*.json")) if path != summary and _has_rows(path)]
    files = [*run.glob("summary.json"), *own, *sorted(run.glob("eval/*.json"))]
    logs = (log for name in (METRICS_FILE, LAYOUTS_FILE) for log in run.rglob(name))
    if not files and next(logs, None) is None:
        raise UserError(
            f"{run} holds no result (*.json, eval/*.json) and no {METRICS_FILE}: name a result or "
            "a run."
        )
    return files


def _has_rows(path: Path) -> bool:
    """Whether it is meant as a result: settings and tokenizers, which lie in workdirs, are not."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "rows" in content


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
        if "views" in result and row.get("view") not in result["views"]:
            return f"row {number} is of no view that it has"
        if not isinstance(row.get("what"), str) or "value" not in row:
            return f"row {number} has no what or no value"
        for key, (low, high) in pictures.INTERVALS.items():
            values = [row[k] for k in (key, low, high) if row.get(k) is not None]
            if not all(type(v) in (int, float) and math.isfinite(v) for v in values):
                return f"row {number} has a {key} that is no finite number"
            if len(values) == 3 and values[1] > values[2]:
                return f"row {number} has an interval of {key} that is upside down"
    return None


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


def draw_views(result: Mapping, out: Path) -> None:
    """The pictures that a result's views ask for, and what was in focus: NAME-VIEW….png."""
    for view_name, view in result["views"].items():
        stem = _file_name(result["name"], view_name)
        rows = [row for row in result["rows"] if row["view"] == view_name]
        if rows and "heatmap" in view["pictures"]:
            pictures.heatmaps(view, rows, view["title"], out / f"{stem}.png")
        for value, members in by_split(rows, view).items():
            where = "" if value is None else fact_text(view["split"], value)
            title = " · ".join(filter(None, [view["title"], where]))
            path = out / f"{_file_name(stem, value)}.png"
            note = f"whiskers: {result.get('interval', pictures.INTERVAL)}"
            for name in set(BY_SPLIT) & set(view["pictures"]):
                BY_SPLIT[name](view, members, title, note, path)
            if "cost" in view["pictures"]:
                _draw_cost(result, view, members, title, path.with_stem(f"{path.stem}-cost"))
    families: dict[str, list[Mapping]] = {}
    for one in result.get("focus", []):
        families.setdefault(one["family"], []).append(one)
    for family, shown in families.items():
        title = f"{family} · {fact_text('length', shown[0]['length'])} · seed {shown[0]['seed']}"
        path = out / f"{result['name']}-focus-{family}.png"
        pictures.in_focus(shown, result["plan"]["block"], title, path)


def _draw_cost(result: Mapping, view: Mapping, rows: Sequence[Mapping], title, path) -> None:
    """At the greatest length, under the budget that the rows are of."""
    length, budget = max(row["length"] for row in rows), result["plan"]["budget"]
    costs = [c for c in result["costs"] if (c["length"], c["budget"]) == (length, budget)]
    rows = [row for row in rows if row["length"] == length]
    if costs:
        bounds = {row["what"] for row in rows if pictures.is_bound(row)}
        told = f"{title} · {fact_text('length', length)}"
        pictures.tradeoff(view, rows, costs, bounds, told, path)


def _file_name(stem: str, value) -> str:
    return stem if value is None else re.sub(r"[^\w.+-]+", "_", f"{stem}-{value}")


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
    for path in sorted(run.rglob(REASONS_FILE)):
        logged = _records(path.with_name(LAYOUTS_FILE)), read_scalars(path.parent), _records(path)
        title = f"What was looked at: {run.name}"
        pictures.page(*logged, title, out / _log_name("page", path, run))


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
        if "views" in result:
            draw_views(result, out)
        elif "panels" in result:
            pictures.growth(result, out / f"{name}.png")
        elif pictures.chart_measure(result):
            pictures.bar_chart(result, out / f"{name}.png")
    for path in filter(Path.is_dir, args.runs):
        draw_run(path, _out(path, args.out))
    if args.results:
        write_whole(args.results, text)


def _out(run: Path, out: Path | None) -> Path:
    """The folder for what is written about a run, made where it is missing."""
    folder = out or (run if run.is_dir() else run.parent) / "report"
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


if __name__ == "__main__":
    run(main)
