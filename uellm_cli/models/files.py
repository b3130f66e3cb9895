"""Where a model's files are: a folder, or a repository of the Hugging Face Hub."""

from __future__ import annotations

import json
from pathlib import Path

BUNDLED_MODEL_NAME = "tiny-llm"


def bundled_model() -> Path:
    """The folder of the model that comes with uellm, in an installed package or a checkout."""
    package = Path(__file__).resolve().parent.parent
    for samples in (package / "sample_data", package.parent / "sample_data"):
        folder = samples / BUNDLED_MODEL_NAME
        if folder.is_dir():
            return folder
    raise FileNotFoundError(BUNDLED_MODEL_NAME)


def samples_by_default(model: str) -> bool:
    """Whether the model's own generation config draws its answers instead of taking the likeliest.

    Without a readable one it takes the likeliest, as transformers does.
    """
    path = find_model_file(model, "generation_config.json")
    try:
        settings = json.loads(path.read_bytes()) if path is not None else {}
    except (OSError, ValueError):
        return False
    return isinstance(settings, dict) and bool(settings.get("do_sample"))


def find_model_file(model: str, name: str) -> Path | None:
    """The file `name` of `model`: beside a `config.json`, in a folder, or from the Hub.

    None when the model has no such file (or the Hub cannot be reached and it is not cached).
    """
    path = Path(model)
    if path.is_file():
        # A bare config is all there is: what lies beside it belongs to other models.
        return None
    if path.is_dir():
        found = path / name
        return found if found.is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(model, name))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError):
        return None
