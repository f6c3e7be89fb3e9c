"""What we save opens in transformers and gives the same logits, and the other way round."""

import re
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from cueva.checkpoint import CheckpointWarning, load_model, save_model
from cueva.config import ModelConfig, RopeScaling, model_config
from cueva.model import CausalLM, RMSNorm
from tests.builders import random_ids, tiny_model
from tests.checkpoint.folders import no_warnings

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.oracle

LARGEST_ERROR = 2e-5
"""Of a logit, as a share of the largest: float32 sums in another order."""


def yarn(**keys: Any) -> RopeScaling:
    return RopeScaling(factor=4.0, original_max_position_embeddings=16, **keys)


V2 = {
    "model_type": "deepseek_v2",
    "scoring_func": "softmax",
    "norm_topk_prob": False,
    "num_nextn_predict_layers": 0,
    "n_shared_experts": 2,
}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "no q_lora": {"q_lora_rank": None},
    "one group, no MTP": {"n_group": 1, "topk_group": 1, "num_nextn_predict_layers": 0},
    "two of eight groups": {"n_routed_experts": 16, "n_group": 8, "topk_group": 2, "num_experts_per_tok": 3},
    "yarn, mscale twice": {"rope_scaling": yarn(mscale=1.0, mscale_all_dim=1.0)},
    "yarn, two mscales": {"rope_scaling": yarn(mscale=0.707, mscale_all_dim=1.3)},
    "yarn, no mscale": {"rope_scaling": yarn()},
    "yarn, one mscale": {"rope_scaling": yarn(mscale_all_dim=0.8, beta_fast=8.0, beta_slow=0.5)},
    "yarn, explicit factor": {"rope_scaling": yarn(attention_factor=1.25, truncate=False)},
    "halves": {"rope_interleave": False},
    "halves, yarn, theta": {"rope_interleave": False, "rope_theta": 500.0, "rope_scaling": yarn(mscale=1.0)},
    "tied, two depths": {"tie_word_embeddings": True, "num_nextn_predict_layers": 2},
    "biases": {"attention_bias": True},
    "biases, no q_lora": {"attention_bias": True, "q_lora_rank": None},
    "weights not normalised": {"norm_topk_prob": False, "routed_scaling_factor": 1.7},
    "all dense": {"first_k_dense_replace": 3, "num_nextn_predict_layers": 0},
    "all experts": {"first_k_dense_replace": 0, "n_shared_experts": 3},
    "no shared expert": {"n_shared_experts": None},
    "wide values": {"v_head_dim": 20, "qk_nope_head_dim": 12, "num_attention_heads": 3, "rms_norm_eps": 1e-5},
    "everything": {
        "q_lora_rank": None,
        "rope_scaling": yarn(mscale=1.0, mscale_all_dim=1.0),
        "tie_word_embeddings": True,
        "attention_bias": True,
        "norm_topk_prob": False,
        "first_k_dense_replace": 0,
        "num_nextn_predict_layers": 2,
        "rms_norm_eps": 1e-5,
    },
    "V2 greedy": V2 | {"topk_method": "greedy", "q_lora_rank": None, "routed_scaling_factor": 1.0},
    "V2 groups, scale 16": V2 | {"topk_method": "group_limited_greedy", "routed_scaling_factor": 16.0},
    "V2 yarn": V2
    | {
        "topk_method": "greedy",
        "n_group": 1,
        "topk_group": 1,
        "rope_scaling": yarn(mscale=0.707, mscale_all_dim=0.707),
    },
}


def opened(folder: Path) -> Any:
    """The model as transformers opens it, checked for weights that it did not find or did not know."""
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True
    )
    mtp = re.compile(rf"model\.layers\.({model.config.num_hidden_layers}|{model.config.num_hidden_layers + 1})\.")
    # An empty feed-forward of no shared experts has weights without values, which no file needs to hold.
    missing = [n for n in report["missing_keys"] if model.get_parameter(n).numel()]
    assert missing == []
    assert all(mtp.match(name) for name in report["unexpected_keys"])
    assert not report["mismatched_keys"]
    return model.eval()


def error(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@torch.no_grad()
def greedy(model: CausalLM, prompt_BT: Tensor, count: int) -> Tensor:
    ids_BT = prompt_BT
    for _ in range(count):
        hidden_BTD = model.states(ids_BT, mtp=False).hidden_BTD
        ids_BT = torch.cat([ids_BT, model.logits(hidden_BTD[:, -1:]).argmax(-1)], dim=1)
    return ids_BT


@pytest.fixture
def quiet() -> Any:
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.set_verbosity(before)


@pytest.mark.parametrize(("changes", "seed"), [(c, n) for n, c in enumerate(CASES.values())], ids=list(CASES))
def test_transformers_opens_what_we_save_and_we_open_what_it_saves(
    changes: dict[str, Any], seed: int, tmp_path: Path, quiet: None
) -> None:
    model = tiny_model(seed=seed, **changes)
    ids = random_ids(model.config, 2, 24, seed=seed)
    save_model(model, tmp_path / "ours")
    theirs = opened(tmp_path / "ours")
    with torch.no_grad():
        ours_logits, their_logits = model(ids).logits, theirs(ids).logits
    assert error(ours_logits, their_logits) < LARGEST_ERROR
    assert their_logits.abs().max() > 0.5, "logits of this size can differ"

    theirs.generation_config.eos_token_id = None
    their_ids = theirs.generate(ids[:, :6], max_new_tokens=8, do_sample=False)
    assert torch.equal(greedy(model, ids[:, :6], 8), their_ids)

    theirs.save_pretrained(tmp_path / "theirs")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CheckpointWarning)
        back = load_model(tmp_path / "theirs", dtype="float32")
    assert back.config.num_nextn_predict_layers == 0
    with torch.no_grad():
        assert torch.equal(back(ids).logits, ours_logits), "nothing was lost on the way through another tool"


def test_choices_below_zero_occur_in_these_models() -> None:
    """Otherwise filling masked experts with 0 instead of minus infinity would pass every test above."""
    model = tiny_model()
    with torch.no_grad():
        routings = model.states(random_ids(model.config, 2, 24)).routings
    for routing, (_, gate) in zip(routings, model.gates(), strict=True):
        choice_TE = routing.score_TE + gate.e_score_correction_bias
        assert (choice_TE < 0).float().mean() > 0.1


def test_only_the_latent_norms_keep_their_own_epsilon(tmp_path: Path, quiet: None) -> None:
    """With ordinary latents the difference hides at 1e-4; with small ones the wrong epsilon would be plain to see."""
    model = tiny_model(rms_norm_eps=1e-5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "kv_a_proj" in name or "q_a_proj" in name:
                parameter *= 1e-3
    ids = random_ids(model.config, 2, 24)
    save_model(model, tmp_path / "m")
    with torch.no_grad():
        theirs = opened(tmp_path / "m")(ids).logits
        assert error(model(ids).logits, theirs) < LARGEST_ERROR
        for name, module in model.named_modules():
            if isinstance(module, RMSNorm) and "_a_layernorm" in name:
                module.eps = 1e-5
        assert error(model(ids).logits, theirs) > 1e-3, "the wrong epsilon must show"


def test_a_bfloat16_directory_opens_as_such_with_its_router_in_float32(tmp_path: Path, quiet: None) -> None:
    save_model(tiny_model(), tmp_path / "m", dtype="bfloat16")
    theirs = opened(tmp_path / "m")
    ours = load_model(tmp_path / "m")
    their_state = theirs.state_dict()
    for name, tensor in ours.state_dict().items():
        if not name.startswith("model.layers.3."):
            assert their_state[name].dtype == tensor.dtype, name
            assert torch.equal(their_state[name], tensor), name


# --- MTP --------------------------------------------------------------------------------------------------------------


def their_mtp(folder: Path, config: ModelConfig) -> tuple[Any, Any]:
    """Their main model and MTP modules, which they find through a literal layer number, 61: it is patched here."""
    from transformers.modeling_layers import MtpModel
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3PreTrainedModel

    main = config.num_hidden_layers
    patterns = [rf"model\.layers\.{main + depth}.*" for depth in range(config.num_nextn_predict_layers)]
    with mock.patch.object(DeepseekV3PreTrainedModel, "_keys_to_ignore_on_load_unexpected", patterns):
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
        return model, MtpModel.from_pretrained(model).eval()


@pytest.mark.parametrize(
    "changes",
    [
        {"num_nextn_predict_layers": 1},
        {"num_nextn_predict_layers": 2, "rope_scaling": yarn(mscale=1.0, mscale_all_dim=1.0)},
        {"num_nextn_predict_layers": 3, "q_lora_rank": None, "rms_norm_eps": 1e-5, "rope_interleave": False},
        {"num_nextn_predict_layers": 2, "tie_word_embeddings": True, "first_k_dense_replace": 3},
    ],
    ids=["one", "two, yarn", "three", "two, tied, behind dense layers"],
)
def test_every_depth_agrees_with_their_mtp_model(changes: dict[str, Any], tmp_path: Path, quiet: None) -> None:
    model = tiny_model(**changes)
    config = model.config
    ids = random_ids(config, 1, 20)
    save_model(model, tmp_path / "m")
    main, mtp = their_mtp(tmp_path / "m", config)
    length = ids.shape[1]
    with torch.no_grad():
        ours = model(ids).mtp_logits
        state = main.model(ids).last_hidden_state
        for depth in range(1, config.num_nextn_predict_layers + 1):
            # Row i takes token i + depth; their positions begin at depth, ours at 0: only differences matter.
            state = mtp.forward_layer(
                depth - 1,
                state[:, : length - depth],
                torch.arange(depth, length)[None],
                None,
                input_ids=ids[:, depth:],
            )
            theirs = mtp._project_to_logits(state)
            assert ours[depth - 1].shape == theirs.shape
            assert error(ours[depth - 1], theirs) < LARGEST_ERROR, f"depth {depth}"
    assert len(ours) == config.num_nextn_predict_layers


def test_their_drafting_with_our_modules_changes_no_token(tmp_path: Path, quiet: None) -> None:
    model = tiny_model()
    save_model(model, tmp_path / "m")
    ids = random_ids(model.config, 1, 6)
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3PreTrainedModel

    with mock.patch.object(DeepseekV3PreTrainedModel, "_keys_to_ignore_on_load_unexpected", [r"model\.layers\.3.*"]):
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
        theirs.generation_config.eos_token_id = None
        drafted = theirs.generate(ids, max_new_tokens=8, do_sample=False, use_mtp=True)
    assert torch.equal(drafted, greedy(model, ids, 8))


def test_a_save_by_transformers_loses_the_modules_and_we_say_so(tmp_path: Path, quiet: None) -> None:
    save_model(tiny_model(), tmp_path / "ours")
    opened(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    with pytest.warns(CheckpointWarning, match="promises 1 MTP module"):
        load_model(tmp_path / "theirs")
    save_model(tiny_model(num_nextn_predict_layers=0), tmp_path / "ours")
    opened(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    with no_warnings():
        load_model(tmp_path / "theirs")


def test_their_fresh_model_opens_here(tmp_path: Path, quiet: None) -> None:
    """Not a model of ours that went through another tool: one that transformers made from its own config."""
    config = transformers.DeepseekV3Config(
        **{k: getattr(model_config("tiny"), k) for k in ("vocab_size", "hidden_size", "intermediate_size")},
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        q_lora_rank=24,
        kv_lora_rank=16,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=16,
        n_routed_experts=8,
        num_experts_per_tok=2,
        n_group=4,
        topk_group=2,
        first_k_dense_replace=1,
        max_position_embeddings=64,
        num_mtp_layers=0,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 12345.0,
            "factor": 4.0,
            "original_max_position_embeddings": 16,
            "mscale": 0.5,
            "mscale_all_dim": 0.5,
        },
    )
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.3)
    theirs.save_pretrained(tmp_path / "m")
    with no_warnings():
        ours = load_model(tmp_path / "m", dtype="float32")
    assert ours.config.rope_theta == 12345.0
    ids = random_ids(ours.config, 2, 20)
    with torch.no_grad():
        assert error(ours(ids).logits, theirs(ids).logits) < LARGEST_ERROR
