"""Text and images -> model inputs, the same in training and inference."""
from collections.abc import Sequence
from dataclasses import asdict

import torch
import transformers
from PIL.Image import Resampling
from torch import Tensor
from transformers import AutoProcessor, BatchFeature, ProcessorMixin, SiglipImageProcessorPil
from transformers.image_utils import load_image

from compressors.errors import UsageError
from connectors.tiling import crop, num_crops
from connectors.vision_tower import VisionTower
from llm_adapters.adapter import query_positions
from llm_adapters.configuration import FlashSlothConfig
from llm_adapters.conversation import IGNORE, IMAGE, QUERY, QUESTION, Encoded, Encoder, Template, Turn

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
    {%%- set said = namespace(words=[], outside=0, waiting=0) -%%}
    {%%- for part in parts -%%}
        {%%- if part['type'] == 'image' -%%}
            {%%- set said.waiting = said.waiting + 1 -%%}
        {%%- elif checked(part['text']) -%%}
            {%%- if said.words -%%}
                {%%- set said.words = said.words + ['%(image)s'] * said.waiting -%%}
            {%%- else -%%}
                {%%- set said.outside = said.waiting -%%}
            {%%- endif -%%}
            {%%- set said.words, said.waiting = said.words + [checked(part['text'])], 0 -%%}
        {%%- endif -%%}
    {%%- endfor -%%}
    {%%- set images, text = said.outside + said.waiting, said.words | join(' ') -%%}
    {%%- if not text -%%}
        {{- raise_exception('a message of the ' + role + ' has no text; give it one') -}}
    {%%- elif role == 'assistant' -%%}
        {{- ' ' + text + %(end)s -}}
    {%%- else -%%}
        {%%- set start = ' ' + '%(image)s\n' * images + '%(question)s' if images else '%(question)s ' -%%}
        {{- %(user)s + start + text + ' %(query)s' + %(assistant)s -}}
    {%%- endif -%%}
{%%- endfor -%%}
"""


def chat_template(template: Template) -> str:
    """A Jinja chat template that renders what `conversation.render` does. The assistant's words end each user
    message, so `add_generation_prompt` has nothing to add."""
    words = {name: repr(text) for name, text in asdict(template).items()}
    return CHAT_TEMPLATE % {**words, "image": IMAGE, "question": QUESTION, "query": QUERY}


class FlashSlothProcessor(ProcessorMixin):
    """Image processor + tokenizer + the layout of the prompt.

    image_tokens   visual tokens of one crop of an image
    tiles          k > 1: an image is a thumbnail and k x k tiles (FlashSloth-HD), k*k + 1 crops; 1: itself
    num_queries    query tokens a turn
    prompt         system, user, assistant and end strings

    Calls return `input_ids, attention_mask, turns (B, T)`, `query_index (B, S)` and, with images, `image_turn
    (B, I)` and `pixel_values (B, I, 3, h, w)`, I counting crops. Shorter rows are padded on the left unless
    told otherwise.
    """

    valid_kwargs = ["image_tokens", "tiles", "num_queries", "prompt", "chat_template"]

    def __init__(self, image_processor=None, tokenizer=None, image_tokens: int = 0, tiles: int = 1,
                 num_queries: int = 0, prompt: dict | None = None, chat_template: str | None = None):
        self.image_tokens, self.tiles, self.num_queries = image_tokens, tiles, num_queries
        self.prompt = prompt or asdict(Template())
        self.image_token, self.query_token = IMAGE, QUERY
        self.image_token_id, self.query_token_id = (token_id(tokenizer, token) for token in (IMAGE, QUERY))
        super().__init__(pil_backend(image_processor), tokenizer, chat_template=chat_template)
        template = Template(**self.prompt)
        self.chat_template = chat_template or globals()["chat_template"](template)
        self.encoder = Encoder(tokenizer, template, self.image_token_id, self.query_token_id, num_queries)

    def to_dict(self) -> dict:
        """What is saved; the encoder is made anew."""
        return {name: value for name, value in super().to_dict().items() if name != "encoder"}

    @property
    def crops(self) -> int:
        """Crops of an image."""
        return num_crops(self.tiles)

    def tokens_of(self, images: int) -> list[int]:
        """Visual tokens of each of `images` images."""
        return [self.image_tokens * self.crops] * images

    def __call__(self, images=None, text: str | Sequence[str] | None = None,
                 return_tensors: str | None = "pt", padding_side: str = "left", **kwargs) -> BatchFeature:
        """Marked text (of the chat template) and its images: one image, a list for one text, or a list a
        text.

        transformers' tools may also give `padding` and `add_special_tokens`: rows are always padded, and
        whether there is a beginning-of-sequence token is the tokenizer's to say."""
        if text is None:
            raise UsageError("text=None: give the text of the chat template, with one <image> for each image")
        known = ("padding", "add_special_tokens")
        unknown = [name for name, value in kwargs.items() if value is not None and name not in known]
        if unknown:
            raise UsageError(f"the processor takes no {', '.join(unknown)}; `encode` truncates, for training")
        texts = [text] if isinstance(text, str) else list(text)
        rows = per_row(images, len(texts))
        encoded = [self.encoder.encode(t, self.tokens_of(len(row))) for t, row in zip(texts, rows)]
        batch = self.collate(encoded, padding_side)
        batch.pop("labels")
        if "image_turn" in batch:
            batch["pixel_values"] = stack_images([self.pixels(row) for row in rows])
        return BatchFeature(batch, tensor_type=return_tensors)

    def encode(self, turns: Sequence[Turn], images: int, max_length: int | None = None) -> Encoded:
        """A conversation with `images` images, for training."""
        return self.encoder.encode_turns(turns, self.tokens_of(images), max_length)

    def pixels(self, images: Sequence) -> Tensor:
        """PIL images -> (crops of all of them, 3, h, w)."""
        if not images:
            return torch.empty(0)
        return image_pixels(self.image_processor, images, self.tiles)

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
            crops = [[turn for turn in row.image_turns for _ in range(self.crops)] for row in rows]
            out["image_turn"] = pad_rows(crops, 0, False)
        return out

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "turns", "query_index", "image_turn", "pixel_values"]


def image_processor(tower: VisionTower, size: int | None = None) -> SiglipImageProcessorPil:
    """Preprocessing as the tower wants it: squashed to `size` pixels a side (None: the tower's own)."""
    size = size or tower.image_size
    return SiglipImageProcessorPil(
        size={"height": size, "width": size}, image_mean=list(tower.image_mean),
        image_std=list(tower.image_std), resample=Resampling[tower.resample.upper()],
    )


def pil_backend(image_processor):
    """The same preprocessing through PIL. transformers loads the torchvision twin of what was saved, whose
    resizing differs by up to a grey level: training and inference would not see the same pixels."""
    twin = getattr(transformers, f"{type(image_processor).__name__}Pil", None)
    return image_processor if twin is None else twin.from_dict(image_processor.to_dict())


def image_pixels(image_processor, images: Sequence, tiles: int = 1) -> Tensor:
    """PIL images -> (crops of all of them, 3, h, w)."""
    side = image_processor.size["height"]
    images = [load_image(image) if isinstance(image, str) else image for image in images]  # a path or URL
    crops = [piece for image in images for piece in crop(image, tiles, side)]
    return image_processor(crops, return_tensors="pt")["pixel_values"]


def stack_images(rows: Sequence[Tensor]) -> Tensor:
    """(images of a row, ...) for each row -> (B, most images, ...), zeros after a row's own."""
    filled = next(row for row in rows if len(row))
    out = filled.new_zeros(len(rows), max(map(len, rows)), *filled.shape[1:])
    for place, row in zip(out, rows):
        if len(row):
            place[: len(row)] = row
    return out


def token_id(tokenizer, token: str) -> int:
    """The id of a placeholder that the tokenizer must know as one token."""
    found = tokenizer.convert_tokens_to_ids(token)
    if found is None or found == tokenizer.unk_token_id:
        raise UsageError(f"the tokenizer has no token {token!r}; add it with tokenizer.add_special_tokens")
    return found


def per_row(images, rows: int) -> list[list]:
    """Images as transformers' processors take them -> a list of images for each of `rows` texts."""
    if images is None:
        return [[] for _ in range(rows)]
    if not isinstance(images, (list, tuple)):
        images = [images]
    if any(isinstance(image, (list, tuple)) for image in images):
        nested = [list(image) if isinstance(image, (list, tuple)) else [image] for image in images]
    else:
        nested = [list(images)] if rows == 1 else [[image] for image in images]
    if len(nested) != rows:
        raise UsageError(f"{len(nested)} lists of images for {rows} text(s); give one list for each text")
    return [[image for image in row if image is not None] for row in nested]


def pad_rows(rows: Sequence[Sequence[int]], value: int, left: bool) -> Tensor:
    """Lists of ints -> (B, longest)."""
    out = torch.full((len(rows), max(map(len, rows), default=0)), value)
    for line, row in zip(out, rows):
        place = slice(len(line) - len(row), None) if left else slice(0, len(row))
        line[place] = torch.tensor(row, dtype=line.dtype)
    return out


AutoProcessor.register(FlashSlothConfig, FlashSlothProcessor)
