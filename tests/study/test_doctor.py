"""The examination: facts a program can read, sentences a person can act on, in two seconds and forty lines."""

import copy
import json
import time
from pathlib import Path
from typing import Any

import pytest

from cueva.study import examine, format_examination
from cueva.study.doctor import GIB, advise


@pytest.fixture(scope="module")
def timed() -> tuple[dict[str, Any], float]:
    examine(measured=False)  # pays for importing torch
    began = time.process_time()
    return examine(), time.process_time() - began


@pytest.fixture
def facts(timed: tuple[dict[str, Any], float]) -> dict[str, Any]:
    return timed[0]


def test_an_examination_takes_less_than_two_seconds_once_torch_is_there(timed: tuple[dict[str, Any], float]) -> None:
    """On a machine shared with other tests only the clock of this process counts."""
    assert timed[1] < 2


def test_facts_are_json_and_words_are_at_most_forty_lines(facts: dict[str, Any]) -> None:
    assert json.loads(json.dumps(facts)) == facts
    many = facts | {"advice": facts["advice"] * 10, "environment": {f"CUEVA_{n}": "1" for n in range(30)}}
    for found in (facts, many):
        assert len(format_examination(found).splitlines()) <= 40


def test_the_words_name_processor_versions_backends_and_measurements(facts: dict[str, Any]) -> None:
    text = format_examination(facts)
    assert facts["machine"]["processor"] in text
    assert facts["versions"]["torch"] in text
    assert facts["versions"]["torch_build"] in text
    for operation, about in facts["kernels"].items():
        assert operation in text
        assert f"{about['generation']} generates on the CPU" in text
        assert about["why"] in text
    assert f"torch uses {facts['threads']['torch']} threads, an engine {facts['threads']['engine']}" in text
    assert "GFLOP/s" in text or "TFLOP/s" in text
    assert facts["measured"]["read_bytes"] > 1e8
    assert facts["measured"]["float32_flops"] > 1e8


def test_without_measuring_nothing_is_claimed() -> None:
    found = examine(measured=False)
    assert found["measured"] is None
    assert "not this time" in format_examination(found)


def test_variables_are_shown_and_secrets_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUEVA_CACHE", "/somewhere")
    monkeypatch.setenv("CUEVA_API_KEY", "hidden-1")
    monkeypatch.setenv("HF_TOKEN", "hidden-2")
    monkeypatch.setenv("HF_HOME", "/models")
    found = examine(measured=False)
    assert found["environment"]["CUEVA_CACHE"] == "/somewhere"
    assert found["environment"]["HF_HOME"] == "/models"
    assert found["environment"]["CUEVA_API_KEY"] == "(set, not shown)"
    assert "hidden" not in json.dumps(found) + format_examination(found)
    hub = next(place for place in found["disk"] if place["what"] == "hub cache")
    assert hub["path"] in ("/models/hub", str(Path("/models") / "hub"))


# --- kernels ----------------------------------------------------------------------------------------------------------


def test_each_operation_has_a_backend_and_a_reason(facts: dict[str, Any]) -> None:
    assert list(facts["kernels"]) == ["linear", "attend", "experts", "route", "norm", "rotary", "quant"]
    for about in facts["kernels"].values():
        assert about["why"]
        assert about["elsewhere"]
        assert about["generation"] in ("torch", f"native {facts['native']['chosen']}")
    assert set(facts["native"]["runs"]) <= set(facts["native"]["built"])


def test_an_instruction_set_that_was_asked_for_is_named_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = examine(measured=False)["native"]["runs"]
    if len(runs) < 2:
        pytest.skip("this machine runs one instruction set, or there are no native kernels")
    monkeypatch.setenv("CUEVA_ISA", "portable")
    found = examine(measured=False)
    assert found["native"]["chosen"] == "portable"
    assert all(about["generation"] == "native portable" for about in found["kernels"].values())
    assert f"CUEVA_ISA asks for portable; the best that this processor runs is {runs[0]}" in format_examination(found)


def test_an_instruction_set_that_does_not_exist_is_a_finding_and_not_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUEVA_ISA", "abacus")
    found = examine(measured=False)
    assert found["native"]["trouble"].startswith("CUEVA_ISA is 'abacus', but ")
    assert all(about["generation"] == "torch" for about in found["kernels"].values())
    assert any(item["fix"] == "unset CUEVA_ISA" for item in found["advice"])


def test_without_the_extension_the_words_say_why_and_what_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    from cueva.kernels import native

    monkeypatch.setattr(native, "_loaded", lambda: (None, "the native kernels were not built, so be it; build them"))
    found = examine(measured=False)
    assert json.loads(json.dumps(found)) == found
    assert found["native"]["built"] == found["native"]["runs"] == []
    text = format_examination(found)
    assert "torch generates on the CPU" in text
    assert (
        "text is generated several times slower than it could be: the native kernels were not built, so be it" in text
    )
    assert "fix: build them" in text


# --- advice -----------------------------------------------------------------------------------------------------------


HEALTHY: dict[str, Any] = {
    "machine": {
        "cores": {"machine": 8, "allowed": 8, "quota": None, "usable": 8},
        "memory": {"total": 32 * GIB, "available": 20 * GIB, "limit": None},
        "instructions": "AVX512",
        "bfloat16_instructions": ["avx512_bf16"],
        "architecture": "x86_64",
        "load": 0.2,
    },
    "versions": {"torch_build": "CPU"},
    "devices": [{"name": "cpu"}],
    "threads": {"torch": 8, "engine": 8},
    "native": {
        "file": "/p/_native.so",
        "missing": None,
        "built": ["avx512", "avx2", "portable"],
        "runs": ["avx512", "avx2", "portable"],
        "chosen": "avx512",
        "trouble": None,
    },
    "openmp": ["/t/libgomp.so.1"],
    "measured": {"float32_flops": 5e11, "bfloat16_flops": 9e11, "read_bytes": 4e10},
    "disk": [{"what": "runs", "path": "/r", "free": 100 * GIB}, {"what": "hub cache", "path": "/h", "free": 100 * GIB}],
    "environment": {},
}


def changed(**changes: Any) -> dict[str, Any]:
    facts = copy.deepcopy(HEALTHY)
    for path, value in changes.items():
        *way, last = path.split("__")
        place: Any = facts
        for key in way:
            place = place[int(key) if key.isdigit() else key]
        place[last] = value
    return facts


def test_a_healthy_machine_needs_no_advice() -> None:
    assert [item for item in advise(HEALTHY) if "GPU" not in item["what"]] == []


@pytest.mark.parametrize(
    ("facts", "what", "fix"),
    [
        (changed(machine__cores={"usable": 2}), "every operation will be slower", "export OMP_NUM_THREADS=2"),
        (changed(threads__torch=4), "cores stay idle", "export OMP_NUM_THREADS=8"),
        (
            changed(threads__torch=4, environment={"OMP_NUM_THREADS": "4"}),
            "cores stay idle",
            "unset OMP_NUM_THREADS and MKL_NUM_THREADS",
        ),
        (changed(machine__load=30.0), "this machine is busy", "let the other work finish first"),
        (changed(versions__torch_build="CUDA 12.8"), "everything runs on the CPU", "nvidia-smi"),
        (changed(machine__instructions="DEFAULT"), "matrix products take several times as long", "ATEN_CPU_CAPABILITY"),
        (changed(measured__bfloat16_flops=1e10), "bfloat16 saves memory but costs time", 'weights="f32"'),
        (changed(machine__memory={"available": GIB, "limit": None}), "only small models fit", "preset tiny"),
        (changed(machine__memory={"available": 9 * GIB, "limit": GIB}), "only small models fit", "preset tiny"),
        (
            changed(native__missing="the native kernels were not built, why; install one", native__chosen=None),
            "text is generated several times slower",
            "install one",
        ),
        (changed(native__chosen="portable"), "text is generated slower", "unset CUEVA_ISA"),
        (
            changed(native__chosen=None, native__trouble="CUEVA_ISA is 'sse'"),
            "no text can be generated",
            "unset CUEVA_ISA",
        ),
        (changed(openmp=["/t/libgomp.so.1", "/u/libgomp.so.1"]), "threads fight for the cores", "import torch before"),
        (changed(disk__0__free=GIB), "saving a run may fail", "a folder on a larger disk"),
        (changed(disk__1__free=GIB), "downloads may fail", "HF_HOME"),
    ],
)
def test_what_will_be_slow_comes_with_its_reason_and_a_fix(facts: dict[str, Any], what: str, fix: str) -> None:
    found = [item for item in advise(facts) if item["what"].startswith(what)]
    assert len(found) == 1
    assert fix in found[0]["fix"]
    assert found[0]["why"]


def test_bfloat16_without_instructions_is_given_as_the_reason() -> None:
    facts = changed(measured__bfloat16_flops=1e10, machine__bfloat16_instructions=[])
    why = next(item["why"] for item in advise(facts) if item["what"].startswith("bfloat16"))
    assert (
        why
        == "bfloat16 products take 50.0 times as long as float32 ones here: the processor has no instructions for them"
    )
