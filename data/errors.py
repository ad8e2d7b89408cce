"""A user's mistake, as against a defect of ours."""


class UserError(ValueError):
    """A mistake that the user can mend: one line that names the value and the remedy.

    The command line prints it without a traceback and exits with 2.
    """
