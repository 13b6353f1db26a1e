"""The one error a person is meant to read."""

import argparse
from typing import NoReturn


class UserError(Exception):
    """Something the caller can mend; the message is one sentence that says what to do.

    Entry points print it without a traceback and exit with status 2.
    """


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaints are UserErrors."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see `{self.prog} --help`.")
