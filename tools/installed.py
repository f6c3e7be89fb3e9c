"""Say what an environment holds, in distributions and megabytes: `.venv/bin/python -m tools.installed`.

Fails when CUDA packages came along with a CPU build of PyTorch: a newcomer on a laptop would have paid gigabytes for
them. With CUEVA_NATIVE=require it also fails when the installed package has no native kernels, or not for every
instruction set: a compile error installs without them as quietly as a machine without a compiler does.
"""

import importlib.metadata
import os
import platform
import subprocess
import sys
import tempfile

MB = 1e6
SHOW = (
    "from cueva.kernels import native; print(native.missing() or ''); print(*native.built()); print(*native.runnable())"
)


def installed() -> dict[str, float]:
    """Return each distribution's name and its size on disk in MB, largest first."""
    sizes = {}
    for distribution in importlib.metadata.distributions():
        paths = [str(distribution.locate_file(file)) for file in distribution.files or []]
        sizes[distribution.metadata["Name"]] = sum(os.path.getsize(path) for path in paths if os.path.exists(path)) / MB
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def native_kernels() -> str | None:
    """Print what the installed package, not the checkout, has of native kernels; returns what is wrong, or None."""
    with tempfile.TemporaryDirectory() as elsewhere:
        command = [sys.executable, "-P", "-c", SHOW]
        done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"asking the package for its native kernels failed: {done.stderr.strip().splitlines()[-1:]}"
    missing, built, runs = done.stdout.splitlines()
    if missing:
        return missing
    print(f"native kernels: built {built}; this machine runs {runs}")
    if platform.machine() in ("x86_64", "AMD64") and len(built.split()) < 4:
        return f"of the four instruction sets for x86-64 only {built} were built"
    return None


def main() -> int:
    """Print the table; returns 1 when CUDA packages or, if they are required, native kernels are not as they should."""
    sizes = installed()
    torch_mb = sizes.get("torch", 0.0)
    rest_mb = sum(sizes.values()) - torch_mb
    print(f"{len(sizes)} distributions: torch {torch_mb:.0f} MB, everything else {rest_mb:.0f} MB")
    for name, mb in list(sizes.items())[:8]:
        print(f"{mb:8.1f} MB  {name} {importlib.metadata.version(name)}")
    cuda = sorted(name for name in sizes if name.lower().startswith(("nvidia-", "nvidia_", "cuda-", "triton")))
    if "+cu" in importlib.metadata.version("torch"):
        print("torch is a CUDA build here, so its CUDA packages are expected")
    elif cuda:
        print(f"CUDA packages came along with a CPU build of torch: {', '.join(cuda)}")
        return 1
    else:
        print("no CUDA packages")
    wrong = native_kernels()
    if wrong is not None:
        print(wrong)
        return 1 if os.environ.get("CUEVA_NATIVE") == "require" else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
