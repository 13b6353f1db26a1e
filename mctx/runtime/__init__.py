"""The streaming session: ingest, refocus, decode (design: Runtime)."""

from mctx.runtime.batch import SessionBatch
from mctx.runtime.session import Session, SessionConfig

__all__ = ["Session", "SessionBatch", "SessionConfig"]
