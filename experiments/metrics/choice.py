"""Multiple choice (MMBench, SEED, ScienceQA, AI2D, MMMU): which option an answer in free words names."""

import re
import unicodedata
from collections.abc import Sequence
from string import ascii_uppercase

from compressors.errors import UsageError
from experiments.metrics.answers import normalise_answer
from experiments.metrics.mean import MeanScore, list_accepted_answers

EASTERN_WORDS = "答案|选项|選項|選択肢|答え|정답"  # answer, option
BEFORE_LETTER = r"\s*:?\s*[\[(\"'*]{0,4}"
SAID = rf"(?:(?i:answer|option|choice)(?i:\s+is)?|(?:{EASTERN_WORDS})[是为為は은]?){BEFORE_LETTER}"
NAMED = rf"(?i:option|choice){BEFORE_LETTER}"  # no article stands behind these
# words that come behind an option's letter, and never behind an article: A and C, A which shows the fox
JOINING = r"(?:and|or|nor|because|since|which|is|rather|instead)\b"
BEHIND_LETTERS = (
    r"(?:are|both|but|as|was|were|be|will|would|can|could|may|might|must|should|has|have|had|does|do|did|that|"
    r"who|whose|where|when|while|if|so|not|with|without|in|on|at|by|of|for|from|to|due|given|here|i|we|you|he|"
    r"she|it|they|this|these|those|the|shows?|seems?|appears?|looks?|matches|fits|depicts|describes|"
    r"represents|means|makes)\b"
)
NO_ARTICLE = rf"(?!A\s+(?!{JOINING}|(?i:{BEHIND_LETTERS}))[a-zA-Z])(?!I\s+(?!{JOINING})[a-zA-Z])"
# Where a letter stands for an option, the surest first. Small letters only where they cannot be a word.
LETTER_PLACES = (
    r"^\W*(ANYHOW)\W*$",  # b   (B)   B.
    r"^\W*(ANYHOW)\s*[.:)\]]",  # B. the fox   b) the fox   (B) the fox
    rf"(?:{NAMED}|{SAID}{NO_ARTICLE})(CAPITAL)\b",  # the answer is B   option B; not "Answer: A fox"
    SAID + r"(ANYHOW)\W*$",  # the answer is b.
    r"[\[(](ANYHOW)[\])]",  # it must be (b), because
    r"^(?![AI]\s+[A-Z])(CAPITAL)\b(?!\s+[a-z])",  # B, because; not "A Siamese cat"
)
LONE_CAPITAL = rf"\b{NO_ARTICLE}(CAPITAL)\b"  # a capital by itself, but not "A fox"
# letters in a row, none of which is the answer: A, B   (a) and (b)   A和B   (A)(B); not "B, A is wrong"
LISTED = rf"(?:{SAID})?[\[(\"'*]{{0,4}}\b(?i:{NO_ARTICLE})(?:ANYHOW)\b(?!\s+(?:is|was)\b)[\])\"'*]{{0,4}}"
BETWEEN = r"[,;/&+、和或及与與とやか와과및]|\b(?:and|or|nor|plus|as\s+well\s+as)\b|または|또는"
LIST = rf"{LISTED}(?:(?:\s*(?:(?:{BETWEEN})\s*)+|(?<=[\])])\s*(?=[\[(])){LISTED})+"
# an option with its letter, behind the start or another one: A. the fox, B. the owl
REPEATED = r"(?:^|[,;\n]|\b(?:and|or)\b)\s*[\[(]?(CAPITAL)\s*[.:)\]](?=\s)"
# an option of a question, on a line of its own
OPTION_LINE = re.compile(r"^[ \t]*[\[(]?([A-Z])[ \t]*[.:)\]][ \t]*(\S.*?)[ \t]*$", re.MULTILINE)
# of Chinese, Japanese and Korean words, which stand beside letters without a space
EASTERN = r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"


def read_choice(answer: str, options: Sequence[str]) -> str | None:
    """The letter of the option that an answer names, None if it names none or several.

    A letter counts where it stands for an option; then the only option whose words the answer has; then a
    capital letter alone. Of several letters in such places the last one counts, as in "not (A) but (B)", but
    none that is one of a list, as in "A and B".
    """
    letters = name_options(options)
    whole_text = separate_letters(answer)
    text = strike_repeated_options(whole_text, letters)
    lists = find_letters(LIST, letters, text)
    for place in LETTER_PLACES:
        in_place = find_letters(place, letters, text)
        if in_place:
            return name_unlisted(in_place[-1], lists)
    if lists or text != whole_text:
        return None
    option = find_option_by_words(answer, options)
    if option is not None:
        return letters[option]
    alone = {letter[1] for letter in find_letters(LONE_CAPITAL, letters, text)}
    if len(alone) == 1:
        return alone.pop()
    return None


def separate_letters(answer: str) -> str:
    """An answer with letters of common width, and with spaces between them and eastern words."""
    text = unicodedata.normalize("NFKC", answer.strip())
    return re.sub(rf"(?<={EASTERN})(?=[a-zA-Z])|(?<=[a-zA-Z])(?={EASTERN})", " ", text)


def strike_repeated_options(text: str, letters: str) -> str:
    """A text without the letters of options that it repeats with their words; one alone is an answer."""
    repeated = find_letters(REPEATED, letters, text)
    if len({letter[1] for letter in repeated}) < 2:
        return text
    for letter in reversed(repeated):
        text = text[: letter.start(1)] + text[letter.end() :]
    return text


def find_letters(place: str, letters: str, text: str) -> list[re.Match[str]]:
    """The letters that stand in such a place of a text, each as group 1."""
    pattern = place.replace("ANYHOW", f"(?i:[{letters}])").replace("CAPITAL", f"[{letters}]")
    return list(re.finditer(pattern, text))


def name_unlisted(letter: re.Match[str], lists: Sequence[re.Match[str]]) -> str | None:
    """The letter, None where it is one of a list."""
    for listed in lists:
        if listed.start() <= letter.start(1) < listed.end():
            return None
    return letter[1].upper()


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


def read_options(question: str) -> list[str]:
    """The options that stand in a question, a line each: "A. the fox", "(B) the owl". UsageError for less
    than two."""
    options: list[str] = []
    for line in OPTION_LINE.finditer(question):
        if len(options) < len(ascii_uppercase) and line[1] == ascii_uppercase[len(options)]:
            options.append(line[2])
    if len(options) < 2:
        raise UsageError(
            "no options in its question; expected two lines or more such as 'A. the fox' and 'B. the owl'"
        )
    return options


def name_true_option(answer: str, options: Sequence[str]) -> str:
    """The letter of the right option, by what a data set has as the answer: the letter, with or without the
    words, or the words. UsageError where it is none of the options, or one's letter and another's words."""
    with_words = OPTION_LINE.fullmatch(answer)
    if with_words:
        place = ascii_uppercase.index(with_words[1])
        if place < len(options) and with_words[2].casefold() == options[place].casefold():
            return with_words[1]
    named_letter = answer.strip().upper()
    for letter, option in zip(ascii_uppercase, options):
        if normalise_answer(answer) != normalise_answer(option):
            continue
        if named_letter != letter and named_letter in list(name_options(options)):
            raise UsageError(
                f"its answer '{answer}' is the letter of one option and the words of option {letter}; write "
                f"both, as in '{letter}. {option}'"
            )
        return letter
    choice = read_choice(answer, options)
    if choice is None:
        raise UsageError(f"its answer '{answer}' is none of its {len(options)} options")
    return choice


class ChoiceAccuracy(MeanScore):
    """Share of questions whose answer names the right option; one that names none is wrong."""

    def read_truth(self, answer: str | Sequence[str], question: str) -> tuple[str, Sequence[str]]:
        options = read_options(question)
        return name_true_option(list_accepted_answers(answer)[0], options), options

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
