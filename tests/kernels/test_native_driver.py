"""The kernels without Python against plain loops, natively, for ARM under qemu, and with AVX-512 emulated.

`tests/native/driver.cpp` says what is checked. The last two take minutes to compile, so they are long tests.
"""

import os
import subprocess

import pytest

from cueva.kernels import native
from tools.driver import Driver, absent, build_and_run

# A sanitized process hands its libraries on to the compiler; tools.sanitize runs the program by itself.
pytestmark = pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="not with preloaded libraries")


def ran(driver: Driver) -> dict[str, list[str]]:
    """Lines of the program by their first two words, after all of its checks passed."""
    why = absent(driver)
    if why is not None:
        pytest.skip(why)
    done: subprocess.CompletedProcess[str] = build_and_run(driver)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "checks, 0 failed" in done.stdout
    lines: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        lines.setdefault(" ".join(line.split()[:2]), []).append(line)
    return lines


def fingerprints(lines: dict[str, list[str]]) -> dict[str, set[str]]:
    """Per format, the different fingerprints of the same numbers quantised."""
    return {key: {line.split()[-1] for line in found} for key, found in lines.items() if key.startswith("fingerprint")}


@pytest.fixture(scope="module")
def here() -> dict[str, list[str]]:
    built = Driver().build.folder / "kernels" / "CMakeFiles" / "kernels_portable.dir" / "kernels.cpp.o"
    if not built.is_file() and os.environ.get("CUEVA_NATIVE") != "require":
        pytest.skip("the kernels were not built in this checkout: python -m tools.build")
    return ran(Driver())


def test_every_set_that_runs_here_agrees_with_plain_loops(here: dict[str, list[str]]) -> None:
    assert {line.split()[2] for line in here["step f32"]} == set(native.runnable())


def test_every_set_quantises_to_the_same_bytes(here: dict[str, list[str]]) -> None:
    found = fingerprints(here)
    assert len(found) == 4
    assert all(len(different) == 1 for different in found.values()), found


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_emulated_avx512_agrees_with_plain_loops() -> None:
    lines = ran(Driver(emulate=True))
    assert {line.split()[2] for line in lines["step f32"]} == {"avx512bf16", "avx512", "portable"}
    assert all(len(different) == 1 for different in fingerprints(lines).values())


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_arm_computes_what_this_machine_computes(here: dict[str, list[str]]) -> None:
    there = ran(Driver(aarch64=True))
    for key, different in fingerprints(here).items():
        assert fingerprints(there)[key] == different
    for key in ("step f32", "step bf16"):
        mine = next(line for line in here[key] if line.split()[2] == "portable")
        numbers = [line.split(") ")[1].split() for line in (mine, there[key][0])]
        # The mathematical functions of two C libraries differ in the last bits; nothing else does.
        most = 1e-5 if key == "step f32" else 0.02
        assert all(abs(float(a) - float(b)) <= most * (1 + abs(float(a))) for a, b in zip(*numbers, strict=True))
