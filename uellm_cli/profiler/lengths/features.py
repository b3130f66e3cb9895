"""What a prompt asks for, in numbers: its size, what it counts out, the words that decide length.

English words; other languages are told apart by their scripts alone, and are left to the n-grams.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# One feature for each: how often its words and phrases stand in the prompt, at most MOST times.
MOST = 3
CUES: dict[str, str] = {
    "brief": "brief briefly short shorter concise concisely succinct succinctly quick quickly tldr",
    "only": "one_word single_word yes_or_no true_or_false only_the just_the only_with",
    "long": "detailed detail details depth comprehensive thorough thoroughly long elaborate "
    "extensive",
    "steps": "step steps reasoning think",
    "essay": "essay article report blog paper chapter speech letter email review",
    "story": "story poem song lyrics haiku dialogue script tale novel",
    "list": "list bullet bullets example examples idea ideas ways tips reasons items suggest "
    "suggestion suggestions",
    "code": "code function program python java javascript sql html css regex algorithm class "
    "implement",
    "data": "json yaml xml csv table format",
    "explain": "explain describe discuss analyze analyse overview tutorial guide teach",
    "compare": "compare contrast difference differences versus vs pros cons advantages",
    "summarise": "summary summarize summarise abstract main_point main_points key_point key_points "
    "outline",
    "translate": "translate translation in_french in_spanish in_german in_italian in_chinese "
    "in_japanese in_english",
    "rewrite": "rewrite rephrase paraphrase reword correct edit proofread grammar improve fix",
    "classify": "classify categorize categorise label identify sentiment detect which_of choose "
    "select option options multiple_choice",
    "extract": "extract find locate name give_me tell_me",
    "compute": "calculate compute solve sum total average percent percentage equation how_many "
    "how_much convert",
    "answer": "answer question",
    "what": "what which",
    "who_when": "who when where",
    "why": "why",
    "how": "how_to how_do how_can how_does how_would",
    "should": "should could_you can_you please would",
    "create": "create generate write compose design draft make develop come_up_with",
    "plan": "plan schedule itinerary recipe strategy proposal",
    "role": "you_are act_as pretend imagine role",
}
_NUMBER_WORDS = {
    word: number
    for number, word in enumerate(
        ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"), start=1
    )
} | {"twelve": 12, "fifteen": 15, "twenty": 20, "fifty": 50, "hundred": 100}
# What prompts count out: "in 200 words", "a five-sentence summary", "3 different examples".
_UNITS = {
    "asked_words": "word words",
    "asked_sentences": "sentence sentences line lines paragraph paragraphs stanza stanzas verse "
    "verses",
    "asked_items": "items examples ideas ways tips reasons points things steps questions facts "
    "names adjectives synonyms books movies benefits bullet bullets",
}
# Words between a number and the things it counts.
_GAP = {"asked_words": 0, "asked_sentences": 0, "asked_items": 2}
# A longer number is no count of anything.
_MOST_DIGITS = 5

_LOG_SIZES = (
    "prompt_tokens",
    "chars",
    "words",
    "lines",
    "sentences",
    "numbers",
    *_UNITS,
    "first_line_chars",
    "last_line_chars",
)
_PLAIN_SIZES = (
    "chars_a_word",
    "question_marks",
    "options",
    "bullets",
    "code_fences",
    "braces",
    "quotes",
    "maths",
    "upper_share",
    "ascii_share",
    "cjk_share",
    "ends_with_question",
    "ends_with_colon",
)
FEATURES: tuple[str, ...] = (*_LOG_SIZES, *_PLAIN_SIZES, *(f"cue_{name}" for name in CUES))

_TOKEN = re.compile(r"[a-z]+|\d+")
_OPTION = re.compile(r"(?:^|\s)\(?[a-eA-E][).:]\s")
# Blanks of one line: over empty lines the search would begin again at each of them.
_BULLET = re.compile(r"^[ \t]*(?:[-*•]|\d+[.)])\s", re.MULTILINE)
_UPPER = bytes(range(ord("A"), ord("Z") + 1))
# Hiragana to the last Hangul syllable, as they begin in UTF-16's upper byte.
_CJK_FIRST, _CJK_LAST = "\u3040", "\ud7a3"


def _cue_tables() -> tuple[dict[str, int], dict[str, list[tuple[list[str], int]]]]:
    """The cue of a word, and phrases by their first word: the words after it, and the cue."""
    words: dict[str, int] = {}
    phrases: dict[str, list[tuple[list[str], int]]] = {}
    for cue, text in enumerate(CUES.values()):
        for term in text.split():
            first, *rest = term.split("_")
            if rest:
                phrases.setdefault(first, []).append((rest, cue))
            else:
                words[term] = cue
    return words, phrases


_WORD_CUE, _PHRASES = _cue_tables()
_UNIT_OF = {word: unit for unit, text in enumerate(_UNITS.values()) for word in text.split()}
_GAPS = tuple(_GAP[name] for name in _UNITS)


def hand_features(texts: Sequence[str], prompt_tokens: Sequence[int]) -> NDArray[np.float64]:
    """[requests, FEATURES]; what can be large is on a log scale."""
    if not texts:
        return np.zeros((0, len(FEATURES)))
    rows = [_row(text, tokens) for text, tokens in zip(texts, prompt_tokens, strict=True)]
    features = np.array(rows, dtype=np.float64)
    features[:, : len(_LOG_SIZES)] = np.log1p(features[:, : len(_LOG_SIZES)])
    return features


def _row(text: str, prompt_tokens: int) -> list[float]:
    lower = text.lower()
    chars = max(len(text), 1)
    words = lower.count(" ") + lower.count("\n") + 1
    stripped = text.rstrip()
    has_lines = "\n" in text
    ascii_bytes = text.encode("ascii", "ignore")
    is_ascii = len(ascii_bytes) == len(text)
    cues, asked, numbers = _said(_TOKEN.findall(lower))
    return [
        prompt_tokens,
        chars,
        words,
        text.count("\n"),
        text.count(". ") + text.count("? ") + text.count("! ") + text.count(".\n"),
        numbers,
        *asked,
        text.find("\n") if has_lines else chars,
        len(stripped) - stripped.rfind("\n") - 1,
        chars / words,
        min(text.count("?"), 10),
        min(len(_OPTION.findall(text)), 10),
        min(len(_BULLET.findall(text)), 20) if has_lines else 0,
        text.count("```"),
        min(text.count("{"), 20),
        min(text.count('"'), 20),
        min(text.count("$") + text.count("\\"), 20),
        1 - len(ascii_bytes.translate(None, _UPPER)) / max(len(ascii_bytes), 1),
        1.0 if is_ascii else len(ascii_bytes) / chars,
        0.0 if is_ascii else sum(_CJK_FIRST <= c <= _CJK_LAST for c in text) / chars,
        stripped.endswith("?"),
        stripped.endswith(":"),
        *cues,
    ]


def _said(words: Sequence[str]) -> tuple[list[int], list[int], int]:
    """How often each cue is given, the most asked for of each unit, and how many numbers."""
    cues, asked, numbers = [0] * len(CUES), [0] * len(_UNITS), 0
    for i, word in enumerate(words):
        cue = _WORD_CUE.get(word)
        if cue is not None and cues[cue] < MOST:
            cues[cue] += 1
        for rest, phrase_cue in _PHRASES.get(word, ()):
            if words[i + 1 : i + 1 + len(rest)] == rest and cues[phrase_cue] < MOST:
                cues[phrase_cue] += 1
        count = _count(word)
        if count is not None:
            numbers += 1
            for gap, next_word in enumerate(words[i + 1 : i + 4]):
                unit = _UNIT_OF.get(next_word)
                if unit is not None and gap <= _GAPS[unit]:
                    asked[unit] = max(asked[unit], count)
                    break
    return cues, asked, numbers


def _count(word: str) -> int | None:
    if word.isdecimal():
        return int(word) if len(word) <= _MOST_DIGITS else 0
    return _NUMBER_WORDS.get(word)
