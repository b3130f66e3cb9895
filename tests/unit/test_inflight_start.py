"""From a model to an engine: what is asked of it, what is believed, and what is left to static."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers.masking_utils import (
    bidirectional_mask_function,
    causal_mask_function,
    chunked_causal_mask_function,
    or_masks,
    sliding_window_causal_mask_function,
)

from tests.builders import exactly
from tests.unit.architectures import model_maker
from tests.unit.engine_cases import (
    answers,
    context,
    in_batches,
    inflight_engine,
    model_work,
    static_engine,
    texts,
)
from uellm_cli.clock import SystemClock
from uellm_cli.engines import ENGINES
from uellm_cli.engines.inflight import linears
from uellm_cli.engines.inflight.attention import AttentionBackend, PackedAttention
from uellm_cli.engines.inflight.check import Trial
from uellm_cli.engines.inflight.check import texts as trial_texts
from uellm_cli.engines.inflight.engine import InflightEngine
from uellm_cli.engines.inflight.fused import FusedDecoder, FusedLayer
from uellm_cli.engines.inflight.layers import (
    ObservedMasks,
    SeesKey,
    mask_window,
    observe_layers,
)
from uellm_cli.engines.inflight.linears import PackedLinear
from uellm_cli.engines.inflight.native import load as load_kernels
from uellm_cli.engines.inflight.native_attention import NativeAttention
from uellm_cli.engines.inflight.packed import PackedModel
from uellm_cli.engines.inflight.torch_attention import TorchAttention
from uellm_cli.engines.inflight.unsupported import Unsupported
from uellm_cli.engines.loading import load
from uellm_cli.engines.static import StaticEngine
from uellm_cli.errors import EngineError, UsageError
from uellm_cli.types import Budget, Engine, EngineRequest, SamplingParams

with_kernels = pytest.mark.skipif(load_kernels() is None, reason="nothing can be compiled here")


@pytest.fixture(scope="session")
def model_folder(tiny_llm: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return model_maker(Path(tiny_llm), tmp_path_factory.mktemp("models"))


def asked() -> list[EngineRequest]:
    """Texts of several lengths, each answered with 12 tokens."""
    prompts: list[Sequence[int]] = [range(40, 75), [9], range(900, 920), range(40, 60)]
    greedy = SamplingParams(temperature=0.0, ignore_eos=True)
    return [
        EngineRequest(str(number), tuple(prompt), 12, greedy)
        for number, prompt in enumerate(prompts)
    ]


def one_by_one(engine: Engine) -> dict[str, list[str]]:
    found = answers(engine, *([request] for request in asked()))
    return {name: texts(completion) for name, completion in found.items()}


def together(engine: Engine) -> dict[str, list[str]]:
    return {name: texts(completion) for name, completion in answers(engine, asked()).items()}


def layers_of(model: Any) -> list[Any]:
    return list(model.get_decoder().layers)


def backend_of(engine: InflightEngine) -> AttentionBackend:
    assert isinstance(engine.packed, PackedModel)
    return engine.packed.attention.backend


# --- What cannot be served in flight -------------------------------------------------------------


@pytest.mark.parametrize("name", ["mamba", "bloom", "gptj"])
def test_a_model_that_packing_would_break_runs_in_static_batches_and_the_user_is_told(
    name: str, model_folder: Callable[[str], Path]
) -> None:
    folder = str(model_folder(name))
    notes: list[str] = []
    engine = ENGINES.build("inflight").start(context(folder, SystemClock(), note=notes.append))
    assert isinstance(engine, StaticEngine)
    (note,) = notes
    reason = note.removeprefix(f"{folder} runs in static batches, as --engine static does, since ")
    assert reason not in (note, "")
    assert one_by_one(engine) == one_by_one(static_engine(folder))
    assert together(engine) == together(static_engine(folder))


def test_a_model_that_is_left_to_static_has_its_own_attention_back(
    tiny_llm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise Unsupported("this is a test")

    # When it was looked at and tried already.
    monkeypatch.setattr("uellm_cli.engines.inflight.start._limits", refused)
    notes: list[str] = []
    here = context(tiny_llm, SystemClock(), note=notes.append)
    engine = ENGINES.build("inflight", {"kernels": "torch"}).start(here)
    assert isinstance(engine, StaticEngine)
    assert notes[0].endswith("since this is a test")
    plain = static_engine(tiny_llm)
    own = plain.model.config._attn_implementation
    assert engine.model.config._attn_implementation == own
    work = model_work(tiny_llm)
    assert [texts(c) for c in engine.run(in_batches(work))] == [
        texts(c) for c in plain.run(in_batches(work))
    ]


@with_kernels
@pytest.mark.parametrize("kernels", ["auto", "torch"])
def test_a_model_that_is_served_in_flight_needs_no_word(kernels: str, tiny_llm: str) -> None:
    notes: list[str] = []
    inflight_engine(tiny_llm, {"kernels": kernels}, note=notes.append)
    assert notes == []


def test_memory_that_does_not_do_is_said_as_such(
    tiny_llm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 5 bytes")

    monkeypatch.setattr("uellm_cli.engines.inflight.check.observe_layers", short)
    with pytest.raises(EngineError, match=r"the memory does not do to start .* 5 bytes"):
        inflight_engine(tiny_llm)


@pytest.mark.parametrize("kernels", ["auto", "torch"])
def test_what_an_engine_had_in_memory_is_free_when_it_is_gone(kernels: str, tiny_llm: str) -> None:
    # Though transformers never forgets a name that attention was registered by.
    engine = inflight_engine(tiny_llm, {"kernels": kernels})
    assert isinstance(engine.packed, PackedModel)
    together(engine)
    held = [
        weakref.ref(part)
        for part in (engine.packed.cache, engine.packed.attention, engine.loaded.model)
    ]
    del engine
    gc.collect()
    assert [ref() for ref in held] == [None] * 3


def test_a_model_is_tried_with_texts_without_an_end(tiny_llm: str) -> None:
    model = load(context(tiny_llm, SystemClock())).model
    drawn = trial_texts(model, frozenset())
    assert [len(text) for text in drawn] == [13, 7]
    ends = frozenset({drawn[0][0], drawn[1][3]})
    assert not ends & {token for text in trial_texts(model, ends) for token in text}


# --- What a model's layers are found to be -------------------------------------------------------


def observed(folder: Path) -> Any:
    return observe_layers(load(context(str(folder), SystemClock())).model)


@pytest.mark.parametrize(
    ("name", "windows"),
    [
        ("llama", [None, None, None]),
        ("mistral", [12, 12, 12]),
        ("olmo3", [10, None, 10]),
        ("gemma2", [10, None, 10]),
        # In the mask alone.
        ("qwen2-moe-sliding", [20, None, 20]),
        ("phimoe", [15, 15, 15]),
    ],
)
def test_windows_are_those_that_the_model_itself_goes_by(
    name: str, windows: list[int | None], model_folder: Callable[[str], Path]
) -> None:
    assert [layer.window for layer in observed(model_folder(name))] == windows


def test_layers_are_told_by_what_they_compute(model_folder: Callable[[str], Path]) -> None:
    layer = observed(model_folder("gemma2"))[0]
    assert (layer.index, layer.query_heads, layer.kv_heads) == (0, 4, 2)
    assert (layer.key_size, layer.value_size, layer.scale) == (16, 16, 0.25)
    assert layer.softcap == 4.0
    assert layer.sinks is None
    assert not layer.is_plain
    # 2 heads of 16 + 16 numbers of 4 bytes.
    assert layer.bytes_per_token == 256
    assert layer.dtype == torch.float32
    latent = observed(model_folder("deepseek-v3"))[0]
    assert (latent.key_size, latent.value_size, latent.is_plain) == (16, 12, True)
    assert latent.bytes_per_token == 4 * (16 + 12) * 4
    sunk = observed(model_folder("gpt-oss"))[2]
    assert sunk.index == 2
    assert sunk.sinks.shape == (4,)
    assert not sunk.is_plain


def test_windows_that_contradict_each_other_are_refused(
    model_folder: Callable[[str], Path],
) -> None:
    model = load(context(str(model_folder("gemma2")), SystemClock())).model
    model.get_decoder().layers[0].self_attn.sliding_window = 7
    with pytest.raises(
        Unsupported, match=r"layer 0 is told of a window of 7 tokens, its mask .* 10"
    ):
        observe_layers(model)


@pytest.mark.parametrize(
    ("mask", "window"),
    [
        (causal_mask_function, None),
        (sliding_window_causal_mask_function(1), 1),
        (sliding_window_causal_mask_function(20), 20),
        (sliding_window_causal_mask_function(2**19), 2**19),
        (sliding_window_causal_mask_function(2**30), None),
    ],
)
def test_a_mask_s_window_is_what_it_lets_through(mask: SeesKey, window: int | None) -> None:
    assert mask_window(mask, "cpu") == window


def sees_first_too(
    _: torch.Tensor, __: torch.Tensor, query: torch.Tensor, key: torch.Tensor
) -> torch.Tensor:
    return (key <= query) & ((key > query - 8) | (key < 2))


@pytest.mark.parametrize(
    "mask",
    [
        bidirectional_mask_function,
        *(
            chunked_causal_mask_function(size, torch.zeros(1, dtype=torch.long))
            for size in (2, 16, 1000)
        ),
        or_masks(causal_mask_function, lambda *at: at[3] == at[2] + 1),
        sees_first_too,
    ],
)
def test_a_mask_that_is_no_window_is_refused(mask: SeesKey) -> None:
    with pytest.raises(Unsupported, match="see others than those right before them"):
        mask_window(mask, "cpu")


def test_a_mask_that_is_not_transformers_own_is_refused() -> None:
    masks = ObservedMasks()
    _, second = (
        masks(batch_size=1, q_length=3, kv_length=3, mask_function=sees, config=None)
        for sees in (causal_mask_function, sliding_window_causal_mask_function(5))
    )
    assert masks.window(second) == 5
    assert masks.window(second.to(torch.bfloat16)[..., :2]) == 5
    biased = second.clone()
    biased[..., 1] -= 1
    for own in (biased, second + 1, second - 2, torch.ones(1, 1, 3, 3).triu(1) * -1e9):
        with pytest.raises(Unsupported, match="it makes attention masks by itself"):
            masks.window(own)


@pytest.mark.parametrize(
    ("dtype", "right", "passes"),
    [
        ("float32", [True], True),
        ("float32", [False, True, True], False),
        ("bfloat16", [True, False, False], True),
        ("bfloat16", [False, False, True], True),
        ("bfloat16", [False, False, False], False),
        ("float16", [False, True], True),
    ],
)
def test_a_model_in_lower_precision_that_once_is_off_is_tried_again(
    dtype: str, right: list[bool], passes: bool, tiny_llm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(context(tiny_llm, SystemClock()), dtype)
    trial = Trial.of(loaded.model, loaded.eos_ids, 32)
    assert len({tuple(sample.tokens[0]) for sample in trial.samples}) == len(trial.samples)
    tries = iter(right)
    monkeypatch.setattr(Trial, "_offs", lambda *_: iter([0.0, 0.0 if next(tries) else 0.5, 0.0]))
    off = trial.differs(PackedAttention(trial.layers, TorchAttention(32)))
    assert off == (None if passes else "its scores are off by 0.5 standard deviations")


@pytest.mark.parametrize("kernels", [pytest.param("auto", marks=with_kernels), "torch"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sinks_are_served_in_every_type(
    dtype: str, kernels: str, model_folder: Callable[[str], Path]
) -> None:
    notes: list[str] = []
    options = {"kernels": kernels, "dtype": dtype}
    engine = inflight_engine(str(model_folder("gpt-oss")), options, note=notes.append)
    assert notes == []
    assert type(backend_of(engine)) is (NativeAttention if kernels == "auto" else TorchAttention)
    assert len(together(engine)) == len(asked())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"layer_idx": 0}, "layer 0 computes attention more than once"),
        ({"layer_idx": None}, "its attention layers are not numbered"),
        ({"is_causal": False}, "layer 1 is not causal self-attention"),
    ],
)
def test_attention_that_a_cache_by_position_cannot_serve_is_refused(
    changes: dict[str, object], reason: str, tiny_llm: str
) -> None:
    model = load(context(tiny_llm, SystemClock())).model
    for name, value in changes.items():
        setattr(model.get_decoder().layers[1].self_attn, name, value)
    with pytest.raises(Unsupported, match=reason):
        observe_layers(model)


def test_rows_that_would_crowd_others_out_of_their_windows_wait_for_them(
    model_folder: Callable[[str], Path],
) -> None:
    # Of 12 tokens a row sees, it may hold up to 28 in pages of 8: two rows in 64.
    folder, page_bytes = str(model_folder("mistral")), 8 * 3 * 2 * (8 + 8) * 4
    budget = Budget(8 * page_bytes, max_sequences=6, prefill_tokens=512)
    engine = inflight_engine(folder, {"page_tokens": 8}, budget=budget)
    assert [pool.count for pool in engine.flights.pools] == [8]
    greedy = SamplingParams(temperature=0.0, ignore_eos=True)
    work = [EngineRequest(str(i), (50 + i,) * 5, 40, greedy, exactly(40)) for i in range(6)]
    for completion in answers(engine, work).values():
        assert completion.timing is not None
        assert completion.timing.preemptions == 0


# --- What looks like Llama -----------------------------------------------------------------------


@with_kernels
def test_layers_of_the_common_kind_are_computed_by_fewer_calls(tiny_llm: str) -> None:
    engine = inflight_engine(tiny_llm)
    assert type(engine.loaded.model.get_decoder()) is FusedDecoder
    assert {type(layer) for layer in layers_of(engine.loaded.model)} == {FusedLayer}


@pytest.mark.parametrize("name", ["granite", "smollm3", "olmo2", "llama-yarn", "qwen3"])
@pytest.mark.parametrize("kernels", ["auto", "torch"])
def test_a_layer_s_looks_are_not_believed(
    kernels: str, name: str, model_folder: Callable[[str], Path]
) -> None:
    folder = str(model_folder(name))
    engine = inflight_engine(folder, {"kernels": kernels})
    assert together(engine) == one_by_one(static_engine(folder))


OWN_CODE = """
import torch.nn.functional as F
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaMLP, LlamaModel

class OwnConfig(LlamaConfig):
    model_type = "unheard_of"

class OwnMlp(LlamaMLP):
    def forward(self, rows):
        return self.down_proj(self.act_fn({gate}) * self.up_proj(rows))

class OwnLayer(LlamaDecoderLayer):
    scale = 1.0

    def __init__(self, config, index):
        super().__init__(config, index)
        self.mlp = OwnMlp(config)

    def forward(self, hidden_states, **options):
        return self.scale * super().forward(hidden_states, **options)

class OwnDecoder(LlamaModel):
    def forward(self, input_ids, inputs_embeds=None, **options):
        {check}
        return super().forward(inputs_embeds=2 * self.embed_tokens(input_ids), **options)

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        if {own_decoder}:
            self.model = OwnDecoder(config)
        self.model.layers = nn.ModuleList(
            OwnLayer(config, index) for index in range(config.num_hidden_layers)
        )
        for index in {odd}:
            self.model.layers[index].scale = 0.5
        self.post_init()
"""


def own_model(
    tiny_llm: str,
    folder: Path,
    odd: Sequence[int] = (),
    own_decoder: bool = False,
    gate: str = "self.gate_proj(rows)",
    check: str = "pass",
) -> str:
    """The bundled model with layers that look like Llama's, and of which the odd ones are not.

    With `own_decoder`, what stands around the layers only looks like Llama's too, and `check`s what
    it is given first. `gate` is how an MLP's gate is computed.
    """
    shutil.copytree(tiny_llm, folder)
    config = json.loads((folder / "config.json").read_text())
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    config |= {"model_type": "unheard_of", "auto_map": auto_map}
    (folder / "config.json").write_text(json.dumps(config))
    code = OWN_CODE.format(odd=odd, own_decoder=own_decoder, gate=gate, check=check)
    (folder / "own.py").write_text(code)
    return str(folder)


@pytest.fixture
def own_code_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "hf"))


class Loads:
    """Counts models that were loaded, and whether each was gone when the next one was."""

    def __init__(self) -> None:
        self.models: list[weakref.ref[Any]] = []
        self.alive: list[bool] = []

    def __call__(self, *arguments: Any) -> Any:
        self.alive.extend(ref() is not None for ref in self.models)
        made = load(*arguments)
        self.models.append(weakref.ref(made.model))
        return made


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Loads:
    counted = Loads()
    monkeypatch.setattr("uellm_cli.engines.inflight.start.load", counted)
    return counted


@with_kernels
@pytest.mark.usefixtures("own_code_cache")
@pytest.mark.parametrize(
    ("odd", "times"), [([], 1), ([0], 1), ([0, 1, 2, 3], 1), ([1], 2), ([2], 2)]
)
def test_layers_that_only_look_alike_are_left_as_they_are(
    odd: list[int], times: int, tiny_llm: str, tmp_path: Path, loads: Loads
) -> None:
    folder = own_model(tiny_llm, tmp_path / f"own{len(odd)}{odd[:1]}", odd)
    notes: list[str] = []
    engine = inflight_engine(folder, trust_remote_code=True, note=notes.append)
    # One that shows only when the weights of the others are gone is loaded again, in the memory
    # that it had.
    assert len(loads.models) == times
    assert not any(loads.alive)
    assert notes == []
    kinds = {type(layer).__name__ for layer in layers_of(engine.loaded.model)}
    assert kinds == {"OwnLayer"} if odd else {"FusedLayer"}
    assert together(engine) == one_by_one(static_engine(folder, trust_remote_code=True))


@pytest.mark.usefixtures("own_code_cache")
@pytest.mark.parametrize(
    ("gate", "kind", "times"),
    [
        ("self.gate_proj(rows)", PackedLinear, 1),
        ("self.gate_proj(rows.to(self.gate_proj.weight.dtype))", PackedLinear, 1),
        ("F.linear(rows, self.gate_proj.weight)", nn.Linear, 2),
    ],
)
@pytest.mark.parametrize("kernels", [pytest.param("auto", marks=with_kernels), "torch"])
def test_linear_layers_are_packed_unless_a_model_computes_with_their_weights(
    kernels: str,
    gate: str,
    kind: type,
    times: int,
    tiny_llm: str,
    tmp_path: Path,
    loads: Loads,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(linears, "CLEARLY_SLOWER", float("inf"))
    folder = own_model(tiny_llm, tmp_path / f"gate{len(gate)}", [0, 1, 2, 3], gate=gate)
    engine = inflight_engine(folder, {"kernels": kernels}, trust_remote_code=True)
    assert (len(loads.models), any(loads.alive)) == (times, False)
    assert {type(layer.mlp.gate_proj) for layer in layers_of(engine.loaded.model)} == {kind}
    assert type(engine.loaded.model.get_output_embeddings()) is kind
    assert together(engine) == one_by_one(static_engine(folder, trust_remote_code=True))


@pytest.mark.usefixtures("own_code_cache")
def test_replacing_that_fails_half_way_is_left_off(
    tiny_llm: str, loads: Loads, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = 0

    def third_fails(*arguments: Any) -> None:
        nonlocal made
        made += 1
        assert made < 3
        original(*arguments)

    original = PackedLinear.__init__
    monkeypatch.setattr(PackedLinear, "__init__", third_fails)
    monkeypatch.setattr(linears, "CLEARLY_SLOWER", float("inf"))
    engine = inflight_engine(tiny_llm, {"kernels": "torch"})
    assert (len(loads.models), any(loads.alive), made) == (2, False, 3)
    assert not any(isinstance(part, PackedLinear) for part in engine.loaded.model.modules())
    assert together(engine) == one_by_one(static_engine(tiny_llm))


@pytest.mark.usefixtures("own_code_cache")
@pytest.mark.parametrize("error", ["AssertionError", "ImportError", "OSError", "Exception"])
def test_a_model_that_refuses_packed_texts_by_itself_runs_in_static_batches(
    error: str, tiny_llm: str, tmp_path: Path
) -> None:
    check = (
        "if options.get('position_ids') is not None and (options['position_ids'].diff() < 0).any():"
        f" raise {error}('one text only')"
    )
    folder = own_model(tiny_llm, tmp_path / error, own_decoder=True, check=check)
    notes: list[str] = []
    here = context(folder, SystemClock(), note=notes.append, trust_remote_code=True)
    engine = ENGINES.build("inflight").start(here)
    assert isinstance(engine, StaticEngine)
    (note,) = notes
    assert note.endswith(f"at once as it does each alone: {error}: one text only")
    assert one_by_one(engine) == one_by_one(static_engine(folder, trust_remote_code=True))


def test_a_head_that_is_the_embedding_is_packed_where_the_cache_can_spare_it(
    tiny_llm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linears, "CLEARLY_SLOWER", float("inf"))
    model = load(context(tiny_llm, SystemClock())).model
    head_bytes = model.get_output_embeddings().weight.nbytes
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    for heads, kind in ((7, nn.Linear), (9, PackedLinear)):
        budget = Budget(heads * head_bytes, max_sequences=64, prefill_tokens=512)
        engine = inflight_engine(tiny_llm, budget=budget)
        assert type(engine.loaded.model.get_output_embeddings()) is kind
        # Both together are no more than was promised, and little less.
        taken = engine.packed.cache.total_bytes + (head_bytes if kind is PackedLinear else 0)
        assert 0.9 * budget.kv_bytes <= taken <= budget.kv_bytes


@with_kernels
@pytest.mark.usefixtures("own_code_cache")
def test_what_stands_around_layers_and_only_looks_alike_is_left_as_it_is(
    tiny_llm: str, tmp_path: Path
) -> None:
    folder = own_model(tiny_llm, tmp_path / "own", own_decoder=True)
    engine = inflight_engine(folder, trust_remote_code=True)
    assert type(engine.loaded.model.get_decoder()).__name__ == "OwnDecoder"
    assert {type(layer) for layer in layers_of(engine.loaded.model)} == {FusedLayer}
    assert together(engine) == one_by_one(static_engine(folder, trust_remote_code=True))


def test_compiled_kernels_and_torch_s_own_make_the_same_tokens(tiny_llm: str) -> None:
    auto, plain = (inflight_engine(tiny_llm, {"kernels": kernels}) for kernels in ("auto", "torch"))
    assert type(backend_of(plain)) is TorchAttention
    if load_kernels() is not None:
        assert type(backend_of(auto)) is NativeAttention
    assert together(auto) == together(plain) == one_by_one(static_engine(tiny_llm))


@with_kernels
@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (lambda *given: given[4] * 0, "its scores are off by"),
        (lambda *_: 1 / 0, "ZeroDivisionError: division by zero"),
    ],
)
def test_kernels_that_do_not_do_are_passed_over_with_a_remark(
    broken: Any, why: str, tiny_llm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NativeAttention, "attended", broken)
    notes: list[str] = []
    engine = inflight_engine(tiny_llm, note=notes.append)
    assert type(backend_of(engine)) is TorchAttention
    (note,) = notes
    assert note.startswith(f"uellm's compiled kernels are not used, which is slower: {why}")
    assert together(engine) == one_by_one(static_engine(tiny_llm))


@pytest.mark.parametrize(
    ("switch", "dtype", "said"),
    [
        ("", "float32", True),
        ("avx2", "bfloat16", True),
        ("off", "float32", False),
        ("", "float16", False),  # for which there never are any
    ],
)
def test_that_there_are_no_kernels_is_said_where_nobody_asked_for_it(
    switch: str, dtype: str, said: bool, tiny_llm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UELLM_KERNELS", switch)
    monkeypatch.setattr("uellm_cli.engines.inflight.start.load_kernels", lambda: None)
    monkeypatch.setattr("uellm_cli.engines.inflight.start.why_not", lambda: "no C++ compiler")
    notes: list[str] = []
    engine = inflight_engine(tiny_llm, {"dtype": dtype}, note=notes.append)
    assert type(backend_of(engine)) is TorchAttention
    said_so = ["uellm's compiled kernels are not used, which is slower: no C++ compiler"]
    assert notes == (said_so if said else [])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_model_is_served_in_the_type_that_is_asked_for(dtype: str, tiny_llm: str) -> None:
    notes: list[str] = []
    engine = inflight_engine(tiny_llm, {"dtype": dtype}, note=notes.append)
    assert not any("static batches" in note for note in notes)
    assert engine.loaded.model.dtype == getattr(torch, dtype)
    (keys, _), *_ = engine.packed.cache.layers.values()
    assert keys.keys.dtype == getattr(torch, dtype)
    found = answers(engine, model_work(tiny_llm))
    assert texts(found["0"]) == ["3 4 5 6 7 8 9"]


# --- Options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"page_tokens": 0}, "page_tokens must be from 1 to 65536, not 0"),
        ({"page_tokens": "many"}, "page_tokens"),
        ({"step_tokens": -1}, "step_tokens must be from 0 to 1048576, not -1"),
        ({"kernels": "own"}, "kernels must be auto or torch"),
        ({"share_prefixes": "perhaps"}, "share_prefixes"),
        ({"rows": 3}, "has no option 'rows'; its options are: dtype, page_tokens"),
    ],
)
def test_an_option_that_makes_no_sense_is_a_usage_error(
    options: dict[str, object], what: str
) -> None:
    with pytest.raises(UsageError, match=what):
        ENGINES.build("inflight", options)


@pytest.mark.parametrize("name", ["inflight", "static"])
def test_a_type_that_there_is_not_is_a_usage_error(name: str, tiny_llm: str) -> None:
    with pytest.raises(UsageError, match="dtype must be one of auto, float32"):
        ENGINES.build(name, {"dtype": "int3"}).start(context(tiny_llm, SystemClock()))


def test_options_may_be_text_from_the_command_line() -> None:
    text = {"page_tokens": "16", "share_prefixes": "false", "step_tokens": "7"}
    typed = {"page_tokens": 16, "share_prefixes": False, "step_tokens": 7}
    assert ENGINES.build("inflight", text) == ENGINES.build("inflight", typed)
