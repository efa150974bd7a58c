"""The one exception for what a user can mend; a command line prints it as one line and exits with code 2."""

LONGEST_ECHO = 200  # characters of an input that an error repeats


class UsageError(ValueError):
    """Bad input. The message is one line: the offending value, where it came from, what to do."""


class UnreachableError(UsageError):
    """Something that this machine cannot reach now: it may be right all the same."""


def shorten(text: str) -> str:
    """As much of an input as an error repeats."""
    if len(text) <= LONGEST_ECHO:
        return text
    return f"{text[: LONGEST_ECHO - 3]}..."


def quote(value: object) -> str:
    """A value in one line, as an error shows it: of what is long, as much as tells which it is."""
    line = " ".join(str(value).split())
    if not line.isprintable():  # lone surrogates cannot be printed, and a terminal obeys control characters
        line = repr(line[:LONGEST_ECHO])[1:-1]
    return shorten(line)
