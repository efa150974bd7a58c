"""The Jinja chat template of a prompt, which gives what `conversation.render_turns` does."""

from dataclasses import asdict

from llm_adapters.conversation import IMAGE, QUERY, QUESTION, Template

CHAT_TEMPLATE = """
{%%- set reserved = ['%(image)s', '%(question)s', '%(query)s', %(end)s] -%%}
{%%- macro checked(text) -%%}
    {%%- for marker in reserved if marker in text -%%}
        {{- raise_exception("a message contains the reserved '" + marker + "'; give images as parts") -}}
    {%%- endfor -%%}
    {{- text | trim -}}
{%%- endmacro -%%}
{{- %(system)s -}}
{%%- for message in messages -%%}
    {%%- set role, before = message['role'], 'assistant' if loop.first else loop.previtem['role'] -%%}
    {%%- if role not in ('user', 'assistant') -%%}
        {{- raise_exception('one fixed system prompt and no role ' + role + '; remove the message') -}}
    {%%- elif role == before -%%}
        {{- raise_exception('roles must alternate from user on; two in a row are from the ' + role) -}}
    {%%- endif -%%}
    {%%- set content = message['content'] -%%}
    {%%- set parts = [{'type': 'text', 'text': content}] if content is string else content -%%}
    {%%- set said = namespace(words=[], outside=0, waiting=0, inside=false) -%%}
    {%%- for part in parts -%%}
        {%%- if part['type'] == 'image' and role == 'assistant' -%%}
            {{- raise_exception('an image in a message of the assistant; show images in questions') -}}
        {%%- elif part['type'] == 'image' -%%}
            {%%- set said.waiting = said.waiting + 1 -%%}
        {%%- elif part['type'] != 'text' -%%}
            {{- raise_exception("a part of type '" ~ part['type'] ~ "'; parts are of type text or image") -}}
        {%%- elif checked(part['text']) -%%}
            {%%- if said.words -%%}
                {%%- set said.inside = said.inside or said.waiting > 0 -%%}
                {%%- set said.words = said.words + ['%(image)s'] * said.waiting -%%}
            {%%- else -%%}
                {%%- set said.outside = said.waiting -%%}
            {%%- endif -%%}
            {%%- set said.words, said.waiting = said.words + [checked(part['text'])], 0 -%%}
        {%%- endif -%%}
    {%%- endfor -%%}
    {%%- if said.inside -%%}
        {%%- set said.words, said.waiting = said.words + ['%(image)s'] * said.waiting, 0 -%%}
    {%%- endif -%%}
    {%%- set images, text = said.outside + said.waiting, said.words | join(' ') -%%}
    {%%- if not text -%%}
        {{- raise_exception('a message of the ' + role + ' has no text; give it one') -}}
    {%%- elif role == 'assistant' -%%}
        {{- ' ' -}}{%%- generation -%%}{{- text + %(end)s -}}{%%- endgeneration -%%}
    {%%- else -%%}
        {%%- set start = ' ' + '%(image)s\n' * images + '%(question)s' if images else '%(question)s ' -%%}
        {{- %(user)s + start + text + ' %(query)s' + %(assistant)s -}}
    {%%- endif -%%}
{%%- endfor -%%}
"""


def make_chat_template(template: Template) -> str:
    """A Jinja chat template that renders what `conversation.render_turns` does.

    The assistant's words end each user message, so `add_generation_prompt` has nothing to add.
    """
    words = {name: repr(text) for name, text in asdict(template).items()}
    return CHAT_TEMPLATE % {**words, "image": IMAGE, "question": QUESTION, "query": QUERY}
