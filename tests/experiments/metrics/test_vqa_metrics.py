"""Scores of benchmarks against cases made by hand, and against lmms-eval where it is installed."""

import random
from functools import cache

import pytest
import torch
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from compressors.errors import UsageError
from experiments.metrics.choice import ChoiceAccuracy, name_true_option, read_choice
from experiments.metrics.documents import ANLS, RelaxedAccuracy, count_edits
from experiments.metrics.vqa import VQAAccuracy, normalise_vqa_answer
from experiments.metrics.yes_no import MME, POPE, read_first_letters

ANIMALS = ("fox", "red fox", "owl", "a lion")


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("The Dogs, two!", "dogs 2"),
        ("none", "0"),
        ("Ten", "10"),
        ("twenty", "twenty"),
        ("a", ""),
        ("dont know", "don't know"),
        ("don't", "don't"),
        ("couldnt've", "couldn't've"),
        ("yall", "y'all"),
        ("youre", "you're"),
        ("3.50", "3.50"),
        ("St. Pauls.", "st pauls"),
        ("1,000", "1000"),
        ("t-shirt", "t shirt"),
        ("no - yes", "no yes"),
        ("10:30", "10:30"),
        ("yes/no", "yes no"),
        ("what\nis\tthis?", "what is this"),
        ("dog's", "dog 's"),
        ("its (a) cat", "its cat"),
    ],
)
def test_vqa_normalisation(answer, normal):
    assert normalise_vqa_answer(answer) == normal


def test_vqa_accuracy_leaves_one_person_out():
    """k of ten people: k x min(1, (k - 1) / 3) + (10 - k) x min(1, k / 3), a tenth of it."""
    for agreeing, wanted in ((0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)):
        metric = VQAAccuracy()
        metric.update(["A fox."], [["fox"] * agreeing + ["owl"] * (10 - agreeing)])
        assert metric.compute() == pytest.approx(wanted), agreeing


def test_vqa_accuracy_of_a_single_answer_is_exact_match():
    metric = VQAAccuracy()
    metric.update(["The fox", "two", "owl"], ["fox", ["2"], "owls"])
    assert metric.compute() == pytest.approx(2 / 3)
    with pytest.raises(UsageError, match="without any accepted answer"):
        metric.update(["x"], [[]])


def test_pope():
    metric = POPE()
    metric.update(["Yes, there is", "No", "no."], ["yes", "yes", "no"])
    metric.update(["Yes. But no dog", "There is not", "maybe", "NO"], ["no", "no", "no", "no"])
    # truth yes: said yes, no; truth no: said no, yes, no, yes, no
    assert metric.compute() == {
        "accuracy": pytest.approx(4 / 7),
        "precision": pytest.approx(1 / 3),
        "recall": 0.5,
        "f1": pytest.approx(0.4),
        "yes_rate": pytest.approx(3 / 7),
    }
    with pytest.raises(UsageError, match="answer='maybe'"):
        metric.update(["yes"], ["maybe"])


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_pope_without_any_yes():
    metric = POPE()
    assert metric.compute() == dict.fromkeys(metric.compute(), 0.0)
    metric.update(["no"], ["no"])
    assert metric.compute()["f1"] == 0 and metric.compute()["accuracy"] == 1


# (said, truth, picture, category): existence has a whole pair and a half, count none right, OCR one pair
MME_ROWS = [
    ("Yes, it is", "Yes", "1.png", "existence"),
    ("no.", "No", "1.png", "existence"),
    ("yes", "yes", "2.png", "existence"),
    ("yes", "no", "2.png", "existence"),
    ("I think so", "yes", "1.png", "count"),
    ("not", "yes", "1.png", "count"),
    ("Yes", "yes", "7.png", "text_translation"),
    ("NO", "no", "7.png", "text_translation"),
]


def test_mme():
    metric = MME()
    for row in MME_ROWS:  # each question in a batch of its own
        metric.update(*([value] for value in row))
    assert metric.compute() == {
        "accuracy": {"existence": 0.75, "count": 0, "text_translation": 1},
        "accuracy_plus": {"existence": 0.5, "count": 0, "text_translation": 1},
        "score": {"existence": 125, "count": 0, "text_translation": 200},
        "perception": 125,
        "cognition": 200,
    }


def test_mme_refuses_what_is_no_pair():
    metric = MME()
    metric.update(*zip(*MME_ROWS[:3]))
    with pytest.raises(UsageError, match="1 of 2 pictures have not two questions"):
        metric.compute()
    with pytest.raises(UsageError, match="category=colour: .*did you mean 'color'"):
        MME().update(["yes"], ["yes"], ["1"], ["colour"])
    own = MME({"mine": ["colour"]})
    own.update(["yes", "no"], ["yes", "yes"], ["1", "1"], ["colour", "colour"])
    assert own.compute()["mine"] == 50


@pytest.mark.parametrize(
    ("said", "truth", "wanted"),
    [
        ("Apple  Pie", "apple pie", 1),
        ("appl pie", "apple pie", 8 / 9),
        ("ab", "ac", 0.5),
        ("abc", "xyc", 0),
        ("", "x", 0),
        ("kitten", ["xxx", "sitten"], 5 / 6),
    ],
)
def test_anls(said, truth, wanted):
    assert ANLS().score(said, truth) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("said", "truth", "right"),
    [
        ("105", "100", True),
        ("94.9", "100", False),
        ("5%", "0.05", True),
        ("0", "0.0", True),
        ("0.01", "0", False),
        ("-10.5", "-10", True),
        ("Blue ", "blue", True),
        ("blue", "blues", False),
        ("inf", "100", False),
        ("nan", "nan", True),
        ("12", ["3", "12.3"], True),
        ("100", "1e2", True),
    ],
)
def test_relaxed_accuracy(said, truth, right):
    assert RelaxedAccuracy().score(said, truth) == right


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        (" (b). ", "B"),
        ("c", "C"),
        ("B. red fox", "B"),
        ("a) fox", "A"),
        ("(D) a lion", "D"),
        ("The answer is C", "C"),
        ("the correct answer is: (b)", "B"),
        ("Option D, since it roars", "D"),
        ("It cannot be (A), so (C) it is", "C"),
        ("It is an owl.", "C"),
        ("a red fox", "B"),
        ("the fox", "A"),
        ("A lion", "D"),
        ("B, because", "B"),
        ("I believe that B fits", "B"),
        ("owl or fox", None),
        ("", None),
        ("no idea", None),
        ("E", None),
        ("the answer is a lion", "D"),
    ],
)
def test_choice(answer, letter):
    assert read_choice(answer, ANIMALS) == letter


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("A Siamese cat.", "C"),
        ("A Siamese", "B"),
        ("A BMW", None),
        ("A", "A"),
        ("A.", "A"),
        ("B Siamese", "B"),
        ("A, I think", "A"),
        ("A rather than B", None),
        ("A because it is larger", "A"),
    ],
)
def test_an_article_before_a_name_is_no_letter(answer, letter):
    assert read_choice(answer, ["Persian", "Siamese", "Siamese cat"]) == letter


@pytest.mark.parametrize(
    "answer",
    [
        "A, B, C, D",
        "A, B",
        "a, b",
        "A/B",
        "A & B",
        "(A)(B)",
        "(a) and (b)",
        "A, C, and D.",
        "A and C",
        "Both A and B",
        "Neither A nor B",
        "A as well as B",
        "The answer is A or B",
        "The answers are A and B because they are animals",
        "A. fox, B. red fox",
        "A. fox\nB. red fox\nC. owl\nD. lion",
        "A and B: the owl",
        "A和B",
        "A、B",
        "选项A或选项B",
        "AとBです",
        "Ａ，Ｂ",
    ],
)
def test_several_options_are_none(answer):
    assert read_choice(answer, ANIMALS) is None


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B, A is wrong", "B"),
        ("Between A and B, the answer is B.", "B"),
        ("not (A) but (B)", "B"),
        ("d, a lion", "D"),
        ("A. fox\nB. red fox\nAnswer: B", "B"),
        ("B. red fox or fox", "B"),
    ],
)
def test_one_of_several_that_stands_alone_is_the_answer(answer, letter):
    assert read_choice(answer, ANIMALS) == letter


@pytest.mark.parametrize(
    "answer",
    [
        "答案是B。",
        "选项B",
        "Ｂ",
        "（Ｂ）",
        "正确答案：B",
        "答案是B，不是A",
        "정답은 B",
        "Bです",
        "Ⓑ",
        "답은 B입니다",
    ],
)
def test_letters_beside_eastern_words(answer):
    assert read_choice(answer, ANIMALS) == "B"


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("Answer: A fox", "B"),
        ("The answer is: A fox.", "B"),
        ("Answer: A", "A"),
        ("The answer is A because it purrs", "A"),
        ("Answer: A, the cat", "A"),
        ("answer a", "A"),
        ("Option A is correct.", "A"),
        ("Option A is right, B is wrong", "A"),
        ("Option A fox", "A"),
        ("The best option is A fox", "B"),
        ("Option A is wrong, the answer is B", "B"),
        ("The answer is A which shows the fox", "A"),
        ("The answer is A not B", "A"),
        ("The answer is A With some doubt", "A"),
    ],
)
def test_an_article_behind_the_word_answer_is_no_letter(answer, letter):
    assert read_choice(answer, ("cat", "fox")) == letter


def test_options_that_are_letters():
    """Labels in a diagram: a truth that may be read both ways is refused, unless its words are there."""
    labels = ("D", "A", "C", "B")
    assert [name_true_option(truth, labels) for truth in ("C", "B. A", "A. D", "(D) B")] == list("CBAD")
    with pytest.raises(UsageError, match="answer 'B' is the letter of one option and the words of option D"):
        name_true_option("B", labels)
    assert read_choice("B", labels) == "B"
    assert name_true_option("B", ("the fox", "the owl")) == "B"


def test_options_that_are_letters_in_a_row():
    """Names of segments and triangles are no letters of options."""
    segments = ("AB", "BC", "CD", "DA")
    assert [name_true_option(truth, segments) for truth in segments] == list("ABCD")
    assert name_true_option("abc", ("abc", "d", "e")) == "A"


def test_the_option_behind_the_word_is_never_a_pronoun():
    assert read_choice("Option I is correct", [f"fox {number}" for number in range(9)]) == "I"
    assert read_choice("The answer is I think B", [f"fox {number}" for number in range(9)]) != "I"


def count_edits_by_recursion(one: str, other: str) -> int:
    @cache
    def count(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        replaced = count(i - 1, j - 1) + (one[i - 1] != other[j - 1])
        return min(replaced, count(i - 1, j) + 1, count(i, j - 1) + 1)

    return count(len(one), len(other))


def test_edits_of_texts_that_are_shifted_against_each_other():
    draw = random.Random(0)
    for longest in (0, 1, 5, 30, 80):
        for _ in range(5):
            text = "".join(draw.choices("ab cdé", k=longest))
            other = "".join(draw.choices("ab cdé", k=draw.randint(0, 60))) + text[: draw.randint(0, longest)]
            assert count_edits(text, other) == count_edits_by_recursion(text, other)
    sentence = (
        "the offices of the company are on the second floor of the house at the corner of the market square"
    )
    metric = ANLS()
    metric.update([sentence.partition("are ")[2]], [sentence])
    assert metric.compute() == pytest.approx(1 - sentence.index("on the") / len(sentence))


def test_whoever_says_nothing_is_wrong():
    metric = VQAAccuracy()
    metric.update(["", " ", "?", "[]", "the"], [["a"] * 10, "a", "a", ["a"] * 10, "a"])
    assert metric.compute() == pytest.approx(1 / 5)  # an article for an article, as published


def test_choice_accuracy():
    metric = ChoiceAccuracy()
    metric.update(["(B)", "the owl", "dunno"], ["b", "A", "C"], [ANIMALS] * 3)
    assert metric.compute() == pytest.approx(1 / 3)
    with pytest.raises(UsageError, match="answer='E': not one of the letters ABCD"):
        metric.update(["E"], ["E"], [ANIMALS])


WORDS = ("yes", "no", "fox", "two", "100", "104", "50%")
BATCHES = {  # two columns of many rows
    VQAAccuracy: lambda pick: (pick(), [pick(), pick(), pick(), pick()]),
    ANLS: lambda pick: (f"{pick()} {pick()}", [f"{pick()} {pick()}", pick()]),
    RelaxedAccuracy: lambda pick: (pick(), pick()),
    POPE: lambda pick: (pick(), pick()[:1] < "o" and "no" or "yes"),
    ChoiceAccuracy: lambda pick: (pick(), "AB"[len(pick()) % 2], WORDS[:2]),
}


@pytest.mark.parametrize("kind", [*BATCHES, MME], ids=lambda kind: kind.__name__)
def test_states_of_two_processes_merge(kind):
    """Questions of two processes, in batches, merged as torchmetrics does it, score as all at once."""
    pick = random.Random(0).choice
    rows = MME_ROWS if kind is MME else [BATCHES[kind](lambda: pick(WORDS)) for _ in range(40)]
    whole, parts = kind(), (kind(), kind())
    whole.update(*zip(*rows))
    for number in range(0, len(rows), 4):  # pairs of MME are split between the processes
        for i, part in enumerate(parts):
            part.update(*zip(*rows[number + i : number + 4 : 2]))
    wanted = whole.compute()
    if isinstance(wanted, float):  # a sum in another order
        assert 0 < wanted < 1
        wanted = pytest.approx(wanted)
    assert together(parts).compute() == wanted
    parts[0].merge_state(parts[1])
    assert parts[0].compute() == wanted


def together(parts: tuple[Metric, ...]) -> Metric:
    """What each process has after torchmetrics gathered the states of all and reduced them."""
    found = parts[0].clone()
    for name, reduction in found._reductions.items():
        states = [getattr(part, name) for part in parts]
        states = [dim_zero_cat(s) for s in states] if isinstance(states[0], list) else torch.stack(states)
        setattr(found, name, reduction(states))
    found._update_count, found._computed = 1, None
    return found


ODD = """the A dont couldn'tve yall two None St. 3.5 1,000 t-shirt / yes No dog's (b) what? 10:30 - 50% -3 1e3
fox Y not ;x B. its"""


def answers(seed: int, count: int) -> list[str]:
    """Texts of words, numbers and marks that scorers treat specially."""
    pick = random.Random(seed)
    return [" ".join(pick.choices(ODD.split(), k=pick.randint(1, 3))) for _ in range(count)]


def test_the_harness_scores_alike():
    """lmms-eval, where it is installed: its TextVQA, DocVQA, ChartQA, MME and POPE."""
    harness = pytest.importorskip("lmms_eval.tasks._task_utils.vqa_eval_metric")
    from lmms_eval.api.metrics import anls
    from lmms_eval.tasks.chartqa.utils import relaxed_correctness
    from lmms_eval.tasks.mme.utils import mme_aggregate_results, parse_pred_ans
    from lmms_eval.tasks.pope import utils as pope
    from lmms_eval.tasks.textvqa.utils import textvqa_process_results

    said, truths = answers(0, 2000), answers(1, 2000)
    for one, other in zip(said, truths):
        assert normalise_vqa_answer(one) == harness.EvalAIAnswerProcessor()(one), one
        assert ANLS().score(one, other) == pytest.approx(anls([other], [one])["anls"]), (one, other)
        assert RelaxedAccuracy().score(one, other) == relaxed_correctness(one, other), (one, other)
        assert read_first_letters(one) == parse_pred_ans(one) or len(one) == 1, one  # it takes "y" for yes
    for seed in range(200):
        people = answers(seed, 1) + random.Random(seed).choices(truths[:3], k=9)
        theirs = textvqa_process_results({"answers": list(people), "question_id": 0}, [people[-1]])
        assert VQAAccuracy().score(people[-1], people) == pytest.approx(theirs["exact_match"]), people
    ours, rows = MME(), []
    for number in range(400):
        category, truth = ("count", "OCR", "scene")[number // 2 % 3], ("yes", "no")[number % 2]
        answer = random.Random(number).choice(("yes", "no", "Yes.", "unsure"))
        ours.update([answer], [truth], [str(number // 2)], [category])
        rows.append(
            {"question_id": number // 2, "category": category, "score": read_first_letters(answer) == truth}
        )
    assert ours.compute()["perception"] == pytest.approx(mme_aggregate_results(rows))
    words = random.Random(0).choices(("yes", "no"), k=300)
    docs = [{"answer": truth, "question_id": 0} for truth in random.Random(1).choices(("yes", "no"), k=300)]
    metric = POPE()
    metric.update(words, [doc["answer"] for doc in docs])
    found = [pope.pope_process_results(doc, [word]) for doc, word in zip(docs, words)]
    for name in ("accuracy", "precision", "recall", "f1"):
        theirs = "f1_score" if name == "f1" else name
        scored = getattr(pope, f"pope_aggregate_{theirs}")([each[f"pope_{theirs}"] for each in found])
        assert metric.compute()[name] == pytest.approx(scored), name
