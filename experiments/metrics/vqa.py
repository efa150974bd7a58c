"""VQA accuracy (VQA v2, TextVQA, VizWiz): how many of the people asked gave the same answer.

Antol et al. 2015, arXiv 1505.00468; the evaluation's page, visualqa.org/evaluation.html, says how answers are
made alike, EvalAI's scorer of TextVQA how marks are treated.
"""

import re
from collections.abc import Sequence

from experiments.metrics.mean import MeanScore, list_accepted_answers

AGREEING_PEOPLE = 3  # people whose agreement makes an answer wholly right
VQA_ARTICLES = {"a", "an", "the"}
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS_BY_WORD = {"none": "0"} | {word: str(number) for number, word in enumerate(NUMBER_WORDS)}
REMOVED_MARKS = ';/[]"{}()=+\\_->@`!<'
# The evaluation's contractions, as they should be. They are known with any one apostrophe missing.
CONTRACTED_WORDS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've
weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've
why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
you've
"""


def list_contractions() -> dict[str, str]:
    """Each contraction by its spellings with one apostrophe missing."""
    spellings: dict[str, str] = {}
    for word in CONTRACTED_WORDS.split():
        for position, letter in enumerate(word):
            if letter == "'":
                spellings[word[:position] + word[position + 1 :]] = word
    # as in the published scorer, which has this one the wrong way round
    spellings["somebody'd"] = "somebodyd"
    return spellings


CONTRACTIONS = list_contractions()


def normalise_vqa_answer(answer: str) -> str:
    """Lower case, digits for number words, no articles, no marks but apostrophes, colons and decimal points,
    missing apostrophes put in: "The Dogs, two!" -> "dogs 2"."""
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    text = remove_marks(" ".join(text.split()))
    words = []
    for word in text.split():
        word = DIGITS_BY_WORD.get(word, word)
        if word not in VQA_ARTICLES:
            words.append(CONTRACTIONS.get(word, word))
    return " ".join(words)


def remove_marks(text: str) -> str:
    """A mark beside a space anywhere goes everywhere ("no - yes"), others become spaces ("t-shirt")."""
    out = text
    for mark in REMOVED_MARKS:
        # looked for in `text`: marks removed before this one must not change what it stands beside
        beside_space = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if beside_space else " ")
    return re.sub(r"\.(?!\d)", "", out)


class VQAAccuracy(MeanScore):
    """Mean over the people asked of min(1, others who gave the prediction / 3); truths: lists of answers.

    A question with a single accepted answer is right or wrong. Unlike in the published scorers, whoever says
    nothing, or marks alone, is wrong even where people said an article alone.
    """

    def score(self, said: str, truth: str | Sequence[str]) -> float:
        prediction = normalise_vqa_answer(said)
        if not prediction and not re.search(r"\w", said):
            return 0.0
        hits = [normalise_vqa_answer(answer) == prediction for answer in list_accepted_answers(truth)]
        if len(hits) == 1:
            return float(hits[0])
        # each of the people is left out once: how many of the others agree
        shares = [min(1.0, (sum(hits) - hit) / AGREEING_PEOPLE) for hit in hits]
        return sum(shares) / len(hits)
