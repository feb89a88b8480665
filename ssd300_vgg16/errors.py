"""What is meant for the person at the terminal: exceptions, the system's errors, and what processes say once."""

import errno
import hashlib
import os
from pathlib import Path

from ssd300_vgg16.text import printable

SAID = "SSD_SAID"  # in the environment of a supervisor's ranks: its folder, with a file for each message
_ROOM = "make room on its disk, or name another folder"
_FILES = "allow more (ulimit -n 1024), or take fewer --workers"
_ADVICE = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EMFILE: _FILES,
    errno.ENFILE: _FILES,
    errno.EAGAIN: "allow more processes (ulimit -u), or take fewer --workers",  # of a process that cannot be started
}


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


def told(error: OSError) -> str:
    """An error of the system for people: the file, what is wrong, and what to do where that is known."""
    where = f"{printable(os.fsdecode(error.filename), 500)}: " if error.filename else ""
    return f"{where}{error.strerror or error}{advice(error)}"


def advice(error: OSError, otherwise: str = "") -> str:
    """What to do, behind what is wrong; where that is not known, as given."""
    known = _ADVICE.get(error.errno or 0, otherwise)
    return f": {known}" if known else ""


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
