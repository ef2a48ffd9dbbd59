"""User-facing errors."""


class InputError(Exception):
    """An error that the user can fix; the message says what was wrong, its value, and what to do.

    Programs print the message without a traceback and exit with code 2.
    """
