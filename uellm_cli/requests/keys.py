"""Whether something is still the same: a request, by what it asks of which model, and a file."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from uellm_cli.errors import RequestFileError
from uellm_cli.types import Request

KEY_BYTES = 16


def content_of(request: Request) -> bytes:
    """What determines an answer, as msgpack: endpoint, text and sampling.

    Id, SLO, arrival, metadata and place in a file are left out, so an answer stays valid when they
    change; so are fields of `SamplingParams` at their defaults.
    """
    # As a dictionary: of a struct, the head of the encoding depends on how many fields there are.
    sampling = msgspec.to_builtins(request.sampling)
    return msgspec.msgpack.encode((request.endpoint, request.messages, request.prompt, sampling))


def model_salt(fingerprint: str) -> bytes:
    """The model's part in the keys of its answers."""
    return hashlib.blake2b(fingerprint.encode(), digest_size=hashlib.blake2b.SALT_SIZE).digest()


def answer_key(content: bytes, salt: bytes) -> bytes:
    """`KEY_BYTES` that stand for `content` asked of the model with this `model_salt`."""
    return hashlib.blake2b(content, digest_size=KEY_BYTES, salt=salt).digest()


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes, read in pieces; RequestFileError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL in it
        reason = error.strerror if isinstance(error, OSError) else None
        raise RequestFileError(f"{path}: {reason or error}") from None
