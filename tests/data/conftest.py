"""A made-up site-packages: small packages of made-up code, with the metadata pip leaves."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

SYLLABLES = "ba co di fu ga he jo ka lu me no pi ra su ti vo".split()


def code(seed: int, functions: int = 40) -> str:
    """Python source like no other seed's."""
    rng = np.random.default_rng(seed)

    def name() -> str:
        return "".join(rng.choice(SYLLABLES, 4))

    return "\n\n".join(
        f"def {name()}({name()}, {name()}):\n    {name()} = {name()}({name()})\n    return {name()}"
        for _ in range(functions)
    ) + "\n"


def edited(text: str, share: float, seed: int = 0) -> str:
    """The text with a share of its lines replaced."""
    rng = np.random.default_rng(seed)
    lines = text.splitlines()
    for i in rng.choice(len(lines), int(share * len(lines)), replace=False):
        lines[i] = f"    new_line_{rng.integers(10**9)} = other_{rng.integers(10**9)}"
    return "\n".join(lines) + "\n"


@pytest.fixture
def make_site(tmp_path: Path) -> Callable[[Mapping[str, Mapping[str, str]]], Path]:
    """Write {distribution: {path: text}} as a site-packages folder; returns it."""

    def make(packages: Mapping[str, Mapping[str, str]]) -> Path:
        site = tmp_path / "site"
        for name, files in packages.items():
            for file, text in files.items():
                (site / file).parent.mkdir(parents=True, exist_ok=True)
                (site / file).write_text(text)
            info = site / f"{name.replace('-', '_')}-1.0.dist-info"
            info.mkdir(parents=True)
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))
        return site

    return make
