"""A cell's prompt from the chat template of an LLM's tokenizer."""

import re
from dataclasses import asdict

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from compressors.errors import UsageError, quote, shorten_reason
from llm_adapters.conversation import QUERY, QUESTION, Template, Turn, render_turns

# words of a conversation that are looked for in what a template makes of them
FIRST, ANSWER, SECOND = "Firstquestion", "Firstanswer", "Secondquestion"


def read_chat_prompt(tokenizer: PreTrainedTokenizerBase, where: str) -> Template:
    """The words around turns that `tokenizer.chat_template` has, and the token that ends its answers.

    Spaces may differ: our questions and answers have one before them, and turns are all alike. UsageError,
    with `where` the tokenizer is from, for one without a template, or whose template says more than that.
    """
    if not tokenizer.chat_template:
        raise UsageError(
            f"{where}: its tokenizer has no chat template; give the model that was tuned to chat (-Instruct, "
            "-it), or train with the preset's own prompt"
        )
    messages = [
        {"role": "user", "content": FIRST},
        {"role": "assistant", "content": ANSWER},
        {"role": "user", "content": SECOND},
    ]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except (TemplateError, TypeError, ValueError) as error:
        raise UsageError(f"{where}: its chat template fails: {shorten_reason(error)}") from error
    assert isinstance(text, str)  # it was not to be tokenized
    parts = re.split("|".join((FIRST, ANSWER, SECOND)), text)
    if len(parts) != 4:
        raise UsageError(f"{where}: its chat template does not say each message once: {quote(text)}")
    before, assistant, between, _ = parts
    bos = tokenizer.bos_token
    if bos and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]:
        before = before.removeprefix(bos)  # which comes before each row anyway
    end = find_end_token(tokenizer, between, where)
    user = between[between.index(end) + len(end) :]
    if not before.endswith(user):
        user = user.lstrip()  # the first turn has no line break before it
    if not before.endswith(user):
        raise UsageError(f"{where}: its chat template begins the first question unlike others: {quote(text)}")
    system = before.removesuffix(user)
    template = Template(system, user, assistant, end)
    check_rendering(template, text, bos, where)
    return template


def find_end_token(tokenizer: PreTrainedTokenizerBase, between: str, where: str) -> str:
    """The token that an answer ends with, where `between` comes behind it; UsageError for words instead."""
    tokens = {*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens}
    following = between.lstrip()
    ends = [token for token in tokens if token and following.startswith(token)]
    if not ends:
        words = quote(repr(between))
        raise UsageError(f"{where}: its chat template ends an answer with no token: {words}")
    return max(ends, key=len)


def strip_rendering(text: str, bos: str | None) -> str:
    """A rendered conversation without spaces and the token that begins it."""
    return re.sub(r"\s", "", text).removeprefix(bos or "")


def check_rendering(template: Template, text: str, bos: str | None, where: str) -> None:
    """UsageError where the conversation is not rendered as the tokenizer does it, but for spaces and the
    token that begins it."""
    rendered = render_turns([Turn(FIRST, ANSWER), Turn(SECOND)], template)
    for marker in (QUESTION, QUERY):
        rendered = rendered.replace(marker, "")
    if strip_rendering(rendered, bos) != strip_rendering(text, bos):
        raise UsageError(
            f"{where}: its chat template has more than a system prompt and words around turns: {quote(text)}"
            f"; set prompt.system, .user, .assistant and .end yourself, such as {asdict(template)}"
        )
