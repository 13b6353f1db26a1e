"""What the README shows is what happens."""

import re
from pathlib import Path

from mctx.tokenizer import Tokenizer
from mctx.tree.store import Tree

ROOT = Path(__file__).parent.parent
PICO = ROOT / "data" / "checkpoints" / "pico"


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    """It is run where a tree may be written; the text that it ingests is then in that tree."""
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    for room in ("data", "mctx"):
        (tmp_path / room).symlink_to(ROOT / room)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})

    tree = Tree.open(*re.findall(r'tree="(.*?)"', block))
    ingested = Path(*re.findall(r'open\("(.*?)"\)\.read\(\)', block)).read_text()
    ids = Tokenizer.load(PICO).encode(ingested)
    whole = len(ids) // tree.spec.fanouts[0] * tree.spec.fanouts[0]
    assert tree.tokens(0, whole).tolist() == ids[:whole].tolist()
    assert capsys.readouterr().out.strip()
