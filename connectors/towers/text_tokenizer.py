"""The tokenizer of a tower's own text encoder, beside the LLM's."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from compressors.errors import UsageError
from compressors.reading import read_json_object
from compressors.registry import conform
from connectors.pretrained import load_pretrained
from connectors.towers.text import ADVICE, read_text_config

FOLDER = "question_tokenizer"  # within a saved processor's
SETTINGS_FILE = "settings.json"
SETTINGS = {"length": int, "lowercase": bool}


class TextTokenizer:
    """Questions -> ids. A longer question loses its end, which is told once.

    length      L, tokens that each is cut or filled up to: CLIP's 77, SigLIP's 64
    lowercase   as SigLIP's texts were in training
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, length: int, lowercase: bool):
        self.tokenizer = tokenizer
        self.length = length
        self.lowercase = lowercase
        self._told = False  # that a question was cut

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(n, L)."""
        questions = list(texts)
        if self.lowercase:
            questions = [text.lower() for text in questions]
        if not self._told:
            self._warn_of_cut(questions)
        options: dict[str, Any] = {"padding": "max_length", "truncation": True, "max_length": self.length}
        ids: Tensor = self.tokenizer(questions, return_tensors="pt", **options)["input_ids"]
        return ids

    def _warn_of_cut(self, questions: Sequence[str]) -> None:
        """A warning, once, where a question has too many tokens."""
        for text in questions:
            if len(text.encode()) + 2 <= self.length:  # no more tokens than bytes, a start and an end
                continue
            count = len(self.tokenizer(text, truncation=False, verbose=False)["input_ids"])
            if count > self.length:
                self._told = True
                warnings.warn(
                    f"the tower's own text encoder takes {self.length} tokens: a question of {count} was "
                    "cut, and so are others that are longer",
                    stacklevel=2,
                )
                return

    def save(self, folder: str | Path) -> None:
        """Writes it into a folder of its own within a processor's."""
        place = Path(folder, FOLDER)
        self.tokenizer.save_pretrained(place)
        settings = {"length": self.length, "lowercase": self.lowercase}
        (place / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n")


def load_text_tokenizer(source: str | Path, where: str) -> TextTokenizer:
    """That of a whole CLIP or SigLIP checkpoint. UsageError, from `where`, for one without."""
    config: Any = read_text_config(source, where)
    length = config.text_config.max_position_embeddings
    return TextTokenizer(_load_words(source, where), length, config.model_type == "siglip")


def read_saved_text_tokenizer(folder: Path) -> TextTokenizer | None:
    """What `TextTokenizer.save` has written within a processor's folder; None where it has none."""
    place = folder / FOLDER
    if not place.is_dir():
        return None
    settings = read_json_object(place / SETTINGS_FILE)
    for name, hint in SETTINGS.items():
        conform(settings.get(name), hint, f"{place / SETTINGS_FILE}: {name}")
    return TextTokenizer(_load_words(place, str(place)), settings["length"], settings["lowercase"])


def _load_words(source: str | Path, where: str) -> PreTrainedTokenizerBase:
    """A tokenizer; UsageError where there is none: transformers makes one without words then."""
    tokenizer: PreTrainedTokenizerBase = load_pretrained(AutoTokenizer, source, where, ADVICE)
    if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
        raise UsageError(
            f"{where}: the tokenizer of the text encoder has no words; save it into that folder "
            "(tokenizer.save_pretrained)"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
