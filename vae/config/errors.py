"""The one exception that is meant for the person at the keyboard."""


class InputError(Exception):
    """Something that the user can put right: it says what was wrong, its value, and what to do.

    Programs show its text as one line, without a traceback, and exit with a non-zero code.
    """
