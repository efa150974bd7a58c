"""VQA accuracy (VQA v2, TextVQA, VizWiz): how many of the people asked gave the same answer.

Antol et al. 2015, arXiv 1505.00468; the evaluation's page, visualqa.org/evaluation.html, says how answers are
made alike, EvalAI's scorer of TextVQA how marks are treated.
"""

import re
from collections.abc import Sequence

from experiments.metrics.mean import MeanScore, several

ENOUGH = 3  # people whose agreement makes an answer wholly right
ARTICLES = {"a", "an", "the"}
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = {"none": "0"} | {word: str(number) for number, word in enumerate(NUMBERS)}
MARKS = ';/[]"{}()=+\\_->@`!<'
# The evaluation's contractions, as they should be. They are known with any one apostrophe missing.
CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've
weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've
why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
you've
"""
CONTRACTIONS = {
    word[:i] + word[i + 1 :]: word
    for word in CONTRACTED.split()
    for i, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}


def vqa_normalise(answer: str) -> str:
    """Lower case, digits for number words, no articles, no marks but apostrophes, colons and decimal points,
    missing apostrophes put in: "The Dogs, two!" -> "dogs 2"."""
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    text = without_marks(" ".join(text.split()))
    words = [DIGITS.get(word, word) for word in text.split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def without_marks(text: str) -> str:
    """A mark beside a space anywhere goes everywhere ("no - yes"), others become spaces ("t-shirt")."""
    out = text
    for mark in MARKS:
        beside_space = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if beside_space else " ")
    return re.sub(r"\.(?!\d)", "", out)


class VQAAccuracy(MeanScore):
    """Mean over the people asked of min(1, others who gave the prediction / 3); truths: lists of answers.

    A question with a single accepted answer is right or wrong.
    """

    def score(self, said: str, truth: str | Sequence[str]) -> float:
        answers = [vqa_normalise(answer) for answer in several(truth)]
        hits = [answer == vqa_normalise(said) for answer in answers]
        if len(hits) == 1:
            return float(hits[0])
        return sum(min(1.0, (sum(hits) - hit) / ENOUGH) for hit in hits) / len(hits)
