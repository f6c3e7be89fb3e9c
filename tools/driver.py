"""Run the kernels without Python, against plain loops: `python -m tools.driver`.

The program `tests/native/driver.cpp` checks packs, products, quantisers and steps of every instruction set that this
processor runs. With `--emulate` the AVX-512 sets run through SIMDe's emulation, which is how they are proved on
machines without them; with `--aarch64` the portable set is cross-compiled and runs under qemu. On Debian and Ubuntu
the packages are `libsimde-dev`, `g++-aarch64-linux-gnu` and `qemu-user`.
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Final, NamedTuple

from tools.build import ROOT, Build, lacking, run

ARM: Final = "aarch64-linux-gnu"


class Driver(NamedTuple):
    """Which of the programs."""

    emulate: bool = False
    aarch64: bool = False
    sanitize: bool = False
    sets: tuple[str, ...] = ()

    @property
    def build(self) -> Build:
        """Where and how it is built; the plain one shares the objects of the module."""
        return Build(sanitize=self.sanitize, emulate=self.emulate, sets=self.sets, aarch64=self.aarch64)

    @property
    def command(self) -> list[str]:
        """What runs it."""
        program = str(self.build.folder / "driver")
        return ["qemu-aarch64", "-L", f"/usr/{ARM}", program] if self.aarch64 else [program]


def absent(driver: Driver) -> str | None:
    """What this machine lacks to build and run it, in a sentence; None if nothing."""
    if driver.aarch64:
        for program, package in ((f"{ARM}-g++", f"g++-{ARM}"), ("qemu-aarch64", "qemu-user")):
            if shutil.which(program) is None:
                return f"there is no {program}: Debian and Ubuntu call the package {package}"
    return lacking(driver.build)


def build_and_run(driver: Driver, *, jobs: int | None = None) -> subprocess.CompletedProcess[str]:
    """Build the program and run it; the result has its output, and the compiler's exit status if that failed."""
    status = run(driver.build, jobs=jobs, target="driver")
    if status:
        return subprocess.CompletedProcess([], status, "", "the program did not build")
    return subprocess.run(driver.command, cwd=ROOT, capture_output=True, text=True, check=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, run, show; returns 0 when every check passed."""
    about = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m tools.driver", description=about)
    parser.add_argument("--emulate", action="store_true", help="the AVX-512 sets, through SIMDe")
    parser.add_argument("--aarch64", action="store_true", help="the portable set for ARM, under qemu")
    parser.add_argument("--jobs", type=int, metavar="N", help="compile so many files at once (default: one per core)")
    options = parser.parse_args(arguments)
    driver = Driver(emulate=options.emulate, aarch64=options.aarch64)
    why = absent(driver)
    if why is not None:
        print(f"the program cannot be built and run here: {why}", file=sys.stderr)
        return 1
    done = build_and_run(driver, jobs=options.jobs)
    print(done.stdout, end="")
    print(done.stderr, end="", file=sys.stderr)
    return 1 if done.returncode else 0


if __name__ == "__main__":
    sys.exit(main())
