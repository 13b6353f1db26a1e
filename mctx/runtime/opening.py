"""The history of a session: its own tree, and those that are mounted before it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

from mctx.errors import UserError
from mctx.opened import Opened
from mctx.tree.ingest import Reader, tree_spec
from mctx.tree.overlay import Overlay
from mctx.tree.store import Tree


def open_tree(opened: Opened, uri: str | Path) -> Tree:
    """The tree at `uri`, for writing: opened if it is there and of these models, else created."""
    uri = str(uri)
    if Tree.exists(uri):
        return Tree.open(uri, mode="w", fingerprint=opened.fingerprint)
    return Tree.create(uri, tree_spec(opened.model, opened.fingerprint))


def place_of(tree: Tree | str | Path) -> str:
    """Where a tree lies, written one way: two that are the same tree have the same place."""
    uri = tree.uri if isinstance(tree, Tree) else str(tree)
    scheme, there, rest = uri.partition("://")
    if there and scheme != "file":
        return f"{scheme}://{rest.rstrip('/')}"
    return os.path.realpath(Path(unquote(rest) if there else uri).expanduser())


def open_mounts(tree: Tree | str | Path, mounts: Sequence[Tree | str | Path]) -> list[Tree]:
    """Trees that are only read, before `tree`. UserError: they are no list, or it is among them."""
    if isinstance(mounts, (str, Path, Tree)):
        raise UserError("mounts must be a list of trees: put the one that you gave in brackets.")
    place = place_of(tree)
    if place in map(place_of, mounts):
        raise UserError(f"{place} cannot be mounted into itself: leave it out of mounts.")
    return [Tree.open(one) if isinstance(one, (str, Path)) else one for one in mounts]


def open_history(
    opened: Opened,
    tree: Tree | str | Path,
    mounts: Sequence[Tree | str | Path],
    reader: Reader,
) -> Tree | Overlay:
    """A tree, or the URI of one to be written, behind those that are only read.

    Raises:
      UserError: one of them was made by other models, or is mounted into itself.
    """
    mounted = open_mounts(tree, mounts)
    own = open_tree(opened, tree) if isinstance(tree, (str, Path)) else tree
    for one in (own, *mounted):
        if one.spec.fingerprint != opened.fingerprint:
            raise UserError(
                f"the gists of {one.uri} were made by other models: open the checkpoint that made "
                "them, or ingest into a new tree."
            )
    return Overlay(mounted, own, reader) if mounted else own
