"""The one exception for what a user can mend; a command line prints it as one line and exits with code 2."""

MAX_QUOTED = 200  # characters of the input in an error


class UsageError(ValueError):
    """Bad input. The message is one line: the offending value, where it came from, what to do."""


def quote(value: object) -> str:
    """A value in one line, as an error shows it: of what is long, as much as tells which it is."""
    line = " ".join(str(value).split())
    if not line.isprintable():  # lone surrogates cannot be printed, and a terminal obeys control characters
        line = repr(line[:MAX_QUOTED])[1:-1]
    if len(line) <= MAX_QUOTED:
        return line
    return f"{line[: MAX_QUOTED - 3]}..."


class UnreachableError(UsageError):
    """Something that this machine cannot reach now: it may be right all the same."""
