"""Batches of rows of like length: what an epoch reads, in which order, and where a resumed run goes on."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from experiments.config.schema_sections import OptimisationSettings
from experiments.data.llava import Sample
from experiments.data.loader import ConversationDataset
from experiments.data.order import MEGABATCH, SampleLength, SampleOrder
from experiments.data.shares import Share
from llm_adapters.conversation import Turn


@pytest.fixture
def lengths():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(10, 1000, (1003,), generator=generator).tolist()
    return [SampleLength(i % 5 > 0, n) for i, n in enumerate(tokens)]


def grouped(lengths, seed=3, **changes):
    settings = {"batch_size": 8, "epochs": 2, "group_by_length": True, **changes}
    return SampleOrder(len(lengths), OptimisationSettings(**settings), seed, lengths)


def test_every_sample_once_an_epoch(lengths):
    order = grouped(lengths)
    batches = list(order.iterate_batches())
    assert len(batches) == 250 and all(len(batch) == 8 for batch in batches)
    for epoch in (batches[:125], batches[125:]):
        read = [i for batch in epoch for i in batch]
        assert len(set(read)) == len(read) == 1000
    assert sorted(order.permute_epoch(0)) == list(range(1003))
    assert batches[:125] != batches[125:]


def test_a_batch_is_of_one_kind_and_of_like_length(lengths):
    spread = {}
    for name, order in (
        ("grouped", grouped(lengths)),
        ("any", SampleOrder(1003, OptimisationSettings(batch_size=8), 3)),
    ):
        found = [[lengths[i] for i in batch] for batch in order.iterate_batches()]
        pure = [b for b in found if len({length.images for length in b}) == 1]
        spread[name] = len(found) - len(pure), [max(b).tokens - min(b).tokens for b in pure]
    assert spread["grouped"][0] <= 2 < spread["any"][0]  # the rest of both kinds, once an epoch
    assert max(spread["grouped"][1]) < min(spread["any"][1])


def test_short_and_long_batches_alternate(lengths):
    longest = [
        max(lengths[i].tokens for i in batch) for batch in grouped(lengths, epochs=1).iterate_batches()
    ]
    assert longest != sorted(longest) and longest != sorted(longest, reverse=True)
    first, second = longest[: len(longest) // 2], longest[len(longest) // 2 :]
    assert abs(sum(first) / len(first) - sum(second) / len(second)) < 150  # of 990: no curriculum


def test_it_goes_on_from_any_step(lengths):
    whole = list(grouped(lengths).iterate_batches())
    for start in (0, 1, 60, 124, 125, 126, 249):
        assert list(grouped(lengths).iterate_batches(start)) == whole[start:]
    assert list(grouped(lengths, seed=4).iterate_batches()) != whole


def test_fewer_samples_than_a_batch_or_a_megabatch(lengths):
    assert [sorted(batch) for batch in grouped(lengths[:5]).iterate_batches()] == [[0, 1, 2, 3, 4]] * 2
    count = MEGABATCH * 8 + 3
    assert (
        len({i for batch in grouped(lengths[:count], epochs=1).iterate_batches() for i in batch}) == count - 3
    )


def test_lengths_count_words_and_visual_tokens():
    processor = SimpleNamespace(crops=5, image_tokens=9)
    samples = [
        Sample("a", (), (Turn("one two", "three"), Turn("four", "five six"))),
        Sample("b", ("p", "q"), (Turn("one", "two"),)),
    ]
    found = ConversationDataset(samples, SimpleNamespace(processor=processor)).estimate_lengths()
    assert found == [SampleLength(False, 6), SampleLength(True, 2 + 2 * 5 * 9)]


def weighted(seed=0, lengths=None, weights=(2.0, 0.5)):
    shares = [Share(10, weights[0]), Share(20, weights[1])]
    return SampleOrder(30, OptimisationSettings(batch_size=5, epochs=2), seed, lengths, shares)


@pytest.mark.parametrize("grouped", [False, True])
def test_an_epoch_draws_the_rows_of_each_file_by_its_weight(grouped):
    lengths = [SampleLength(i % 2 == 0, i) for i in range(30)] if grouped else None
    order = weighted(lengths=lengths)
    assert order.rows_per_epoch == 30 and order.steps_per_epoch == 6
    halves = []
    for epoch in range(2):
        drawn = Counter(order.permute_epoch(epoch))
        assert {number: drawn[number] for number in range(10)} == dict.fromkeys(range(10), 2)
        half = {number for number in drawn if number >= 10}
        assert len(half) == 10 and all(drawn[number] == 1 for number in half)
        halves.append(half)
    assert halves[0] != halves[1]
    assert list(order.iterate_batches()) == list(weighted(lengths=lengths).iterate_batches())
    assert list(order.iterate_batches(7)) == list(order.iterate_batches())[7:]
    assert list(order.iterate_batches()) != list(weighted(seed=1, lengths=lengths).iterate_batches())


def test_a_weight_changes_the_number_of_steps():
    assert weighted(weights=(3.0, 1.0)).steps == 2 * 10
    assert weighted(weights=(0.01, 0.01)).rows_per_epoch == 2  # one of each at least
