"""Loading a model and its tokenizer as an engine's context says."""

from __future__ import annotations

import os
from collections.abc import Collection

from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils.logging import disable_progress_bar

from uellm_cli.engines import EngineContext
from uellm_cli.engines.defaults import check_defaults
from uellm_cli.engines.loaded import LoadedModel
from uellm_cli.errors import ModelError, UsageError

DTYPES = ("auto", "float32", "bfloat16", "float16")


def check_dtype(dtype: str) -> None:
    """Raises UsageError for one that is not in `DTYPES`."""
    if dtype not in DTYPES:
        raise UsageError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")


def load(
    context: EngineContext, dtype: str = "auto", attn_implementation: str | None = None
) -> LoadedModel:
    """The model on the context's devices, with weights from safetensors only.

    `dtype` is the checkpoint's own when "auto"; `attn_implementation` is transformers' choice when
    None. A model's own code is run only if the context trusts it. Raises ModelError.
    """
    if context.visible_devices is not None:
        # Read when CUDA is first used, which is when the weights are loaded.
        mask = os.environ.get("CUDA_VISIBLE_DEVICES")
        os.environ["CUDA_VISIBLE_DEVICES"] = within_mask(context.visible_devices, mask)
        os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # NVML's order, which placements go by
    disable_progress_bar()  # standard error belongs to the command line
    trust = context.trust_remote_code
    attention = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    try:
        tokenizer = AutoTokenizer.from_pretrained(context.model, trust_remote_code=trust)
        model, found = AutoModelForCausalLM.from_pretrained(
            context.model,
            dtype=dtype,
            device_map=dict(context.device_map),
            use_safetensors=True,
            trust_remote_code=trust,
            output_loading_info=True,
            **attention,
        )
    except Exception as error:
        # Anything at all: files that are no weights, a config that contradicts them, a model's own
        # code. Some messages have a list below their first line.
        told = " ".join(str(error).split())
        kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
        raise ModelError(f"model {context.model!r} cannot be loaded: {kind}{told}") from error
    _check_whole(context.model, found["missing_keys"])
    model.eval()
    defaults = model.generation_config
    check_defaults(context.model, defaults, context.note)
    # `generate` takes what a call leaves open from here, and nothing shall be left to a model.
    model.generation_config = GenerationConfig()
    return LoadedModel(model, tokenizer, defaults)


def _check_whole(model: str, missing: Collection[str]) -> None:
    """Raises ModelError where transformers has drawn weights at random that the files lack."""
    if missing:
        names = sorted(missing)
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise ModelError(
            f"model {model!r} is not whole: its files hold no {', '.join(names[:3])}{more}; "
            "download or save it again"
        )


def within_mask(wanted: str, mask: str | None) -> str:
    """`wanted` GPUs as the value of CUDA_VISIBLE_DEVICES, where `mask` is its value so far.

    UUIDs stand for themselves; positions count among the GPUs that `mask` shows.
    """
    shown = [name.strip() for name in mask.split(",")] if mask else []
    names = wanted.split(",")
    if shown and all(name.isdigit() and int(name) < len(shown) for name in names):
        return ",".join(shown[int(name)] for name in names)
    return wanted
