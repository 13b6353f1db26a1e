"""The one error a person is meant to read."""


class UserError(Exception):
    """Something the caller can mend; the message is one sentence that says what to do.

    Entry points print it without a traceback and exit with status 2.
    """
