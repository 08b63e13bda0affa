"""The one exception for a user's mistake."""


class UserError(ValueError):
    """Bad input, told in one clear sentence: what is wrong, where, and the way out.

    The command line prints the sentence without a traceback and exits with code 2.
    """
