"""The history of a session: its own tree, and those that are mounted before it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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


def open_history(
    opened: Opened,
    tree: Tree | str | Path,
    mounts: Sequence[Tree | str | Path],
    reader: Reader,
) -> Tree | Overlay:
    """A tree, or the URI of one to be written, behind those that are only read.

    Raises:
      UserError: one of them was made by other models.
    """
    own = open_tree(opened, tree) if isinstance(tree, (str, Path)) else tree
    mounted = [Tree.open(one) if isinstance(one, (str, Path)) else one for one in mounts]
    for one in (own, *mounted):
        if one.spec.fingerprint != opened.fingerprint:
            raise UserError(
                f"the gists of {one.uri} were made by other models: open the checkpoint that made "
                "them, or ingest into a new tree."
            )
    return Overlay(mounted, own, reader) if mounted else own
