from __future__ import annotations

import pytest
from msgspec.structs import replace

from tests.builders import chat
from uellm_cli.errors import PredictorError
from uellm_cli.profiler.lengths import LENGTH_PREDICTORS
from uellm_cli.profiler.lengths.oracle import Oracle
from uellm_cli.types import Request, SourceLine


def known(custom_id: str, **metadata: str | int | float | bool) -> Request:
    return replace(chat(custom_id, "text"), metadata=metadata, source=SourceLine("in.jsonl", 3))


def test_every_quantile_is_the_length_that_the_metadata_tell() -> None:
    requests = [known("a", output_tokens=7), known("b", output_tokens="90")]
    assert Oracle().quantiles(requests, [1, 1]).tolist() == [[7.0] * 8, [90.0] * 8]


@pytest.mark.parametrize("field", ["length", "metadata.length"])
def test_the_field_may_be_another_and_may_be_written_with_where_it_is(field: str) -> None:
    predictor = LENGTH_PREDICTORS.build("oracle", {"field": field})
    assert predictor.quantiles([known("a", length=7)], [1])[0, 0] == 7


def test_a_key_with_a_dot_in_it_is_taken_as_it_stands() -> None:
    request = replace(known("a"), metadata={"metadata.x": 4, "x": 5})
    assert Oracle("metadata.x").quantiles([request], [1])[0, 0] == 4


@pytest.mark.parametrize("value", ["long", -1, True, "nan", "inf"])
def test_the_first_request_without_a_length_is_named(value: str | int | bool) -> None:
    requests = [known("a", output_tokens=7), known("b", output_tokens=value), known("c")]
    with pytest.raises(PredictorError, match=r"metadata\.output_tokens: 'b' \(in\.jsonl:3\)"):
        Oracle().quantiles(requests, [1, 1, 1])


def test_no_requests_have_no_quantiles() -> None:
    assert Oracle().quantiles([], []).shape == (0, 8)
