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


def join_lines(value: object) -> str:
    """What a value or an exception says, all of it in one line."""
    return " ".join(str(value).split())


def shorten_reason(error: BaseException) -> str:
    """What an exception says, in one line: as many lines of its message as an error repeats, at least one."""
    lines = [" ".join(line.split()) for line in str(error).splitlines()]
    lines = [line for line in lines if line] or [type(error).__name__]
    reason = lines[0]
    for line in lines[1:]:
        if len(reason) + len(line) >= LONGEST_ECHO:
            break
        reason += f" {line}"
    if isinstance(error, KeyError):  # its message is the key alone
        reason = f"KeyError: {reason}"
    return shorten(reason.rstrip(".:"))


def refuse_lone_surrogates(text: str, where: str) -> None:
    """UsageError for half a character, which no tokenizer and no file takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])
        raise UsageError(
            f"{where} contains {half} at character {error.start}, which is not UTF-8 (half of a character, a "
            "lone surrogate); write the whole one"
        ) from error


def quote(value: object) -> str:
    """A value in one line, as an error shows it: of what is long, as much as tells which it is."""
    line = join_lines(value)
    if not line.isprintable():  # lone surrogates cannot be printed, and a terminal obeys control characters
        line = repr(line[:LONGEST_ECHO])[1:-1]
    return shorten(line)
