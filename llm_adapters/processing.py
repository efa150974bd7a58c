"""Text and images -> model inputs, the same in training and inference."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoProcessor, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor

from compressors.checks import check_at_least
from compressors.errors import UsageError
from compressors.registry import conform
from connectors.hub import find_folder, is_hub_id, select_hub_options
from connectors.tiling import Tiling
from connectors.towers.text_tokenizer import FOLDER as TOKENIZER_FOLDER
from connectors.towers.text_tokenizer import TextTokenizer, read_saved_text_tokenizer
from connectors.versions import is_at_least
from llm_adapters.adapter import query_positions
from llm_adapters.chat.chat_template import make_chat_template
from llm_adapters.chat.message_parts import spell_in_parts
from llm_adapters.configuration import FlashSlothConfig
from llm_adapters.conversation import IGNORE, IMAGE, QUERY, Encoded, Encoder, Template, Turn
from llm_adapters.images import (
    check_image_processor,
    image_pixels,
    load_picture,
    per_row,
    pil_backend,
    stack_images,
)

# what transformers' tools also pass: rows are padded here anyway, BOS is the tokenizer's to say
IGNORED = ("padding", "add_special_tokens")


class FlashSlothProcessor(ProcessorMixin):
    """Image processor + tokenizer + the layout of the prompt.

    image_tokens   visual tokens of one crop of an image
    tiles          k > 1: an image is a thumbnail and k x k tiles (FlashSloth-HD), k*k + 1 crops; 1: itself
    layout         square, or anyres: rows x columns by an image's shape, at most k*k tiles
    num_queries    query tokens a turn
    prompt         system, user, assistant and end strings

    Calls return `input_ids, attention_mask, turns (B, T)`, `query_index (B, S)` and, with images, `image_turn
    (B, I)` and `pixel_values (B, I, 3, h, w)`, I counting crops. With `question_tokenizer`, that of the
    tower's own text encoder, also `question_ids (B, R, M, L)` and `question_mask (B, R, M)`, the question of
    each turn in pieces. For training also `labels (B, T)`, -100 outside of answers, or `assistant_masks
    (B, T)`, 1 on the same tokens.
    Shorter rows are padded on the left unless told otherwise.
    """

    valid_kwargs = ["image_tokens", "tiles", "num_queries", "prompt", "layout", "chat_template"]

    def __init__(
        self,
        image_processor: BaseImageProcessor | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        image_tokens: int = 0,
        tiles: int = 1,
        num_queries: int = 0,
        prompt: dict[str, str] | None = None,
        layout: str = "square",
        chat_template: str | None = None,
    ):
        if image_processor is None or tokenizer is None:
            raise UsageError("the processor needs an image_processor and a tokenizer")
        counts = {"image_tokens": image_tokens, "tiles": tiles, "num_queries": num_queries}
        for name, value in counts.items():
            check_at_least(int(name == "tiles"), **{name: conform(value, int, name)})
        prompt = conform(prompt, dict[str, str] | None, "prompt")
        images = pil_backend(image_processor)
        check_image_processor(images)
        # of the tower's own text encoder, where a compressor compares patches with the question by it
        self.question_tokenizer: TextTokenizer | None = None
        # attributes stand before super().__init__, which saves them as they are then
        self.image_tokens = image_tokens
        self.num_queries = num_queries
        self.tiles = tiles
        self.layout = layout
        self.prompt = prompt or asdict(Template())
        self.image_token = IMAGE
        self.query_token = QUERY
        self.image_token_id = find_token_id(tokenizer, IMAGE)
        self.query_token_id = find_token_id(tokenizer, QUERY)
        super().__init__(images, tokenizer, chat_template=chat_template)
        template = Template(**self.prompt)
        self.chat_template = chat_template or make_chat_template(template)
        self.encoder = Encoder(tokenizer, template, self.image_token_id, self.query_token_id, num_queries)
        Tiling(tiles, layout=layout)  # refuses what is no layout

    def to_dict(self) -> dict[str, Any]:
        """What is saved; the encoder is made anew, and the tower's tokenizer has a folder of its own."""
        apart = ("encoder", "question_tokenizer")
        return {name: value for name, value in super().to_dict().items() if name not in apart}

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> Any:
        """As transformers' own, with the tokenizer of the tower's text encoder where there is one. UsageError
        for an upload, which would leave that one out."""
        if push_to_hub:
            raise UsageError("save_pretrained(push_to_hub=True): use processor.push_to_hub(repository)")
        if self.question_tokenizer is not None:
            self.question_tokenizer.save(save_directory)
        return super().save_pretrained(save_directory, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As transformers' own, of a folder or a repository of the hub."""
        processor = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        folder = Path(pretrained_model_name_or_path)
        if is_hub_id(str(pretrained_model_name_or_path)):
            # that one folder alone: the weights are no business of a processor's
            patterns = (f"*{TOKENIZER_FOLDER}/*",)
            options = select_hub_options(kwargs)
            folder = find_folder(str(folder), kwargs.get("revision"), patterns, **options)
        processor.question_tokenizer = read_saved_text_tokenizer(folder / (kwargs.get("subfolder") or ""))
        return processor

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        *args: Any,
        return_assistant_tokens_mask: bool = False,
        **kwargs: Any,
    ) -> Any:
        """transformers' own. `content` may be a string, which its versions before 5.10 do not tokenize, and a
        part of it a video, a list of frames, which are images one after another."""
        if return_assistant_tokens_mask and kwargs.get("tokenize"):
            # the encoder knows it token by token; transformers' own way is by characters of the text, which
            # has one marker where the ids have all visual or query tokens
            for_call = kwargs
            if is_at_least("5.4"):
                for_call = dict(kwargs.get("processor_kwargs") or {})
                kwargs["processor_kwargs"] = for_call
            for_call["return_assistant_tokens_mask"] = True
        return super().apply_chat_template(spell_in_parts(conversation), *args, **kwargs)

    @property
    def tiling(self) -> Tiling:
        """How images are cut."""
        return Tiling(self.tiles, self.image_processor.size["height"], self.layout)

    @property
    def crop_size(self) -> tuple[int, int]:
        """(height, width) in pixels of a crop."""
        size = self.image_processor.size
        return size["height"], size["width"]

    @property
    def crops(self) -> int:
        """Crops of an image; of several numbers (`anyres`) the highest."""
        return self.tiling.most_crops

    def num_image_tokens(self, height: int, width: int) -> int:
        """Visual tokens of an image of `height` x `width` pixels, all its crops together."""
        return self.image_tokens * self.tiling.num_crops(width, height)

    def tokens_of(self, images: int | Sequence[int]) -> list[int]:
        """Visual tokens of each of `images` images, or of images with so many crops."""
        if isinstance(images, int):
            if images and not self.tiling.fixed:
                raise UsageError(
                    f"images={images}: with layout={self.layout} their crops differ; give the "
                    "number of each one's, [tiling.num_crops(width, height), ...]"
                )
            images = [self.crops] * images
        return [self.image_tokens * crops for crops in images]

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        return_tensors: str | None = "pt",
        padding_side: str = "left",
        return_labels: bool = False,
        return_assistant_tokens_mask: bool = False,
        **kwargs: Any,
    ) -> BatchFeature:
        """Marked text (of the chat template) and its images: one image, a list for one text, or a list a
        text. `return_labels` and `return_assistant_tokens_mask` are for training on the answers in the text.

        transformers' tools may also give `padding` and `add_special_tokens`: rows are always padded, and
        whether there is a beginning-of-sequence token is the tokenizer's to say."""
        if text is None:
            raise UsageError("text=None: give the text of the chat template, with one <image> for each image")
        asked = [name for name, value in kwargs.items() if value is not None and value is not False]
        unknown = [name for name in asked if name not in IGNORED]
        if unknown:
            raise UsageError(
                f"the processor takes no {', '.join(unknown)}; `encode` truncates, for training (TRL: "
                "SFTConfig(max_length=None))"
            )
        texts = list_texts(text)
        pictures = []
        encoded = []
        for row_text, row_images in zip(texts, per_row(images, len(texts))):
            row_pictures = [load_picture(image) for image in row_images]
            crops = [self.crops_of(picture) for picture in row_pictures]
            pictures.append(row_pictures)
            encoded.append(self.encoder.encode(row_text, self.tokens_of(crops)))
        batch = self.collate(encoded, padding_side)
        if return_assistant_tokens_mask:
            batch["assistant_masks"] = (batch["labels"] != IGNORE).long()
        if not return_labels:
            del batch["labels"]
        if "image_turn" in batch:
            batch["pixel_values"] = stack_images([self.pixels(row) for row in pictures])
        return BatchFeature(batch, tensor_type=return_tensors)

    def crops_of(self, image: Any) -> int:
        """Crops of an image as `load_picture` gives it."""
        if self.tiling.fixed:
            return self.crops
        width, height = image.size
        return self.tiling.num_crops(width, height)

    def encode(
        self, turns: Sequence[Turn], images: int | Sequence[int], max_length: int | None = None
    ) -> Encoded:
        """A conversation with `images` images, or with images of so many crops, for training."""
        return self.encoder.encode_turns(turns, self.tokens_of(images), max_length)

    def pixels(self, images: Sequence[Any]) -> Tensor:
        """PIL images -> (crops of all of them, 3, h, w)."""
        if not images:
            return torch.empty(0)
        return image_pixels(self.image_processor, images, self.tiling)

    def collate(self, rows: Sequence[Encoded], padding_side: str = "right") -> dict[str, Tensor]:
        """Rows -> padded tensors. `image_turn` counts crops; it is absent when no row has an image."""
        pad = self.tokenizer.pad_token_id or 0
        if padding_side not in ("left", "right"):
            raise UsageError(f"padding_side={padding_side!r}: choose left or right")
        left = padding_side == "left"
        out = {
            "input_ids": pad_rows([r.ids for r in rows], pad, left),
            "attention_mask": pad_rows([[1] * len(r.ids) for r in rows], 0, left),
            "labels": pad_rows([r.labels for r in rows], IGNORE, left),
            "turns": pad_rows([r.turns for r in rows], 0, left),
        }
        out["query_index"] = query_positions(out["input_ids"] == self.query_token_id)
        if self.image_tokens and any(r.image_turns for r in rows):
            out["image_turn"] = pad_rows([self.crop_turns(row) for row in rows], 0, False)
        if self.question_tokenizer is not None:
            out |= self.tokenize_questions(rows)
        return out

    def tokenize_questions(self, rows: Sequence[Encoded]) -> dict[str, Tensor]:
        """The questions of rows as the tower's own text encoder reads them."""
        assert self.question_tokenizer is not None  # asked for by the caller
        turns = max(1, *(len(row.questions) for row in rows), 0)
        texts: list[str] = []
        for row in rows:
            texts += row.questions + [""] * (turns - len(row.questions))
        ids, is_asked = self.question_tokenizer(texts)
        of_turns = (len(rows), turns)
        return {"question_ids": ids.unflatten(0, of_turns), "question_mask": is_asked.unflatten(0, of_turns)}

    def crop_turns(self, row: Encoded) -> list[int]:
        """The turn of each crop: of its first placeholder."""
        turns = [turn for token, turn in zip(row.ids, row.turns) if token == self.image_token_id]
        return turns[:: self.image_tokens]

    @property
    def model_input_names(self) -> list[str]:
        names = ["input_ids", "attention_mask", "turns", "query_index", "image_turn", "pixel_values"]
        if self.question_tokenizer is not None:
            names += ["question_ids", "question_mask"]
        return names


def list_texts(text: Any) -> list[str]:
    """The texts of a processor's call, one or several. UsageError for what is none."""
    texts = list(text) if isinstance(text, Iterable) and not isinstance(text, str) else [text]
    for row_text in texts:
        if not isinstance(row_text, str):
            raise UsageError(
                f"text={type(row_text).__name__}: give text, or a list of texts; the order is images, text"
            )
    return texts


def find_token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """The id of a placeholder that the tokenizer must know as one token."""
    token_id = tokenizer.convert_tokens_to_ids(token)
    if token_id is None or token_id == tokenizer.unk_token_id:
        raise UsageError(f"the tokenizer has no token {token!r}; add it with tokenizer.add_special_tokens")
    assert isinstance(token_id, int)  # of one token, not of a list
    return token_id


def pad_rows(rows: Sequence[Sequence[int]], value: int, left: bool) -> Tensor:
    """Lists of ints -> (B, longest)."""
    out = torch.full((len(rows), max(map(len, rows), default=0)), value)
    for line, row in zip(out, rows):
        place = slice(len(line) - len(row), None) if left else slice(0, len(row))
        line[place] = torch.tensor(row, dtype=line.dtype)
    return out


AutoProcessor.register(FlashSlothConfig, FlashSlothProcessor)
