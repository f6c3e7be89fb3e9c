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
    for operation, backends in facts["kernels"].items():
        assert f"{operation}: {', '.join(backends)}" in text
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
    "threads": {"torch": 8},
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
