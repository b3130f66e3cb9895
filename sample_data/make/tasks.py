"""The tasks the tiny model is trained on, as a seeded generator of prompts and answers.

Every answer, and so its length, follows from the prompt alone.  Counting tasks keep the count
visible in their answer (a numbered list, a running number), because copying and taking the
successor of a visible number is what a model of this size does reliably.

Standard library only: tests and data scripts import this module without torch.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

#: Words that word tasks draw on beside invented ones.  None may occur in a phrasing below: the
#: tokenizer keeps the words of phrasings whole and leaves all others as letters, to be copied.
WORDS: tuple[str, ...] = tuple(
    """
    cat dog cow pig hen fox owl bee ant bat wolf bear deer goat lion duck frog crab seal mouse
    horse sheep tiger zebra camel eagle snake whale panda otter rabbit monkey turtle spider
    dolphin penguin red blue green pink gold brown white black purple orange yellow silver
    apple pear plum lemon grape melon cherry banana mango peach bread milk rice soup cake honey
    butter pepper cheese sugar tree leaf rose moss fern pine oak maple river lake hill rock sand
    snow rain wind cloud storm stone field forest island desert valley ocean sun moon star sky
    planet comet rocket chair lamp door wall roof clock mirror window garden kitchen bridge
    road train plane truck wagon engine wheel anchor paper pencil book letterbox ink brush paint
    music drum flute violin piano guitar shirt hat coat shoe scarf button pocket needle thread
    hammer ladder bucket basket bottle candle hello world happy quiet gentle brave clever bright
    narrow simple cold warm soft heavy quick slow early winter summer spring autumn morning
    evening night dream story poem puzzle secret treasure castle knight queen wizard dragon giant
    pirate sailor farmer baker doctor teacher friend family brother sister market village city
    python server batch token model offline deadline
    """.split()
)

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
LETTERS = "abcdefghijklmnopqrstuvwxyz"
UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    " fifteen sixteen seventeen eighteen nineteen"
).split()
TENS = "zero ten twenty thirty forty fifty sixty seventy eighty ninety".split()

#: A prompt is held out of training when the hash of its content falls into one in this many.
HELD_OUT_SHARE = 16


@dataclass(frozen=True)
class Example:
    """One prompt with its only right answer."""

    task: str
    prompt: str
    answer: str


@dataclass(frozen=True)
class Task:
    """A kind of prompt: its phrasings, and how to fill one in and answer it.

    ``fill`` draws the values of a phrasing's fields and the answer they lead to.
    ``answer_words`` are the fixed words of answers, kept whole by the tokenizer.
    ``closed`` is false where a final full stop could be taken for a part of the content.
    ``weight`` is the task's share of training examples: short answers teach less each.
    """

    name: str
    phrasings: tuple[str, ...]
    fill: Callable[[Random], tuple[dict[str, str | int], str]]
    answer_words: tuple[str, ...] = ()
    closed: bool = True
    weight: int = 4


def number_in_words(number: int) -> str:
    """Return a number from 0 to 999 in English words."""
    if number < 20:
        return UNITS[number]
    if number < 100:
        tens, unit = divmod(number, 10)
        return TENS[tens] + (f"-{UNITS[unit]}" if unit else "")
    hundreds, rest = divmod(number, 100)
    return f"{UNITS[hundreds]} hundred" + (f" {number_in_words(rest)}" if rest else "")


def _log_uniform(rng: Random, low: int, high: int) -> int:
    """Draw from low to high, small values often and large ones seldom: a heavy tail."""
    return int(math.exp(rng.uniform(math.log(low), math.log(high + 1))))


def _word(rng: Random) -> str:
    """Draw a word to be copied: a common one, or an invented one so that none can be learnt."""
    if rng.random() < 0.4:
        word = rng.choice(WORDS)
    else:
        length = rng.randint(3, 8)
        word = ""
        while len(word) < length:
            word += rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiouy")
            if rng.random() < 0.4:
                word += rng.choice("lmnrstxkqp")
        word = word[:length]
    return word.capitalize() if rng.random() < 0.1 else word


def _numbered(items: list[str]) -> str:
    return "\n".join(f"{number}. {item}" for number, item in enumerate(items, 1))


def _spaced(numbers: range) -> str:
    return " ".join(map(str, numbers))


def _count_up(rng: Random) -> tuple[dict[str, str | int], str]:
    steps = _log_uniform(rng, 1, 199)
    a = 1 if rng.random() < 0.3 else rng.randint(0, 400 - steps)
    return {"a": a, "b": a + steps}, _spaced(range(a, a + steps + 1))


def _count_down(rng: Random) -> tuple[dict[str, str | int], str]:
    steps = _log_uniform(rng, 1, 60)
    b = rng.choice((0, 1)) if rng.random() < 0.3 else rng.randint(0, 200 - steps)
    return {"a": b + steps, "b": b}, _spaced(range(b + steps, b - 1, -1))


def _every_second(rng: Random) -> tuple[dict[str, str | int], str]:
    steps = _log_uniform(rng, 1, 40)
    a = rng.randint(0, 200 - 2 * steps)
    return (
        {"a": a, "b": a + 2 * steps, "kind": "odd" if a % 2 else "even"},
        _spaced(range(a, a + 2 * steps + 1, 2)),
    )


def _multiples(rng: Random) -> tuple[dict[str, str | int], str]:
    n, k = _log_uniform(rng, 2, 20), rng.randint(2, 12)
    return {"n": n, "k": k}, _numbered([str(k * i) for i in range(1, n + 1)])


def _repeat(rng: Random) -> tuple[dict[str, str | int], str]:
    n, word = _log_uniform(rng, 2, 35), _word(rng)
    return {"n": n, "word": word}, _numbered([word] * n)


def _spell(rng: Random) -> tuple[dict[str, str | int], str]:
    word = _word(rng)
    return {"word": word}, "-".join(word)


def _reverse(rng: Random) -> tuple[dict[str, str | int], str]:
    word = _word(rng)
    return {"word": word}, word[::-1]


def _letter_of(rng: Random) -> tuple[dict[str, str | int], str]:
    word, end = _word(rng), rng.choice(("first", "last"))
    return {"word": word, "end": end}, word[0] if end == "first" else word[-1]


def _echo(rng: Random) -> tuple[dict[str, str | int], str]:
    text = " ".join(_word(rng) for _ in range(_log_uniform(rng, 1, 5)))
    return {"text": text}, text


def _letters(rng: Random) -> tuple[dict[str, str | int], str]:
    first, last = sorted(rng.sample(range(26), 2))
    return {"a": LETTERS[first], "b": LETTERS[last]}, " ".join(LETTERS[first : last + 1])


def _parity(rng: Random) -> tuple[dict[str, str | int], str]:
    number = rng.randint(0, 400)
    return {"a": number}, "odd" if number % 2 else "even"


def _compare(rng: Random) -> tuple[dict[str, str | int], str]:
    pair = rng.sample(range(201), 2)
    kind = rng.choice(("greater", "smaller"))
    answer = max(pair) if kind == "greater" else min(pair)
    return {"a": pair[0], "b": pair[1], "kind": kind}, str(answer)


def _days(rng: Random) -> tuple[dict[str, str | int], str]:
    start, n = rng.randrange(7), _log_uniform(rng, 2, 30)
    days = [DAYS[(start + i) % 7] for i in range(1, n + 1)]
    return {"day": DAYS[start], "n": n}, _numbered(days)


def _months(rng: Random) -> tuple[dict[str, str | int], str]:
    start, steps = rng.randrange(12), rng.randint(1, 11)
    months = [MONTHS[(start + i) % 12] for i in range(steps + 1)]
    return {"a": months[0], "b": months[-1]}, ", ".join(months)


def _in_words(rng: Random) -> tuple[dict[str, str | int], str]:
    number = rng.randint(0, 99) if rng.random() < 0.4 else rng.randint(100, 299)
    return {"a": number}, number_in_words(number)


def _boats(rng: Random) -> tuple[dict[str, str | int], str]:
    n = _log_uniform(rng, 2, 35)
    lines = [f"{left} boats at sea, one sails home." for left in range(n, 1, -1)]
    lines += ["1 boat at sea, it sails home.", "0 boats at sea, all are home."]
    return {"n": n}, "\n".join(lines)


TASKS: tuple[Task, ...] = (
    Task(
        "count_up",
        (
            "Count from {a} to {b}",
            "Count up from {a} to {b}",
            "List the numbers from {a} to {b}",
            "Write all numbers from {a} to {b}",
            "Start at {a} and count to {b}",
            "Numbers from {a} to {b}",
        ),
        _count_up,
        weight=3,
    ),
    Task(
        "count_down",
        (
            "Count down from {a} to {b}",
            "Count backwards from {a} to {b}",
            "Start at {a} and count down to {b}",
            "Give me a countdown from {a} to {b}",
            "Countdown from {a} to {b}",
        ),
        _count_down,
    ),
    Task(
        "every_second",
        (
            "List the {kind} numbers from {a} to {b}",
            "Write the {kind} numbers from {a} to {b}",
            "Give me all {kind} numbers from {a} to {b}",
            "Count in twos from {a} to {b}",
        ),
        _every_second,
    ),
    Task(
        "multiples",
        (
            "List the first {n} multiples of {k}",
            "Write the first {n} multiples of {k}",
            "Give me {n} multiples of {k}",
            "What are the first {n} multiples of {k}",
            "Write the {k} times table up to {n}",
        ),
        _multiples,
        weight=3,
    ),
    Task(
        "repeat",
        (
            "Repeat the word {word} {n} times",
            'Repeat "{word}" {n} times',
            "Write {word} {n} times",
            'Write the word "{word}" {n} times',
            "Say {word} {n} times",
        ),
        _repeat,
        weight=2,
    ),
    Task(
        "spell",
        (
            "Spell the word {word}",
            "Spell {word}",
            'Spell "{word}"',
            "How do you spell {word}",
            "Spell this word: {word}",
        ),
        _spell,
    ),
    Task(
        "reverse",
        (
            "Reverse the word {word}",
            "Reverse {word}",
            'Write "{word}" backwards',
            "Write the word {word} backwards",
            "Reverse this word: {word}",
        ),
        _reverse,
    ),
    Task(
        "letter_of",
        (
            "What is the {end} letter of {word}",
            'What is the {end} letter of "{word}"',
            "Which letter comes {end} in {word}",
            "Give me the {end} letter of the word {word}",
        ),
        _letter_of,
        ("first", "last"),
        weight=3,
    ),
    Task(
        "echo",
        ("Say this: {text}", "Repeat this: {text}", "Echo: {text}", "Copy this text: {text}"),
        _echo,
        closed=False,
        weight=6,
    ),
    Task(
        "letters",
        (
            "List the letters from {a} to {b}",
            "Write the alphabet from {a} to {b}",
            "Say the letters from {a} to {b}",
            "Which letters come from {a} to {b}",
            "Alphabet from {a} to {b}",
        ),
        _letters,
    ),
    Task(
        "parity",
        (
            "Is {a} even or odd",
            "Is {a} odd or even",
            "Is the number {a} even or odd",
            "Tell me if {a} is even or odd",
            "Even or odd: {a}",
        ),
        _parity,
        ("even", "odd"),
        weight=6,
    ),
    Task(
        "compare",
        (
            "Which is {kind}, {a} or {b}",
            "Which is {kind}: {a} or {b}",
            "Which number is {kind}, {a} or {b}",
            "Tell me which is {kind}, {a} or {b}",
        ),
        _compare,
        ("greater", "smaller"),
        weight=6,
    ),
    Task(
        "days",
        (
            "List the {n} days after {day}",
            "Which {n} days come after {day}",
            "Name the next {n} days after {day}",
            "Write the {n} days that follow {day}",
        ),
        _days,
        DAYS,
        weight=2,
    ),
    Task(
        "months",
        (
            "List the months from {a} to {b}",
            "Name the months from {a} to {b}",
            "Write all months from {a} to {b}",
            "Which months come from {a} to {b}",
            "Months from {a} to {b}",
            "Say the months from {a} to {b}",
        ),
        _months,
        MONTHS,
        weight=3,
    ),
    Task(
        "in_words",
        (
            "Write {a} in words",
            "Say {a} in words",
            "Write the number {a} in words",
            "What is {a} in words",
            "Spell the number {a}",
        ),
        _in_words,
        (*UNITS, *TENS, "hundred"),
        weight=6,
    ),
    Task(
        "boats",
        (
            "Sing the boat song for {n} boats",
            "Sing the song of {n} boats",
            "Write the boat song with {n} boats",
            "Recite the boat song from {n} boats",
        ),
        _boats,
        ("boat", "boats", "at", "sea", "one", "it", "sails", "home", "all", "are"),
        weight=1,
    ),
)


def content_of(prompt: str) -> str:
    """Return a prompt without politeness, outer case and final marks, which carry no content."""
    text = re.sub(r"^please |,? please(?=\W*$)", "", prompt.strip(), flags=re.IGNORECASE)
    return text.rstrip(" .!?:\n").lower()


def is_held_out(prompt: str) -> bool:
    """Tell whether a prompt is kept out of training, so that it can measure the model.

    The hash is of the content: dressing up a held-out prompt does not bring it into training.
    """
    digest = hashlib.sha256(content_of(prompt).encode()).digest()
    return int.from_bytes(digest[:4], "big") % HELD_OUT_SHARE == 0


def completion_prompt(prompt: str) -> str:
    """Return a prompt as raw text for the model to continue with its answer, without a chat."""
    return prompt.rstrip(" .!?") + ":\n"


def lower_first(text: str) -> str:
    """Return text with its first letter in lower case."""
    return text[:1].lower() + text[1:]


def _dress(rng: Random, phrase: str, *, closed: bool) -> str:
    """Vary what a user varies: case of the first letter, a please, the final mark."""
    question = phrase.split(" ", 1)[0] in ("Is", "What", "Which", "How")
    manner = rng.random()
    if manner < 0.2 and not question:
        phrase = "Please " + lower_first(phrase)
    elif manner < 0.3 and closed:
        phrase += rng.choice((" please", ", please"))
    if rng.random() < 0.3:
        phrase = lower_first(phrase)
    if not closed:
        return phrase
    return phrase + rng.choice(("?", "?", "") if question else (".", ".", "", "!"))


def sample_task(rng: Random, task: Task) -> Example:
    """Draw one example of the given task."""
    fields, answer = task.fill(rng)
    phrase = rng.choice(task.phrasings).format_map(fields)
    return Example(task.name, _dress(rng, phrase, closed=task.closed), answer)


def sample(rng: Random) -> Example:
    """Draw one example, each task as likely as any other."""
    return sample_task(rng, rng.choice(TASKS))


def sample_for_training(rng: Random) -> Example:
    """Draw one example that training may see, tasks by their weight."""
    weights = [task.weight for task in TASKS]
    while True:
        example = sample_task(rng, rng.choices(TASKS, weights)[0])
        if not is_held_out(example.prompt):
            return example


def held_out(n: int, seed: int) -> list[Example]:
    """Return n different examples that training never saw, as even over the tasks as n allows."""
    rng = Random(seed)
    found: dict[str, Example] = {}
    while len(found) < n:
        task = TASKS[len(found) % len(TASKS)]
        example = sample_task(rng, task)
        if is_held_out(example.prompt):
            found.setdefault(example.prompt, example)
    return list(found.values())


def fixed_words() -> Iterator[str]:
    """Yield the words of phrasings and answers that are the same whatever the fields hold."""
    for task in TASKS:
        yield from task.answer_words
        for phrasing in task.phrasings:
            yield from re.findall(r"[A-Za-z]+", re.sub(r"\{\w+\}", " ", phrasing))
