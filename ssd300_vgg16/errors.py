"""The exceptions that are meant for the person at the terminal."""


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
