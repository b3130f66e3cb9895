"""Whether a model is still the one that an earlier answer came from.

A fingerprint covers the files that decide an answer: configuration, tokenizer, chat template,
weights. Reading hundreds of gigabytes at every start is out of the question, so of a large file
its size, its first megabyte (for safetensors: the header with every tensor's place) and
`SAMPLED_BLOCKS` blocks spread over the rest stand for it. A changed checkpoint differs nearly
everywhere; a change of a few bytes between the samples is not seen.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from uellm_cli.errors import ModelError
from uellm_cli.models.files import find_model_file

SAMPLED_BLOCKS = 1024
BLOCK_BYTES = 4096
HEAD_BYTES = 1 << 20
# Files up to this size are read whole.
WHOLE_BYTES = HEAD_BYTES + SAMPLED_BLOCKS * BLOCK_BYTES

# Code counts too: with --trust-remote-code it decides answers.
_ENDINGS = {".json", ".jinja", ".model", ".py", ".safetensors", ".tiktoken", ".txt"}


def model_fingerprint(model: str) -> str:
    """32 hex digits for a folder, a bare `config.json` or a Hub id; ModelError if unreadable.

    Of a Hub id it is the revision that lies in the cache.
    """
    path = Path(model)
    try:
        if path.is_file():
            files = [path]
        elif path.is_dir():
            files = sorted(p for p in path.iterdir() if p.suffix in _ENDINGS and p.is_file())
        else:
            return _hub_fingerprint(model)
        digest = hashlib.blake2b(digest_size=16)
        for file in files:
            digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
            _add_file(digest, file)
        return digest.hexdigest()
    except OSError as error:
        raise ModelError(f"model {model!r} cannot be read: {error}") from None


def _hub_fingerprint(model: str) -> str:
    # The cache keeps each revision in a folder that is named by its commit.
    config = find_model_file(model, "config.json")
    commit = config.parent.name if config is not None else ""
    return hashlib.blake2b(f"{model}\0{commit}".encode(), digest_size=16).hexdigest()


def _add_file(digest: hashlib.blake2b, path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= WHOLE_BYTES:
            digest.update(file.read())
            return
        digest.update(file.read(HEAD_BYTES))
        step = (size - HEAD_BYTES - BLOCK_BYTES) // (SAMPLED_BLOCKS - 1)
        for block in range(SAMPLED_BLOCKS):
            file.seek(HEAD_BYTES + block * step)
            digest.update(file.read(BLOCK_BYTES))
