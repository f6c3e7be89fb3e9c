"""Say what an environment holds, in distributions and megabytes: `.venv/bin/python -m tools.installed`.

Fails when CUDA packages came along with a CPU build of PyTorch: a newcomer on a laptop would have paid gigabytes for
them.
"""

import importlib.metadata
import os
import sys

MB = 1e6


def installed() -> dict[str, float]:
    """Return each distribution's name and its size on disk in MB, largest first."""
    sizes = {}
    for distribution in importlib.metadata.distributions():
        paths = [str(distribution.locate_file(file)) for file in distribution.files or []]
        sizes[distribution.metadata["Name"]] = sum(os.path.getsize(path) for path in paths if os.path.exists(path)) / MB
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def main() -> int:
    """Print the table; returns 1 when CUDA packages are present beside a CPU build."""
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
    return 0


if __name__ == "__main__":
    sys.exit(main())
