from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import chat
from uellm_cli.errors import PredictorError, UsageError
from uellm_cli.profiler.learning import TRAINERS
from uellm_cli.profiler.learning.conformal import quantiles_of
from uellm_cli.profiler.learning.history import HistoryTrainer, grouped
from uellm_cli.profiler.lengths.bounds import MEDIAN, P90
from uellm_cli.profiler.lengths.history import (
    HISTORY_FILE,
    LIKENESSES,
    History,
    HistoryModel,
    keys_of,
)
from uellm_cli.types import Endpoint, Example, Message, Request


def example(text: str, tokens: int, censored: bool = False) -> Example:
    return Example(chat("x", text), 10, tokens, censored)


def learnt(examples: Sequence[Example]) -> HistoryModel:
    return HistoryTrainer().train(examples, 0, lambda _: None)


def shared(one: Request, other: Request) -> list[str]:
    """The ways in which two requests are alike."""
    first, second = keys_of([one, other])
    return [name for name, same in zip(LIKENESSES, first == second, strict=True) if same]


def conversation(system: str, *texts: str) -> Request:
    said = [Message("user", text) for text in texts]
    return Request("x", Endpoint.CHAT, (Message("system", system), *said))


# --- What is alike -------------------------------------------------------------------------------


def test_digits_and_quoted_parts_make_no_other_template_but_another_prompt() -> None:
    one = chat("a", 'Translate "good morning, all" to German, in 12 words at the very most, please')
    other = chat("b", 'translate "night" to German, in 9 words at the very most, please')
    assert shared(one, other) == [name for name in LIKENESSES if name != "prompt"]


def test_requests_may_share_only_how_they_begin_or_only_how_they_end() -> None:
    ends = "so answer in one single word"
    one = chat("a", f"List the rivers that flow through the old town of Bern and more, {ends}")
    assert "last words" in shared(one, chat("b", f"What is this? Tell me now {ends}"))
    begins = shared(one, chat("b", "List the rivers that flow through the old continent"))
    assert {"first words", "opening"} <= {*begins}
    assert "last words" not in begins


def test_requests_of_one_system_prompt_are_alike_whatever_is_asked() -> None:
    one = conversation(
        "You grade essays. Today is 2026-03-01.", "The sea is blue and so is the sky"
    )
    other = conversation("You grade essays. Today is 2026-11-24.", "What I did last summer, by me")
    assert shared(one, other) == ["system prompt"]


def test_the_same_text_of_another_role_is_another_prompt() -> None:
    asked = chat("a", "What is the time?")
    answered = Request("b", Endpoint.CHAT, (Message("assistant", "What is the time?"),))
    assert "prompt" not in shared(asked, answered)


def test_an_early_turn_makes_another_prompt_and_no_other_template() -> None:
    one = conversation(
        "Be brief.", "Hello", "How far is the moon from the earth today, do you know?"
    )
    other = conversation(
        "Be brief.", "Hi", "How far is the moon from the earth today, do you know?"
    )
    assert shared(one, other) == [name for name in LIKENESSES if name != "prompt"]


# --- What is learnt ------------------------------------------------------------------------------


TEMPLATES = (
    ("Say yes or no to this short statement about", 10),
    ("Write a long essay in detail about", 500),
)


def two_templates(count: int, seed: int = 0) -> list[Example]:
    """Short answers to one template, long ones to another; what is asked about differs."""
    draw = np.random.default_rng(seed)
    made = []
    for i in range(count):
        text, mean = TEMPLATES[i % 2]
        tokens = max(1, round(mean * draw.lognormal(0, 0.2)))
        made.append(example(f"{text} thing {draw.integers(10**9)} {i}", tokens))
    return made


def test_a_new_request_is_predicted_by_those_of_its_template() -> None:
    model = learnt(two_templates(200))
    new = [chat("a", "Say yes or no to this short statement about snow"),
           chat("b", "Write a long essay in detail about snow")]  # fmt: skip
    short, long = model.quantiles(new, [1, 1])[:, MEDIAN]
    assert 7 < short < 14
    assert 350 < long < 700


def test_a_request_like_nothing_before_is_predicted_by_those_that_were_like_nothing_either() -> (
    None
):
    draw = np.random.default_rng(1)
    strange = ["".join(map(chr, draw.integers(97, 123, 12))) for _ in range(200)]
    lonely = [
        example(f"{word} {word[::-1]} asks for", round(3000 * draw.lognormal(0, 0.2)))
        for word in strange
    ]
    model = learnt([*two_templates(400), *lonely])
    (median,) = model.quantiles([chat("a", "qqqqqq zzzzzz wants it")], [1])[:, MEDIAN]
    assert 2000 < median < 4500  # and not the median of all, which is below 700


def test_an_answer_to_the_same_prompt_moves_the_prediction_towards_it() -> None:
    template = f"{TEMPLATES[0][0]} thing"  # about ten tokens
    model = learnt([*two_templates(200), example(f"{template} 5 5", 1000)])
    asked = [chat("a", f"{template} 5 5"), chat("b", f"{template} 6 6")]
    again, other = model.quantiles(asked, [1, 1])[:, MEDIAN]
    assert 7 < other < 14
    # One answer counts as much as all that is known of its template: the geometric mean.
    assert again == pytest.approx((1000 * other) ** 0.5, rel=0.1)


def test_of_a_prompt_that_has_been_answered_often_it_is_these_answers_that_count() -> None:
    draw = np.random.default_rng(2)
    lengths = {
        f"question {chr(97 + i)}{chr(97 + i)} with its own answer": 20 * 2**i for i in range(6)
    }
    examples = [
        example(text, round(mean * draw.lognormal(0, 0.1)))
        for text, mean in lengths.items()
        for _ in range(40)
    ]
    model = learnt(examples)
    medians = model.quantiles([chat("a", text) for text in lengths], [1] * 6)[:, MEDIAN]
    assert medians == pytest.approx(list(lengths.values()), rel=0.15)


def test_where_nothing_is_alike_all_are_predicted_alike() -> None:
    draw = np.random.default_rng(3)
    examples = [
        example(
            f"{draw.integers(10**9):x}q {draw.integers(10**9):x}w", int(draw.integers(10, 1000))
        )
        for _ in range(300)
    ]
    model = learnt(examples)
    rows = model.quantiles([chat("a", "something else"), chat("b", "what now")], [1, 1])
    assert rows[0].tolist() == rows[1].tolist()
    assert rows[0, MEDIAN] == pytest.approx(500, abs=75)


@pytest.mark.parametrize("seed", range(4))
def test_p90_covers_nine_tenths_of_new_answers_to_known_templates(seed: int) -> None:
    model = learnt(two_templates(1000, seed))
    new = two_templates(1000, seed + 100)
    quantiles = model.quantiles([each.request for each in new], [1] * len(new))
    share = np.mean(
        [each.output_tokens <= q for each, q in zip(new, quantiles[:, P90], strict=True)]
    )
    # Four standard deviations of a share of 1,000, on both sides.
    assert 0.862 < share < 0.938


def test_cut_answers_count_as_longer_than_they_are() -> None:
    draw = np.random.default_rng(4)
    true = np.round(np.exp(draw.normal(5, 0.6, 2000)))  # median 148, p90 320
    caps = draw.choice([80.0, 200.0, 5000.0], 2000)
    asked = "Tell me a story of the sea"
    rows = list(zip(np.minimum(true, caps), true > caps, strict=True))
    cut = learnt([example(asked, int(tokens), bool(is_cut)) for tokens, is_cut in rows])
    taken_for_whole = learnt([example(asked, int(tokens)) for tokens, _ in rows])
    said, wrong = (model.quantiles([chat("a", asked)], [1])[0] for model in (cut, taken_for_whole))
    assert said[MEDIAN] == pytest.approx(148, rel=0.08)
    assert said[P90] == pytest.approx(320, rel=0.12)
    assert wrong[MEDIAN] < 120
    assert wrong[P90] < 260


def test_too_few_answers_are_refused() -> None:
    with pytest.raises(PredictorError, match="at least 20 answers; there are 3"):
        learnt(two_templates(4)[:3])


def test_rows_cannot_be_left_out_in_a_single_fold() -> None:
    with pytest.raises(UsageError, match="folds must be at least 2"):
        TRAINERS.build("history", {"folds": "1"})


def test_the_same_seed_makes_the_same_predictor_and_says_what_it_found() -> None:
    examples, told = two_templates(100), list[str]()
    models = [HistoryTrainer().train(examples, 7, told.append) for _ in range(2)]
    asked = [each.request for each in examples]
    assert (models[0].quantiles(asked, []) == models[1].quantiles(asked, [])).all()
    assert told[0] == told[1]
    assert "P90 covers" in told[0]


# --- Groups at once ------------------------------------------------------------------------------


@given(
    rows=st.lists(
        st.tuples(st.integers(0, 3), st.integers(1, 9), st.booleans()), min_size=1, max_size=40
    )
)
def test_groups_have_the_quantiles_that_each_has_alone(rows: list[tuple[int, int, bool]]) -> None:
    keys = np.array([key for key, _, _ in rows], dtype=np.uint64)
    tokens = np.array([float(length) for _, length, _ in rows])
    censored = np.array([cut for _, _, cut in rows])
    found = grouped(keys, tokens, censored)
    assert found.keys.tolist() == sorted({key for key, _, _ in rows})
    for key, count, quantiles in zip(found.keys, found.rows, found.quantiles, strict=True):
        own = keys == key
        assert count == own.sum()
        assert tuple(quantiles.tolist()) == quantiles_of(tokens[own], censored[own])


# --- Files ---------------------------------------------------------------------------------------


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    examples = two_templates(200)
    model = learnt(examples)
    model.write(tmp_path)
    asked = [each.request for each in examples[:20]] + [chat("a", "something new")]
    assert (History(tmp_path).quantiles(asked, []) == model.quantiles(asked, [])).all()
    assert History(tmp_path).quantiles([], []).shape == (0, 8)


def test_without_a_folder_it_says_how_to_come_by_one() -> None:
    with pytest.raises(PredictorError, match="uellm predictor train DATA --kind history"):
        History().quantiles([chat("a", "text")], [1])


@pytest.mark.parametrize("content", [b"", b"not a table", None])
def test_a_folder_without_a_usable_file_is_refused_by_name(
    content: bytes | None, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / HISTORY_FILE).write_bytes(content)
    with pytest.raises(PredictorError, match=HISTORY_FILE):
        History(tmp_path).quantiles([chat("a", "text")], [1])


def test_a_table_of_something_else_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"key": [1]}), tmp_path / HISTORY_FILE)
    with pytest.raises(PredictorError, match="cannot be used as a predictor"):
        History(tmp_path).quantiles([chat("a", "text")], [1])


def test_it_is_quick() -> None:
    # Over 50,000 requests a second on one idle core; the best of three, so that a busy machine is
    # no failure. The least that is asked for is 20,000.
    model = learnt(two_templates(400))
    asked = [chat("a", f"{'Write a long essay about things. ' * 7} {i}") for i in range(5000)]

    def seconds() -> float:
        began = time.perf_counter()
        model.quantiles(asked, [])
        return time.perf_counter() - began

    assert len(asked) / min(seconds() for _ in range(3)) > 10_000
