"""The one exception for what a user can mend; a command line prints it as one line and exits with code 2."""

LONGEST_ECHO = 200  # characters of an input that an error repeats


class UsageError(ValueError):
    """Bad input. The message is one line: the offending value, where it came from, what to do."""


def shorten(text: str) -> str:
    """As much of an input as an error repeats."""
    if len(text) <= LONGEST_ECHO:
        return text
    return f"{text[: LONGEST_ECHO - 3]}..."
