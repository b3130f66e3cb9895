"""Step times: fitted to steps, kept for later plans, and watched while a run goes on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import numpy as np
import pytest

from uellm_cli.clock import VirtualClock
from uellm_cli.errors import OutputError
from uellm_cli.executor.pace import EVERY, KEPT_STEPS, Pace
from uellm_cli.timing.calibration import LONGEST_S, OUTPUT_TOKENS, calibrate, shapes
from uellm_cli.timing.fit import LEAST_SAMPLES, Fit, fitted
from uellm_cli.timing.kept import StepKey, folder_of, keep_steps, read_steps
from uellm_cli.types import (
    Budget,
    Completion,
    EngineBatch,
    Source,
    StepSample,
    StepTimes,
)

TRUE = StepTimes(0.004, 0.00012, 0.0003, 0.000_000_9, Source.CALIBRATED)
# A roofline's: too fast by far, and in other proportions.
ASSUMED = StepTimes(0.002, 0.00002, 0.00004, 0.000_000_4, Source.ASSUMED)
KEY = StepKey("inflight", "auto", "f" * 32, ("CPU, 2 cores",))


def seconds(times: StepTimes, prefill: int, rows: int, cached: int) -> float:
    return (
        times.fixed_s
        + times.per_prefill_token_s * prefill
        + times.per_sequence_s * rows
        + times.per_cached_token_s * cached
    )


def steps(
    count: int, times: StepTimes = TRUE, noise: float = 0.0, seed: int = 0
) -> list[StepSample]:
    """Steps of a run: few with prompts, rows that grow."""
    random = Random(seed)
    made = []
    for _ in range(count):
        rows = random.choice((1, 4, 16, 48, 64))
        prefill = random.choice((0, 0, 0, 40, 300))
        cached = rows * random.randint(20, 900)
        exact = seconds(times, prefill, rows, cached)
        made.append(StepSample(prefill, rows, cached, exact * (1 + noise * random.uniform(-1, 1))))
    return made


def told(times: StepTimes) -> list[float]:
    return [
        times.fixed_s,
        times.per_prefill_token_s,
        times.per_sequence_s,
        times.per_cached_token_s,
    ]


# --- Fitting -------------------------------------------------------------------------------------


def test_times_that_made_the_steps_are_found_again() -> None:
    fit = fitted(steps(300), ASSUMED, Source.CALIBRATED)
    assert fit is not None
    assert told(fit.times) == pytest.approx(told(TRUE), rel=0.05)
    assert fit.times.source is Source.CALIBRATED
    assert fit.error < 0.01


def test_noise_moves_them_little_and_steps_that_were_disturbed_not_at_all() -> None:
    noisy = steps(600, noise=0.1)
    for place in range(0, 600, 12):
        noisy[place] = StepSample(
            noisy[place].prefill_tokens,
            noisy[place].sequences,
            noisy[place].cached_tokens,
            50 * noisy[place].seconds,
        )
    fit = fitted(noisy, ASSUMED, Source.CALIBRATED)
    assert fit is not None
    said = [seconds(fit.times, s.prefill_tokens, s.sequences, s.cached_tokens) for s in steps(600)]
    took = [sample.seconds for sample in steps(600)]
    assert np.array(said) == pytest.approx(took, rel=0.1)
    assert fit.samples == 550


def test_no_time_is_negative_where_steps_would_have_it_so() -> None:
    # More rows are faster here, which no machine is.
    odd = [StepSample(0, rows, 100 * rows, 0.01 - 0.0001 * rows) for rows in range(1, 60)]
    fit = fitted(odd, ASSUMED, Source.CALIBRATED)
    assert fit is not None
    assert min(told(fit.times)) >= 0


def test_what_steps_do_not_tell_keeps_the_proportions_that_were_assumed() -> None:
    # No step has a prompt in it: what one costs is known from nothing but the machine's rates.
    without = [sample for sample in steps(300) if not sample.prefill_tokens]
    fit = fitted(without, ASSUMED, Source.CALIBRATED)
    assert fit is not None
    assert fit.times.per_prefill_token_s > ASSUMED.per_prefill_token_s
    assert fit.times.fixed_s == pytest.approx(TRUE.fixed_s, rel=0.1)


def test_few_steps_tell_nothing() -> None:
    assert fitted(steps(LEAST_SAMPLES - 1), ASSUMED, Source.CALIBRATED) is None
    frozen = [replace_seconds(sample, 0.0) for sample in steps(100)]
    assert fitted(frozen, ASSUMED, Source.CALIBRATED) is None


def replace_seconds(sample: StepSample, took_s: float) -> StepSample:
    return StepSample(sample.prefill_tokens, sample.sequences, sample.cached_tokens, took_s)


# --- Keeping -------------------------------------------------------------------------------------


def test_kept_times_are_read_for_the_same_engine_model_and_machine_only(tmp_path: Path) -> None:
    keep_steps(tmp_path / "steps", KEY, Fit(TRUE, 300, 0.02))
    assert read_steps(tmp_path / "steps", KEY) == TRUE
    for other in (
        replace(KEY, engine="static"),
        replace(KEY, dtype="bfloat16"),
        replace(KEY, model_fingerprint="0" * 32),
        replace(KEY, devices=("CPU, 4 cores",)),
    ):
        assert read_steps(tmp_path / "steps", other) is None


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"\xff\x00", b'{"times": {"fixed_s": 1}}', b"[" * 10_000]
)
def test_what_is_damaged_is_as_if_it_were_not_there(tmp_path: Path, content: bytes) -> None:
    keep_steps(tmp_path, KEY, Fit(TRUE, 300, 0.02))
    (tmp_path / KEY.file_name).write_bytes(content)
    assert read_steps(tmp_path, KEY) is None


def test_times_of_another_key_under_this_name_are_not_taken(tmp_path: Path) -> None:
    keep_steps(tmp_path, KEY, Fit(TRUE, 300, 0.02))
    other = replace(KEY, engine="static")
    (tmp_path / KEY.file_name).rename(tmp_path / other.file_name)
    assert read_steps(tmp_path, other) is None


def test_where_times_are_kept_can_be_said(tmp_path: Path) -> None:
    assert folder_of({"UELLM_STEP_TIMES": "off"}) is None
    assert folder_of({"UELLM_STEP_TIMES": str(tmp_path)}) == tmp_path
    assert folder_of({"XDG_CACHE_HOME": "/cache"}) == Path("/cache/uellm/step-times")
    assert folder_of({"UELLM_CACHE_DIR": "/own"}) == Path("/own/step-times")


def test_a_folder_that_cannot_be_made_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="file"):
        keep_steps(tmp_path / "file" / "steps", KEY, Fit(TRUE, 300, 0.02))


# --- While a run goes on -------------------------------------------------------------------------


def test_steps_that_are_far_from_the_plan_change_what_it_counts_on() -> None:
    pace = Pace(ASSUMED, seed=0)
    for sample in steps(EVERY - 1):
        pace.seen(sample)
    assert not pace.has_changed()
    pace.seen(steps(1)[0])
    assert pace.has_changed()
    assert told(pace.times) == pytest.approx(told(TRUE), rel=0.15)
    # And then they are as they are thought to be.
    for sample in steps(2 * EVERY, seed=1):
        pace.seen(sample)
    assert not pace.has_changed()


def test_steps_in_which_something_else_was_done_are_no_other_pace() -> None:
    # A new plan takes a second between two steps, and would be a reason for the next one.
    pace = Pace(TRUE, seed=0)
    for number, sample in enumerate(steps(10 * EVERY)):
        pace.seen(replace_seconds(sample, 1.0) if number % EVERY == 0 else sample)
        assert not pace.has_changed()


def test_a_machine_that_slows_down_is_seen_though_it_was_fast_for_long() -> None:
    pace = Pace(TRUE, seed=0)
    for sample in steps(2000):
        pace.seen(sample)
    assert not pace.has_changed()
    for sample in steps(1000, seed=2):
        pace.seen(replace_seconds(sample, 2 * sample.seconds))
    assert pace.has_changed()
    assert pace.times.fixed_s == pytest.approx(2 * TRUE.fixed_s, rel=0.1)


def test_however_many_steps_there_are_only_so_many_are_kept() -> None:
    pace = Pace(TRUE, seed=0)
    for sample in steps(KEPT_STEPS + 500, noise=0.05):
        pace.seen(sample)
    fit = pace.fit()
    assert fit is not None
    assert fit.samples == KEPT_STEPS


# --- Calibrating ---------------------------------------------------------------------------------


@dataclass
class Timed:
    """An engine that only takes time."""

    clock: VirtualClock
    batch_s: float
    shapes: list[tuple[int, int]] = field(default_factory=list)

    def run(self, batches: Iterator[EngineBatch]) -> Iterator[Completion]:
        for batch in batches:
            first = batch.requests[0]
            assert {r.max_tokens for r in batch.requests} == {OUTPUT_TOKENS}
            assert all(r.sampling.ignore_eos for r in batch.requests)
            assert len({r.prompt_token_ids for r in batch.requests}) == len(batch.requests)
            self.shapes.append((len(batch.requests), len(first.prompt_token_ids)))
            self.clock.advance(self.batch_s)
            yield from (Completion(r.custom_id, batch.batch_id) for r in batch.requests)


def test_a_calibration_ends_in_time_with_few_rows_and_many_short_prompts_and_long() -> None:
    clock = VirtualClock(datetime(2026, 1, 1, tzinfo=UTC))
    engine = Timed(clock, batch_s=0.5)
    calibrate(engine, Budget(10**9, 64, 8192), 1.0, 2048, clock)
    assert {(1, 8), (64, 8), (1, 512), (16, 512), (64, 64)} <= set(engine.shapes)
    slow = Timed(clock, batch_s=6.0)
    began_s = clock.now_s()
    calibrate(slow, Budget(10**9, 64, 8192), 1.0, 2048, clock)
    assert clock.now_s() - began_s <= LONGEST_S + 6.0
    assert slow.shapes[0] == (1, 8)


def test_no_shape_of_a_calibration_is_beyond_the_budget_or_the_context() -> None:
    tried = list(shapes(Budget(3000, 20, 8192), 1.0, 100))
    assert tried
    for rows, prompt in tried:
        assert rows <= 20
        assert rows * (prompt + OUTPUT_TOKENS) <= 3000
        assert prompt + OUTPUT_TOKENS <= 100
    # An engine of static batches computes all prompts of a batch in one pass.
    wide = list(shapes(Budget(10**9, 64, 1000), 1.0, 2048))
    assert max(rows * prompt for rows, prompt in wide if rows > 1) <= 1000
    assert list(shapes(Budget(10, 20, 8192), 1.0, 100)) == []
