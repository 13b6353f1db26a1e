"""What a tree does when its writer is killed, followed or edited: counts of faults."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

from experiments.bench.known import KNOWN, check_all, check_some
from experiments.bench.measure import Sizes, row
from mctx.models.base import BaseConfig
from mctx.models.gistnet import GistConfig
from mctx.models.lensnet import LensConfig
from mctx.models.wrapped import Wrapped, init_part
from mctx.tree.ingest import Ingest, Reader, tree_spec
from mctx.tree.mirror import MirrorConfig
from mctx.tree.store import Tree, TreeError
from mctx.tree.verify import verify

WAIT = 0.4  # seconds at most between a writer's first commit and its end
RESTART = 25  # trials with one tree
QUIET = MirrorConfig(load=False)


def _writer(uri: Path, seed: int) -> subprocess.Popen:
    """A process that begins to write as soon as it is told to."""
    command = [sys.executable, "-m", "experiments.bench.known", str(uri), str(seed)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)


def kill(folder: Path, sizes: Sizes, seed: int) -> list[dict]:
    """Writers that append and replace are killed with -9; what they had acknowledged must stay."""
    rng = np.random.default_rng(seed)
    lost = torn = unclean = commits = 0
    uri, following = None, None
    for trial in range(sizes.kills):
        if trial % RESTART == 0:
            uri = folder / f"tree-{trial}"
            Tree.create(uri, KNOWN).close()
            if following:
                following.kill()
                following.communicate()
            following = _writer(uri, seed + trial)
        process, following = following, _writer(uri, seed + trial + 1)  # it starts meanwhile
        process.stdin.write("go\n")
        process.stdin.flush()
        if trial % 2:  # else it may die before its first commit
            process.stdout.readline()
        time.sleep(rng.uniform(0, WAIT))
        process.kill()
        told = process.communicate()[0].splitlines()
        whole = [line for line in told if line.endswith(".")]
        commits += len(whole)
        tree = Tree.open(uri, mirror=QUIET)
        known = whole[-1].rstrip(".").split() if whole else ("0", "0")
        lost += tree.length < int(known[0]) or tree.head.edition < int(known[1])
        torn += not check_all(tree)
        unclean += bool(verify(uri).problems)
    following.kill()
    following.communicate()
    what = f"{sizes.kills} writers killed"
    return [
        row(f"{what}: {name}", [count], "of them", "0", count == 0, commits=commits)
        for name, count in (("lost a commit", lost), ("torn", torn), ("not clean", unclean))
    ]


def follow(folder: Path, sizes: Sizes, seed: int) -> list[dict]:
    """A reader polls a tree while another process appends to it and replaces documents."""
    uri, rng = folder / "tree", np.random.default_rng(seed)
    Tree.create(uri, KNOWN).close()
    process = _writer(uri, seed)
    process.stdin.write("go\n")
    process.stdin.flush()
    reader, torn, moved = Tree.open(uri, mirror=QUIET), 0, 0
    try:
        process.stdout.readline()
        for _ in range(sizes.polls):
            moved += reader.refresh()
            try:
                torn += not check_some(reader, rng)
            except TreeError:
                torn += 1
    finally:
        process.kill()
        process.communicate()
    reader.refresh()
    torn += not check_all(reader)
    what = f"{sizes.polls:,} polls beside a writer: torn"
    edits = reader.head.edition
    return [row(what, [torn], "reads", "0", torn == 0 < moved, commits_seen=moved, edits=edits)]


MODEL = Wrapped(
    base=BaseConfig(
        vocab_size=256,
        d_model=16,
        n_layers=2,
        n_heads=2,
        n_kv_heads=1,
        head_dim=8,
        d_ff=16,
        window=256,
        prefix=(0,),
    ),
    gist=GistConfig(
        fanouts=(32, 8, 8), trained=3, width=8, d_model=8, d_ff=8, n_layers=1, n_heads=2
    ),
    lens=LensConfig(
        heads=1, query=8, d_model=8, d_ff=8, n_layers=1, n_heads=1, best=3, rank=1, max_level=3
    ),
    window=128,
)
LINES, LINE = 500, 10  # of the file that is replaced; tokens of a line


class _Counting(Reader):
    """Counts the windows that it reads."""

    windows = 0

    def full_windows(self, tokens):
        self.windows += len(tokens) // self.model.window
        return super().full_windows(tokens)

    def window_gists(self, tokens):
        self.windows += len(tokens) // self.model.window
        return super().window_gists(tokens)

    def grow(self, tokens, before, length):
        self.windows += 1
        return super().grow(tokens, before, length)


def replace(folder: Path, sizes: Sizes, seed: int) -> list[dict]:
    """One file of a code base is edited near its top: windows read beyond the file's own."""
    rng = np.random.default_rng(seed)
    params = {part: init_part(MODEL, part, jax.random.key(seed)) for part in ("base", "gistnet")}
    reader = _Counting(MODEL, params)
    beyond = []
    with Tree.create(folder / "tree", tree_spec(MODEL, "bench"), bulk=True) as tree:
        fill = Ingest(reader, tree)
        edited = sizes.files // 2
        for number in range(sizes.files):
            length = LINES * LINE if number == edited else int(rng.integers(20, 400))
            fill.add_document(f"file-{number}.py", rng.integers(0, 256, length))
        tree.commit()
        before = reader.windows
        for _ in range(5):
            span = tree.documents[f"file-{edited}.py"]
            text = tree.tokens(span.start, span.start + span.length)
            line = int(rng.integers(0, 20)) * LINE
            text = np.insert(text, line, rng.integers(0, 256, LINE))
            already = reader.windows
            fill.replace_document(f"file-{edited}.py", text)
            tree.commit()
            beyond.append(reader.windows - already - -(-len(text) // MODEL.window))
    what = f"a line added to a file of {LINES} in {sizes.files:,}: windows beyond its own"
    return [row(what, beyond, "windows", "≤ 2", max(beyond) <= 2, ingest_windows=before)]
