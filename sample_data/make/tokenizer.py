"""The tiny model's tokenizer: built by hand, lossless on any text, with its chat template.

A byte-level BPE without merges.  A piece of text is one token when the vocabulary has it (the
integers up to 999 and the fixed words of the tasks) and else falls apart into bytes.  Every word
a task copies is therefore a row of letters, and every number one token whose successor can be
learnt as a fact.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sample_data.make.tasks import fixed_words, lower_first

BOS, END, PAD = "<|begin|>", "<|end|>", "<|pad|>"
ROLES = ("system", "user", "assistant")
#: In the order of their ids, from 0.
SPECIAL_TOKENS = (PAD, BOS, END, *(f"<|{role}|>" for role in ROLES))
LARGEST_WHOLE_NUMBER = 999
MAX_TOKENS = 1024

#: Words (with the space before them), digits in groups of up to three, other marks, white space.
#: A digit group never takes a space with it, so a number is the same token wherever it stands.
PIECES = r" ?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
{%- if message['role'] not in ['system', 'user', 'assistant'] %}
{{- raise_exception('unknown role: ' + message['role']) }}
{%- endif %}
{{- '<|' + message['role'] + '|>' + message['content'] + eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|assistant|>' }}
{%- endif %}
"""


def _whole_words() -> list[str]:
    """Return the pieces kept whole: fixed words as first in a text, and after a space."""
    words: dict[str, None] = {}
    for word in fixed_words():
        # A lone letter stays a letter: "a" in a phrasing must be the "a" of the alphabet.
        if len(word) > 1:
            for form in (word, lower_first(word), word.capitalize()):
                words |= {form: None, f" {form}": None}
    words |= dict.fromkeys(("please", "Please", " please"))
    return list(words)


def build() -> PreTrainedTokenizerFast:
    """Build the tokenizer."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    numbers = [str(number) for number in range(LARGEST_WHOLE_NUMBER + 1)]
    whole = ["".join(piece for piece, _ in byte_level.pre_tokenize_str(w)) for w in _whole_words()]
    entries = dict.fromkeys(
        [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *numbers, *whole]
    )
    tokenizer = Tokenizer(
        models.BPE(
            vocab={entry: index for index, entry in enumerate(entries)},
            merges=[],
            ignore_merges=True,
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PIECES), behavior="isolated"), byte_level]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        model_max_length=MAX_TOKENS,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def save(folder: Path) -> PreTrainedTokenizerFast:
    """Build the tokenizer and write its files into a model folder."""
    tokenizer = build()
    tokenizer.save_pretrained(folder)
    return tokenizer
