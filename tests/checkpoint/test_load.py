import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cueva.checkpoint import CheckpointWarning, load_model, read_config, read_model_info, save_model
from cueva.checkpoint.fp8 import E4M3
from cueva.config import PRESETS, model_config
from cueva.errors import CheckpointError, ConfigError
from cueva.model import CausalLM
from tests.builders import random_ids, tiny_model
from tests.checkpoint.folders import (
    assert_same_model,
    drop,
    edit_config,
    edit_tensors,
    no_warnings,
    quantise_folder,
    tensors_of,
)
from tests.checkpoint.test_fp8 import slow_dequantise

MTP = "model.layers.3."


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_model(tiny_model(), tmp_path / "m")
    return tmp_path / "m"


# --- what loading gives -----------------------------------------------------------------------------------------------


def test_a_loaded_model_is_the_saved_one(saved: Path) -> None:
    with no_warnings():
        loaded = load_model(saved, dtype="float32")
    model = tiny_model()
    assert_same_model(loaded, model)
    ids = random_ids(model.config, 2, 9)
    ours, theirs = loaded(ids), model(ids)
    assert torch.equal(ours.logits, theirs.logits)
    assert torch.equal(ours.mtp_logits[0], theirs.mtp_logits[0])


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_weights_come_in_the_dtype_asked_for_and_the_router_in_float32(saved: Path, name: str) -> None:
    dtype = getattr(torch, name)
    loaded, model = load_model(saved, dtype=name), tiny_model()
    for key, tensor in loaded.state_dict().items():
        router = ".mlp.gate." in key
        assert tensor.dtype == (torch.float32 if router else dtype), key
        assert torch.equal(tensor, model.state_dict()[key].to(tensor.dtype)), key
    assert_same_model(load_model(saved, dtype=dtype), loaded)


def test_auto_takes_the_dtype_on_disk(tmp_path: Path) -> None:
    save_model(tiny_model(), tmp_path / "m", dtype="bfloat16")
    assert load_model(tmp_path / "m", dtype="auto").lm_head.weight.dtype is torch.bfloat16
    save_model(tiny_model(), tmp_path / "m", dtype="float32")
    assert load_model(tmp_path / "m", dtype="auto").lm_head.weight.dtype is torch.float32
    assert load_model(tmp_path / "m").lm_head.weight.dtype is torch.bfloat16


@pytest.mark.parametrize("wrong", ["int8", "float64", torch.int32, "fp8"])
def test_a_dtype_that_no_model_has_is_refused(saved: Path, wrong: Any) -> None:
    with pytest.raises(ConfigError, match="a model is one of float32, bfloat16, float16 or 'auto'"):
        load_model(saved, dtype=wrong)


def test_any_float_dtype_on_disk_is_accepted_for_any_tensor(saved: Path) -> None:
    """V3.2 stores its norms in float32; other tools store other things."""
    kinds = [torch.float32, torch.bfloat16, torch.float16, torch.float64]

    def mix(tensors: dict[str, Tensor]) -> None:
        for n, name in enumerate(sorted(tensors)):
            tensors[name] = tensors[name].to(kinds[n % 4])

    edit_tensors(saved, mix)
    on_disk = tensors_of(saved)
    with pytest.warns(CheckpointWarning, match="embed_tokens"):  # its copy was rounded otherwise
        loaded = load_model(saved, dtype="float32").state_dict()
    assert torch.equal(loaded["lm_head.weight"], on_disk["lm_head.weight"].float())
    for e in range(8):
        gate = on_disk[f"model.layers.1.mlp.experts.{e}.gate_proj.weight"].float()
        up = on_disk[f"model.layers.1.mlp.experts.{e}.up_proj.weight"].float()
        assert torch.equal(loaded["model.layers.1.mlp.experts.gate_up_proj"][e], torch.cat([gate, up]))


def test_a_tied_head_is_one_parameter(tmp_path: Path) -> None:
    model = tiny_model(tie_word_embeddings=True, num_nextn_predict_layers=2)
    save_model(model, tmp_path / "m")
    with no_warnings():
        loaded = load_model(tmp_path / "m", dtype="float32")
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert_same_model(loaded, model)


def test_loaded_weights_can_be_trained_and_the_file_stays(saved: Path) -> None:
    before = (saved / "model.safetensors").read_bytes()
    loaded = load_model(saved, dtype="float32")
    out = loaded(random_ids(loaded.config, 1, 6))
    (out.logits.sum() + out.mtp_logits[0].sum()).backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter -= 0.1 * parameter.grad
    assert not torch.equal(loaded.lm_head.weight, tiny_model().lm_head.weight)
    assert (saved / "model.safetensors").read_bytes() == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_model_moves_to_a_device(saved: Path) -> None:
    loaded = load_model(saved, dtype="float32", device="cuda")
    assert all(tensor.is_cuda for tensor in loaded.state_dict().values())
    assert_same_model(loaded.cpu(), tiny_model())


# --- memory -----------------------------------------------------------------------------------------------------------


def test_tensors_in_the_right_dtype_are_mapped_not_copied(saved: Path) -> None:
    """All plain parameters of the file share its one mapping; experts, which are stacked, have storage of their own."""
    loaded = load_model(saved, dtype="float32")
    size = (saved / "model.safetensors").stat().st_size
    for name, parameter in loaded.state_dict().items():
        mapped = parameter.untyped_storage().nbytes() == size
        assert mapped == (".experts." not in name), name


MEASURE = """
import os, sys, torch
from cueva.checkpoint import load_model
def anonymous():
    return int(next(l for l in open('/proc/self/status') if l.startswith('RssAnon')).split()[1]) * 1024
def peak():
    return int(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1]) * 1024
load_model(sys.argv[1], dtype='float32')                    # imports and allocators warm up on a small one
open('/proc/self/clear_refs', 'w').write('5')               # the peak counter starts again here
before, peak_before = anonymous(), peak()
model = load_model(sys.argv[2], dtype=sys.argv[3])
print(anonymous() - before, peak() - peak_before)
"""


@pytest.mark.long
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_loading_takes_the_model_and_one_tensor(tmp_path: Path, dtype: str) -> None:
    """A directory of 200 MB: the peak of resident memory, mapped pages included, is the model and one tensor."""
    config = model_config("small", num_hidden_layers=5, vocab_size=16384)
    model = CausalLM(config)
    model.init_weights(torch.Generator().manual_seed(0))
    save_model(model.to(torch.bfloat16), tmp_path / "big")
    save_model(tiny_model(), tmp_path / "small")
    info = read_model_info(tmp_path / "big")
    assert 150e6 < info.tensor_bytes < 300e6
    del model
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "small"), str(tmp_path / "big"), dtype],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    held, peak = map(int, done.stdout.split())
    size = 4 if dtype == "float32" else 2
    vocabulary = config.vocab_size * config.hidden_size
    stacked = config.gate_count * 3 * (config.n_routed_experts or 0) * config.hidden_size * config.moe_intermediate_size
    # Where no cast is needed only the stacked experts take memory of their own.
    own = size * (config.parameters() + config.mtp_parameters() if dtype == "float32" else stacked)
    # The allocator may keep the buffer of the largest tensor. Comparing the MTP copies maps both and their originals:
    # pages that count in the peak, and that the system may take back.
    buffer, compared = size * vocabulary, 2 * 4 * vocabulary
    assert held < 1.02 * own + buffer + 5e6, f"{held:,} held for a model of {own:,}"
    assert peak < 1.02 * own + 2 * buffer + compared + 5e6, f"peak {peak:,} for a model of {own:,}"


WATCH = """
import pickle, sys, torch
def refuse(*args, **kwargs): raise SystemExit('unpickled')
pickle.load = pickle.loads = torch.load = refuse
from cueva.checkpoint import load_model
load_model(sys.argv[1])                                     # a first time, for imports that Python itself puts off
heavy = [name for name in ('torch._dynamo', 'huggingface_hub', 'safetensors') if name in sys.modules]
def watch(event, args):
    if event.startswith(('pickle', 'marshal', 'exec', 'compile', 'import', 'ctypes.dlopen', 'subprocess', 'os.system')):
        raise SystemExit(f'{event} {args}')
sys.addaudithook(watch)
model = load_model(sys.argv[1])
print(type(model).__name__, heavy)
"""


def test_loading_unpickles_imports_and_compiles_nothing(saved: Path) -> None:
    """A directory full of traps: remote code, pickles, `auto_map`. Python reports whatever would run; nothing does.

    Nor is PyTorch's compiler imported, which takes seconds: drawing weights on the meta device would bring it in.
    """
    for name in ("modeling_deepseek.py", "configuration_deepseek.py", "sitecustomize.py", "torch.py", "json.py"):
        (saved / name).write_text("raise SystemExit('this code must not run')")
    (saved / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'echo this code must not run'\ntR.")
    edit_config(saved, auto_map={"AutoConfig": "configuration_deepseek.X", "AutoModelForCausalLM": "modeling.Y"})
    done = subprocess.run(
        [sys.executable, "-c", WATCH, str(saved)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "CausalLM []", done.stderr


# --- tensors that do not fit the config -------------------------------------------------------------------------------


def test_missing_tensors_are_named_five_of_them_and_counted(saved: Path) -> None:
    drop(saved, "model.layers.1.mlp.experts.")
    with pytest.raises(CheckpointError, match=r"24 tensors are missing: (model\S+, ){4}model\S+ and 19 more"):
        load_model(saved)
    with pytest.raises(CheckpointError, match="24 tensors are missing"):
        read_model_info(saved)


@pytest.mark.parametrize(
    "name",
    [
        "model.norm.weight",
        "lm_head.weight",
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.2.mlp.gate.e_score_correction_bias",
        "model.layers.3.enorm.weight",
        "model.layers.3.shared_head.norm.weight",
        "model.layers.3.mlp.experts.7.down_proj.weight",
    ],
)
def test_one_missing_tensor_is_named(saved: Path, name: str) -> None:
    edit_tensors(saved, lambda tensors: tensors.pop(name))
    with pytest.raises(CheckpointError, match=f"1 tensor is missing: {name}"):
        load_model(saved)


@pytest.mark.parametrize(
    "name",
    [
        "score.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.1.mlp.experts.8.up_proj.weight",
        "model.layers.4.input_layernorm.weight",
        "model.layers.1.self_attn.o_proj.bias",
        "model.layers.1.self_attn.indexer.wq_b.weight",
    ],
)
def test_a_surplus_tensor_is_named(saved: Path, name: str) -> None:
    edit_tensors(saved, lambda tensors: tensors.update({name: torch.zeros(2, 2)}))
    with pytest.raises(CheckpointError, match=f"1 tensor is not part of the model: {name}"):
        load_model(saved)


def test_old_rotary_frequencies_are_ignored(saved: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_tensors(saved, lambda tensors: tensors.update({name: torch.zeros(4)}))
    with no_warnings():
        assert_same_model(load_model(saved, dtype="float32"), tiny_model())


def test_a_tensor_of_another_shape_is_named_with_both(saved: Path) -> None:
    name = "model.layers.1.self_attn.o_proj.weight"
    edit_tensors(saved, lambda tensors: tensors.update({name: torch.zeros(32, 31)}))
    with pytest.raises(CheckpointError, match=rf"1 tensor has another shape .*{name} is 32 x 31 instead of 32 x 32"):
        load_model(saved)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.bool, torch.float8_e5m2])
def test_weights_that_are_no_floats_are_named(saved: Path, dtype: torch.dtype) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    edit_tensors(saved, lambda tensors: tensors.update({name: torch.zeros(64, 32).to(dtype)}))
    with pytest.raises(CheckpointError, match=f"{name}.*{str(dtype).removeprefix('torch.')}"):
        load_model(saved)


def test_a_wrong_config_for_the_right_tensors_is_refused_before_anything_is_built(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit_config(saved, hidden_size=40)
    monkeypatch.setattr(nn.Module, "__init__", lambda *_: pytest.fail("a module was built"))
    with pytest.raises(CheckpointError, match=r"and [0-9]+ more"):
        load_model(saved)


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no model directory"):
        load_model(tmp_path / "nowhere")
    (tmp_path / "f").touch()
    with pytest.raises(CheckpointError, match="there is no model directory"):
        load_model(tmp_path / "f")


# --- how many MTP modules there are -----------------------------------------------------------------------------------


def test_a_promised_depth_without_tensors_is_left_out_with_a_warning(saved: Path) -> None:
    """What `transformers` leaves when it saves such a model again."""
    drop(saved, MTP)
    with pytest.warns(
        CheckpointWarning, match=r"promises 1 MTP module, but .* depth 1 \(model.layers.3\.\*\): loaded with 0"
    ):
        loaded = load_model(saved, dtype="float32")
    assert loaded.config.num_nextn_predict_layers == 0
    ids = random_ids(loaded.config, 1, 7)
    assert torch.equal(loaded(ids).logits, tiny_model()(ids).logits)


def test_only_the_deeper_depth_may_be_absent(tmp_path: Path) -> None:
    model = tiny_model(num_nextn_predict_layers=3)
    save_model(model, tmp_path / "m")
    drop(tmp_path / "m", "model.layers.5.")
    with pytest.warns(
        CheckpointWarning, match=r"promises 3 MTP modules, .* depth 3 \(model.layers.5\.\*\): loaded with 2"
    ):
        assert load_model(tmp_path / "m").config.num_nextn_predict_layers == 2
    save_model(model, tmp_path / "m")
    drop(tmp_path / "m", "model.layers.4.")
    with pytest.raises(CheckpointError, match="depth 2 are missing, but deeper ones"):
        load_model(tmp_path / "m")


@pytest.mark.parametrize("kept", ["embed_tokens", "enorm"])
def test_a_depth_with_some_of_its_tensors_is_an_error(saved: Path, kept: str) -> None:
    edit_tensors(saved, lambda ts: [ts.pop(n) for n in list(ts) if n.startswith(MTP) and kept not in n])
    with pytest.raises(CheckpointError, match=r"tensors are missing: model.layers.3\."):
        load_model(saved)


@pytest.mark.parametrize("written", [0, ...])
def test_tensors_of_depths_that_the_config_does_not_mention_are_believed(tmp_path: Path, written: Any) -> None:
    model = tiny_model(num_nextn_predict_layers=2)
    save_model(model, tmp_path / "m")
    edit_config(tmp_path / "m", num_nextn_predict_layers=written)
    with pytest.warns(CheckpointWarning, match="there are tensors of 2: loaded with 2"):
        loaded = load_model(tmp_path / "m", dtype="float32")
    assert_same_model(loaded, model)
    assert read_config(tmp_path / "m").num_nextn_predict_layers == 2
    assert read_model_info(tmp_path / "m").config.num_nextn_predict_layers == 2


def test_no_key_and_no_tensors_mean_no_depth_without_a_word(tmp_path: Path) -> None:
    model = tiny_model(num_nextn_predict_layers=0)
    save_model(model, tmp_path / "m")
    edit_config(tmp_path / "m", num_nextn_predict_layers=...)
    with no_warnings():
        assert_same_model(load_model(tmp_path / "m", dtype="float32"), model)


def test_a_config_alone_has_the_depths_that_it_says(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    assert read_config(saved).num_nextn_predict_layers == 1
    edit_config(saved, num_nextn_predict_layers=...)
    assert read_config(saved).num_nextn_predict_layers == 0


def test_more_depths_than_the_config_says_are_surplus(tmp_path: Path) -> None:
    save_model(tiny_model(num_nextn_predict_layers=2), tmp_path / "m")
    edit_config(tmp_path / "m", num_nextn_predict_layers=1)
    with pytest.raises(CheckpointError, match=r"not part of the model: model.layers.4\."):
        load_model(tmp_path / "m")


# --- copies of embedding and head -------------------------------------------------------------------------------------


def test_absent_copies_are_the_main_models(saved: Path) -> None:
    edit_tensors(saved, lambda ts: [ts.pop(f"{MTP}{n}.weight") for n in ("embed_tokens", "shared_head.head")])
    with no_warnings():
        assert_same_model(load_model(saved, dtype="float32"), tiny_model())


@pytest.mark.parametrize("copy", ["embed_tokens.weight", "shared_head.head.weight"])
@pytest.mark.parametrize("change", ["values", "dtype"])
def test_a_copy_that_differs_stays_its_modules_own(saved: Path, copy: str, change: str, tmp_path: Path) -> None:
    name = MTP + copy

    def spoil(tensors: dict[str, Tensor]) -> None:
        other = tensors[name].clone()
        other += 0.5
        tensors[name] = other if change == "values" else tensors[name].bfloat16()

    edit_tensors(saved, spoil)
    assert read_model_info(saved).differing_copies == (name,)
    with pytest.warns(CheckpointWarning, match=f"{name} is not the copy of"):
        loaded = load_model(saved, dtype="float32")
    state = loaded.state_dict()
    assert torch.equal(state[name], tensors_of(saved)[name].float())
    model = tiny_model()
    ids = random_ids(model.config, 1, 8)
    assert torch.equal(loaded(ids).logits, model(ids).logits), "the main model does not change"
    assert not torch.equal(loaded(ids).mtp_logits[0], model(ids).mtp_logits[0]), "the module uses its own"
    save_model(loaded, tmp_path / "again")
    assert torch.equal(tensors_of(tmp_path / "again")[name], tensors_of(saved)[name].float()), "and it is written back"
    with pytest.warns(CheckpointWarning, match=name):
        assert_same_model(load_model(tmp_path / "again", dtype="float32"), loaded)


def test_copies_of_equal_values_in_another_dtype_are_copies(tmp_path: Path) -> None:
    save_model(tiny_model().to(torch.bfloat16), tmp_path / "m")
    name = f"{MTP}embed_tokens.weight"
    edit_tensors(tmp_path / "m", lambda tensors: tensors.update({name: tensors[name].float()}))
    with no_warnings():
        load_model(tmp_path / "m")


def test_a_tied_config_with_another_head_is_refused_and_with_the_same_accepted(tmp_path: Path) -> None:
    model = tiny_model(tie_word_embeddings=True)
    save_model(model, tmp_path / "m")
    edit_tensors(tmp_path / "m", lambda ts: ts.update({"lm_head.weight": ts["model.embed_tokens.weight"].clone()}))
    with no_warnings():
        assert_same_model(load_model(tmp_path / "m", dtype="float32"), model)
    edit_tensors(tmp_path / "m", lambda ts: ts.update({"lm_head.weight": ts["lm_head.weight"] + 1}))
    with pytest.raises(CheckpointError, match=r"`tie_word_embeddings` is true, but lm_head\.weight differs"):
        load_model(tmp_path / "m")


# --- FP8 --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scale_fmt", "e8m0", "dtype"),
    [(None, False, "float32"), (None, False, "bfloat16"), ("ue8m0", False, "float32"), ("ue8m0", True, "bfloat16")],
    ids=["float", "float, cast", "ue8m0", "e8m0 bytes, cast"],
)
def test_fp8_weights_are_code_times_scale(saved: Path, scale_fmt: str | None, e8m0: bool, dtype: str) -> None:
    config = PRESETS["tiny"]
    quantise_folder(saved, config, scale_fmt=scale_fmt, e8m0=e8m0)
    on_disk = tensors_of(saved)
    assert on_disk["model.layers.0.self_attn.kv_a_proj_with_mqa.weight"].shape[0] % 16, "a ragged edge is among them"
    with no_warnings():
        state = load_model(saved, dtype=dtype).state_dict()

    def expected(name: str) -> Tensor:
        tensor = on_disk[name]
        if tensor.dtype == E4M3:
            tensor = slow_dequantise(tensor, on_disk[f"{name}_scale_inv"].float(), (16, 8))
        return tensor.to(getattr(torch, dtype))

    for name in ("self_attn.kv_a_proj_with_mqa", "self_attn.q_b_proj", "self_attn.o_proj", "mlp.gate_proj"):
        full = f"model.layers.0.{name}.weight"
        assert torch.equal(state[full], expected(full)), name
    for layer in (2, 3):
        own = f"model.layers.{layer}.mlp.experts.5."
        both = torch.cat([expected(f"{own}gate_proj.weight"), expected(f"{own}up_proj.weight")])
        assert torch.equal(state[f"model.layers.{layer}.mlp.experts.gate_up_proj"][5], both)
        assert torch.equal(state[f"model.layers.{layer}.mlp.experts.down_proj"][5], expected(f"{own}down_proj.weight"))
    assert torch.equal(state["lm_head.weight"], expected("lm_head.weight"))


def test_a_saved_fp8_model_is_plain_and_says_so(saved: Path, tmp_path: Path) -> None:
    quantise_folder(saved, PRESETS["tiny"])
    info = read_model_info(saved)
    assert info.fp8_block == (16, 8)
    assert info.dtype_tensors["float8_e4m3fn"] > 50
    loaded = load_model(saved)
    save_model(loaded, tmp_path / "plain")
    assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    assert not any("scale" in name for name in tensors_of(tmp_path / "plain"))
    assert read_model_info(tmp_path / "plain").fp8_block is None
    with no_warnings():
        assert_same_model(load_model(tmp_path / "plain"), loaded)


NAME = "model.layers.0.self_attn.o_proj.weight"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda ts: ts.pop(f"{NAME}_scale_inv"), f"1 FP8 scale is missing: {NAME}_scale_inv"),
        (
            lambda ts: ts.update({f"{NAME}_scale_inv": torch.ones(2, 3)}),
            rf"{NAME}_scale_inv is 2 x 3 .*instead of 2 x 4",
        ),
        (
            lambda ts: ts.update({f"{NAME}_scale_inv": torch.ones(2, 4).int()}),
            f"{NAME}_scale_inv is 2 x 4 of torch.int32",
        ),
        (lambda ts: ts.update({NAME: ts[NAME].bfloat16()}), f"1 scale lies beside weights that are not FP8: {NAME}"),
        (lambda ts: ts.update({"x.weight_scale_inv": torch.ones(1, 1)}), "1 scale has no weight: x.weight_scale_inv"),
    ],
)
def test_scales_that_do_not_belong_are_named(saved: Path, spoil: Any, words: str) -> None:
    quantise_folder(saved, PRESETS["tiny"])
    edit_tensors(saved, spoil)
    with pytest.raises(CheckpointError, match=words):
        load_model(saved)


def test_fp8_without_a_block_size_is_refused(saved: Path) -> None:
    quantise_folder(saved, PRESETS["tiny"])
    edit_config(saved, quantization_config=...)
    with pytest.raises(CheckpointError, match="no `quantization_config` that gives the size of their blocks"):
        load_model(saved)


def test_a_leftover_quantization_config_over_plain_weights_is_pointed_out(saved: Path) -> None:
    edit_config(saved, quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]})
    with pytest.warns(CheckpointWarning, match="no tensor is FP8"):
        assert_same_model(load_model(saved, dtype="float32"), tiny_model())


# --- inspecting -------------------------------------------------------------------------------------------------------


def test_the_facts_of_a_directory(saved: Path) -> None:
    edit_config(saved, ep_size=1, my_note=2, auto_map={"AutoConfig": "x.Y"})
    info = read_model_info(saved)
    on_disk = tensors_of(saved)
    assert info.tensors == len(on_disk)
    assert info.tensor_bytes == sum(t.numel() * t.element_size() for t in on_disk.values())
    assert info.file_bytes == (saved / "model.safetensors").stat().st_size
    assert info.files == ("model.safetensors",)
    assert info.dtype_tensors == {"float32": len(on_disk)}
    assert info.unknown_keys == ("my_note",)
    assert info.harmless_keys == ("ep_size",)
    assert info.dropped_keys == ("auto_map",)
    assert info.differing_copies == info.departures == ()
    assert any("my_note" in warning for warning in info.warnings)
    assert dataclasses.replace(info.config, other={}) == PRESETS["tiny"]


def test_a_warning_is_raised_where_load_was_called(saved: Path) -> None:
    edit_config(saved, my_note=1)
    with pytest.warns(CheckpointWarning, match="my_note") as caught:
        load_model(saved)
    assert caught[0].filename == __file__
