"""Makes PyPI's torch importable on a machine without CUDA, without its 3 GB of NVIDIA wheels.

    pip install --no-deps torch==2.11.0 && python cpu_torch.py        # needs `cc`, `ldd` and `nm`

PyPI's Linux wheel of torch is the CUDA build: its libraries name CUDA's, so that the loader refuses them where those are
absent, though nothing on the CPU ever calls them. For each absent library this puts a small one of the same name beside
torch's own, which defines the functions that torch names, each returning an error ("no device"). torch then finds no
CUDA device, and computes on the CPU with the very code that the wheel always has for it. Only the checks of exports use it.
"""

import importlib.util
import re
import subprocess
import tempfile
from collections import defaultdict
from pathlib import Path

ABSENT = re.compile(r"(\S+) => not found")
# Beginnings of what CUDA's libraries define, for the few of them whose symbols have no version that says where they are from.
FOREIGN = re.compile(r"^(cu[A-Z]|cuda|cublas|cudnn|cusparse|cusolver|cufft|curand|cupti|nccl|nvrtc|nvJitLink|__cuda)")
HOME_OF_UNVERSIONED = "libcudart.so"  # torch loads it first, and for all

# 100 is cudaErrorNoDevice; any other than 0 is an error to the other libraries.
NO_DEVICE = "int {}(void) {{ return 100; }}"
# Two answers that are asked for without a device, too.
SPECIAL = {
    "cudaStreamIsCapturing": "int {}(void *stream, int *status) {{ *status = 0; return 0; }}",
    "cudaGetErrorString": 'const char *{}(int error) {{ return "no CUDA device"; }}',
    "cudaGetErrorName": 'const char *{}(int error) {{ return "cudaErrorNoDevice"; }}',
}


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def build(path, functions, version):
    """One library: all its `functions`, those of `version` (a set) under a version of that name."""
    with tempfile.TemporaryDirectory() as scratch:
        source, script = Path(scratch) / "stand_in.c", Path(scratch) / "versions"
        lines = [SPECIAL.get(function, NO_DEVICE).format(function) for function in functions]
        source.write_text("\n".join(["int liftplan_stand_in;", *lines, ""]))
        options = []
        if version:
            ((name, symbols),) = version.items()
            script.write_text(f"{name} {{ global: {' '.join(s + ';' for s in sorted(symbols))} }};\n")
            options = [f"-Wl,--version-script={script}"]
        soname = f"-Wl,-soname,{path.name}"
        run("cc", "-shared", "-fPIC", "-O1", "-w", "-fno-builtin", soname, *options, "-o", str(path), str(source))


def main():
    folder = Path(importlib.util.find_spec("torch").submodule_search_locations[0]) / "lib"
    absent, versioned, loose, defined = set(), defaultdict(set), set(), set()
    for library in sorted(folder.glob("lib*.so")):
        absent |= set(ABSENT.findall(run("ldd", str(library))))
        for line in run("nm", "-D", str(library)).splitlines():
            kind, symbol = line.split()[-2:]
            name, _, version = symbol.partition("@")
            if kind not in "Uw":
                defined.add(name)
            elif version:
                versioned[version].add(name)
            elif FOREIGN.match(name):
                loose.add(name)
    for library in sorted(absent):
        # A version is called like its library, but for NVSHMEM's.
        name = "NVSHMEM" if library.startswith("libnvshmem") else library
        version = {name: versioned[name]} if versioned[name] else {}
        functions = set(versioned[name])
        if library.startswith(HOME_OF_UNVERSIONED):
            functions |= loose - defined
        build(folder / library, sorted(functions), version)
    print(f"stand-ins for {', '.join(sorted(absent)) or 'nothing: all is there'}")


if __name__ == "__main__":
    main()
