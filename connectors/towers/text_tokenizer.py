"""The tokenizer of a tower's own text encoder, beside the LLM's."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from compressors.errors import UsageError, shorten_reason
from compressors.reading import read_json_object
from compressors.registry import conform
from connectors.hub import OPEN_CLIP_SCHEME
from connectors.pretrained import load_pretrained
from connectors.towers.build_text import read_text_config
from connectors.towers.open_clip_text import OPEN_CLIP
from connectors.towers.text import ADVICE

FOLDER = "question_tokenizer"  # within a saved processor's
SETTINGS_FILE = "settings.json"
SETTINGS = {"length": int, "lowercase": bool}


def split_text(text: str, fits: Callable[[str], bool]) -> list[str]:
    """Pieces of a text that fit, by halves: of its words, and of a word that is too long by itself."""
    if len(text) < 2 or fits(text):
        return [text]
    words = text.split()
    middle = len(words) // 2
    halves = [" ".join(words[:middle]), " ".join(words[middle:])]
    if len(words) < 2:
        middle = len(text) // 2
        halves = [text[:middle], text[middle:]]
    pieces: list[str] = []
    for half in halves:
        pieces += split_text(half, fits)
    return pieces


class TextTokenizer:
    """Questions -> ids. A question of more tokens than the encoder reads becomes several pieces.

    length      L, tokens that each piece is filled up to: CLIP's 77, SigLIP's 64
    lowercase   as SigLIP's texts were in training
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, length: int, lowercase: bool):
        self.tokenizer = tokenizer
        self.length = length
        self.lowercase = lowercase

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids (n, M, L) of texts in M pieces at most, and which of these there are, (n, M): none of a text
        without words."""
        pieces_of_text = [split_text(text, self._fits) for text in texts]
        most = max((len(pieces) for pieces in pieces_of_text), default=1)
        pieces: list[str] = []
        for pieces_of_one in pieces_of_text:
            pieces += pieces_of_one + [""] * (most - len(pieces_of_one))
        is_there = torch.tensor([bool(piece.strip()) for piece in pieces])
        ids = self._tokenize(pieces, self.length)
        return ids.unflatten(0, (-1, most)), is_there.unflatten(0, (-1, most))

    def _fits(self, text: str) -> bool:
        """Whether the encoder reads all of a text."""
        if len(text.encode()) + 2 <= self.length:  # no more tokens than bytes, a start and an end
            return True
        ids = self.tokenizer(self._spell([text]), truncation=False, verbose=False)["input_ids"][0]
        return len(ids) <= self.length

    def _spell(self, texts: list[str]) -> list[str]:
        """Texts as they were in training."""
        if self.lowercase:
            return [text.lower() for text in texts]
        return texts

    def _tokenize(self, texts: list[str], length: int) -> Tensor:
        """Ids (n, length), cut and filled. Padding comes behind: CLIP reads its first end, and SigLIP was
        trained so."""
        options: dict[str, Any] = {"padding": "max_length", "truncation": True, "max_length": length}
        encoded = self.tokenizer(self._spell(texts), return_tensors="pt", padding_side="right", **options)
        ids: Tensor = encoded["input_ids"]
        return ids

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
                f"{OPEN_CLIP_SCHEME}{name}: its tokenizer is not to be had: {shorten_reason(error)}; {ADVICE}"
            ) from error
        self.name = name
        super().__init__(tokenizer, tokenizer.context_length, False)  # open_clip spells texts as in training

    def _fits(self, text: str) -> bool:
        # one place more is another end where nothing was cut, and otherwise a word
        longer = self._tokenize([text], self.length + 1)[:, : self.length]
        return longer.equal(self._tokenize([text], self.length))

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
