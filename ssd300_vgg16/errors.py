"""The exception whose message is meant for the person at the terminal."""


class UserError(Exception):
    """Something the user can mend: the message names the file, line or option, and says what to do.

    The command lines print it without a traceback and exit with status 2.
    """
