"""The tests of the native kernels on a build with sanitizers: `python -m tools.sanitize`.

AddressSanitizer and UndefinedBehaviorSanitizer (of GCC) watch every read and write of the kernels while the program of
`tools.driver` and then each `tests/**/test_native*.py` runs, on the instruction sets that this processor runs;
`--emulate` does so for the AVX-512 sets through SIMDe's emulation. The first finding ends the run and says where it is.
Leaks are not looked for: Python and PyTorch keep much memory to the end. What follows `--` goes to pytest.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.build import ROOT, Build, lacking, run
from tools.driver import Driver, build_and_run


def runtime() -> str | None:
    """Libraries that have to be loaded first: AddressSanitizer's, and the C++ one, whose exceptions it watches.

    Returns:
        A value for `LD_PRELOAD`; None if the compiler has no such library.
    """
    compiler = (os.environ.get("CXX") or "c++").split()
    paths = []
    for name in ("libasan.so", "libstdc++.so.6"):
        done = subprocess.run([*compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=False)
        path = Path(done.stdout.strip())
        if not (path.is_absolute() and path.exists()):
            return None
        paths.append(str(path.resolve()))
    return " ".join(paths)


def sets(emulate: bool) -> tuple[str, ...]:
    """The instruction sets to build: what this processor runs, as far as a plain build can tell; empty for all."""
    if emulate:
        return ()
    code = "from cueva.kernels import native; print(*native.runnable())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    return tuple(done.stdout.split())


def environment(build: Build, preload: str) -> dict[str, str]:
    """Variables for a Python that loads the sanitized module."""
    asan = "detect_leaks=0:abort_on_error=0:detect_odr_violation=0"
    return build.environment | {
        "LD_PRELOAD": preload,
        "ASAN_OPTIONS": asan,
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        # So that memory that Python hands out is watched too.
        "PYTHONMALLOC": "malloc",
        "OMP_NUM_THREADS": "2",
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Build and test; returns pytest's exit status."""
    about = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m tools.sanitize", description=about)
    parser.add_argument("--emulate", action="store_true", help="the AVX-512 sets, through SIMDe")
    parser.add_argument("--jobs", type=int, metavar="N", help="compile so many files at once (default: one per core)")
    parser.add_argument("pytest", nargs="*", metavar="-- PYTEST ARGUMENTS", help="handed on to pytest")
    options = parser.parse_args(arguments)
    build = Build(sanitize=True, emulate=options.emulate, sets=sets(options.emulate))
    why, preload = lacking(build), runtime()
    if why is not None or preload is None:
        print(f"nothing can be sanitized here: {why or 'the compiler has no libasan.so'}", file=sys.stderr)
        return 1
    status = run(build, jobs=options.jobs)
    if status:
        return status
    done = build_and_run(Driver(sanitize=True, emulate=build.emulate, sets=build.sets), jobs=options.jobs)
    print(done.stdout, done.stderr, sep="")
    if done.returncode:
        return done.returncode
    tests = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_native*.py"))
    # Without capture, because a sanitizer writes what it found to stderr and ends the process.
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", *tests, *options.pytest]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment(build, preload), check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
