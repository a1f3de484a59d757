"""Pushes plugins to a registry on this machine, installs them by the binary, and looks at what it says and leaves.

    tests/registry/run.sh
"""
import hashlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
LIFTPLAN = pathlib.Path(sys.argv[1]).resolve()
WASM = "application/wasm"
SIGNATURE = "application/vnd.liftplan.plugin.minisig.v1"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Registry:
    """docker-registry on loopback, its files in `folder`."""

    def __init__(self, folder: pathlib.Path):
        self.address = f"127.0.0.1:{free_port()}"
        self.files = folder / "registry"
        config = folder / "registry.yml"
        config.write_text(
            "version: 0.1\nlog: {level: error}\nstorage:\n  filesystem: {rootdirectory: %s}\nhttp: {addr: %s}\n"
            % (self.files, self.address)
        )
        self.process = subprocess.Popen(["docker-registry", "serve", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(200):
            try:
                urllib.request.urlopen(f"http://{self.address}/v2/").read()
                return
            except (urllib.error.URLError, ConnectionError):
                assert self.process.poll() is None, "the registry ended"
                time.sleep(0.05)
        raise AssertionError("the registry does not answer")

    def request(self, method: str, url: str, body: bytes | None, kind: str):
        request = urllib.request.Request(url, data=body, method=method, headers={"Content-Type": kind})
        return urllib.request.urlopen(request)

    def blob(self, name: str, content: bytes, kind: str) -> dict:
        digest = "sha256:" + hashlib.sha256(content).hexdigest()
        begun = self.request("POST", f"http://{self.address}/v2/{name}/blobs/uploads/", b"", kind)
        place = begun.headers["Location"]
        if place.startswith("/"):
            place = f"http://{self.address}{place}"
        joint = "&" if "?" in place else "?"
        self.request("PUT", f"{place}{joint}digest={digest}", content, "application/octet-stream")
        return {"mediaType": kind, "digest": digest, "size": len(content)}

    def push(self, name: str, tag: str, layers: list[tuple[str, bytes]], sizes: int = 0) -> str:
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.blob(name, b"{}", "application/vnd.wasm.config.v0+json"),
            "layers": [self.blob(name, content, kind) for kind, content in layers],
        }
        for layer in manifest["layers"]:
            layer["size"] += sizes
        body = json.dumps(manifest).encode()
        self.request("PUT", f"http://{self.address}/v2/{name}/manifests/{tag}", body, MANIFEST)
        return "sha256:" + hashlib.sha256(body).hexdigest()

    def spoil(self, content: bytes):
        """Changes a blob behind the registry's back."""
        digest = hashlib.sha256(content).hexdigest()
        path = self.files / "docker/registry/v2/blobs/sha256" / digest[:2] / digest / "data"
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


class Project:
    def __init__(self, folder: pathlib.Path, name: str):
        self.folder = folder / name
        self.folder.mkdir()
        self.files = folder / f"{name}-files"

    def run(self, *arguments: str) -> subprocess.CompletedProcess:
        environment = {**os.environ, "LIFTPLAN_PLUGINS": str(self.files)}
        command = [str(LIFTPLAN), "plugin", *arguments]
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=120)

    def works(self, *arguments: str) -> str:
        ran = self.run(*arguments)
        assert ran.returncode == 0, (arguments, ran)
        return ran.stdout

    def fails(self, message: str, *arguments: str):
        before = self.left()
        ran = self.run(*arguments)
        assert ran.returncode in (2, 5) and message in ran.stderr, (arguments, message, ran)
        assert self.left() == before, "something was left behind"

    def left(self) -> list[str]:
        kept = [path for folder in (self.folder, self.files) for path in folder.rglob("*")]
        return sorted(f"{path} {path.stat().st_size}" for path in kept)

    def lock(self) -> str:
        return (self.folder / "liftplan.lock").read_text()


def main():
    lisa = (ROOT / "tests/fixtures/plugins/lisa.wasm").read_bytes()
    signed = (ROOT / "tests/golden/plugins/top-norm.wasm").read_bytes()
    signature = (ROOT / "tests/golden/plugins/top-norm.wasm.minisig").read_bytes()
    key = (ROOT / "tests/golden/plugins/minisign.pub").read_text().splitlines()[-1]
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        registry = Registry(folder)
        try:
            at = f"oci://{registry.address}/weavers"
            project = Project(folder, "project")

            digest = registry.push("weavers/lisa", "1.0.0", [(WASM, lisa)])
            project.works("install", f"{at}/lisa:1.0.0", "--yes")
            assert f'source = "{at}/lisa@{digest}"' in project.lock(), project.lock()
            assert hashlib.sha256(lisa).hexdigest() in project.lock()

            # Another machine, with the lock alone; and what the tag means now is another plugin.
            registry.push("weavers/lisa", "1.0.0", [(WASM, signed)])
            for kept in project.files.iterdir():
                kept.unlink()
            assert "fetched lisa 1.0.0" in project.works("install")
            assert [kept.read_bytes() for kept in project.files.iterdir()] == [lisa]

            registry.push("weavers/top-norm", "1", [(WASM, signed), (SIGNATURE, signature)])
            project.works("install", f"{at}/top-norm:1", "--yes", "--public-key", key)
            assert key in project.lock()
            registry.push("weavers/top-norm", "2", [(WASM, signed)])
            project.fails("is not signed", "install", f"{at}/top-norm:2", "--yes")
            registry.push("weavers/top-norm", "3", [(WASM, signed), (SIGNATURE, signature.replace(b"RUTb", b"RUTc"))])
            project.fails("signature", "install", f"{at}/top-norm:3", "--yes")

            registry.push("weavers/text", "1", [("text/plain", b"hello")])
            project.fails("is no plugin: no layer has the type application/wasm", "install", f"{at}/text:1", "--yes")
            registry.push("weavers/two", "1", [(WASM, lisa), (WASM, signed)])
            project.fails("has 2 plugins, and must have one", "install", f"{at}/two:1", "--yes")
            registry.push("weavers/large", "1", [(WASM, lisa)], sizes=1 << 40)
            project.fails("is larger than 64 MiB", "install", f"{at}/large:1", "--yes")
            project.fails("the registry has no such plugin or version", "install", f"{at}/lisa:9", "--yes")
            project.fails("cannot be fetched", "install", f"{at}/nobody:1", "--yes")
            project.fails("names no registry", "install", "oci://lisa", "--yes")

            registry.spoil(lisa)
            for kept in project.files.iterdir():
                kept.unlink()
            project.fails("lisa 1.0.0: ", "install")
        finally:
            registry.process.terminate()
            registry.process.wait()
        project.fails("cannot be fetched", "install", f"{at}/lisa:1.0.0", "--yes")
    print("plugins install from a registry")


main()
