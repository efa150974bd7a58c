"""Numbers of YAML files and values as everybody reads them today: 12:30, 010 and 1_000 are words.

YAML 1.1, which PyYAML and so OmegaConf read, has them as 750, 8 and 1000; to YAML 1.2 a whole number is its
digits alone.
"""

import re

import yaml

# not in the middle of a word, such as a path
OLD_NUMBER = re.compile(r"(?<![\w.-])[-+]?(?:0[\dbx_]|\d+[_:])[\da-fA-F_:.]*")


def quote_old_numbers(text: str) -> str:
    """YAML with the numbers of version 1.1 alone in quotes. yaml.YAMLError for what is none."""
    if not OLD_NUMBER.search(text):  # most files: to look at their words one by one takes long
        return text
    pieces: list[str] = []
    end = 0
    for token in yaml.scan(text):
        if isinstance(token, yaml.ScalarToken) and token.plain and OLD_NUMBER.fullmatch(token.value):
            start = token.start_mark.index
            pieces += [text[end:start], f'"{token.value}"']
            end = start + len(token.value)
    return "".join([*pieces, text[end:]])
