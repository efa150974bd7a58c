"""Multiple choice (MMBench, SEED, ScienceQA, AI2D, MMMU): which option an answer in free words names."""

import re
from collections.abc import Sequence
from string import ascii_uppercase

from compressors.errors import UsageError
from experiments.metrics.answers import normalise_answer
from experiments.metrics.mean import MeanScore

# Where a letter stands for an option, the surest first. Small letters only where they cannot be a word.
LETTER_PLACES = (
    r"^\W*(ANYHOW)\W*$",  # b   (B)   B.
    r"^\W*(ANYHOW)\s*[.:)\]]",  # B. the fox   b) the fox   (B) the fox
    r"(?i:answer|option|choice)(?i:\s+is)?\s*:?\s*[\[(\"'*]*(CAPITAL)\b",  # the answer is B   option B
    r"(?i:answer|option|choice)(?i:\s+is)?\s*:?\s*[\[(\"'*]*(ANYHOW)\W*$",  # the answer is b.
    r"[\[(](ANYHOW)[\])]",  # it must be (b), because
    r"^(?![AI]\s+[A-Z])(CAPITAL)\b(?!\s+[a-z])",  # B, because; not "A Siamese cat"
)
LONE_CAPITAL = r"\b(?![AI]\s+[a-zA-Z])(CAPITAL)\b"  # a capital by itself, but not "A fox"


def read_choice(answer: str, options: Sequence[str]) -> str | None:
    """The letter of the option that an answer names, None if it names none or several.

    A letter counts where it stands for an option; then the only option whose words the answer has; then a
    capital letter alone. Of several letters in such places the last one counts, as in "not (A) but (B)".
    """
    letters = name_options(options)
    for place in LETTER_PLACES:
        in_place = find_letters(place, letters, answer.strip())
        if in_place:
            return in_place[-1].upper()
    option = find_option_by_words(answer, options)
    if option is not None:
        return letters[option]
    alone = set(find_letters(LONE_CAPITAL, letters, answer))
    if len(alone) == 1:
        return alone.pop()
    return None


def find_letters(place: str, letters: str, text: str) -> list[str]:
    """The letters that stand in such a place of a text."""
    pattern = place.replace("ANYHOW", f"(?i:[{letters}])").replace("CAPITAL", f"[{letters}]")
    return re.findall(pattern, text)


def name_options(options: Sequence[str]) -> str:
    """A, B, C, ... for the options."""
    if not 1 <= len(options) <= len(ascii_uppercase):
        raise UsageError(f"options={list(options)!r}: expected 1 to {len(ascii_uppercase)} of them")
    return ascii_uppercase[: len(options)]


def find_option_by_words(answer: str, options: Sequence[str]) -> int | None:
    """The only option whose words stand in the answer; "red" does not count where "dark red" does."""
    words = f" {normalise_answer(answer)} "  # spaces around: "cat" does not stand in "category"
    texts = [f" {normalise_answer(option)} " for option in options]
    mentioned = [index for index, text in enumerate(texts) if text.strip() and text in words]
    longest = []
    for index in mentioned:
        # a text stands in itself, and in no other that is mentioned
        containing = [longer for longer in mentioned if texts[index] in texts[longer]]
        if containing == [index]:
            longest.append(index)
    if len(longest) == 1:
        return longest[0]
    return None


class ChoiceAccuracy(MeanScore):
    """Share of questions whose answer names the right option; one that names none is wrong."""

    def update(
        self,
        predictions: Sequence[str],
        answers: Sequence[str],
        options: Sequence[Sequence[str]] = (),
    ) -> None:
        """One entry a question in each; answers are letters, options the texts in their order."""
        super().update(predictions, list(zip(answers, options, strict=True)))

    def score(self, said: str, truth: tuple[str, Sequence[str]]) -> float:
        answer, options = truth
        if answer.upper() not in name_options(options):
            raise UsageError(f"answer={answer!r}: not one of the letters {name_options(options)}")
        return float(read_choice(said, options) == answer.upper())
