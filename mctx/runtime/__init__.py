"""The streaming session: ingest, refocus, decode (design: Runtime)."""

from mctx.runtime.session import Session, SessionConfig

__all__ = ["Session", "SessionConfig"]
