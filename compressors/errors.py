"""The one exception for what a user can mend; a command line prints it as one line and exits with code 2."""


class UsageError(ValueError):
    """Bad input. The message is one line: the offending value, where it came from, what to do."""


class UnreachableError(UsageError):
    """Something that this machine cannot reach now: it may be right all the same."""
