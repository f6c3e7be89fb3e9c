"""What the engine's benchmark counts, runs and says; its speeds are nobody's promise here."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import engine, peers, roofline
from benchmarks.contestant import Child, EndedError
from benchmarks.drafting import ForcedDrafts
from benchmarks.engine_table import table
from benchmarks.shapes import BENCH, Files
from cueva.config import PRESETS, ModelConfig
from cueva.engine import Engine, Sampling
from cueva.kernels import native
from tests.builders import tiny_model

needs_native = pytest.mark.skipif(native.extension() is None, reason="the native kernels are not built")


# --- counting ---------------------------------------------------------------------------------------------------------


def test_the_benchmark_shape_has_the_parameters_it_is_known_by() -> None:
    assert BENCH.parameters() == 728_110_080
    assert BENCH.parameters(active=True) - BENCH.vocab_size * BENCH.hidden_size == 210_899_968


def test_a_step_of_the_benchmark_shape_reads_each_weight_a_token_meets_once() -> None:
    attention = 1024 * 512 + 512 * 16 * 192 + 1024 * 576 + 512 * 16 * 256 + 16 * 128 * 1024
    dense, expert, router, head = 3 * 1024 * 2816, 3 * 1024 * 512, 32 * 1024, 32_000 * 1024
    weights = 12 * attention + dense + 11 * 5 * expert + head
    assert weights == 210_501_632
    # Routers are float32 in every format; Q8_0 has 34 bytes for 32 weights, Q4_0 18.
    assert roofline.step_bytes(BENCH, "bf16") == 2 * weights + 4 * 11 * router == 422_445_056
    assert roofline.step_bytes(BENCH, "q8_0") == weights * 34 // 32 + 4 * 11 * router
    assert roofline.step_bytes(BENCH, "q4_0") == weights * 18 // 32 + 4 * 11 * router
    # FP8 leaves the head in bf16; Q4_K (144 bytes for 256) has it in Q6_K (210), and k_up, 128 wide, in Q8_0.
    fp8 = (weights - head) * (1 + 4 / 128**2) + 2 * head
    assert roofline.step_bytes(BENCH, "fp8") == pytest.approx(fp8 + 4 * 11 * router, rel=1e-12)
    k_up = 12 * 512 * 16 * 128
    q4_k = (weights - head - k_up) * 144 / 256 + head * 210 / 256 + k_up * 34 / 32
    assert roofline.step_bytes(BENCH, "q4_k") == q4_k + 4 * 11 * router


def test_absorbed_attention_of_the_benchmark_shape_takes_34_816_flop_a_row_and_layer() -> None:
    assert roofline.attention_flop(BENCH, 2047) == 12 * 2048 * 34_816
    assert roofline.attention_flop(BENCH, 64, tokens=16) == 16 * 12 * 65 * 34_816


def test_a_prompt_of_the_benchmark_shape_takes_the_flop_counted_by_hand() -> None:
    met = 210_501_632 - 32_000 * 1024 + 11 * 32 * 1024
    attention = 12 * 16 * 2 * (192 + 128) * 512 * 513 // 2
    assert roofline.prefill_flop(BENCH, 512) == 2 * 512 * met + attention + 2 * 32_000 * 1024


def test_cached_rows_of_the_benchmark_shape_take_13_824_bytes_a_position() -> None:
    assert roofline.cache_bytes(BENCH, "bf16", 1) == 12 * 576 * 2
    assert roofline.cache_bytes(BENCH, "f32", 8192) == 8192 * 12 * 576 * 4


@pytest.mark.parametrize("name", PRESETS)
def test_matrices_norms_and_embedding_are_all_that_a_token_meets(name: str) -> None:
    config = PRESETS[name]
    norms = config.num_hidden_layers * (2 * config.hidden_size + config.kv_lora_rank + (config.q_lora_rank or 0))
    rest = norms + config.hidden_size + config.vocab_size * config.hidden_size
    assert sum(some.weights for some in roofline.matrices(config)) + rest == config.parameters(active=True)


@given(tokens=st.integers(1, 200))
def test_more_tokens_touch_more_experts_and_never_more_than_there_are(tokens: int) -> None:
    touched = roofline.touched_experts(BENCH, tokens)
    assert 4 <= touched <= roofline.touched_experts(BENCH, tokens + 1) <= 32
    assert roofline.touched_experts(BENCH, 1) == pytest.approx(4)
    assert roofline.touched_experts(BENCH, 16) == pytest.approx(28.22, abs=0.01)


def test_a_model_without_experts_touches_none() -> None:
    dense = ModelConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, kv_lora_rank=4,
        qk_nope_head_dim=4, qk_rope_head_dim=2, v_head_dim=4, q_lora_rank=None, n_routed_experts=None,
    )  # fmt: skip
    assert roofline.touched_experts(dense, 5) == 0
    assert {some.part for some in roofline.matrices(dense)} == {"attention", "dense", "head"}


def test_the_bound_adds_reading_and_attending() -> None:
    assert roofline.step_bound(4e9, 1e9, bandwidth=2e9, peak=1e10) == pytest.approx(2.1)


# --- running ----------------------------------------------------------------------------------------------------------


@needs_native
def test_a_quick_run_without_peers_gives_a_whole_result_and_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "result.json"
    words = ["--quick", "--peers", "0", "--weights", "bf16", "--threads", "1"]
    words += ["--folder", str(tmp_path), "--json", str(file)]
    assert engine.main(words) == 0
    result = json.loads(file.read_text())
    rows = {row["work"]: row for row in result["speed"]["rows"]}
    assert list(rows) == ["prefill 32", "3 sequences at 64", "decode at 16", "decode at 96"]
    for row in rows.values():
        assert not row["failed"], row
        assert len(row["rates"]["cueva"]) == len(row["ceilings"]) == 1
        assert min(row["rates"]["cueva"]) > 0
        assert row["bound"] > 0
        assert row["share_of_bound"]["cueva"] > 0
    assert rows["decode at 96"]["flop"] > rows["decode at 16"]["flop"] > 0
    assert 2 <= rows["3 sequences at 64"]["touched_experts"] <= 4
    packed, mapped = result["memory"]
    assert (packed["how"], mapped["how"]) == ("packed", "mapped")
    assert packed["weight_bytes"] > 2 * 1_000_000
    assert mapped["weight_bytes"] < packed["weight_bytes"]
    assert packed["first_token_seconds"] > 0
    shown = capsys.readouterr().out
    assert "says nothing about speed" in shown
    assert "decode at 96" in shown
    assert "GB/s" in shown


@needs_native
def test_an_absent_peer_is_named_with_the_way_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(peers.PACKAGES, "llama", ("no_such_module", "no-such-package"))  # type: ignore[arg-type]
    words = ["--quick", "--peers", "llama", "--weights", "bf16", "--threads", "1", "--parts", "speed", "--cached", "0"]
    assert engine.main([*words, "--sequences", "0", "--folder", str(tmp_path)]) == 0
    assert "llama is absent: not installed (pip install no-such-package)" in capsys.readouterr().out


def test_a_length_beyond_the_model_is_left_out_by_name(tmp_path: Path) -> None:
    asked = engine._parser().parse_args(["--cached", "16,20000", "--prefill", "0", "--sequences", "0"])
    files = Files("bench", BENCH, tmp_path / "model", tmp_path)
    works, left_out = engine._works(asked, files)
    assert [str(work) for work in works] == ["decode at 16"]
    assert left_out == ["decode at 20000: this model has 16384 positions"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--weights", "q5_0"], "there is no weights 'q5_0'"),
        (["--peers", "lama"], "there is no peer 'lama'; did you mean 'llama'?"),
        (["--parts", "sped"], "there is no part 'sped'"),
        (["--repeats", "0"], "--repeats is 0"),
    ],
)
def test_a_name_that_does_not_exist_is_refused(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert engine.main([*words, "--folder", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_contestant_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(EndedError, match="there is no model directory"):
        Child(["torch", str(tmp_path / "nowhere")], tmp_path / "log", threads=1)


# --- drafting and tables ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [True, False], ids=["whole vocabulary", "reduced vocabulary"])
@pytest.mark.parametrize("draft", [1, 3])
def test_forced_drafts_stay_exactly_where_the_coin_says_and_change_no_text(draft: int, whole: bool) -> None:
    model, prompt = tiny_model(), [5, 6, 7]
    sampling = Sampling(max_new_tokens=24, temperature=0, ignore_eos=True)
    plain = Engine(model, backend="torch").generate([prompt], sampling, draft=0)[0].token_ids
    ids_V = None if whole else np.unique([*plain, *range(40)])
    for right in (np.ones(24, bool), np.zeros(24, bool)):
        engine_ = Engine(model, backend="torch", draft_vocabulary=ids_V)
        forced = ForcedDrafts(engine_.runner, len(prompt), plain, right)
        answer = engine_.generate([prompt], sampling, draft=draft)[0]
        forced.end()
        assert answer.token_ids == plain
        assert sum(answer.stats.drafted) > 0
        assert sum(answer.stats.accepted) == (sum(answer.stats.drafted) if right.all() else 0)


def test_columns_of_a_table_line_up() -> None:
    lines = table(["work", "weights", "cueva"], [["decode at 16", "bf16", "7.5"], ["prefill 32", "q4_0", "1,234"]])
    assert lines == [
        "work          weights  cueva",
        "decode at 16  bf16       7.5",
        "prefill 32    q4_0     1,234",
    ]
