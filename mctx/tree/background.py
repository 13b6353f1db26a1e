"""One piece of work at a time beside the thread that asked for it."""

import functools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Background:
    """Runs a job in a thread; its error waits for who settles."""

    def __init__(self):
        self._job: Future | None = None

    @property
    def busy(self) -> bool:
        return self._job is not None and not self._job.done()

    def run(self, job: Callable[[], None]) -> None:
        """Begins a job; the one before must have been settled."""
        self._job = _threads().submit(job)

    def settle(self) -> None:
        """Waits for the job, and raises its error."""
        job, self._job = self._job, None
        if job:
            job.result()


@functools.cache
def _threads() -> ThreadPoolExecutor:
    """Shared by all; idle ones cost nothing."""
    return ThreadPoolExecutor(max_workers=8, thread_name_prefix="commit")
