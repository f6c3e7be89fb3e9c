"""GGUF files: llama.cpp opens them and computes what the model computes; what it could not is refused or said."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cueva.checkpoint import CheckpointWarning, inventory
from cueva.checkpoint.gguf import TYPES, GGUFReport, write_gguf
from cueva.config import ModelConfig, model_config
from cueva.errors import CheckpointError, CuevaError, DependencyError
from cueva.kernels.quant import BLOCK_FORMATS, dequantise, quantise
from cueva.model import CausalLM
from cueva.text import Tokenizer
from tests.builders import random_ids, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:.*the drafter .* is not in the file")

# Every width a multiple of 32, so that the 8-bit formats fit.
WIDE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "moe_intermediate_size": 32,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "n_group": 1,
    "topk_group": 1,
}
YARN: dict[str, Any] = {"factor": 8.0, "original_max_position_embeddings": 16}
SHAPES: dict[str, dict[str, Any]] = {
    "as published": {},
    "no query latent": {"q_lora_rank": None},
    "softmax": {"scoring_func": "softmax", "topk_method": "greedy", "norm_topk_prob": False},
    "softmax with a bias": {"scoring_func": "softmax", "routed_scaling_factor": 1.0},
    "groups": {"n_group": 4, "topk_group": 2},
    "groups that are all kept": {"n_group": 4, "topk_group": 4, "topk_method": "group_limited_greedy"},
    "rotary halves": {"rope_interleave": False},
    "no shared expert": {"n_shared_experts": None},
    "two shared experts": {"n_shared_experts": 2},
    "no experts": {"n_routed_experts": None, "num_nextn_predict_layers": 0},
    "experts from the first layer": {"first_k_dense_replace": 0},
    "tied head": {"tie_word_embeddings": True},
    "yarn": {"rope_scaling": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}},
    "yarn of V2": {"rope_scaling": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707}},
    "yarn, unequal": {"rope_scaling": {**YARN, "mscale": 0.5, "mscale_all_dim": 1.0}, "rope_interleave": False},
    "yarn, no mscale": {"rope_scaling": YARN},
    "yarn, a factor": {"rope_scaling": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0, "attention_factor": 1.5}},
}


def wide_model(**changes: Any) -> CausalLM:
    return tiny_model(model_config("tiny", **{**WIDE, **changes}), std=0.15)


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keys and tensors of a file, by the `gguf` package."""
    gguf = pytest.importorskip("gguf")
    reader = gguf.GGUFReader(path)
    keys = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    return keys, {tensor.name: tensor for tensor in reader.tensors}


def values(tensor: Any) -> Tensor:
    """A tensor of a file as float32, in PyTorch's order of dimensions, expanded by the `gguf` package."""
    gguf = pytest.importorskip("gguf")
    return torch.from_numpy(np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32))


# --- llama.cpp --------------------------------------------------------------------------------------------------------


@contextmanager
def llama(path: Path) -> Iterator[Any]:
    """The file in llama.cpp: one thread, a float32 cache, logits of every position."""
    llama_cpp = pytest.importorskip("llama_cpp")
    float32 = 0
    opened = llama_cpp.Llama(
        str(path),
        n_ctx=128,
        n_batch=128,
        n_threads=1,
        n_threads_batch=1,
        n_gpu_layers=0,
        type_k=float32,
        type_v=float32,
        logits_all=True,
        verbose=False,
    )
    try:
        yield opened
    finally:
        opened.close()


def llama_logits(opened: Any, ids_T: Tensor) -> Tensor:
    opened.reset()
    opened.eval(ids_T.tolist())
    return torch.from_numpy(np.array(opened.scores[: len(ids_T)]))


def mean_difference(one_TA: Tensor, other_TA: Tensor) -> float:
    """Mean absolute difference of log-probabilities, nats."""
    return float((one_TA.log_softmax(-1) - other_TA.log_softmax(-1)).abs().mean())


@pytest.mark.peer
@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_llama_cpp_computes_what_the_model_computes(name: str, tmp_path: Path) -> None:
    """float32 against float32: logits of 48 positions, and 24 greedy tokens one by one over the cache."""
    model = wide_model(**SHAPES[name])
    ids_T = random_ids(model.config, 48)
    write_gguf(model, tmp_path / "model.gguf", "f32")
    with llama(tmp_path / "model.gguf") as opened:
        torch.testing.assert_close(llama_logits(opened, ids_T), model(ids_T[None]).logits[0], atol=1e-4, rtol=0)
        ours, theirs = ids_T[:8].tolist(), ids_T[:8].tolist()
        opened.reset()
        opened.eval(theirs)
        for _ in range(24):
            ours.append(int(model(torch.tensor([ours])).logits[0, -1].argmax()))
            theirs.append(int(np.argmax(opened.scores[len(theirs) - 1])))
            opened.eval(theirs[-1:])
        assert ours == theirs


@pytest.mark.parametrize("name", [name for name in SHAPES if name.startswith("yarn")])
@torch.no_grad()
def test_a_wrong_yarn_would_show_in_these_models(name: str) -> None:
    """Otherwise the agreement above would prove little."""
    model, without = wide_model(**SHAPES[name]), wide_model()
    without.load_state_dict(model.state_dict())
    ids_T = random_ids(model.config, 48)
    assert float((model(ids_T[None]).logits - without(ids_T[None]).logits).abs().max()) > 1e-2


@pytest.mark.peer
@pytest.mark.parametrize(("type", "bound"), [("f16", 0.003), ("bf16", 0.02), ("q8_0", 0.06), ("q4_0", 0.06)])
@torch.no_grad()
def test_llama_cpp_reads_the_stored_weights(type: str, bound: float, tmp_path: Path) -> None:
    """Against the model with the very weights of the file, what is left is llama.cpp's rounding of activations.

    It rounds them to the file's 16-bit type, or to 8 bits; of weights that span a few units, 8 bits leave some percent
    of a nat. Every expert is chosen, so that no rounding swaps two.
    """
    model = wide_model(num_experts_per_tok=8, num_nextn_predict_layers=0)
    ids_T = random_ids(model.config, 48)
    report = write_gguf(model, tmp_path / "model.gguf", type)
    assert set(report.types.values()) == {type, "f32"}
    full = model(ids_T[None]).logits[0]
    with llama(tmp_path / "model.gguf") as opened:
        theirs = llama_logits(opened, ids_T)
    round_weights(model, type)
    stored = model(ids_T[None]).logits[0]
    assert mean_difference(theirs, stored) < bound
    if type.startswith("q"):
        assert mean_difference(full, stored) > 0.5 * mean_difference(theirs, stored), "the weights were not rounded"


def round_weights(model: CausalLM, type: str) -> None:
    """Put what a file of this type holds into the model."""
    plain = {"f16": torch.float16, "bf16": torch.bfloat16}
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2 or name.endswith("mlp.gate.weight"):
            continue
        if type in plain:
            parameter.copy_(parameter.to(plain[type]))
        elif name.endswith("kv_b_proj.weight"):
            # The key's part lies transposed in the file, so its blocks run along the head.
            k_HNC, v_HPC = parameter.unflatten(0, (model.config.num_attention_heads, -1)).split(
                [model.config.qk_nope_head_dim, model.config.v_head_dim], dim=1
            )
            k_HNC = dequantise(quantise(k_HNC.transpose(1, 2).contiguous(), type), type).transpose(1, 2)
            parameter.copy_(torch.cat([k_HNC, dequantise(quantise(v_HPC, type), type)], dim=1).flatten(0, 1))
        else:
            parameter.copy_(dequantise(quantise(parameter, type), type))


@pytest.mark.peer
@torch.no_grad()
def test_a_q4_k_file_opens_with_its_mixture_of_types(tmp_path: Path) -> None:
    model = wide_model(hidden_size=256, num_experts_per_tok=8, num_nextn_predict_layers=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.6 if parameter.dim() > 1 else 1)
    ids_T = random_ids(model.config, 48)
    report = write_gguf(model, tmp_path / "model.gguf", "q4_k")
    assert set(report.counts) == {"f32", "q4_k", "q6_k", "q8_0"}
    with llama(tmp_path / "model.gguf") as opened:
        theirs = llama_logits(opened, ids_T)
    ours = model(ids_T[None]).logits[0]
    # Four bits of these random weights cost a fifth of a nat; a swapped scale or minimum costs several.
    assert mean_difference(theirs, ours) < 0.3
    assert torch.corrcoef(torch.stack([theirs.flatten(), ours.flatten()]))[0, 1] > 0.95


@pytest.mark.peer
@torch.no_grad()
def test_llama_cpp_drafts_with_the_models_own_module(tmp_path: Path) -> None:
    """The module in llama.cpp's own graph: tokens and states in, logits of depth 1 out; the main model is unchanged."""
    llama_cpp = pytest.importorskip("llama_cpp")
    model = wide_model()
    ids_T = random_ids(model.config, 24)
    path = tmp_path / "model.gguf"
    report = write_gguf(model, path, "f32", mtp=True)
    assert report.notes == ()
    out = model(ids_T[None])
    with llama(path) as opened:
        torch.testing.assert_close(llama_logits(opened, ids_T), out.logits[0], atol=1e-4, rtol=0)

    how = llama_cpp.llama_model_default_params()
    how.load_mtp, how.n_gpu_layers = True, 0
    loaded = llama_cpp.llama_model_load_from_file(str(path).encode(), how)
    what = llama_cpp.llama_context_default_params()
    what.n_ctx = what.n_batch = what.n_ubatch = 128
    what.n_threads = what.n_threads_batch = 1
    # An MTP context, a float32 cache, no flash attention (which rounds to float16).
    what.ctx_type, what.type_k, what.type_v, what.flash_attn_type = 1, 0, 0, 0
    context = llama_cpp.llama_init_from_model(loaded, what)
    assert context
    new, width = len(ids_T) - 1, model.config.hidden_size
    state_TD = model.states(ids_T[None]).hidden_BTD[0, :new].contiguous()
    batch = llama_cpp.llama_batch_init(new, width, 1)
    token_T = (ctypes.c_int32 * new)(*ids_T[1:].tolist())
    batch.n_tokens, batch.token = new, ctypes.cast(token_T, type(batch.token))
    ctypes.memmove(batch.embd, state_TD.data_ptr(), state_TD.nbytes)
    for row in range(new):
        batch.pos[row], batch.n_seq_id[row], batch.seq_id[row][0], batch.logits[row] = row, 1, 0, 1
    assert llama_cpp.llama_decode(context, batch) == 0
    made = np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), shape=(new, model.config.vocab_size)).copy()
    batch.token = type(batch.token)()  # ours, not llama.cpp's to free
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(loaded)
    torch.testing.assert_close(torch.from_numpy(made), out.mtp_logits[0][0], atol=1e-4, rtol=0)


@pytest.mark.peer
def test_llama_cpp_cuts_text_into_the_same_ids(tmp_path: Path) -> None:
    text = "def f(x):\n    return x ** 12345  # ¿qué? 数字 and 'quotes'\r\n\r\n\tº done"
    tokenizer = Tokenizer.train([text, "for i in range(10):\n    print(i)\n" * 20, text * 2], vocab_size=310)
    model = wide_model()
    report = write_gguf(model, tmp_path / "model.gguf", "q8_0", tokenizer)
    assert len(report.notes) == 1, "only the drafter is missing"
    with llama(tmp_path / "model.gguf") as opened:
        assert opened.tokenize(text.encode(), add_bos=False, special=False) == tokenizer.encode(text)
        assert opened.tokenize(b"a", add_bos=True) == tokenizer.encode("a", bos=True)
        assert opened.tokenize(tokenizer.eos_token.encode(), add_bos=False, special=True) == [tokenizer.eos_id]
        assert opened.detokenize(tokenizer.encode(text)).decode() == text
        assert (opened.token_bos(), opened.token_eos()) == (tokenizer.bos_id, tokenizer.eos_id)
        assert opened.n_vocab() == model.config.vocab_size
        assert opened.metadata["tokenizer.chat_template"] == tokenizer.chat_template


# --- the file ---------------------------------------------------------------------------------------------------------


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["as published", "no query latent", "no experts"])
def test_names_and_shapes_are_those_of_llama_cpps_converter(name: str, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    model = wide_model(**{**SHAPES[name], "num_nextn_predict_layers": 0})
    config = model.config
    write_gguf(model, tmp_path / "model.gguf", "f32")
    _, tensors = read(tmp_path / "model.gguf")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.DEEPSEEK2, config.num_hidden_layers)
    expected: dict[str, list[int]] = {}
    for entry in inventory(config).values():
        published, shape = entry.name, list(entry.shape)
        if entry.expert is not None:
            published = published.replace(f"experts.{entry.expert}.", "experts.")
            shape = [config.n_routed_experts, *shape]
        if "kv_b_proj" in published:
            heads, latent = config.num_attention_heads, config.kv_lora_rank
            for part, its in (
                ("k_b", [heads, latent, config.qk_nope_head_dim]),
                ("v_b", [heads, config.v_head_dim, latent]),
            ):
                expected[names.get_name(published.replace("kv_b", part), (".weight",))] = its
        elif published.endswith("e_score_correction_bias"):
            # The converter renames it `.e_score_correction.bias` first.
            expected[names.get_name(published.replace("_bias", ".bias"), (".bias",))] = shape
        else:
            expected[names.get_name(published, (".weight",))] = shape
    assert {tensor: list(values(tensors[tensor]).shape) for tensor in tensors} == expected


@pytest.mark.oracle
@pytest.mark.parametrize("type", TYPES)
def test_the_file_holds_the_weights_in_the_types_reported(type: str, tmp_path: Path) -> None:
    model = wide_model(hidden_size=256, num_hidden_layers=2)
    report = write_gguf(model, tmp_path / "model.gguf", type)
    keys, tensors = read(tmp_path / "model.gguf")
    gguf = pytest.importorskip("gguf")
    assert {name: tensor.tensor_type.name.lower() for name, tensor in tensors.items()} == report.types
    assert keys["general.file_type"] == gguf.LlamaFileType[TYPES[type]]
    assert report.file_bytes == (tmp_path / "model.gguf").stat().st_size
    for exact in ("output_norm.weight", "blk.1.ffn_gate_inp.weight", "blk.1.exp_probs_b.bias"):
        assert report.types[exact] == "f32"
    gate_EFD = model.model.layers[1].mlp.experts.gate_up_proj[:, : model.config.moe_intermediate_size].detach()
    for name, weight in (
        ("blk.1.ffn_gate_exps.weight", gate_EFD),
        ("token_embd.weight", model.model.embed_tokens.weight),
    ):
        held, found = report.types[name], values(tensors[name])
        plain = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
        weight = weight.detach()
        expected = weight.to(plain[held]).float() if held in plain else dequantise(quantise(weight, held), held)
        assert torch.equal(found, expected)


def test_rows_that_are_no_whole_blocks_fall_back_and_are_reported(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    report = write_gguf(wide_model(v_head_dim=12, moe_intermediate_size=48), tmp_path / "model.gguf", "q4_k")
    assert report.types["blk.0.attn_output.weight"] == "f16"  # rows of 2 * 12 values
    assert report.types["blk.1.ffn_down_exps.weight"] == "f16"  # of 48
    assert report.types["blk.1.ffn_up_exps.weight"] == "q8_0"  # of 64
    assert report.types["token_embd.weight"] == "q8_0"
    assert report.fallbacks["blk.1.ffn_up_exps.weight"] == "rows of 64 values are not whole blocks of q4_k"
    assert report.fallbacks["token_embd.weight"] == "rows of 64 values are not whole blocks of q6_k"
    assert set(report.fallbacks) == {name for name, type in report.types.items() if type in ("f16", "q8_0")}


def test_a_bfloat16_model_is_written_as_its_values(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    model = wide_model(num_nextn_predict_layers=0).bfloat16()
    one, other = (tmp_path / folder / "model.gguf" for folder in ("one", "other"))
    write_gguf(model, one, "q8_0")
    write_gguf(model.float(), other, "q8_0")
    assert one.read_bytes() == other.read_bytes()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    path = tmp_path / "model.gguf"
    model = wide_model()
    write_gguf(model, path, "q8_0")
    before = path.read_bytes()
    with torch.no_grad():
        model.lm_head.weight[3, 7] = torch.nan
    with pytest.raises(CuevaError, match=r"1 of 20480 weights are NaN or infinite \(the first at \[3, 7\]\)"):
        write_gguf(model, path, "q8_0")
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["model.gguf"]
    with torch.no_grad():
        model.lm_head.weight[3, 7] = 1e6
    with pytest.raises(CheckpointError, match=r"output\.weight has values beyond 65,504"):
        write_gguf(model, path, "f16")
    assert [found.name for found in tmp_path.iterdir()] == ["model.gguf"]


# --- what is refused, and what is said --------------------------------------------------------------------------------


def llama_refuses(tmp_path: Path, *, mtp: bool = False, **changes: Any) -> str:
    config: ModelConfig = model_config("tiny", **{**WIDE, **changes})
    with torch.device("meta"):
        model = CausalLM(config)
    with pytest.raises(CheckpointError) as refused:
        write_gguf(model, tmp_path / "model.gguf", mtp=mtp)
    assert not list(tmp_path.iterdir())
    return refused.value.message


def test_shapes_that_llama_cpp_computes_differently_are_refused_by_key(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    assert "`attention_bias` is true" in llama_refuses(tmp_path, attention_bias=True)
    assert "reads no `q_lora_rank` from a model of 27 layers" in llama_refuses(tmp_path, num_hidden_layers=27)
    groups = {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}
    assert "count by their best expert (`group_limited_greedy`)" in llama_refuses(tmp_path, **groups)
    assert "`rope_scaling.truncate` is false" in llama_refuses(tmp_path, rope_scaling={**YARN, "truncate": False})
    assert "exactly one MTP module, but the model has 2" in llama_refuses(
        tmp_path, mtp=True, num_nextn_predict_layers=2
    )
    assert "a query latent (`q_lora_rank`)" in llama_refuses(tmp_path, mtp=True, q_lora_rank=None)
    assert "has no values: the model was built on the meta device" in llama_refuses(tmp_path)


def test_what_the_file_leaves_out_or_changes_is_warned_of_and_reported(tmp_path: Path) -> None:
    pytest.importorskip("gguf")

    def written(**changes: Any) -> GGUFReport:
        with pytest.warns(CheckpointWarning) as warned:
            report = write_gguf(wide_model(**changes), tmp_path / "model.gguf", "f32")
        assert [str(one.message) for one in warned] == [f"model.gguf: {note}" for note in report.notes]
        return report

    assert written().notes == ("the drafter (1 MTP modules) is not in the file",)
    assert written(rms_norm_eps=1e-5, num_nextn_predict_layers=0).notes == (
        "llama.cpp uses the epsilon 1e-05 in the norms of the latents too, where the model has 1e-06",
    )


def test_mistaken_arguments_are_refused_with_the_way_out(tmp_path: Path) -> None:
    model = wide_model()
    with pytest.raises(
        CheckpointError, match=r"no GGUF type 'q8'; did you mean 'q8_0'\?; the types are: f32, f16, bf16"
    ):
        write_gguf(model, tmp_path / "model.gguf", "q8")
    with pytest.raises(CheckpointError, match="is a folder") as refused:
        write_gguf(model, tmp_path)
    assert refused.value.way_out == f"try a file in it: {tmp_path / 'model.gguf'}"
    pytest.importorskip("gguf")
    tokenizer = Tokenizer.train(["some text to learn from, some text to learn from"], vocab_size=280)
    with pytest.raises(CheckpointError, match=r"the tokenizer has 280 tokens, but the model only 275 \(`vocab_size`\)"):
        write_gguf(wide_model(vocab_size=275), tmp_path / "model.gguf", tokenizer=tokenizer)


def test_an_absent_package_is_named_with_the_extra_that_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(DependencyError, match=r"writing GGUF needs the package gguf: pip install 'cueva\[gguf\]'"):
        write_gguf(wide_model(), tmp_path / "model.gguf")


def test_every_block_format_is_a_type_of_file() -> None:
    assert set(BLOCK_FORMATS) < set(TYPES)
