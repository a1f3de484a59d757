"""Follows the tutorial: writes its files and runs its commands in their order, and stops at the first that fails.

    tests/tutorial/run.sh

A block that begins with ```sh is run, line by line; one with a path after its language is written there; `by-hand` marks
what a reader does once and this script doesn't.
"""
import os
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]


def blocks(text: str):
    """(language, argument, content) of each fenced block."""
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith("```"):
            language, _, argument = line[3:].strip().partition(" ")
            content = []
            for inside in lines:
                if inside.startswith("```"):
                    break
                content.append(inside)
            yield language, argument, "\n".join(content) + "\n"


def main():
    tutorial = (ROOT / "host/docs/plugin-tutorial.md").read_text()
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary) / "repository"
        (folder / "bin").mkdir(parents=True)
        (folder / "bin/liftplan").symlink_to(pathlib.Path(sys.argv[1]).resolve())
        (folder / "examples").symlink_to(ROOT / "examples")
        environment = {
            **os.environ,
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "LIFTPLAN_PLUGINS": f"{temporary}/plugins",
            "LIFTPLAN_CACHE": f"{temporary}/cache",
        }
        here, started, commands, files = folder, time.monotonic(), 0, 0
        for language, argument, content in blocks(tutorial):
            if argument == "by-hand":
                continue
            if language == "sh":
                for line in content.splitlines():
                    begun = time.monotonic()
                    print(f"$ {line}", flush=True)
                    if line.startswith("cd "):
                        here = (here / line[3:]).resolve()
                        continue
                    subprocess.run(line, shell=True, cwd=here, env=environment, check=True)
                    print(f"  ({time.monotonic() - begun:.1f} s)", flush=True)
                    commands += 1
            else:
                assert argument, f"a block of {language} says neither where it belongs nor that it is run"
                path = here / argument
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(content)
                files += 1
        assert commands >= 8 and files >= 3, "the tutorial lost its blocks"
        assert (folder / "runs/heavy-tail-and-spectrum/report.html").is_file()
        print(f"the tutorial works: {commands} commands, {files} files, {time.monotonic() - started:.0f} s")


main()
