"""A conversation about a picture with a trained model: `python -m experiments.chat IMAGE "what is it ?"`.

Exit code 0: done; 2: bad input, one line says which; 130: Ctrl-C.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from compressors.command_line import Command, CommandLine, report_error
from compressors.errors import UsageError
from compressors.setting_fields import setting
from experiments.config.schema import Config

if TYPE_CHECKING:
    from experiments.inspection.conversation import Chat

INPUT_PROMPT = "> "


@dataclass(frozen=True)
class ChatOptions:
    """Whom to ask, and how long an answer may be."""

    model: Path | None = setting(
        None,
        "CELL below out=, OUT/finetune/KEY, a folder that save_pretrained wrote, or OWNER/NAME of the "
        "Hugging Face hub (null: the cell below out= that finished last)",
    )
    out: Path = setting(Path(Config().out), "output directory of the sweep")
    revision: str | None = setting(None, "of a model of the hub: a branch, a tag or a commit")
    max_new_tokens: int = setting(128, "tokens of an answer at most", low=1)


COMMAND = Command(
    usage='python -m experiments.chat IMAGE ["QUESTION"] [model=CELL] [out=runs] [max_new_tokens=128]',
    description="""\
Answers a question about a picture, as it is generated, then says how long the first token took (TTFT:
preprocessing, vision tower and prefill) and how many tokens a second came after it. Without QUESTION, one
question a line until an empty one, each with the turns before it.""",
    options=ChatOptions,
    words=(1, 2),
    elsewhere="name another folder with model=DIR",
)


def main(arguments: Sequence[str] | None = None, source: TextIO | None = None) -> int:
    """The command; its exit code. `source`: where questions come from (standard input)."""
    return COMMAND.run(lambda line: run_chat(line, source or sys.stdin), arguments)


def run_chat(line: CommandLine, source: TextIO) -> int:
    """Answer the question of the command line, or those of `source`."""
    options: ChatOptions = line.options
    image, *questions = line.words
    # the model's folder and the picture are looked for before torch and transformers are imported: a name
    # that is not there is answered at once
    from experiments.models import saved

    name = options.model
    if name is not None:
        folder = saved.find_named_model(name, options.revision, options.out, f"model={name}")
    elif options.revision is not None:
        raise UsageError(f"revision={options.revision}: of which model? name one with model=OWNER/NAME")
    picture = saved.open_picture(Path(image))
    if name is None:
        name = folder = saved.find_newest_cell(options.out)
    from experiments.inspection.conversation import Chat

    model, processor = saved.load_trained_model(folder)
    chat = Chat(model, processor, picture, options.max_new_tokens)
    sys.stderr.write(f"{name}: {describe_chat_model(chat)}\n")
    if questions:
        stream_answer(chat, questions[0])
        return 0
    for question in read_question_lines(source):
        try:
            stream_answer(chat, question)
        except UsageError as error:  # of this question; the next may be fine
            report_error(str(error), 2)
    return 0


def describe_chat_model(chat: "Chat") -> str:
    """What the model is, in words."""
    processor = chat.processor
    config = chat.model.config
    if not processor.image_tokens:
        return "this model is blind (compressor=none): it does not see the picture"
    name = config.compressor
    if config.query_module:
        name += f" + {config.query_module}"
    tokens = processor.image_tokens * processor.crops_of(chat.picture)
    return f"{name}, {tokens} visual tokens, {processor.num_queries} query tokens a turn"


def read_question_lines(source: TextIO) -> Iterator[str]:
    """Lines up to an empty one; asked for at a terminal."""
    while True:
        if source.isatty():
            sys.stderr.write(INPUT_PROMPT)
            sys.stderr.flush()
        line = source.readline().strip()
        if not line:
            return
        yield line


def stream_answer(chat: "Chat", question: str) -> None:
    """Stream an answer to standard output, its pace to standard error."""

    def write_words(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()  # an answer shows while it is generated, in a pipe too

    pace = chat.ask_question(question, write_words)
    sys.stdout.write("\n")
    sys.stdout.flush()
    sys.stderr.write(f"[{pace}]\n")
    if chat.reserved is not None:
        sys.stderr.write(f"[later questions go without this turn: its answer contains {chat.reserved!r}]\n")


if __name__ == "__main__":
    sys.exit(main())
