"""Whether answers can be made to follow a JSON Schema, found out before anything is loaded."""

from __future__ import annotations

from functools import lru_cache

# The requests of one file share a few.
KEPT_SCHEMAS = 1024


@lru_cache(KEPT_SCHEMAS)
def schema_problem(schema: str) -> str | None:
    """Why llguidance has no grammar for a JSON Schema (as text); None where it has one.

    What a schema costs to follow shows only with a model's vocabulary, when an engine compiles it.
    """
    # 50 ms, for requests that ask for a schema only.
    from llguidance import LLMatcher

    try:
        problem = LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(schema))
    except ValueError as error:
        problem = str(error)
    # What follows the first line is the parser's state.
    return problem.strip().partition("\n")[0].removesuffix(":") or None
