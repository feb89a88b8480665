"""What is meant for the person at the terminal: exceptions, and that several processes say the same once."""

import hashlib
import os
from pathlib import Path

SAID = "SSD_SAID"  # in the environment of a supervisor's ranks: its folder, with a file for each message


class UserError(Exception):
    """Something the user can mend: the message names the file, line or option, and says what to do.

    The command lines print it without a traceback and exit with status 2.
    """


class Stopped(Exception):
    """Work that was ended by a signal, in good order: what it had done is saved, and how to go on was said.

    The command lines exit with the status that shells give to a process ended by that signal.
    """

    def __init__(self, signal_number: int):
        super().__init__(signal_number)
        self.signal_number = signal_number


def is_said(message: str) -> bool:
    """Whether another rank of this one's supervisor has said the same; if not, this one is to say it."""
    if folder := os.environ.get(SAID):
        try:
            Path(folder, hashlib.sha256(message.encode(errors="replace")).hexdigest()).touch(exist_ok=False)
        except FileExistsError:
            return True
        except OSError:  # a full disk may be what is to be said
            pass
    return False
