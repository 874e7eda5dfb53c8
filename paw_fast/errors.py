"""Defines the exception for mistakes that a user can fix. Imports nothing."""


class UserError(ValueError):
    """A mistake that the user can fix: the command line prints it as one line and exits with 2.

    The message says what is wrong, where, and how to fix it.
    """
