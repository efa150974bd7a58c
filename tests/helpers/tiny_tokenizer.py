"""A tokenizer that knows the special tokens of all families, trained on the spot."""

from functools import cache

from factories import CORPUS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

NAMED = {
    "image_token": "<image>",
    "video_token": "<video>",
    "boi_token": "<boi>",
    "eoi_token": "<eoi>",
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<image>",
    "image_break_token": "<break>",
    "image_end_token": "<end>",
    "img_line_break_token": "<break>",
    "image_boundary_token": "<fake_token_around_image>",
}
SOUNDS = {"audio_token": "<audio>", "boa_token": "<boa>", "eoa_token": "<eoa>"}
SPECIALS = [
    "<pad>",
    "<unk>",
    "<s>",
    "</s>",
    *dict.fromkeys(NAMED.values()),
    "<global-img>",
    "<end_of_utterance>",
    "<vision_start>",
    "<vision_end>",
    "<patch>",
    *(f"<IMG_{name}>" for name in ("START", "ATOM", "GRID", "COL", "ROW", "END")),
    *(f"<row_{i}_col_{j}>" for i in (1, 2) for j in (1, 2)),
    *SOUNDS.values(),
    *(f"<|{place}_of_{medium}|>" for place in ("begin", "end") for medium in ("image", "video")),
]
CHAT = (
    "{% for m in messages %}{{ m['role'] }}: {% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for p in m['content'] %}{% if p['type'] == 'image' %}IMAGE{% elif p['type'] == 'video' %}VIDEO"
    "{% else %}{{ p['text'] }}{% endif %}"
    "{% endfor %}{% endif %}\n{% endfor %}assistant:"
)


@cache
def _backend() -> str:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=320,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=SPECIALS,
            show_progress=False,
        ),
    )
    return backend.to_str()


def tokenizer(side: str = "left") -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_backend()),
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        padding_side=side,
        extra_special_tokens={**NAMED, **SOUNDS},
        clean_up_tokenization_spaces=False,
    )


def ids() -> dict[str, int]:
    tok = tokenizer()
    return {token: tok.convert_tokens_to_ids(token) for token in SPECIALS}
