"""When two answers are the same. No torch: a table is printed without it."""

import re
import unicodedata

ARTICLES = {"a", "an", "the"}
NUMBER_COMMA = re.compile(r"(?<=\d),(?=\d{3}\b)")
# punctuation with a meaning: -3, %d; 50%, C#
MARKS_KEPT_BEFORE = "%-"
MARKS_KEPT_AFTER = "%#"


def normalise_answer(answer: str) -> str:
    """Lower case, without articles, punctuation around words and extra spaces: "The fox." -> "fox". Signs
    with a meaning stay: those inside a word or number (3.5, 10:30, o'clock), and all that Unicode does not
    call punctuation (€, <, 5°, ✓, vowel signs)."""
    text = NUMBER_COMMA.sub("", unicodedata.normalize("NFC", answer).lower())
    words = []
    for word in text.split():
        stripped = strip_punctuation(word)
        if stripped:
            words.append(stripped)
    # "?" may be the answer itself, and so may "A": what would leave nothing is not done
    words = words or text.split()
    without_articles = [word for word in words if word not in ARTICLES]
    return " ".join(without_articles or words)


def strip_punctuation(word: str) -> str:
    """A word without punctuation around it; the point of .5 belongs to it."""
    start = 0
    end = len(word)
    while end and is_punctuation(word[end - 1], MARKS_KEPT_AFTER):
        end -= 1
    while start < end and is_punctuation(word[start], MARKS_KEPT_BEFORE):
        if word[start] == "." and word[start + 1].isdigit():
            break
        start += 1
    return word[start:end]


def is_punctuation(sign: str, kept: str) -> bool:
    """Whether a sign may be left out. Unicode calls a backtick a modifier, writers use it as a quote."""
    if sign in kept:
        return False
    return sign == "`" or unicodedata.category(sign).startswith("P")
