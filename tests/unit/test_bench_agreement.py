"""How much of an answer is the reference's, by token ids or by the text alone."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from uellm_cli.bench.agreement import Check, Reference, agreement, same_in_text
from uellm_cli.bench.workers import Round

REFERENCE = Reference(Check(2, 6, {}), ((1, 2, 3, 4), (17, 5)))


def decode(ids: Sequence[int]) -> str:
    """As the made models' tokenizer has it: token 17 is " 17"."""
    return "".join(f" {token}" for token in ids)


def told(*answers: Sequence[int], as_texts: bool = False) -> Round:
    lengths = [len(ids) for ids in answers]
    if as_texts:
        return Round(1.0, lengths, texts=[decode(ids) for ids in answers])
    return Round(1.0, lengths, tokens=[list(ids) for ids in answers])


@pytest.mark.parametrize("as_texts", [False, True])
def test_tokens_count_up_to_the_first_difference_over_all_checked_requests(as_texts: bool) -> None:
    def share(*answers: Sequence[int]) -> float | None:
        return agreement([told(*answers, as_texts=as_texts)], REFERENCE, decode)

    assert share([1, 2, 3, 4], [17, 5]) == 1.0
    # After the first difference nothing counts, though tokens may be the same again.
    assert share([1, 2, 9, 4], [17, 5]) == pytest.approx(4 / 6)
    assert share([1, 2, 3, 4], [1, 5]) == pytest.approx(4 / 6)
    assert share([9, 2, 3, 4], [9, 5]) == 0.0
    # Requests behind the checked ones are nobody's business.
    assert share([1, 2, 3, 4], [17, 5], [8, 8]) == 1.0


def test_an_answer_of_another_length_is_one_that_differs() -> None:
    shorter, longer = ([1, 2], [17, 5]), ([1, 2, 3, 4], [17, 5, 6, 7])
    assert agreement([told(*shorter)], REFERENCE, decode) == pytest.approx(4 / 6)
    assert agreement([told(*longer)], REFERENCE, decode) == pytest.approx(6 / 8)
    # By the text alone, a token too few counts where one of both goes on.
    assert agreement([told(*shorter, as_texts=True)], REFERENCE, decode) == pytest.approx(3 / 6)
    assert agreement([told(*longer, as_texts=True)], REFERENCE, decode) == pytest.approx(5 / 8)


def test_all_rounds_count() -> None:
    rounds = [told([1, 2, 3, 4], [17, 5]), told([9, 2, 3, 4], [9, 5])]
    assert agreement(rounds, REFERENCE, decode) == 0.5


def test_what_cannot_be_compared_has_no_share() -> None:
    nothing = Reference(Check(2, 0, {}, failure="out of memory"))
    assert agreement([told([1], [2])], nothing, decode) is None
    assert agreement([], REFERENCE, decode) is None


def test_an_engine_that_tells_neither_tokens_nor_texts_agrees_with_nothing() -> None:
    assert agreement([Round(1.0, [4, 2])], REFERENCE, decode) == 0.0


def test_a_text_never_counts_a_token_that_is_only_the_beginning_of_another() -> None:
    assert same_in_text(" 17 5", [1, 5], decode) == 0
    assert same_in_text(" 1 5", [17, 5], decode) == 0
    assert same_in_text(" 1 2 33", [1, 2, 3], decode) == 2
