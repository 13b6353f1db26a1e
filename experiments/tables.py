"""Results as tables: Markdown, and a terminal's.

A plain result is one table, a row a line; KEY_low and KEY_high are the interval of KEY. A result
with views is a table for each view and value of what splits it, methods down and one fact across,
and a table of what the methods cost.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.pictures import INTERVAL, INTERVALS, is_bound

HEADINGS = {"what": "", "delta_nll": "ΔNLL"}
ENDS = [end for ends in INTERVALS.values() for end in ends]
SHOWN_ELSEWHERE = {"unit", "trained", "sees_future", *ENDS}  # in another column's heading or cells
HUNDREDTHS = 0.1  # a half width that leaves two digits behind the point
COSTS = (  # field, heading, what it is divided by
    ("entries", "entries", 1),
    ("ms_refocus", "ms per refocus", 1),
    ("ms_token", "ms per token", 1),
    ("flops_refocus", "GFLOP per refocus", 1e9),
    ("flops_token", "GFLOP per token", 1e9),
    ("tree_bytes", "KiB of the tree read", 1024),
    ("host_bytes", "peak host MiB", 2**20),
    ("device_bytes", "peak device MiB", 2**20),
)


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
        bound = " (bound)" if is_bound(row) else ""
        return value + bound + (" (untrained)" if row.get("trained") is False else "")
    if value is None:
        return "—"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float):
        return str(value)
    low, high = (row.get(end) for end in _ends(key))
    if low is None or high is None:
        return number_text(value)
    half = (high - low) / 2 or None
    return f"{number_text(value, half)} [{number_text(low, half)}, {number_text(high, half)}]"


def _ends(key: str) -> tuple[str, str]:
    """The row keys of a key's interval."""
    return INTERVALS.get(key, (f"{key}_low", f"{key}_high"))


def table_cells(result: Mapping) -> list[list[str]]:
    """A result as text, the heading first. What all rows share (unit, n) is said once."""
    rows = result["rows"]
    units = {row.get("unit") for row in rows}
    every = dict.fromkeys(k for row in rows for k in row)
    elsewhere = SHOWN_ELSEWHERE.union(*map(_ends, every))
    keys = [key for key in every if key not in elsewhere]
    if len({row.get("n") for row in rows}) == 1 and "n" in keys:
        keys.remove("n")
    headings = [HEADINGS.get(key, key.replace("_", " ")) for key in keys]
    cells = [[_cell(row, key) for key in keys] for row in rows]
    at = keys.index("value")
    if len(units) == 1:
        headings[at] = (units.pop() or "value").replace("_", " ")
    else:
        for row, line in zip(rows, cells, strict=True):
            line[at] += f" {row.get('unit') or ''}".rstrip()
    return [headings, *cells]


def footer(result: Mapping) -> list[str]:
    """Where the numbers come from: one line of facts, then the result's own notes."""
    counts = {row.get("n") for row in result["rows"]} - {None}
    facts = [f"`{result['command']}`", f"seed {result['seed']}"]
    facts += [_commits(result), _machine(result["machine"])]
    facts += [f"n = {n:,}" for n in counts if len(counts) == 1]
    if any(row.get(end) is not None for row in result["rows"] for end in ENDS):
        facts.append(f"[low, high]: {result.get('interval', INTERVAL)}")
    return [" · ".join(facts), *result.get("notes", [])]


def _commits(result):
    """Of the measurements, and of what told of them where that is another."""
    told, made = result["commit"], result.get("records", {}).get("commits") or [result["commit"]]
    of = f"commit {', '.join(map(_short, made))}"
    return of if made == [told] else f"{of}, told of by {_short(told)}"


def _short(commit: str) -> str:
    return commit[:10] + ("+" if commit.endswith("+") else "")


def _machine(machine: Mapping | str) -> str:
    if isinstance(machine, str):
        return machine
    parts = [machine.get("cpu"), f"{machine.get('cores')} cores", machine.get("devices")]
    return ", ".join([*filter(None, parts), f"jax {machine.get('versions', {}).get('jax')}"])


class Section(NamedTuple):
    """One table of a result: a title, the heading, and the lines."""

    title: str
    heading: list[str]
    lines: list[list[str]]


def sections(result: Mapping) -> list[Section]:
    """The tables of a result: one, or one for each view and value of what splits it, and costs."""
    if "views" not in result:
        heading, *lines = table_cells(result)
        return [Section(result["name"], heading, lines)]
    found = []
    for name, view in result["views"].items():
        rows = [row for row in result["rows"] if row["view"] == name]
        for value, members in by_split(rows, view).items():
            found.append(_pivot(view, value, members))
    return found + [_costs(*one) for one in _by_length(result.get("costs", []))]


def by_split(rows: Iterable[Mapping], view: Mapping) -> dict:
    """Rows of a view by what splits it, in rising order; under None where nothing does."""
    found: dict = {}
    for row in rows:
        found.setdefault(row.get(view["split"]), []).append(row)
    return dict(sorted(found.items(), key=lambda item: _order(item[0])))


def fact_text(key: str | None, value) -> str:
    """`8,192 tokens`, `facts_1`, `depth 0.25`."""
    if isinstance(value, str):
        return value
    number = f"{value:,}" if isinstance(value, int) else f"{value:g}"
    return f"{number} tokens" if key == "length" else f"{key} {number}"


def _order(value) -> tuple:
    return (isinstance(value, str), value if value is not None else 0)


def _pivot(view: Mapping, value, rows: Sequence[Mapping]) -> Section:
    """Methods down, one fact across; the best that is no bound is bold."""
    across = view["across"]
    columns = sorted({row[across] for row in rows}, key=_order)
    cell = {(row["what"], row[across]): row for row in rows}
    best = {column: _best(view, [r for r in rows if r[across] == column]) for column in columns}
    methods = {row["what"]: is_bound(row) for row in rows}
    lines = [
        [method + (" (bound)" if bound else "")]
        + [_told(view, cell.get((method, column)), best[column]) for column in columns]
        for method, bound in methods.items()
    ]
    names = [fact_text(across, column) for column in columns]
    return Section(_title(view, value, rows), ["", *names], lines)


def _title(view: Mapping, value, rows: Sequence[Mapping]) -> str:
    counts = sorted({row["n"] for row in rows})
    many = f"n = {counts[0]:,}" + (f" to {counts[-1]:,}" if len(counts) > 1 else "")
    where = [] if value is None else [fact_text(view["split"], value)]
    unit = [view["unit"]] if view["unit"] else []
    return " · ".join([view["title"], *where, *unit, many])


def _best(view: Mapping, rows: Sequence[Mapping]) -> float | None:
    values = [row["value"] for row in rows if not is_bound(row) and view["better"]]
    pick = min if view["better"] == "lower" else max
    return pick(values) if len(set(values)) > 1 else None


def _told(view: Mapping, row: Mapping | None, best: float | None) -> str:
    if row is None:
        return "—"
    # Shares are all told to two digits, so that they stand under each other.
    if view["unit"] == "share":
        value, low, high = (number_text(row[k], HUNDREDTHS) for k in ("value", "low", "high"))
        text = f"{value} [{low}, {high}]"
    else:
        text = _cell(row, "value")
    number, _, ends = text.partition(" ")
    marked = f"**{number}**" if row["value"] == best and not is_bound(row) else number
    return f"{marked} {ends}".rstrip() if view["intervals"] else marked


def _by_length(costs: Sequence[Mapping]) -> list[tuple]:
    """(length, budget, its costs), where most methods were measured at that length."""
    found: dict[tuple, list] = {}
    for cost in costs:
        found.setdefault((cost["length"], cost["budget"]), []).append(cost)
    return [(*key, members) for key, members in sorted(found.items())]


def _costs(length: int, budget: int, costs: Sequence[Mapping]) -> Section:
    lines = [
        [cost["what"], *(_amount(cost.get(key), scale) for key, _, scale in COSTS), cost["tail"]]
        for cost in costs
    ]
    title = f"Costs · {length:,} tokens · a budget of {budget:,} entries"
    return Section(title, ["", *(name for _, name, _ in COSTS), "tail"], lines)


def _amount(value: float | None, scale: float) -> str:
    if value is None:
        return "—"
    scaled = value / scale
    return f"{scaled:,.0f}" if scaled >= 100 or scaled == int(scaled) else f"{scaled:,.3g}"


def markdown_table(result: Mapping) -> str:
    """The tables as Markdown, with their footer."""
    told = sections(result)
    parts = []
    for section in told:
        rule = ["---", *["---:"] * (len(section.heading) - 1)]
        lines = ([_escape(cell) for cell in line] for line in (section.heading, *section.lines))
        heading, *rest = (f"| {' | '.join(line)} |" for line in lines)
        if len(told) > 1:
            parts.append(f"**{_escape(section.title)}**")
        parts.append("\n".join([heading, f"| {' | '.join(rule)} |", *rest]))
    return "\n\n".join([*parts, *footer(result)]) + "\n"


def _escape(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")


def print_table(result: Mapping, console: Console) -> None:
    for section in sections(result):
        title = Text(section.title, "bold")
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
        for column, name in enumerate(section.heading):
            table.add_column(Text(name), justify="right" if column else "left")
        for line in section.lines:
            table.add_row(*(Text(cell.replace("**", "")) for cell in line))
        console.print(table)
    for line in footer(result):
        console.print(Text(line, "dim"))
