"""Reports: tables say what the files say, markers are replaced exactly, pictures are drawn."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageColor

from experiments import pictures, report, tables
from experiments.focus_raster import SILENT, UNWRITTEN, focus_raster
from experiments.pictures.tradeoff import on_front, spread
from mctx.errors import UserError

FANOUTS = (4, 2, 2)  # tokens a block, then blocks a LOD2 node, LOD2 nodes a LOD3 node


def row(what, value, **more):
    return {"what": what, "value": value, "unit": "nats/token", "n": 64} | more


def result(**changes):
    rows = [
        row("sinks+recent", 1.9012, low=1.8512, high=1.9512, delta_nll=0.0, entries=1024),
        row("lens", 1.7, delta_nll=-0.2012, delta_low=-0.2212, delta_high=-0.1812, trained=False),
        row("full", 1.65, delta_nll=-0.25, entries=20480),
    ]
    facts = {"name": "quick", "command": "python -m x", "seed": 3, "commit": "c0ffee" * 6 + "+"}
    facts |= {"machine": {"cpu": "CPU", "cores": 2}, "rows": rows, "notes": ["A note."]}
    return facts | changes


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def layout(position, fine, silent=()):
    """Blocks of `fine` as tokens, the rest as LOD2 pairs, or LOD1 where a pair is broken."""
    nodes, block = [], 0
    while block < position // FANOUTS[0]:
        pair = {block, block + 1}
        if block % 2 == 0 and not pair & set(fine) and block + 2 <= position // FANOUTS[0]:
            nodes.append((2, block // 2))
        else:
            nodes.append((0 if block in fine else 1, block))
        block += 2 if nodes[-1][0] == 2 else 1
    level, index = zip(*nodes, strict=True)
    shown = [node not in silent for node in nodes]
    nodes = {"level": level, "index": index, "shown": shown}
    return {"position": position, "fanouts": FANOUTS, **nodes}


@pytest.mark.parametrize(
    "value, half, text",
    [
        (1.90123, 0.05, "1.901"),
        (1.90123, 0.21, "1.90"),
        (-0.20123, 0.0212, "−0.201"),
        (-0.0004, 0.05, "0.000"),
        (12345.6, 120.0, "12,346"),
        (0, 0.1, "0.00"),
        (104857, None, "104,857"),
        (3.14159, None, "3.142"),
        (0.0123456, None, "0.01235"),
        (0.0, None, "0"),
    ],
)
def test_numbers_show_as_many_digits_as_their_interval_bears(value, half, text):
    assert tables.number_text(value, half) == text


def test_table_has_one_column_a_quantity_and_says_shared_things_once():
    heading, first, lens, full = tables.table_cells(result())
    assert heading == ["", "nats/token", "ΔNLL", "entries"]
    assert first == ["sinks+recent", "1.901 [1.851, 1.951]", "0", "1,024"]
    assert lens == ["lens (untrained)", "1.700", "−0.201 [−0.221, −0.181]", "—"]
    assert full[0] == "full (bound)"


def test_units_that_differ_stand_in_the_cells():
    rows = [row("read", 3.5, unit="ms"), row("size", 7, unit="MB")]
    cells = tables.table_cells(result(rows=rows))
    assert [line[1] for line in cells] == ["value", "3.500 ms", "7 MB"]


def test_footer_says_where_the_numbers_come_from():
    facts, note = tables.footer(result())
    for part in ("`python -m x`", "seed 3", "commit c0ffeec0ff+", "CPU, 2 cores", "n = 64"):
        assert part in facts
    assert facts.endswith("[low, high]: bootstrap 95 % over segments")
    assert note == "A note."
    assert "bootstrap" not in tables.footer(result(rows=[row("lens", 1.0)]))[0]


def test_footer_says_which_code_measured_where_another_told_of_it():
    facts = tables.footer(result(records={"commits": ["a" * 40, "b" * 40]}))[0]
    assert "commit aaaaaaaaaa, bbbbbbbbbb, told of by c0ffeec0ff+" in facts
    same = tables.footer(result(records={"commits": [result()["commit"]]}))[0]
    assert same == tables.footer(result())[0]


def test_a_bar_in_a_cell_does_not_end_it():
    assert r"a\|b" in tables.markdown_table(result(rows=[row("a|b", 1.0)]))


def test_markers_are_replaced_exactly(tmp_path):
    text = "# R\n\n<!-- table:quick -->\nold\n<!-- end:quick -->\n\n<!-- table:other -->\nkeep\n"
    text += "<!-- end:other -->\ntail"
    results = write(tmp_path / "RESULTS.md", text)
    write(tmp_path / "run/summary.json", result())
    arguments = [str(tmp_path / "run"), "--results", str(results)]
    report.main(arguments)
    table = tables.markdown_table(result()).strip()
    assert results.read_text() == text.replace("old", table)
    report.main(arguments)
    assert results.read_text() == text.replace("old", table)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["RESULTS.md", "run"]


@pytest.mark.parametrize(
    "text",
    [
        "no marker",
        "<!-- table:quick --> never ends",
        "<!-- end:quick --><!-- table:quick -->",
        "<!-- table:quick --><!-- end:quick -->" * 2,
    ],
)
def test_a_marker_amiss_leaves_everything_as_it_was(tmp_path, text):
    results = write(tmp_path / "RESULTS.md", text)
    file = write(tmp_path / "run/eval/quick.json", result())
    with pytest.raises(UserError, match="table:quick"):
        report.main([str(file), "--results", str(results), "--out", str(tmp_path / "out")])
    assert results.read_text() == text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "content, says",
    [
        ("{", "not readable JSON"),
        ([], "no JSON object"),
        ({"name": "x"}, "no command, seed"),
        (result(name="../x"), "letters"),
        (result(rows=[]), "rows"),
        (result(rows=[{"what": "lens"}]), "row 1 has no what or no value"),
        (result(rows=[row("lens", "1.0")]), "row 1 has a value that is no finite number"),
        (result(rows=[row("lens", float("nan"))]), "no finite number"),
        (result(rows=[row("a", 1.0), row("b", 1.0, low=2.0, high=1.0)]), "row 2 .* upside down"),
    ],
)
def test_malformed_files_are_refused_in_one_sentence(tmp_path, content, says):
    with pytest.raises(UserError, match=says):
        report.load_result(write(tmp_path / "bad.json", content))


def test_a_run_without_results_and_two_of_one_name_are_refused(tmp_path):
    with pytest.raises(UserError, match="no result .* and no metrics.jsonl"):
        report.main([str(tmp_path)])
    one, two = (write(tmp_path / f"{n}.json", result()) for n in "ab")
    with pytest.raises(UserError, match="same name"):
        report.main([str(one), str(two)])


def test_results_that_lie_in_the_folder_itself_are_told_and_its_settings_are_not(tmp_path):
    for name in ("base", "robustness"):
        write(tmp_path / f"{name}.json", result(name=name))
    write(tmp_path / "eval" / "lens.json", result(name="lens"))
    write(tmp_path / "config.json", {"phase": "gist"})
    write(tmp_path / "torn.json", "{")
    found = [path.name for path in report.result_files(tmp_path)]
    assert found == ["base.json", "robustness.json", "lens.json"]


def test_a_report_that_cannot_be_written_says_so(tmp_path):
    run, taken = write(tmp_path / "a.json", result()), write(tmp_path / "taken", "")
    with pytest.raises(UserError, match="taken is a file, where a folder is needed"):
        report.main([str(run), f"--out={taken}"])


def test_a_run_leaves_its_table_and_all_its_pictures(tmp_path, capsys):
    run = tmp_path / "run"
    write(run / "summary.json", result())
    lines = [{"step": s, "time": 0, "loss": 1 / (s + 1), "eval/nll": None} for s in range(300)]
    write(run / "lens/metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    lines = [{"step": s, "time": 0, "refocus/ms_due": 2, "refocus/coverage/old": 0.1,
              "refocus/coverage/new": 0.9, "refocus/own_idea": s} for s in range(3)]
    write(run / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    records = [layout(position, {0, position // 4 - 1}) for position in (16, 32, 48)]
    write(run / "layouts.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    report.main([str(run)])
    made = {path.name: path for path in (run / "report").iterdir()}
    assert set(made) == {"quick.md", "quick.png", "training.png", "refocus.png", "focus.png"}
    for name, path in made.items():
        if name.endswith("png"):
            with Image.open(path) as picture:
                assert len(picture.convert("RGB").getcolors(1 << 24)) > 3  # something is drawn
            assert path.stat().st_size < 150_000
    assert made["quick.md"].read_text() == tables.markdown_table(result())
    assert "lens (untrained)" in capsys.readouterr().out
    (run / "summary.json").unlink()  # what a session logs is drawn, too
    report.main([str(run), f"--out={tmp_path / 'logs'}"])
    drawn = {path.name for path in (tmp_path / "logs").iterdir()}
    assert drawn == {"training.png", "refocus.png", "focus.png"}


def test_a_chart_shows_recovered_before_delta_before_value_and_never_mixes_units(tmp_path):
    assert pictures.chart_measure(result()) == "delta_nll"
    assert pictures.chart_measure(result(rows=[row("lens", 1.0, recovered=0.5)])) == "recovered"
    assert pictures.chart_measure(result(rows=[row("lens", 1.0)])) == "value"
    mixed = result(rows=[row("a", 1.0), row("b", 1.0, unit="ms")])
    with pytest.raises(UserError, match="units"):
        pictures.bar_chart(mixed, tmp_path / "mixed.png")


def test_a_bar_of_what_sees_the_future_is_hollow_whatever_its_name(tmp_path):
    colour = np.array(ImageColor.getrgb(pictures.style.METHOD))
    for bound in (False, True):
        rows = [row("crossfit", 1.0, sees_future=bound)]
        pictures.bar_chart(result(rows=rows), tmp_path / "bars.png")
        with Image.open(tmp_path / "bars.png") as picture:
            far = np.abs(np.asarray(picture.convert("RGB")).astype(int) - colour).max(axis=-1)
        assert ((far < 8).mean() < 0.01) == bound


def token_line(record, written):
    """What focus_raster says of one layout where every token has its own column."""
    line = np.full(written, UNWRITTEN)
    line[: record["position"]] = 0  # the tail; the nodes before it follow
    width = {0: 4, 1: 4, 2: 8}
    nodes = zip(record["level"], record["index"], record["shown"], strict=True)
    for level, index, shown in nodes:
        line[index * width[level] : (index + 1) * width[level]] = level if shown else SILENT
    return line


@given(st.data())
@settings(max_examples=40)
def test_every_pixel_has_one_lod_and_the_recent_window_is_tokens(data):
    """With a column a token and a row a token read, the raster is the layouts, token by token."""
    sizes = data.draw(st.sets(st.integers(1, 12), min_size=2, max_size=6))
    records = []
    for blocks in sorted(sizes):
        fine = data.draw(st.sets(st.integers(0, blocks - 1))) | {blocks - 1}
        silent = {(2, i) for i in data.draw(st.sets(st.integers(0, 5)))}
        records.append(layout(blocks * FANOUTS[0], fine, silent))
    records[-1]["position"] += data.draw(st.integers(0, FANOUTS[0] - 1))
    begin, written = records[0]["position"], records[-1]["position"]
    raster, bounds = focus_raster(data.draw(st.permutations(records)), written - begin, written)
    assert bounds == (begin, written)
    lines = {record["position"]: token_line(record, written) for record in records}
    for read, line in zip(range(begin, written), raster, strict=True):
        inforce = max(position for position in lines if position <= read)
        expected = lines[inforce]
        if read == written - 1:  # the last record shares the last row
            expected = np.minimum(lines[written], expected if inforce == read else UNWRITTEN)
        np.testing.assert_array_equal(line, expected)
        newest = written if read == written - 1 else inforce
        assert (line[newest - FANOUTS[0] : newest] == 0).all()


def test_a_pixel_of_many_blocks_and_refocuses_shows_the_finest():
    records = [layout(4 * n, {n - 1, 0} if n == 70 else {n - 1}) for n in range(64, 129)]
    raster, _ = focus_raster(records, 4, 8)  # 64 tokens a column, 16 refocuses a row
    assert raster.shape == (4, 8)
    assert raster[0, 0] == 0 and (raster[1:, 0] == 2).all()
    assert raster[0, -1] == UNWRITTEN and raster[-1, -1] == 0


def test_records_that_are_no_layouts_and_logs_without_scalars_are_refused(tmp_path):
    with pytest.raises(UserError, match="layout records"):
        focus_raster([{"position": 3}], 2, 2)
    with pytest.raises(UserError, match="layout records"):
        focus_raster([], 2, 2)
    metrics = write(tmp_path / "metrics.jsonl", '{"step": 0, "time": 0, "lr": 1}\n')
    with pytest.raises(UserError, match="refocus/"):
        pictures.telemetry_curves(metrics, tmp_path / "x.png")
    with pytest.raises(UserError, match="loss"):
        pictures.training_curves([metrics], tmp_path / "x.png")
    write(metrics, "not json\n")
    with pytest.raises(UserError, match="JSON object a line"):
        pictures.telemetry_curves(metrics, tmp_path / "x.png")


def view(**changes):
    plain = {"title": "Exact", "across": "length", "unit": "share", "split": None, "pictures": []}
    return plain | {"log": True, "intervals": True, "better": "higher"} | changes


def with_views():
    """Two methods and a bound at two lengths and two depths; full stands at the shorter alone."""
    def told(view_name, what, value, **where):
        ends = {"low": max(value - 0.2, 0), "high": min(value + 0.2, 1), "n": 5, "unit": "share"}
        return {"view": view_name, "what": what, "value": value, **ends, **where}

    rows = [told("exact", "lens", 0.5, length=1024), told("exact", "lens", 0.25, length=8192)]
    rows += [told("exact", "bm25", 0.25, length=1024), told("exact", "bm25", 0.5, length=8192)]
    rows += [told("exact", "full", 1.0, length=1024)]
    rows += [
        told("depth", what, depth * 0.5, depth=depth, length=length)
        for what in ("lens", "bm25") for depth in (0.0, 1.0) for length in (1024, 8192)
    ]
    cost = {"length": 8192, "budget": 512, "entries": 512, "ms_token": 10.0, "tail": "window"}
    cost |= {"flops_token": 2e7, "flops_refocus": 5e9, "tree_bytes": 2048, "host_bytes": 2**30}
    cost |= {"device_bytes": None}
    shown = {"family": "vt", "length": 8192, "seed": 0, "support": [[96, 110]], "exact": 1}
    shown |= {"blocks": [[0, 1], [250, 256]], "in_focus": 0.5}
    return result(
        rows=rows,
        views={
            "exact": view(pictures=["lines", "cost"]),
            "depth": view(across="depth", split="length", pictures=["heatmap"], intervals=False),
        },
        costs=[cost | {"what": "lens", "ms_refocus": 80.0},
               cost | {"what": "bm25", "ms_refocus": 400.0}],
        focus=[shown | {"method": method} for method in ("lens", "bm25")],
        plan={"budget": 512, "block": 32},
    )


def test_views_become_tables_that_a_person_can_read():
    exact, near, far, costs = tables.sections(with_views())
    assert exact.title == "Exact · share · n = 5"
    assert exact.heading == ["", "1,024 tokens", "8,192 tokens"]
    assert exact.lines == [
        ["lens", "**0.50** [0.30, 0.70]", "0.25 [0.05, 0.45]"],
        ["bm25", "0.25 [0.05, 0.45]", "**0.50** [0.30, 0.70]"],
        ["full (bound)", "1.00 [0.80, 1.00]", "—"],
    ]
    assert near.title == "Exact · 1,024 tokens · share · n = 5"
    assert near.heading == ["", "depth 0", "depth 1"] and far.lines[0] == ["lens", "0.00", "0.50"]
    assert costs.lines[1][:4] == ["bm25", "512", "400", "10"]
    text = tables.markdown_table(with_views())
    assert "**Exact · share · n = 5**\n\n|  | 1,024 tokens | 8,192 tokens |" in text


def test_lower_is_better_where_a_view_says_so():
    fewer = with_views() | {"views": with_views()["views"] | {"exact": view(better="lower")}}
    assert tables.sections(fewer)[0].lines[1][1].startswith("**0.25**")


def test_views_leave_their_pictures(tmp_path):
    file = write(tmp_path / "run/eval/quick.json", with_views())
    report.main([str(file), "--out", str(tmp_path / "out")])
    made = {path.name for path in (tmp_path / "out").iterdir()}
    stems = ("exact", "exact-cost", "depth", "focus-vt")
    assert made == {"quick.md", *(f"quick-{stem}.png" for stem in stems)}
    for path in (tmp_path / "out").glob("*.png"):
        with Image.open(path) as picture:
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 3
    homeless = with_views()
    homeless["rows"][0]["view"] = "none"
    with pytest.raises(UserError, match="row 1 is of no view"):
        report.load_result(write(file, homeless))


points = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9), st.booleans()), max_size=12)


@given(points, st.sampled_from(["higher", "lower"]))
def test_the_front_holds_just_those_that_no_other_beats(found, better):
    paid, value, fit = np.array(found, float).reshape(-1, 3).T
    gain = value if better == "higher" else -value
    front = on_front(paid, value, fit.astype(bool), better)
    told = {(paid[i], gain[i]) for i in front}
    allowed = {(p, g) for p, g, f in zip(paid, gain, fit, strict=True) if f}
    beaten = {
        (p, g) for p, g in allowed
        if any((q <= p and h >= g) and (q, h) != (p, g) for q, h in allowed)
    }
    assert told == allowed - beaten and len(told) == len(front)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=15))
def test_labels_stand_apart_and_in_order(places):
    moved = spread(np.sort(places), 0.05)
    assert (np.diff(moved) >= 0.05 - 1e-3).all()
    assert moved[0] >= -1e-3 and moved[-1] <= 1 + 1e-3
