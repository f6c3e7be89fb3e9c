"""Build the native kernels for a checkout: `python -m tools.build`.

The module lands beside its Python files, where a checkout finds it, and the build tree stays under `build/`; a second
call compiles only what has changed. Builds for testing keep out of the way: with `--sanitize` (AddressSanitizer and
UndefinedBehaviorSanitizer) or `--emulate` (the AVX-512 sets through SIMDe's emulation) the module stays in its build
tree, and `CUEVA_NATIVE_FOLDER` points to it; `tools.sanitize` and `tools.emulate` do both and run the tests.
"""

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parent.parent
SETS: Final = ("portable", "avx2", "avx512", "avx512bf16")
EMULATED: Final = ("avx512", "avx512bf16")
SHOW: Final = (
    "from cueva.kernels import native\n"
    "module = native.extension()\n"
    "print(module.__file__ if module else native.missing())\n"
    "print(', '.join(native.built()), '|', ', '.join(native.runnable()))"
)


class Build(NamedTuple):
    """What to build."""

    sanitize: bool = False
    emulate: bool = False
    sets: tuple[str, ...] = ()
    """Instruction sets; empty for all that the compiler knows, or all that are emulated."""
    aarch64: bool = False
    """For ARM, with a cross compiler; only the test program."""

    @property
    def folder(self) -> Path:
        """The build tree; one for each kind of build and each Python. pip shares the one that has everything."""
        kinds = {"sanitize": self.sanitize, "emulate": self.emulate, "aarch64": self.aarch64}
        words = [*(kind for kind, on in kinds.items() if on), *self.sets]
        return ROOT / "build" / f"{'-'.join(words) or 'native'}-{sys.implementation.cache_tag}"

    @property
    def in_place(self) -> bool:
        """Whether the module goes beside its Python files."""
        return not (self.sanitize or self.emulate or self.aarch64)

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which `cueva` uses this build."""
        return {} if self.in_place else {"CUEVA_NATIVE_FOLDER": str(self.folder)}


def tool(name: str) -> str | None:
    """Path of a program: the system's, which pip takes too, or the one in this Python's environment."""
    return shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts"))


def lacking(build: Build) -> str | None:
    """What this machine lacks to compile anything, in a sentence; None if it can."""
    if tool("cmake") is None:
        return "there is no cmake: pip install '.[dev]' brings one"
    named = os.environ.get("CXX", "").split()[:1]
    if not any(shutil.which(name) for name in named or ("c++", "g++", "clang++")):
        return "there is no C++ compiler (g++ or clang++)"
    done = subprocess.run([sys.executable, "-m", "nanobind", "--cmake_dir"], capture_output=True, check=False)
    if done.returncode:
        return "there is no nanobind: pip install '.[dev]' brings it"
    if build.emulate and not any((Path(p) / "simde").is_dir() for p in ("/usr/include", "/usr/local/include")):
        return "there is no SIMDe (the headers simde/x86/*.h): Debian and Ubuntu call it libsimde-dev"
    return None


def run(build: Build, *, jobs: int | None = None, clean: bool = False, target: str | None = None) -> int:
    """Configure and compile everything, or one target; returns the exit status of what failed, or 0."""
    if clean:
        shutil.rmtree(build.folder, ignore_errors=True)
    cmake, ninja = tool("cmake"), tool("ninja")
    assert cmake is not None, "call lacking() first"
    configure = [cmake, "-S", str(ROOT), "-B", str(build.folder)]
    if ninja is not None:
        configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    for option, on in {"SANITIZE": build.sanitize, "EMULATE": build.emulate, "IN_PLACE": build.in_place}.items():
        configure.append(f"-DCUEVA_{option}={'ON' if on else 'OFF'}")
    sets = build.sets or (EMULATED if build.emulate else ())
    configure.append(f"-DCUEVA_SETS={';'.join(sets)}")
    if build.aarch64:
        configure += ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64"]
        configure += ["-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++", "-DCUEVA_DRIVER=ON"]
    else:
        configure.append(f"-DPython_EXECUTABLE={sys.executable}")
    compiling = [cmake, "--build", str(build.folder), "--parallel", *([str(jobs)] if jobs else [])]
    compiling += ["--target", target] if target else []
    for command in (configure, compiling):
        done = subprocess.run(command, stdout=sys.stderr, check=False)
        if done.returncode:
            return done.returncode
    return 0


def show(build: Build) -> int:
    """Load what was built in a process of its own and say what it is; returns 1 if it does not load."""
    environment = os.environ | build.environment
    command = [sys.executable, "-c", SHOW]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode or not done.stdout.strip():
        print(done.stderr, file=sys.stderr)
        return 1
    where, sets = done.stdout.strip().splitlines()
    built, _, runs = sets.partition(" | ")
    if not built:
        print(where)
        return 1
    print(f"{where}\nbuilt: {built}; this machine runs: {runs}")
    expected = ROOT / "cueva" / "kernels" / "native"
    if build.in_place and Path(where).parent != expected:
        print(f"cueva takes its native module from {Path(where).parent}, not the one just built in {expected}")
        return 1
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Build and say what came of it; returns 0 when the module is there and loads."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.build", description="Build the native kernels for a checkout."
    )
    parser.add_argument("--sanitize", action="store_true", help="with AddressSanitizer and UndefinedBehaviorSanitizer")
    parser.add_argument("--emulate", action="store_true", help="the AVX-512 sets through SIMDe, to test them anywhere")
    parser.add_argument(
        "--isa", nargs="+", choices=SETS, default=(), help="only these sets, and portable (default: all)"
    )
    parser.add_argument("--clean", action="store_true", help="compile everything again")
    parser.add_argument("--jobs", type=int, metavar="N", help="compile so many files at once (default: one per core)")
    parser.add_argument(
        "--if-possible", action="store_true", help="succeed where there is no compiler, unless CUEVA_NATIVE=require"
    )
    options = parser.parse_args(arguments)
    build = Build(sanitize=options.sanitize, emulate=options.emulate, sets=tuple(options.isa))
    why = lacking(build)
    if why is not None:
        optional = options.if_possible and os.environ.get("CUEVA_NATIVE") != "require"
        print(f"the native kernels were not built: {why}", file=sys.stderr)
        return 0 if optional else 1
    began = time.monotonic()
    status = run(build, jobs=options.jobs, clean=options.clean)
    if status:
        print(f"the native kernels did not build (exit status {status}); the reason is above", file=sys.stderr)
        return 1
    status = 0 if build.sanitize else show(build)  # a sanitized module needs its runtime loaded first
    for name, value in build.environment.items():
        print(f"{name}={value} makes cueva use it")
    print(f"{time.monotonic() - began:.0f} s")
    return status


if __name__ == "__main__":
    sys.exit(main())
