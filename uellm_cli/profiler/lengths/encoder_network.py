"""The encoder's network: a pretrained transformer, and a head of quantiles that cannot cross.

The text's embedding is the mean of its tokens' last hidden states, as it is for sentence
transformers (Reimers, Gurevych 2019), and a causal model's just as well. Imports torch, and is
imported only where a network is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # torch's own name for it
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import logging

from uellm_cli.errors import PredictorError, UsageError
from uellm_cli.profiler.lengths.bounds import MEDIAN, Quantiles
from uellm_cli.profiler.lengths.encoder_text import Ids, batches_by_length
from uellm_cli.profiler.lengths.features import FEATURES
from uellm_cli.types import QUANTILE_LEVELS

HEAD_FILE = "head.safetensors"
HIDDEN = 32
# From a thousand embeddings seen whole a head learns its rows by heart, the tails first.
INPUT_DROPOUT = 0.5
HIDDEN_DROPOUT = 0.1
# Of products that oneDNN lays weights out for; it computes others just as well.
PACKED_ROWS = 1024
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class QuantileHead(nn.Module):
    """Log tokens at QUANTILE_LEVELS of embeddings [rows, width] and features [rows, FEATURES].

    The median, and from it steps up and down that are never negative (softplus).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.inside = nn.Sequential(
            nn.Dropout(INPUT_DROPOUT),
            nn.Linear(width + len(FEATURES), HIDDEN),
            nn.GELU(),
            nn.Dropout(HIDDEN_DROPOUT),
        )
        self.out = nn.Linear(HIDDEN, len(QUANTILE_LEVELS))

    def start_from(self, quantiles: Sequence[float]) -> None:
        """Makes it say these `quantiles`, in log tokens, of any text: where learning begins."""
        values = torch.tensor(quantiles)
        steps = torch.diff(values).clamp_min(1e-2)
        # softplus, inverted
        raw = torch.log(torch.expm1(steps))
        with torch.no_grad():
            self.out.weight.zero_()
            self.out.bias[:MEDIAN] = raw[:MEDIAN]
            self.out.bias[MEDIAN] = values[MEDIAN]
            self.out.bias[MEDIAN + 1 :] = raw[MEDIAN:]

    def forward(self, embeddings: Tensor, features: Tensor) -> Tensor:
        inputs = torch.cat([self.norm(embeddings), features], dim=1)
        raw = self.out(self.inside(inputs))
        middle = raw[:, MEDIAN : MEDIAN + 1]
        down = F.softplus(raw[:, :MEDIAN]).flip(1).cumsum(1).flip(1)
        up = F.softplus(raw[:, MEDIAN + 1 :]).cumsum(1)
        return torch.cat([middle - down, middle, middle + up], dim=1)


class Network(nn.Module):
    """`base` is any transformer of `AutoModel` that reads token ids; the head is in float32."""

    def __init__(self, base: Any, head: QuantileHead) -> None:
        super().__init__()
        self.base = base
        self.head = head

    @property
    def device(self) -> torch.device:
        return self.head.out.weight.device

    def embed(self, ids: Ids) -> Tensor:
        """[rows, width] in float32."""
        longest = max(map(len, ids))
        tokens = np.full((len(ids), longest), self.base.config.pad_token_id or 0, dtype=np.int64)
        mask = np.zeros((len(ids), longest), dtype=np.int64)
        for i, row in enumerate(ids):
            tokens[i, : len(row)] = row
            mask[i, : len(row)] = 1
        present = torch.from_numpy(mask).to(self.device)
        states = self.base(
            input_ids=torch.from_numpy(tokens).to(self.device), attention_mask=present
        ).last_hidden_state
        weights = present / present.sum(1, keepdim=True)
        # A product for each row: no float32 copy of all states.
        return torch.bmm(weights.to(states.dtype)[:, None], states)[:, 0].float()

    def forward(self, ids: Ids, features: Tensor) -> Tensor:
        quantiles: Tensor = self.head(self.embed(ids), features)
        return quantiles

    @torch.inference_mode()
    def log_quantiles(self, ids: Ids, features: Quantiles, batch_tokens: int) -> Quantiles:
        """[rows, QUANTILE_LEVELS], of standardised `features` [rows, FEATURES]."""
        self.eval()
        result = np.zeros((len(ids), len(QUANTILE_LEVELS)))
        for rows in batches_by_length([len(row) for row in ids], batch_tokens):
            inputs = torch.from_numpy(features[rows]).to(self.device, torch.float32)
            result[rows] = self([ids[row] for row in rows], inputs).cpu().numpy()
        return result

    def write(self, folder: Path) -> None:
        """The base as any tool of the field reads it, the head beside it."""
        with _quiet():
            self.base.save_pretrained(folder)
        save_file(
            {name: value.cpu().contiguous() for name, value in self.head.state_dict().items()},
            folder / HEAD_FILE,
        )


def read_network(folder: Path, device: str, dtype: str) -> Network:
    """The network that `Network.write` has put into `folder`, ready to predict."""
    place = chosen_device(device)
    base = load_base(str(folder), chosen_dtype(dtype, place))
    head = QuantileHead(base.config.hidden_size)
    head.load_state_dict(load_file(folder / HEAD_FILE))
    if place.type == "cpu" and base.dtype is torch.bfloat16:
        _pack(base)
    return Network(base, head).to(place).eval()


def load_base(
    name: str,
    dtype: torch.dtype = torch.float32,
    layers: int | None = None,
    attention: str | None = None,
) -> Any:
    """A folder's or a Hub id's transformer without its language-modelling head.

    Of its layers only the first `layers`, if given; `attention` is transformers' choice if not.
    Weights come from safetensors only, and no code of the model's own is run. Raises
    PredictorError.
    """
    try:
        with _quiet():
            config = AutoConfig.from_pretrained(name, trust_remote_code=False)
            if config.is_encoder_decoder:
                raise PredictorError(f"{name} has encoder and decoder; take a model of one of them")
            _keep_layers(name, config, layers)
            base, found = AutoModel.from_pretrained(
                name,
                config=config,
                dtype=dtype,
                attn_implementation=attention,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except PredictorError:
        raise
    except Exception as error:  # no file, no network, no such architecture: each has its own error
        told = " ".join(str(error).split())
        raise PredictorError(f"{name} cannot be loaded as an encoder: {told}") from None
    # What a sentence's first token is pooled by is not used, and many checkpoints lack it.
    missing = sorted(key for key in found["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise PredictorError(f"{name} is not whole: its files hold no {', '.join(missing[:3])}")
    return base


def _pack(base: Any) -> None:
    """Puts weights in the order that oneDNN's products read them in: they need not do it each time.

    A processor or a torch that cannot is as it was, a twelfth slower.
    """
    try:
        for layer in base.modules():
            if isinstance(layer, nn.Linear):
                packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), PACKED_ROWS)
                product = partial(_product, packed=packed, bias=layer.bias)
                product(layer.weight[:1])
                # The weight itself stays, for whoever looks at its type or writes it.
                setattr(layer, "forward", product)  # noqa: B010 - mypy allows no other way
    except (RuntimeError, AttributeError):
        return


def _product(rows: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")
    return result


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of a folder or Hub id, as `tokenizer.json` has it. Raises PredictorError."""
    try:
        with _quiet():
            loaded = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        # A copy: what is changed here shall not be seen elsewhere.
        return Tokenizer.from_str(loaded.backend_tokenizer.to_str())
    except Exception as error:  # as many kinds as there are tokenizers
        told = " ".join(str(error).split())
        raise PredictorError(f"{name} has no tokenizer that can be used: {told}") from None


def _keep_layers(name: str, config: Any, layers: int | None) -> None:
    if layers is None:
        return
    if layers > config.num_hidden_layers:
        raise PredictorError(
            f"{name} has {config.num_hidden_layers} layers, of which {layers} cannot be kept"
        )
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]


def chosen_device(device: str) -> torch.device:
    """A GPU for "auto", where there is one. Raises UsageError."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        # Made, and not only named: a device may not be there.
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        told = str(error).splitlines()[0]
        raise UsageError(f"encoder: device {device!r} cannot be used: {told}") from None


def chosen_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """For "auto" bfloat16 where the device is quick at it, or float32. Raises UsageError."""
    if dtype != "auto":
        if dtype not in DTYPES:
            raise UsageError(f"encoder: dtype is auto or one of {', '.join(DTYPES)}, not {dtype!r}")
        return DTYPES[dtype]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    # By the names of the processors' own features: x86 with AVX-512 or AMX, and ARM.
    features = torch.cpu.get_capabilities()
    fast = any(features.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.bfloat16 if fast else torch.float32


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps transformers from writing to standard error, which is the command line's."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
