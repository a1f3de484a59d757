"""The same plugin in every language that `liftplan plugin new` knows, made, built, checked, tested, and let loose.

    tests/authors/run.sh
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
LIFTPLAN = pathlib.Path(sys.argv[1]).resolve()
LANGUAGES = sys.argv[2:] or ["rust", "c", "js", "python"]

# What a plugin does beside its rule when the setting `try` asks for it; see the cases below.
MISCHIEF = {
    "js": (
        "plugin.js",
        "const { percent } = JSON.parse(settings);",
        """const { percent, try: what } = JSON.parse(settings);
    const number = mischief[what]?.();
    if (number !== undefined) { builder.score(0, number); builder.train(0); return; }""",
        """
const mischief = {
  random: () => Math.random(),
  clock: () => Date.now() + performance.now(),
  loop: () => { for (;;) {} },
  memory: () => { const all = []; for (;;) all.push(new Uint8Array(1 << 20).fill(1)); },
  deep: () => { const f = (n) => 1 + f(n + 1); return f(0); },
  globals: () => ["process", "require", "Deno", "WebSocket", "XMLHttpRequest"].filter((name) => globalThis[name] !== undefined).length,
  network: () => { try { fetch("http://127.0.0.1/"); return 1; } catch { return 0; } },
};
""",
    ),
    "python": (
        "plugin.py",
        'percent = json.loads(settings)["percent"]',
        """percent = json.loads(settings)["percent"]
        number = mischief(json.loads(settings)["try"])
        if number is not None:
            builder.score(0, number)
            builder.train(0)
            return""",
        '''

def reached(attempt):
    try:
        attempt()
        return 1.0
    except (OSError, ImportError, AttributeError, NotImplementedError):
        return 0.0


def connect():
    import socket

    socket.create_connection(("127.0.0.1", 80), timeout=1)


def mischief(what):
    import os
    import random
    import time

    if what == "random":
        return random.random()
    if what == "clock":
        return time.time() + time.monotonic()
    if what == "loop":
        while True:
            pass
    if what == "memory":
        everything = []
        while True:
            everything.append(bytearray(1 << 20))
    if what == "deep":
        deep = lambda n: 1 + deep(n + 1)
        return float(deep(0))
    if what == "file":
        return reached(lambda: open("/etc/passwd").read())
    if what == "folder":
        return reached(lambda: os.listdir("/"))
    if what == "environment":
        return float(len(os.environ))
    if what == "network":
        return reached(connect)
    return None
''',
    ),
}

# What must come of each `try`, twice alike: a plan with this score of the first tensor, or an error with this text. Neither
# engine has clocks, files or sockets, and both stop where one is used; random numbers come from a seed that was built in.
STOPPED, ANY = "in make-plan: it broke off", ""
LIMITS = {"loop": ["`plugins.fuel`"], "memory": [STOPPED, "`plugins.memory_mib`"], "deep": [STOPPED], "random": [ANY]}
CASES = {
    "js": {"clock": [STOPPED], "globals": ["0.0"], "network": [STOPPED, "0.0"], **LIMITS},
    "python": {
        **{"clock": [STOPPED], "file": [STOPPED, "0.0"], "folder": [STOPPED, "0.0"], "environment": ["0.0"]},
        **{"network": [STOPPED, "0.0"]},
        **LIMITS,
    },
}


class Project:
    def __init__(self, folder: pathlib.Path, environment: dict, language: str):
        self.language, self.name, self.environment = language, f"top-{language}", environment
        self.folder, self.work = folder, folder / f"top-{language}"

    def run(self, *arguments: str, at: pathlib.Path | None = None) -> None:
        done = subprocess.run([str(LIFTPLAN), *arguments], cwd=at or self.folder, env=self.environment, text=True, capture_output=True)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(arguments)}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")

    def tried(self, *arguments: str) -> tuple[bool, str]:
        """Whether it worked, and the score of the first tensor or the error's first line."""
        done = subprocess.run([str(LIFTPLAN), *arguments], cwd=self.folder, env=self.environment, text=True, capture_output=True)
        if done.returncode != 0:
            return False, next(line for line in done.stderr.splitlines() if line.startswith("error"))
        return True, str(next(iter(json.loads(done.stdout)["scores"].values())))

    def timed(self, *arguments: str) -> float:
        start = time.perf_counter()
        self.run(*arguments, at=self.work)
        return time.perf_counter() - start

    def make(self) -> None:
        self.run("plugin", "new", self.name, "--lang", self.language)
        if self.language in MISCHIEF:
            file, old, new, more = MISCHIEF[self.language]
            source = self.work / file
            text = source.read_text()
            assert text.count(old) == 1, f"{file} has no such line any more: {old}"
            source.write_text(text.replace(old, new) + more)
            described = self.work / "plugin.json"
            metadata = json.loads(described.read_text())
            metadata["settings"]["properties"]["try"] = {"type": "string", "default": ""}
            described.write_text(json.dumps(metadata))

    def plans(self) -> list:
        """What its tests accepted, but for its name."""
        plans = [json.loads(file.read_text()) for file in sorted((self.work / "golden").iterdir())]
        return [{key: plan[key] for key in ("entries", "scores", "picks")} for plan in plans]

    def component(self) -> pathlib.Path:
        return self.work / "dist" / f"{self.name}.wasm"


def configuration(folder: pathlib.Path, plugin: pathlib.Path) -> pathlib.Path:
    (folder / "train.jsonl").write_text('{"text": "the weaver lifts a thread"}\n' * 4)
    model = ROOT / "tests/golden/families/qwen3/model"
    config = folder / "config.toml"
    config.write_text(
        f'model = "{model}"\n[data]\ntrain = "train.jsonl"\nformat = "text"\n[policy]\nplugin = "{plugin}"\n'
        "[train]\nsteps = 2\nbatch_size = 2\n[plugins]\nfuel = 3000000000\n"
    )
    return config


def mischief(project: Project, folder: pathlib.Path) -> None:
    config = str(configuration(folder, project.component()))
    wrong = []
    for what, expected in CASES[project.language].items():
        plan = ["plan", config, "--json", "--set", f'policy.try="{what}"']
        first, second = (project.tried(*plan) for _ in range(2))
        print(f"  {what}: {first[1]}", flush=True)
        if first != second:
            wrong.append(f"{what}: another answer the second time: {second[1]}")
        worked, said = first
        fits = [text for text in expected if (said == text or text == ANY if worked else text and text in said)]
        if not fits or not worked and f"plugin {project.name} 0.1.0: " not in said:
            wrong.append(f"{what}: {said}")
    assert not wrong, "\n".join(wrong)
    # After all that it is as it was.
    run = folder / f"run-{project.language}"
    project.run("train", config, "--out", str(run))
    assert json.loads((run / "summary.json").read_text())["steps"] == 2


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = pathlib.Path(place)
        environment = {**os.environ, "LIFTPLAN_CACHE": str(folder / "cache"), "LIFTPLAN_PLUGINS": str(folder / "plugins")}
        expected = None
        for language in LANGUAGES:
            project = Project(folder, environment, language)
            project.make()
            built = project.timed("plugin", "build")
            checked = project.timed("plugin", "check")
            project.run("plugin", "test", "--accept", at=project.work)
            project.run("plugin", "test", at=project.work)
            sizes = ", ".join(f"{file.name} {file.stat().st_size} B" for file in sorted((project.work / "dist").glob("top-*")))
            print(f"{language}: built in {built:.1f} s, first checked in {checked:.1f} s; {sizes}", flush=True)
            plans = project.plans()
            expected = expected or plans
            assert plans == expected, f"{language} plans otherwise than {LANGUAGES[0]}"
            if language in MISCHIEF:
                mischief(project, folder)
    print(f"the same rule in {', '.join(LANGUAGES)}: the same plans")


if __name__ == "__main__":
    main()
