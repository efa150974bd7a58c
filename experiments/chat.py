"""A conversation about a picture with a trained model: `python -m experiments.chat IMAGE "what is it ?"`.

Exit code 0: done; 2: bad input, one line says which; 130: Ctrl-C.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

from compressors.command_line import report_error, run_guarded
from compressors.errors import UsageError
from compressors.registry import suggest
from experiments.config.schema import Config

CHAT_HELP = """\
Usage: python -m experiments.chat IMAGE ["QUESTION"] [model=DIR] [max_new_tokens=128] [--help]

Answers a question about a picture, as it is generated, then says how long the first token took (TTFT:
preprocessing, vision tower and prefill) and how many tokens a second came after it. Without QUESTION, one
question a line until an empty one, each with the turns before it.

  model=DIR            OUT/cells/CELL, OUT/finetune/KEY, or a folder that save_pretrained wrote
                       (the cell below runs that finished last)
  max_new_tokens=128   tokens of an answer at most
"""
CHAT_SETTINGS = {"model": None, "max_new_tokens": "128"}
INPUT_PROMPT = "> "


class ChatRequest(NamedTuple):
    """The command line."""

    image: Path
    question: str | None
    model: Path | None
    max_new_tokens: int


def main(arguments: Sequence[str] | None = None, given: TextIO | None = None) -> int:
    """The command; its exit code. `given`: where questions come from (standard input)."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    return run_guarded(lambda: run_chat(words, given or sys.stdin), "name another folder with model=DIR")


def run_chat(arguments: list[str], given: TextIO) -> int:
    """The command, with its exceptions."""
    if {"-h", "--help"} & set(arguments):
        sys.stdout.write(CHAT_HELP)
        return 0
    asked = read_chat_request(arguments)
    from experiments.models import saved

    if asked.model:
        saved.find_model_folder(asked.model)  # before anything slow is imported
    picture = saved.open_picture(asked.image)
    folder = asked.model or saved.find_newest_cell(Path(Config().out))
    from experiments.inspection.conversation import Chat

    chat = Chat(*saved.load_trained_model(folder), picture, asked.max_new_tokens)
    sys.stderr.write(f"{folder}: {describe_chat_model(chat)}\n")
    if asked.question is not None:
        stream_answer(chat, asked.question)
        return 0
    for question in read_question_lines(given):
        try:
            stream_answer(chat, question)
        except UsageError as error:  # of this question; the next may be fine
            report_error(str(error), 2)
    return 0


def read_chat_request(arguments: Sequence[str]) -> ChatRequest:
    """IMAGE, QUESTION and KEY=VALUE in any order."""
    words, settings = [], dict(CHAT_SETTINGS)
    for word in arguments:
        key, equals, value = word.partition("=")
        if equals and key in CHAT_SETTINGS:
            settings[key] = value
        elif word.startswith("--") or (re.fullmatch(r"\w+=\S+", word) and not Path(word).exists()):
            raise UsageError(f"{word}: no setting of this command{suggest(key.lstrip('-'), CHAT_SETTINGS)}")
        else:
            words.append(word)
    if not 1 <= len(words) <= 2:
        found = f"{len(words)} words ({', '.join(words)})" if words else "nothing"
        raise UsageError(f"expected IMAGE and one QUESTION in quotes, found {found} (--help shows more)")
    limit = settings["max_new_tokens"]
    if not limit.isdecimal() or not int(limit):
        raise UsageError(f"max_new_tokens={limit}: expected a number of at least 1")
    return ChatRequest(
        Path(words[0]),
        words[1] if words[1:] else None,
        Path(settings["model"]) if settings["model"] else None,
        int(limit),
    )


def describe_chat_model(chat) -> str:
    """What the model is, in words."""
    processor, config = chat.processor, chat.model.config
    if not processor.image_tokens:
        return "this model is blind (compressor=none): it does not see the picture"
    tokens = processor.image_tokens * processor.crops_of(chat.picture)
    module = f" + {config.query_module}" if config.query_module else ""
    return f"{config.compressor}{module}, {tokens} visual tokens, {processor.num_queries} query tokens a turn"


def read_question_lines(given: TextIO) -> Iterator[str]:
    """Lines up to an empty one; asked for at a terminal."""
    while True:
        if given.isatty():
            sys.stderr.write(INPUT_PROMPT)
            sys.stderr.flush()
        line = given.readline().strip()
        if not line:
            return
        yield line


def stream_answer(chat, question: str) -> None:
    """Stream an answer to standard output, its pace to standard error."""
    pace = chat.ask_question(question, lambda text: (sys.stdout.write(text), sys.stdout.flush()))
    sys.stdout.write("\n")
    sys.stdout.flush()
    sys.stderr.write(f"[{pace}]\n")


if __name__ == "__main__":
    sys.exit(main())
