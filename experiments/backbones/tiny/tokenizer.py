"""The tiny tokenizer: whole words for the generator's language, single characters for everything spelled.

Text is lower-cased and split at spaces and punctuation; a word outside the vocabulary falls apart into
characters, so `<unk>` appears only for characters outside a-z, 0-9 and common punctuation.
"""

from pathlib import Path
from string import ascii_lowercase, digits
from typing import TYPE_CHECKING

from experiments.picture_vqa.pictures import COLOURS, PLURALS, load_catalogue
from experiments.picture_vqa.relations import COLUMN_NAMES, ROW_NAMES
from experiments.picture_vqa.scenes import PATCH_SIZE, SCENE_SIZE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<pad>", "<unk>", "</s>", "<image>", "<query>")
PUNCTUATION = ".,:;?!'\"()-/"
# Of the conversation format, of the question and caption templates, and of the field's usual instructions.
_TEMPLATE_WORDS = """
    user assistant system yes no left right above below of at the in is are there an and or can you see
    picture object objects what which kind colour shape shapes how many word number sign signs written
    does say first last letter digit describe list everything image question answer using single phrase
    option from given choices with this that it thing things not on to do show name short directly please
    one two three
"""


def build_vocabulary() -> list[str]:
    """All tokens in order of their ids."""
    words = set(_TEMPLATE_WORDS.split())
    words.update(PLURALS, PLURALS.values(), COLOURS, ROW_NAMES, COLUMN_NAMES)
    for name, picture in load_catalogue().items():
        words.update(name.split())
        words.add(picture.category)
    for step in range(SCENE_SIZE // PATCH_SIZE):
        words.update((f"x{step}", f"y{step}"))
    characters = [*ascii_lowercase, *digits]
    pieces = [f"##{character}" for character in characters]
    # dict: the first of equal tokens stays. The order is that of the embeddings that ship.
    return list(dict.fromkeys([*SPECIAL_TOKENS, *PUNCTUATION, *characters, *sorted(words), *pieces]))


def build_tokenizer() -> "PreTrainedTokenizerFast":
    """The tokenizer; it adds no token of its own accord."""
    # Here: examples of text need the vocabulary alone, and transformers takes seconds to import.
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {token: index for index, token in enumerate(build_vocabulary())}
    backend = Tokenizer(models.WordPiece(ids, unk_token="<unk>", max_input_chars_per_word=100))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="</s>",
        additional_special_tokens=["<image>", "<query>"],
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def save_tokenizer(folder: Path) -> None:
    """Write it as `AutoTokenizer` loads it."""
    build_tokenizer().save_pretrained(folder)
