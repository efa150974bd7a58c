"""The tokenizer of a tower's own text encoder, beside the LLM's."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from compressors.errors import UsageError, shorten_reason
from compressors.reading import read_json_object
from compressors.registry import conform
from connectors.pretrained import load_pretrained
from connectors.towers.build_text import read_text_config
from connectors.towers.open_clip_text import OPEN_CLIP
from connectors.towers.text import ADVICE

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
                self._warn_of_length(str(count))
                return

    def _warn_of_length(self, count: str) -> None:
        """The warning, of a question of so many tokens."""
        self._told = True
        warnings.warn(
            f"the tower's own text encoder takes {self.length} tokens: a question of {count} was cut, and so "
            "are others that are longer",
            stacklevel=3,
        )

    def save(self, folder: str | Path) -> None:
        """Writes it into a folder of its own within a processor's."""
        place = Path(folder, FOLDER)
        self.tokenizer.save_pretrained(place)
        write_settings(place, {"length": self.length, "lowercase": self.lowercase})


class OpenClipTokenizer(TextTokenizer):
    """That of a model of open_clip, by its name, which is all that is saved."""

    def __init__(self, name: str):
        import open_clip

        try:
            tokenizer: Any = open_clip.get_tokenizer(name)
        except (OSError, ValueError, RuntimeError) as error:
            raise UsageError(
                f"open_clip:{name}: its tokenizer is not to be had: {shorten_reason(error)}; {ADVICE}"
            ) from error
        self.name = name
        super().__init__(tokenizer, tokenizer.context_length, False)  # open_clip spells texts as in training

    def __call__(self, texts: Sequence[str]) -> Tensor:
        ids: Tensor = self._tokenize(list(texts), self.length)
        if not self._told:
            # one place more is another end where nothing was cut, and otherwise a word
            is_cut = (self._tokenize(list(texts), self.length + 1)[:, : self.length] != ids).any(1)
            if is_cut.any():
                self._warn_of_length(f"more than {self.length}")
        return ids

    def _tokenize(self, texts: list[str], length: int) -> Tensor:
        tokenizer: Any = self.tokenizer  # open_clip's own
        ids: Tensor = tokenizer(texts, context_length=length)
        return ids

    def save(self, folder: str | Path) -> None:
        place = Path(folder, FOLDER)
        place.mkdir(parents=True, exist_ok=True)
        write_settings(place, {OPEN_CLIP: self.name})


def write_settings(place: Path, settings: dict[str, Any]) -> None:
    """What a tokenizer is made again by, beside its words."""
    (place / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n")


def load_text_tokenizer(source: str | Path, where: str) -> TextTokenizer:
    """That of a whole CLIP or SigLIP checkpoint. UsageError, from `where`, for one without."""
    config: Any = read_text_config(source, where)
    if isinstance(config, dict):
        return OpenClipTokenizer(config["model_name"])
    length = config.text_config.max_position_embeddings
    return TextTokenizer(_load_words(source, where), length, config.model_type == "siglip")


def read_saved_text_tokenizer(folder: Path) -> TextTokenizer | None:
    """What `TextTokenizer.save` has written within a processor's folder; None where it has none."""
    place = folder / FOLDER
    if not place.is_dir():
        return None
    settings = read_json_object(place / SETTINGS_FILE)
    if OPEN_CLIP in settings:
        return OpenClipTokenizer(conform(settings[OPEN_CLIP], str, f"{place / SETTINGS_FILE}: {OPEN_CLIP}"))
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
