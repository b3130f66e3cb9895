"""What a request may ask of an engine's answers: several, their odds, a bias."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from msgspec.structs import replace
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from tests.unit.engine_cases import (
    HOT,
    REAL_ENGINES,
    RealEngine,
    answers,
    each_engine,
    model_work,
    real_engine,
    static_engine,
    texts,
)
from uellm_cli.engines.rows import TokenScore
from uellm_cli.engines.static import StaticEngine
from uellm_cli.engines.token_texts import TokenTexts, tokens_within
from uellm_cli.types import EngineRequest, FinishReason, SamplingParams, TokenLogprob


@pytest.fixture(scope="module", params=REAL_ENGINES)
def engine(request: pytest.FixtureRequest, tiny_llm: str) -> RealEngine:
    return real_engine(request.param, tiny_llm)


@pytest.fixture(scope="module")
def static(tiny_llm: str) -> StaticEngine:
    return static_engine(tiny_llm)


@pytest.fixture(scope="module")
def work(tiny_llm: str) -> list[EngineRequest]:
    return model_work(tiny_llm)


def asking(request: EngineRequest, sampling: SamplingParams) -> EngineRequest:
    return replace(request, sampling=sampling)


# --- Several answers -----------------------------------------------------------------------------


def test_sampled_answers_differ_and_the_first_is_the_one_that_n_1_gives(
    engine: RealEngine, work: list[EngineRequest]
) -> None:
    for sampling in (HOT, replace(HOT, seed=None)):
        three = asking(work[1], replace(sampling, n=3))
        made = texts(answers(engine, [three])["1"])
        assert len(set(made)) == 3
        assert made[:1] == texts(answers(engine, [asking(work[1], sampling)])["1"])
        beside = answers(engine, [work[0], three, asking(work[3], replace(HOT, n=2))])
        assert texts(beside["1"]) == made


def test_a_greedy_answer_is_given_as_often_as_asked(
    engine: RealEngine, work: list[EngineRequest]
) -> None:
    found = answers(engine, [asking(work[0], SamplingParams(n=3)), work[2]])
    assert texts(found["0"]) == texts(answers(engine, [work[0]])["0"]) * 3
    assert found["0"].output_tokens == 3 * found["0"].answers[0].output_tokens


def test_greedy_answers_are_drawn_once(
    static: StaticEngine, work: list[EngineRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = count_rounds(static, monkeypatch)
    answers(static, [asking(work[0], SamplingParams(n=3)), work[2]])
    assert rounds == [2]


def test_a_round_has_only_the_rows_that_still_lack_an_answer(
    static: StaticEngine, work: list[EngineRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = count_rounds(static, monkeypatch)
    sampled = [asking(work[i], replace(HOT, n=n)) for i, n in enumerate((1, 3, 2))]
    found = answers(static, [*sampled, asking(work[3], SamplingParams(n=5))])
    assert rounds == [4, 2, 1]
    assert [len(texts(found[str(i)])) for i in range(4)] == [1, 3, 2, 5]


def count_rounds(static: StaticEngine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of each batch that is generated from here on."""
    rounds: list[int] = []
    generate = static.model.generate

    def counted(prompts: torch.Tensor, **arguments: object) -> object:
        rounds.append(len(prompts))
        return generate(prompts, **arguments)

    monkeypatch.setattr(static.model, "generate", counted)
    return rounds


def test_moments_of_several_answers_reach_from_the_first_to_the_last(
    static: StaticEngine, work: list[EngineRequest]
) -> None:
    found = answers(static, [asking(work[0], HOT), asking(work[1], replace(HOT, n=3))])
    one, three = found["0"].timing, found["1"].timing
    assert one is not None
    assert three is not None
    assert (one.prefill_s, one.first_token_s) == (three.prefill_s, three.first_token_s)
    assert one.finished_s < three.answered_s <= three.finished_s


# --- Bias ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [SamplingParams(), HOT])
def test_a_bias_makes_a_token_certain_or_impossible(
    sampling: SamplingParams, engine: RealEngine, work: list[EngineRequest], tiny_llm: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llm)
    (seven,) = tokenizer.encode("7")
    always = asking(work[0], replace(sampling, logit_bias=((seven, 10_000.0),)))
    assert texts(answers(engine, [always, work[3]])["0"]) == ["7" * 30]
    first = told(engine, asking(work[0], replace(sampling, logprobs=0)), work[3])[0].token
    (token,) = tokenizer.encode(first)
    never = asking(work[0], replace(sampling, logprobs=0, logit_bias=((token, -10_000.0),)))
    assert first not in [other.token for other in told(engine, never, work[3])]


def test_a_bias_on_a_token_that_does_not_exist_fails_its_own_request_only(
    engine: RealEngine, work: list[EngineRequest]
) -> None:
    vocabulary = engine.loaded.model.config.vocab_size
    for token in (vocabulary, -1):
        wrong = asking(work[0], SamplingParams(logit_bias=((token, 5.0),)))
        found = answers(engine, [wrong, work[2]])
        failure = found["0"].failure
        assert failure is not None
        assert (failure.code, failure.field) == ("invalid_request", "logit_bias")
        assert str(token) in failure.message
        assert texts(found["2"]) == texts(answers(engine, [work[2]])["2"])


@each_engine
def test_a_model_s_repetition_penalty_is_on_a_row_s_own_tokens_and_no_padding(
    name: str, work: list[EngineRequest], tiny_llm: str
) -> None:
    engine = real_engine(name, tiny_llm)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llm)
    alone = texts(answers(real_engine(name, tiny_llm), [work[2]])["2"])[0]
    # Padding that is what the answer begins with: penalized, it would be another answer.
    engine.loaded.tokenizer.pad_token = tokenizer.convert_ids_to_tokens(tokenizer.encode(alone)[0])
    engine.loaded.defaults.repetition_penalty = 2.5
    found = answers(engine, [work[2], work[0]])
    assert texts(found["2"]) == [alone]
    # What it counted once is not counted again.
    assert texts(found["0"]) != texts(answers(real_engine(name, tiny_llm), [work[0]])["0"])
    model = AutoModelForCausalLM.from_pretrained(tiny_llm)
    prompt = torch.tensor([work[0].prompt_token_ids])
    made = model.generate(prompt, max_new_tokens=30, do_sample=False, repetition_penalty=2.5)
    expected = tokenizer.decode(made[0, prompt.shape[1] :], skip_special_tokens=True)
    assert texts(found["0"]) == [expected]


# --- Log probabilities ---------------------------------------------------------------------------


def told(engine: RealEngine, request: EngineRequest, *beside: EngineRequest) -> list[TokenLogprob]:
    (answer,) = answers(engine, [request, *beside])[request.custom_id].answers
    assert answer.logprobs is not None
    return list(answer.logprobs)


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(),
        SamplingParams(temperature=1.5, top_k=40, seed=3),
        SamplingParams(logit_bias=((60, 6.0), (61, 6.0))),
        SamplingParams(json_schema='{"type": "integer"}'),
    ],
)
def test_logprobs_are_the_model_s_own_whatever_is_done_to_its_scores(
    sampling: SamplingParams, engine: RealEngine, work: list[EngineRequest], tiny_llm: str
) -> None:
    request = replace(work[3], sampling=replace(sampling, logprobs=4), max_tokens=12)
    tokens = told(engine, request, work[0])
    tokenizer = AutoTokenizer.from_pretrained(tiny_llm)
    ids = [tokenizer.encode(token.token)[0] for token in tokens]
    assert [tokenizer.decode([token]) for token in ids] == [token.token for token in tokens]
    model = AutoModelForCausalLM.from_pretrained(tiny_llm)
    prompt = list(request.prompt_token_ids)
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
    expected = torch.log_softmax(logits, dim=-1)
    for token, id_, row in zip(tokens, ids, expected, strict=True):
        assert token.logprob == pytest.approx(row[id_].item(), abs=1e-3)
        best = torch.topk(row, 4).values.tolist()
        assert [other.logprob for other in token.top] == pytest.approx(best, abs=1e-3)


def test_alternatives_are_as_many_as_each_row_asks_for_and_none_where_it_asks_for_none(
    engine: RealEngine, work: list[EngineRequest]
) -> None:
    wanted = [None, 0, 5, 20]
    batch = [
        asking(request, SamplingParams(logprobs=count))
        for request, count in zip(work, wanted, strict=True)
    ]
    found = answers(engine, batch)
    assert found["0"].answers[0].logprobs is None
    for name, count in (("1", 0), ("2", 5), ("3", 20)):
        logprobs = found[name].answers[0].logprobs
        assert logprobs
        assert {len(token.top) for token in logprobs} == {count}
        for token in logprobs:
            values = [other.logprob for other in token.top]
            assert values == sorted(values, reverse=True)
            # Greedy: what is drawn is the likeliest.
            assert not values or token.logprob == values[0]


def test_the_bytes_of_an_answer_s_tokens_are_its_text(
    engine: RealEngine, work: list[EngineRequest]
) -> None:
    neighbour = replace(work[0], custom_id="neighbour")
    for request in work:
        asked = asking(request, SamplingParams(logprobs=0))
        (answer,) = answers(engine, [asked, neighbour])[request.custom_id].answers
        assert answer.logprobs is not None
        assert b"".join(token.raw for token in answer.logprobs) == answer.text.encode()
        # The end token counts as made, and is no part of the content.
        ended = answer.finish_reason is FinishReason.STOP
        assert len(answer.logprobs) == answer.output_tokens - ended


def test_a_token_that_is_a_part_of_a_character_has_its_bytes_escaped(
    engine: RealEngine, work: list[EngineRequest]
) -> None:
    schema = '{"const": "é😀"}'
    tokens = told(engine, asking(work[0], SamplingParams(logprobs=2, json_schema=schema)))
    assert b"".join(token.raw for token in tokens) == '"é😀"'.encode()
    assert [token.token for token in tokens][1:3] == ["\\xc3", "\\xa9"]
    assert [token.raw for token in tokens][1:3] == [b"\xc3", b"\xa9"]


def test_logprobs_end_where_the_text_is_cut_at_a_stop(
    engine: RealEngine, work: list[EngineRequest]
) -> None:
    whole = texts(answers(engine, [work[3]])["3"])[0]
    stop = whole[8:11]
    for ending in (stop, whole[:3], whole[9:10]):
        sampling = SamplingParams(stop=(ending,), logprobs=0)
        (answer,) = answers(engine, [asking(work[3], sampling), work[0]])["3"].answers
        assert answer.logprobs is not None
        raw = b"".join(token.raw for token in answer.logprobs).decode()
        assert raw.startswith(answer.text)
        # The last one is the first that reaches the cut.
        before = b"".join(token.raw for token in answer.logprobs[:-1]).decode()
        assert answer.text == "" or len(before) < len(answer.text)
        assert answer.text == whole[: whole.index(ending)]


def test_a_token_that_a_stop_cuts_through_is_told_whole() -> None:
    words = ["one", "two", "three", "four"]

    def decode(ids: Sequence[int]) -> str:
        return "".join(words[token] for token in ids)

    assert tokens_within("onetw", [0, 1, 2, 3], decode) == 2
    assert tokens_within("onetwo", [0, 1, 2, 3], decode) == 2
    assert tokens_within("", [0, 1], decode) == 0


def test_special_tokens_are_told_by_name_and_have_no_bytes(
    engine: RealEngine, work: list[EngineRequest], tiny_llm: str
) -> None:
    user = AutoTokenizer.from_pretrained(tiny_llm).convert_tokens_to_ids("<|user|>")
    biased = SamplingParams(logprobs=1, logit_bias=((user, 10_000.0),))
    request = replace(work[0], sampling=biased, max_tokens=2)
    (answer,) = answers(engine, [request])["0"].answers
    assert answer.text == ""
    assert answer.logprobs is not None
    assert [(token.token, token.raw) for token in answer.logprobs] == [("<|user|>", b"")] * 2


def test_tokens_of_a_sentencepiece_vocabulary_have_their_bytes_too() -> None:
    pieces = ["<unk>", "</s>", "▁he", "llo", "é", "▁", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(
        models.BPE({piece: i for i, piece in enumerate(pieces)}, [], byte_fallback=True)
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1),
        ]
    )
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    hf = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    made = TokenTexts(hf)
    assert made.text_and_bytes(2) == (" he", b" he")
    assert made.text_and_bytes(4) == ("é", "é".encode())
    assert made.text_and_bytes(6 + 0xF0) == ("\\xf0", b"\xf0")
    assert made.text_and_bytes(1) == ("</s>", b"")
    assert made.text_and_bytes(len(pieces)) == ("<tool>", b"<tool>")
    assert made.text_and_bytes(9999) == ("", b"")  # beyond the tokenizer, where a model is padded
    ids = [2, 3, 5, *(6 + byte for byte in "😀".encode()), 4]
    joined = b"".join(made.text_and_bytes(token)[1] for token in ids).decode()
    assert joined.removeprefix(" ") == hf.decode(ids) == "hello 😀é"


def test_an_impossible_token_s_logprob_is_openai_s_least_and_no_infinity(tiny_llm: str) -> None:
    made = TokenTexts(AutoTokenizer.from_pretrained(tiny_llm))
    (token,) = made.logprobs([TokenScore(50, -0.5, ((51, -math.inf),))])
    assert (token.logprob, token.top[0].logprob) == (-0.5, -9999.0)
