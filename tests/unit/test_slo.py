"""Promises: durations, clock times, and the SLO file."""

# ruff: noqa: E501 (tables of whole messages are read best with one case a line)

from __future__ import annotations

import time as system_time
from collections.abc import Iterator
from datetime import UTC, datetime, time, timedelta, timezone
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uellm_cli.errors import DocumentError
from uellm_cli.requests.slo import SloRules, load_slo_rules, parse_duration, seconds_until
from uellm_cli.types import SLO, Anchor, Endpoint, Request

STARTED = datetime(2026, 3, 10, 8, 0, tzinfo=UTC)
BERLIN = ZoneInfo("Europe/Berlin")

DESIGN_EXAMPLE = """\
default: {deadline: 30m}
classes:
  - {name: interactive, match: {metadata.tier: gold}, deadline: 20s, ttft: 2s, weight: 10}
  - {name: nightly, match: {custom_id: "night-*"}, deadline: "09:00"}
"""


def rules(folder: Path, text: str, name: str = "slo.yaml", started: datetime = STARTED) -> SloRules:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return load_slo_rules(path, started)


def request(
    custom_id: str = "a",
    slo: SLO | None = None,
    endpoint: Endpoint = Endpoint.CHAT,
    **metadata: str | int | float | bool | None,
) -> Request:
    return Request(custom_id, endpoint, prompt="x", slo=slo, metadata=metadata)


# --- Durations -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (20, 20.0),
        (0.25, 0.25),
        ("20", 20.0),
        ("20s", 20.0),
        ("30m", 1800.0),
        ("1h30m", 5400.0),
        ("1h 30m", 5400.0),
        ("1500ms", 1.5),
        ("2.5m", 150.0),
        ("1d1h1m1s1ms", 90061.001),
        (" 5s ", 5.0),
    ],
)
def test_a_duration_is_seconds_or_units_from_large_to_small(
    written: object, seconds: float
) -> None:
    assert parse_duration(written) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "written",
    ["", " ", "s", "20x", "-5s", "1m1h", "1s1s", "5 5s", "1e3", "nan", "inf", "0", "0s", "0h0m",
     "\N{ARABIC-INDIC DIGIT FIVE}s", "1..5s", "9" * 400 + "s", "1" * 30 + "d", 0, -1, float("nan"), float("inf"),
     float("-inf"), 10**400, 1e300, True, None, [], {}, "09:00"],
)  # fmt: skip
def test_what_is_no_positive_finite_duration_is_refused(written: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_duration(written)


@given(
    st.tuples(*[st.integers(0, 99)] * 5).filter(any),
)
def test_a_duration_is_the_sum_of_its_parts(parts: tuple[int, ...]) -> None:
    units = ("d", "h", "m", "s", "ms")
    written = "".join(f"{n}{unit}" for n, unit in zip(parts, units, strict=True) if n)
    d, h, m, s, ms = parts
    expected = timedelta(days=d, hours=h, minutes=m, seconds=s, milliseconds=ms).total_seconds()
    assert parse_duration(written) == pytest.approx(expected)


@given(st.text(max_size=80))
def test_any_text_is_a_positive_duration_or_a_value_error(text: str) -> None:
    try:
        seconds = parse_duration(text)
    except ValueError:
        return
    assert 0 < seconds < float("inf")


# --- Clock times ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("started", "clock_time", "hours"),
    [
        (datetime(2026, 3, 10, 8, 0, tzinfo=BERLIN), time(9, 0), 1),
        (datetime(2026, 3, 10, 22, 0, tzinfo=BERLIN), time(9, 0), 11),
        (datetime(2026, 12, 31, 22, 0, tzinfo=BERLIN), time(9, 0), 11),
        (datetime(2026, 3, 10, 9, 0, tzinfo=BERLIN), time(9, 0), 24),
        # On 29 March 2026 clocks go from 2 to 3: the night has one hour less.
        (datetime(2026, 3, 28, 22, 0, tzinfo=BERLIN), time(9, 0), 10),
        (datetime(2026, 3, 28, 22, 0, tzinfo=BERLIN), time(2, 30), 4.5),
        # On 25 October 2026 they go from 3 back to 2: one hour more.
        (datetime(2026, 10, 24, 22, 0, tzinfo=BERLIN), time(9, 0), 12),
        (datetime(2026, 10, 24, 22, 0, tzinfo=BERLIN), time(2, 30), 4.5),
        # At the first 2:40 of that night, clocks will show 2:30 once more.
        (datetime(2026, 10, 25, 2, 40, tzinfo=BERLIN), time(2, 30), 5 / 6),
        (datetime(2026, 10, 25, 2, 40, fold=1, tzinfo=BERLIN), time(2, 30), 23 + 5 / 6),
    ],
)
def test_a_clock_time_is_the_next_one_where_the_run_began(
    started: datetime, clock_time: time, hours: float
) -> None:
    assert seconds_until(clock_time, started) == pytest.approx(hours * 3600)


@pytest.fixture
def machine_in_berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if not hasattr(system_time, "tzset"):
        pytest.skip("the time zone of a process cannot be changed here")
    monkeypatch.setenv("TZ", "Europe/Berlin")
    system_time.tzset()
    yield
    monkeypatch.undo()
    system_time.tzset()


@pytest.mark.usefixtures("machine_in_berlin")
def test_the_machines_own_fixed_offset_still_knows_of_clock_changes() -> None:
    started = datetime(2026, 3, 28, 22, 0).astimezone()
    assert isinstance(started.tzinfo, timezone)
    assert seconds_until(time(9, 0), started) == 10 * 3600


@pytest.mark.usefixtures("machine_in_berlin")
def test_another_fixed_offset_is_taken_as_it_is() -> None:
    tokyo = timezone(timedelta(hours=9))
    started = datetime(2026, 3, 28, 22, 0, tzinfo=tokyo)
    assert seconds_until(time(9, 0), started) == 11 * 3600


@given(
    st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1), timezones=st.just(BERLIN)),  # noqa: DTZ001
    st.times(),
)
def test_a_clock_time_is_never_more_than_a_day_and_a_clock_change_away(
    started: datetime, clock_time: time
) -> None:
    assert 0 < seconds_until(clock_time, started) <= 25 * 3600


# --- The SLO file --------------------------------------------------------------------------------


def test_the_first_class_that_matches_wins_and_the_rest_get_the_default(tmp_path: Path) -> None:
    found = rules(tmp_path, DESIGN_EXAMPLE)
    interactive = SLO("interactive", 20.0, ttft_s=2.0, weight=10.0)
    assert found.slo_for(request("night-1", tier="gold")) == interactive
    assert found.slo_for(request("night-1")) == SLO("nightly", 3600.0, Anchor.RUN)
    assert found.slo_for(request("x")) == SLO("default", 1800.0)


def test_a_requests_own_slo_beats_the_file(tmp_path: Path) -> None:
    own = SLO("own", 1.0)
    assert rules(tmp_path, DESIGN_EXAMPLE).slo_for(request("night-1", own)) == own


def test_without_a_file_a_request_has_its_own_slo_or_none() -> None:
    assert SloRules().slo_for(request()) == SLO()
    assert SloRules().slo_for(request(slo=SLO("own", 1.0))) == SLO("own", 1.0)


def test_the_three_formats_say_the_same(tmp_path: Path) -> None:
    toml = """
    [default]
    deadline = "30m"
    [[classes]]
    name = "interactive"
    match = {"metadata.tier" = "gold"}
    deadline = "20s"
    ttft = 2
    weight = 10
    [[classes]]
    name = "nightly"
    match.custom_id = "night-*"
    deadline = 09:00:00
    """
    json = """{"default": {"deadline": 1800}, "classes": [
    {"name": "interactive", "match": {"metadata.tier": "gold"}, "deadline": 20, "ttft": "2s",
     "weight": 10},
    {"name": "nightly", "match": {"custom_id": "night-*"}, "deadline": "09:00:00"}]}"""
    from_yaml = rules(tmp_path, DESIGN_EXAMPLE)
    assert rules(tmp_path, toml, "slo.toml") == from_yaml
    assert rules(tmp_path, json, "slo.json") == from_yaml


@pytest.mark.parametrize("written", ["13:30", '"13:30"', "13:30:00"])
def test_a_clock_time_needs_no_quotes_in_yaml(tmp_path: Path, written: str) -> None:
    found = rules(tmp_path, f"default: {{deadline: {written}}}")
    assert found.default == SLO("default", 5.5 * 3600, Anchor.RUN)


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        ("custom_id: 'a-?'", request("a-1"), request("a-10")),
        ("custom_id: 'a[1]'", request("a1"), request("A1")),
        ("endpoint: /v1/completions", request(endpoint=Endpoint.COMPLETION), request()),
        ("endpoint: '*chat*'", request(), request(endpoint=Endpoint.COMPLETION)),
        ("metadata.priority: 1", request(priority=1), request(priority=2)),
        ("metadata.priority: 1", request(priority="1"), request(priority="11")),
        ("metadata.priority: 1", request(priority=1.0), request(priority=True)),
        ("metadata.urgent: true", request(urgent=True), request(urgent=False)),
        ("metadata.tier: '*'", request(tier=""), request()),
        ("metadata.a.b: x", Request("a", Endpoint.CHAT, metadata={"a.b": "x"}), request(a="x")),
        ("metadata.x: 1, custom_id: b", request("b", x=1), request("a", x=1)),
    ],
)
def test_patterns_are_globs_over_the_requests_properties(
    tmp_path: Path, pattern: str, matching: Request, other: Request
) -> None:
    found = rules(tmp_path, f"classes: [{{name: c, match: {{{pattern}}}, tpot: 50ms}}]")
    assert found.slo_for(matching) == SLO("c", tpot_s=0.05)
    assert found.slo_for(other) == SLO()


def test_no_pattern_can_hang(tmp_path: Path) -> None:
    stars = "*a" * 40 + "b"
    found = rules(tmp_path, f"classes: [{{name: c, match: {{custom_id: '{stars}'}}, ttft: 1s}}]")
    began = system_time.perf_counter()
    assert found.slo_for(request("a" * 2_000)) == SLO()
    assert system_time.perf_counter() - began < 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("default:\n  deadlin: 5", ":2: SLO file: default.deadlin: unknown key 'deadlin'; did you mean 'deadline'? known here: deadline, ttft, tpot, weight"),
        ("classes:\n- name: a\n  match: {custom_id: x}\n  deadlin: 5", ":4: SLO file: classes[0].deadlin: unknown key 'deadlin'; did you mean 'deadline'? known here: deadline, ttft, tpot, weight, name, match"),
        ("defaults: {ttft: 1}", ":1: SLO file: defaults: unknown key 'defaults'; did you mean 'default'? known here: default, classes"),
        ("default: {weight: 2}", ":1: SLO file: default: promises nothing; give a deadline, ttft or tpot"),
        ("default: {}", ":1: SLO file: default: promises nothing; give a deadline, ttft or tpot"),
        ("classes: []", ": SLO file: neither a default nor any classes"),
        ("default: ~", ": SLO file: neither a default nor any classes"),
        ("default:\n  ttft: 0", ":2: SLO file: default.ttft: a duration must be more than zero and finite, not 0"),
        ("default:\n  ttft: .nan", ":2: SLO file: default.ttft: a duration must be more than zero and finite, not nan"),
        ("default:\n  ttft: '09:00'", ":2: SLO file: default.ttft: '09:00' is no duration; write a number of seconds, or 1500ms, 20s, 30m, 1h30m, 2d"),
        ("default:\n  deadline: 9:30", ":2: SLO file: default.deadline: '9:30' is no clock time; write 09:00 or 09:00:30"),
        ("default:\n  deadline: 24:00", ":2: SLO file: default.deadline: '24:00' is no clock time; write 09:00 or 09:00:30"),
        ("default:\n  deadline: [1]", ":2: SLO file: default.deadline: should be a duration such as 20s or 1h30m, not [1]"),
        ("default:\n  deadline: 1e300", ":2: SLO file: default.deadline: 1e+300 is longer than ten years"),
        ("default:\n  ttft: 1\n  weight: 0", ":3: SLO file: default.weight: should be greater than 0, not 0"),
        ("default:\n  ttft: 1\n  weight: .inf", ":3: SLO file: default.weight: should be a finite number, not inf"),
        ("default:\n  ttft: 1\n  weight: heavy", ":3: SLO file: default.weight: should be a valid number, not 'heavy'"),
        ("default:\n  ttft: 1\n  weight: true", ":3: SLO file: default.weight: should be a valid number, not True"),
        ("classes:\n- {name: a, ttft: 1}", ":2: SLO file: classes[0].match: is missing"),
        ("classes:\n- {match: {custom_id: x}, ttft: 1}", ":2: SLO file: classes[0].name: is missing"),
        ("classes:\n- {name: '', match: {custom_id: x}, ttft: 1}", ":2: SLO file: classes[0].name: String should have at least 1 character, not ''"),
        ("classes:\n- {name: a, match: {}, ttft: 1}", ":2: SLO file: classes[0].match: Dictionary should have at least 1 item after validation, not 0"),
        ("classes:\n- {name: a, match: {custom_id: [x]}, ttft: 1}", ":2: SLO file: classes[0].match.custom_id: should be text, a number, true or false, not ['x']"),
        ("classes:\n- {name: a, match: {metadata.x: ~}, ttft: 1}", ":2: SLO file: classes[0].match.metadata.x: should be text, a number, true or false, not None"),
        ("classes:\n- {name: default, match: {custom_id: x}, ttft: 1}", ":2: SLO file: classes[0].name: 'default' already names the requests that no class matches"),
        ("classes:\n- {name: own, match: {custom_id: x}, ttft: 1}", ":2: SLO file: classes[0].name: 'own' already names the requests with an slo of their own"),
        ("classes:\n- {name: a, match: {custom_id: x}, ttft: 1}\n- {name: a, match: {custom_id: y}, ttft: 1}", ":3: SLO file: classes[1].name: 'a' already names classes[0]"),
        ("classes: {name: a}", ":1: SLO file: classes: should be a valid list"),
    ],
)  # fmt: skip
def test_an_error_names_line_place_and_reason(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(DocumentError) as caught:
        rules(tmp_path, text)
    assert str(caught.value) == f"{tmp_path / 'slo.yaml'}{expected}"


@pytest.mark.parametrize(
    ("key", "hint"),
    [("custom_di", "; did you mean 'custom_id'?"), ("metadata", ";"), ("metadata.", ";")],
)
def test_a_pattern_over_something_unknown_is_an_error(tmp_path: Path, key: str, hint: str) -> None:
    with pytest.raises(DocumentError) as caught:
        rules(tmp_path, f"classes:\n- name: a\n  ttft: 1\n  match:\n    {key}: x")
    assert f"slo.yaml:5: SLO file: classes[0].match.{key}" in str(caught.value)
    assert f"cannot match by '{key}'{hint} known here: custom_id" in str(caught.value)
