"""The one kind of error a user is meant to read: what was expected, what came, what to do."""


class UserError(ValueError):
    """Bad input. The command line prints its message on one line and exits with 2."""
