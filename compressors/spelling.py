"""How commands are spelled for whoever reads of them: `slothkit sweep` where that was typed, else
`python -m experiments.sweep`.

The code has modules everywhere; what is shown passes through `spell_commands`. What is written for others,
such as a report's files, keeps the modules, which need no script to be installed.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

MODULE_CALL = re.compile(r"python -m (\w+(?:\.\w+)*)")

scripts_by_module: dict[str, str] = {}  # of the script that runs; none where a module was called


@contextmanager
def spell_as(scripts: Mapping[str, str]) -> Iterator[None]:
    """Show commands as a script's, by the module that each of them runs."""
    scripts_by_module.update(scripts)
    try:
        yield
    finally:
        scripts_by_module.clear()


def spell_commands(text: str) -> str:
    """A text with its `python -m MODULE` as the reader calls them."""
    return MODULE_CALL.sub(lambda call: scripts_by_module.get(call[1], call[0]), text)
