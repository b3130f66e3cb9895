"""Token for token what `generate` makes, for every architecture and in whatever company.

`UELLM_EXAMPLES` sets how many cases are tried for each architecture.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tests.builders import exactly
from tests.unit.architectures import (
    ARCHITECTURES,
    LONGEST_ANSWER,
    SPECIAL_TOKENS,
    VOCABULARY,
    kv_bytes_per_token,
    model_maker,
    reference,
)
from tests.unit.engine_cases import answers, context
from uellm_cli.clock import SystemClock
from uellm_cli.engines import ENGINES
from uellm_cli.engines.token_texts import TokenTexts
from uellm_cli.types import Budget, Completion, Engine, EngineRequest, SamplingParams

ENGINE = "inflight"
EXAMPLES = int(os.environ.get("UELLM_EXAMPLES", "5"))

needs_engine = pytest.mark.skipif(
    ENGINE not in ENGINES.names(), reason=f"there is no engine {ENGINE!r} yet"
)
in_flight = pytest.mark.parametrize(
    "name", [name for name, architecture in ARCHITECTURES.items() if not architecture.alone]
)
alone = pytest.mark.parametrize(
    "name", [name for name, architecture in ARCHITECTURES.items() if architecture.alone]
)

# A token as an answer's log probabilities tell it: its text, and its bytes.
Token = tuple[str, bytes]


def _prompts() -> tuple[tuple[int, ...], ...]:
    """Beginnings shared by several, one within another, and to a page's end or just beyond it."""
    rng = random.Random(1)

    def text(tokens: int) -> tuple[int, ...]:
        return tuple(rng.randrange(SPECIAL_TOKENS, VOCABULARY) for _ in range(tokens))

    long, short, question = text(37), text(20), text(9)
    return (
        text(1),
        text(3),
        text(16),
        text(70),
        question,
        long,
        long + question,
        long + text(5),
        long[:32],
        long[:33],
        short + question,
        short + text(30),
    )


PROMPTS = _prompts()


@dataclass(frozen=True, slots=True)
class Case:
    """`work` is what is asked, in its order: the number of a prompt, and tokens to make.

    It comes in batches of `batch_size`. Besides the pages that the longest request takes there are
    `spare_pages`. `expected` is how many tokens each answer is predicted to have, whatever it has.
    """

    work: tuple[tuple[int, int], ...]
    batch_size: int
    max_sequences: int
    step_tokens: int
    page_tokens: int
    spare_pages: int
    expected: int | None

    @property
    def pages(self) -> int:
        longest = max(len(PROMPTS[prompt]) + tokens for prompt, tokens in self.work)
        return -(-longest // self.page_tokens) + self.spare_pages

    def requests(self) -> list[EngineRequest]:
        output = None if self.expected is None else exactly(self.expected)
        return [
            EngineRequest(
                str(number),
                PROMPTS[prompt],
                tokens,
                SamplingParams(
                    max_tokens=tokens,
                    min_tokens=tokens,
                    ignore_eos=True,
                    temperature=0.0,
                    logprobs=0,
                ),
                output,
            )
            for number, (prompt, tokens) in enumerate(self.work)
        ]


CASES = st.builds(
    Case,
    work=st.lists(
        st.tuples(st.integers(0, len(PROMPTS) - 1), st.integers(1, LONGEST_ANSWER)),
        min_size=1,
        max_size=8,
    ).map(tuple),
    batch_size=st.integers(1, 8),
    max_sequences=st.integers(1, 8),
    step_tokens=st.integers(1, 64),
    page_tokens=st.sampled_from([1, 4, 8, 16, 32]),
    spare_pages=st.sampled_from([0, 0, 1, 3, 10, 1000]),
    expected=st.sampled_from([None, 1, LONGEST_ANSWER]),
)

# Eight long answers, each predicted to end at once, and memory for two or three of them.
CROWDED = Case(
    work=tuple((prompt, LONGEST_ANSWER) for prompt in (6, 4, 7, 11, 9, 2, 6, 10)),
    batch_size=3,
    max_sequences=8,
    step_tokens=24,
    page_tokens=4,
    spare_pages=15,
    expected=1,
)
# The same where no row ever takes more than a window: they begin with less.
CROWDED_WINDOWS = replace(
    CROWDED,
    work=tuple((prompt, LONGEST_ANSWER) for prompt in (1, 4, 0, 4, 1, 4, 0, 1)),
    spare_pages=0,
)


@pytest.fixture(scope="session")
def model_folder(tiny_llm: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return model_maker(Path(tiny_llm), tmp_path_factory.mktemp("architectures"))


def engine_for(folder: Path, case: Case, token_bytes: int) -> tuple[Engine, list[str]]:
    """A new engine with as much memory as the case has pages, `token_bytes` for each token.

    With it comes what it has to say of itself: that it left its work to the static one, if it did.
    """
    notes: list[str] = []
    options = {} if ENGINE == "static" else {"page_tokens": case.page_tokens}
    budget = Budget(
        kv_bytes=token_bytes * case.page_tokens * case.pages,
        max_sequences=case.max_sequences,
        prefill_tokens=case.step_tokens,
    )
    here = context(str(folder), SystemClock(), budget=budget, note=notes.append)
    return ENGINES.build(ENGINE, options).start(here), notes


def made_tokens(completion: Completion) -> list[Token]:
    """The tokens of a completion's only answer."""
    assert completion.failure is None
    (answer,) = completion.answers
    assert answer.logprobs is not None
    assert answer.output_tokens == len(answer.logprobs)
    return [(token.token, token.raw) for token in answer.logprobs]


@cache
def texts_of(folder: Path) -> TokenTexts:
    return TokenTexts(AutoTokenizer.from_pretrained(folder))


def differences(folder: Path, case: Case, completions: dict[str, Completion]) -> list[str]:
    """One line for each answer that is not the reference as far as that one is sure."""
    texts = texts_of(folder)
    found = []
    for number, (prompt, tokens) in enumerate(case.work):
        expected = reference(folder, PROMPTS[prompt]).first(tokens)
        made = made_tokens(completions[str(number)])
        wanted = [texts.text_and_bytes(token) for token in expected.tokens]
        if len(made) != tokens:
            found.append(f"request {number}: {len(made)} tokens instead of {tokens}")
        for step in range(min(expected.sure, len(made))):
            if made[step] != wanted[step]:
                found.append(
                    f"request {number} (prompt {prompt}, {len(PROMPTS[prompt])} tokens): step "
                    f"{step} of {tokens} is {made[step][0]!r} instead of {wanted[step][0]!r}, by "
                    f"{expected.gaps[step]:.1e}"
                )
                break
    return found


def run(engine: Engine, case: Case) -> dict[str, Completion]:
    requests, size = case.requests(), case.batch_size
    return answers(engine, *(requests[i : i + size] for i in range(0, len(requests), size)))


# --- References ----------------------------------------------------------------------------------


@in_flight
def test_references_are_sure_of_most_steps_and_no_two_are_alike(
    name: str, model_folder: Callable[[str], Path]
) -> None:
    # Else the comparisons below would compare little, or what a wrong engine says as well.
    made = [reference(model_folder(name), prompt) for prompt in PROMPTS]
    assert sum(one.sure for one in made) >= 0.8 * LONGEST_ANSWER * len(made)
    assert len({one.tokens[:4] for one in made}) >= len(made) - 1
    distinct = sum(len(set(one.tokens)) for one in made) / len(made)
    assert distinct >= 0.2 * LONGEST_ANSWER
    assert min(token for one in made for token in one.tokens) >= SPECIAL_TOKENS


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_token_is_told_apart_by_its_text_and_bytes(
    name: str, model_folder: Callable[[str], Path]
) -> None:
    texts = texts_of(model_folder(name))
    tokens = range(SPECIAL_TOKENS, VOCABULARY)
    assert len({texts.text_and_bytes(token) for token in tokens}) == len(tokens)


# --- In flight -----------------------------------------------------------------------------------


@needs_engine
@in_flight
@settings(max_examples=EXAMPLES)
@given(case=CASES)
def test_answers_are_generate_s_whatever_the_order_the_company_and_the_memory(
    name: str, case: Case, model_folder: Callable[[str], Path]
) -> None:
    folder = model_folder(name)
    engine, notes = engine_for(folder, case, kv_bytes_per_token(folder))
    assert not any("static batches" in note for note in notes)
    assert not differences(folder, case, run(engine, case))


@needs_engine
@in_flight
def test_answers_are_generate_s_though_memory_is_taken_from_them(
    name: str, model_folder: Callable[[str], Path]
) -> None:
    folder = model_folder(name)
    case = CROWDED_WINDOWS if ARCHITECTURES[name].forgets else CROWDED
    engine, notes = engine_for(folder, case, kv_bytes_per_token(folder))
    assert not any("static batches" in note for note in notes)
    completions = run(engine, case)
    assert not differences(folder, case, completions)
    if ENGINE != "static":
        assert any(done.timing and done.timing.preemptions for done in completions.values())


# --- Alone ---------------------------------------------------------------------------------------


@needs_engine
@alone
def test_a_model_that_cannot_share_a_forward_pass_says_so_and_answers_all_the_same(
    name: str, model_folder: Callable[[str], Path]
) -> None:
    folder = model_folder(name)
    # In batches of one: padding is the static engine's affair.
    case = Case(((6, 24), (4, 8), (11, 24), (1, 3)), 1, 8, 64, 16, 1000, None)
    engine, notes = engine_for(folder, case, 2**16)
    if ENGINE != "static":
        assert len(notes) == 1
        assert "static batches" in notes[0]
    assert not differences(folder, case, run(engine, case))
