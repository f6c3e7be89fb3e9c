"""The build and the door: the module is there and binds to PyTorch's OpenMP, and what is missing is a sentence."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cueva.errors import RequestError
from cueva.kernels import native
from tools.build import Build, lacking

ROOT = Path(__file__).resolve().parent.parent.parent
REQUIRED = os.environ.get("CUEVA_NATIVE") == "require"
ELSEWHERE = "CUEVA_NATIVE_FOLDER" in os.environ
OBJECTS = Build().folder / "kernels" / "CMakeFiles"

present = pytest.mark.skipif(native.extension() is None, reason=native.missing() or "")
own_build = pytest.mark.skipif(ELSEWHERE, reason="a module from another folder is under test")


def python(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a line in a process of its own; a variable that is empty is taken away."""
    environment = {name: value for name, value in (os.environ | variables).items() if value or name not in variables}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


# --- it is there ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not REQUIRED and native.extension() is None, reason=native.missing() or "")
def test_the_native_module_is_there_and_has_every_instruction_set() -> None:
    """With CUEVA_NATIVE=require, as CI sets it, a module that is missing for whatever reason is a failure."""
    assert native.missing() is None
    built = set(native.built())
    assert "portable" in built
    if REQUIRED and not ELSEWHERE:  # a developer may have built fewer
        assert built == (set(native.SETS) if platform.machine() in ("x86_64", "AMD64") else {"portable"})
    assert native.runnable()
    assert set(native.runnable()) <= built
    assert native.runnable()[-1] == "portable"


@present
def test_the_process_has_one_openmp_runtime_and_it_is_pytorchs() -> None:
    code = (
        "import torch\n"
        "from cueva.kernels import native\n"
        "from cueva.kernels.linear import PackedMatrix\n"
        "matrix = PackedMatrix('f32', 64, 64, threads=2)\n"
        "matrix.fill(torch.eye(64))\n"
        "matrix.linear(torch.ones(3, 64), threads=2)\n"
        "print(*native.openmp_runtimes(), sep='\\n')"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    runtimes = done.stdout.split("\n")[:-1]
    if sys.platform != "linux":
        pytest.skip("this system does not tell which libraries are loaded")
    assert len(runtimes) == 1, runtimes
    assert f"{os.sep}torch{os.sep}" in runtimes[0] or "torch.libs" in runtimes[0]


@present
@own_build
def test_the_door_loads_pytorch_before_the_module() -> None:
    """By itself the module finds no OpenMP; through the door that cannot happen, whoever imports what first."""
    done = python("from cueva.kernels import native; print(native.missing())")
    assert (done.returncode, done.stdout.strip()) == (0, "None"), done.stderr


@pytest.mark.skipif(shutil.which("objdump") is None or shutil.which("nm") is None, reason="binutils are absent")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="about registers of x86-64")
@own_build
def test_no_instruction_set_leaks_into_another() -> None:
    """The portable objects know no wide registers, and no object has a function that two sets could share."""
    objects = {name: OBJECTS / f"kernels_{name}.dir" / "kernels.cpp.o" for name in native.SETS}
    if not all(path.is_file() for path in objects.values()):
        assert not REQUIRED, "tools.build leaves the objects in its build tree"
        pytest.skip("the kernels were not built in this checkout: python -m tools.build")
    listing = {
        name: subprocess.run(
            ["objdump", "-d", "--no-show-raw-insn", str(objects[name])], capture_output=True, text=True, check=True
        ).stdout
        for name in ("portable", "avx2")
    }
    assert "xmm" in listing["portable"]
    assert "ymm" not in listing["portable"]
    assert "zmm" not in listing["portable"]
    assert "ymm" in listing["avx2"]
    assert "zmm" not in listing["avx2"]
    for name, path in objects.items():
        symbols = subprocess.run(["nm", "-C", str(path)], capture_output=True, text=True, check=True).stdout
        # What can be shared is weak or unique; in the set's own namespace nobody else has it.
        shared = [line for line in symbols.splitlines() if line[17:18] in ("W", "u") and f"{name}::" not in line]
        assert not shared, f"{name}: {shared}"


# --- it is not there --------------------------------------------------------------------------------------------------


def test_what_is_missing_is_said_once_and_not_at_import(tmp_path: Path) -> None:
    code = (
        "import sys, cueva\n"
        "from cueva.kernels import native\n"
        "print('imported', file=sys.stderr)\n"
        "native.warn_if_missing(); native.warn_if_missing()\n"
        "print(native.extension(), native.instruction_set(), native.built(), native.runnable())"
    )
    done = python(code, CUEVA_NATIVE_FOLDER=str(tmp_path), CUEVA_ISA="")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "None None [] []"
    before, after = done.stderr.split("imported\n")
    assert "native" not in before
    assert len(after.strip().splitlines()) == 1
    assert "several times slower" in after


def test_a_module_that_cannot_be_loaded_is_a_sentence_with_the_loaders_reason(tmp_path: Path) -> None:
    import importlib.machinery

    (tmp_path / f"_native{importlib.machinery.EXTENSION_SUFFIXES[0]}").write_bytes(b"not a library")
    done = python("from cueva.kernels import native; print(native.missing())", CUEVA_NATIVE_FOLDER=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("the native kernels were built but cannot be loaded (")
    assert len(done.stdout.strip().splitlines()) == 1


def test_no_compiler_and_a_build_that_failed_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(native.shutil, "which", lambda name: None)
    assert "because there is no C++ compiler here" in native._not_built(None)
    monkeypatch.setattr(native.shutil, "which", lambda name: f"/usr/bin/{name}" if name == "g++" else None)
    assert "although there is a C++ compiler (/usr/bin/g++)" in native._not_built(None)
    monkeypatch.setenv("CXX", "ccache clang++")
    assert "because there is no C++ compiler here" in native._not_built(None)


def test_the_builder_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nonexistent/c++")
    assert lacking(Build()) in (
        "there is no C++ compiler (g++ or clang++)",
        "there is no cmake: pip install '.[dev]' brings one",
    )


# --- which instruction set --------------------------------------------------------------------------------------------


@present
def test_the_best_that_runs_is_taken_unless_another_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUEVA_ISA", raising=False)
    assert native.instruction_set() == native.runnable()[0]
    for name in native.runnable():
        monkeypatch.setenv("CUEVA_ISA", name)
        assert native.instruction_set() == name


@present
def test_an_instruction_set_that_cannot_be_used_is_refused_with_the_ones_that_can(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usable = ", ".join(native.runnable())
    missed = [name for name in native.built() if name not in native.runnable()]
    wrong = {"abacus": "there is no such instruction set"} | {n: "this processor does not run it" for n in missed}
    for name, why in wrong.items():
        monkeypatch.setenv("CUEVA_ISA", name)
        with pytest.raises(RequestError) as refused:
            native.instruction_set()
        assert refused.value.message == f"CUEVA_ISA is {name!r}, but {why}; what can be used here: {usable}"
        assert refused.value.way_out == "unset it, or name one of those"


def test_an_instruction_set_is_not_ignored_where_there_are_no_kernels(tmp_path: Path) -> None:
    done = python(
        "from cueva.kernels import native\n"
        "try: native.instruction_set()\n"
        "except Exception as error: print(type(error).__name__, error)",
        CUEVA_NATIVE_FOLDER=str(tmp_path),
        CUEVA_ISA="avx2",
    )
    assert done.stdout.startswith(
        "RequestError CUEVA_ISA is 'avx2', but there are no native kernels: CUEVA_NATIVE_FOLDER"
    )
