#!/usr/bin/env python3
"""Makes a plugin that has metadata and no code, a minisign key, and the plugin's signature, for the tests of the store.

    python3 tests/golden/plugins/make.py        needs minisign (Debian's package of this name)

The secret key is thrown away, so that a new run makes a new key. The signature holds the time of signing.
"""
import json
import pathlib
import subprocess
import tempfile

here = pathlib.Path(__file__).parent
metadata = {
    "name": "top-norm",
    "version": "1.0.0",
    "author": "A. Weaver",
    "license": "MIT",
    "api": "0.1",
    "about": "Trains the weights with the largest norm.",
    "settings": {"type": "object", "properties": {"percent": {"type": "number", "default": 25}}},
    "capabilities": ["statistics"],
}


def leb128(number: int) -> bytes:
    out = b""
    while True:
        byte, number = number & 0x7F, number >> 7
        out += bytes([byte | (0x80 if number else 0)])
        if not number:
            return out


name = b"liftplan:plugin"
content = leb128(len(name)) + name + json.dumps(metadata).encode()
(here / "top-norm.wasm").write_bytes(b"\0asm\x0d\0\x01\0" + b"\0" + leb128(len(content)) + content)
with tempfile.TemporaryDirectory() as secret:
    key = f"{secret}/key"
    subprocess.run(["minisign", "-G", "-f", "-W", "-p", "minisign.pub", "-s", key], cwd=here, check=True)
    sign = ["minisign", "-S", "-s", key, "-m", "top-norm.wasm", "-t", "top-norm 1.0.0"]
    subprocess.run(sign, cwd=here, check=True)
