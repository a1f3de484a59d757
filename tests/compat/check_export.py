"""Trains small runs with `liftplan`, exports each in every format, loads the exports with the Python packages that people
use them with, and compares logits, weights, tokenizers and chat templates. Started by `tests/compat/run.sh`.

What has to hold, beside loading without complaint:

  peft         base model + adapter, by PEFT: Liftplan's own logits within 1e-4
  hf           the merged model, by transformers: Liftplan's own logits within 1e-4; its tokenizer and chat template
  gguf, F16    by transformers' GGUF reader: the merged weights, each matrix rounded to F16; tokenizer and chat template
  gguf, Q8_0   the same with each matrix rounded to Q8_0, as the `gguf` package does it

and for runs over packed weights (policy `qspectrum`):

  hf, dequantised  by transformers: Liftplan's own logits within 1e-4
  hf, packed       by transformers and bitsandbytes: the same; each packed weight unpacks to the dequantised one, bit for bit
  delta            exported with its base model: the same tensors as from the run

Every run must have moved its model's logits well beyond those limits, so that an export of the untouched model fails.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy
import torch
import transformers
from bitsandbytes import functional
from gguf import GGMLQuantizationType, GGUFReader, quants
from peft import PeftModel
from safetensors.numpy import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = ROOT / "tests/golden/families"
LIMIT = 1e-4
LOOSE = {"f16": 5e-3, "q8_0": 1e-1}  # of the logits, as far as rounding the weights may move them

# What transformers' GGUF reader does not read from the file, though it is there; its configuration is given by hand then.
# llama3: the scaled frequencies (tensor rope_freqs.weight). qwen3: the width of a head (attention.key_length).
READER_NEEDS_CONFIG = {"llama3", "qwen3"}

LORA = 'name = "lora"\nrank = 4\nalpha = 8.0\n'
# Rows are whole blocks of 32: with AVX-512, bitsandbytes takes another block's scale where they are not.
QSPECTRUM = 'name = "qspectrum"\npercent = 50\n[storage]\n'
MIXED = (
    'name = "mixed"\n[[policy.parts]]\nname = "spectrum"\npercent = 50\n'
    '[[policy.parts]]\nname = "lora"\nrank = 4\nalpha = 8.0\n'
)
CASES = [
    ("llama", "lora", LORA),
    ("llama", "rslora", LORA + "rslora = true\n"),
    ("llama", "dora", LORA + "dora = true\n"),
    ("llama", "ranks", LORA + '[policy.ranks]\n"*.q_proj.weight" = 2\n"model.layers.1.mlp.*" = 6\n'),
    ("llama", "some", LORA + 'targets = ["q_proj", "down_proj"]\nblocks = "1"\n'),
    ("llama", "full", 'name = "full"\n'),
    ("llama3", "lora", LORA),
    ("mistral", "lora", LORA),
    ("qwen2", "lora", LORA),
    ("qwen2", "full", 'name = "full"\n'),
    ("qwen3", "lora", LORA),
    ("smollm2", "lora", LORA),
    ("llama", "mixed", MIXED),
    ("llama", "qspectrum", QSPECTRUM + 'block_size = 32\n'),
    ("qwen2", "qspectrum", QSPECTRUM + "block_size = 32\ndouble_quantization = false\n"),
    ("qwen3", "int8", 'name = "spectrum"\npercent = 50\n[storage]\nfrozen = "int8"\n'),
]  # fmt: skip

TEXTS = [
    "the weaver lifts the threads of the loom",
    "and then the weft passes through them;",
    "this is how the cloth is made, row by row.",
    "Every pick lifts other threads. 12 of 34!",
]
STRINGS = [
    *TEXTS,
    "",
    " ",
    "x  12",
    "naïve — 😀",
    "<|im_start|>user\nHi<|im_end|>\n",
    "a<|endoftext|>b",
    "\n\n  tabs\tand 2,500.75",
]
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is a loom?"},
    {"role": "assistant", "content": "A frame for weaving."},
    {"role": "user", "content": "And 2 + 2?"},
]


class Case:
    """One run and its exports, in a folder of its own."""

    def __init__(self, args, family, name, policy):
        self.args, self.family, self.name, self.policy = args, family, name, policy
        self.folder = Path(args.work) / f"{family}-{name}"
        self.base = Path(args.smollm2) if family == "smollm2" else FAMILIES / family / "model"
        self.packed = "[storage]" in policy
        self.failures = []

    def expect(self, holds, what):
        print(f"  {'ok  ' if holds else 'FAIL'} {what}", flush=True)
        if not holds:
            self.failures.append(f"{self.family}, {self.name}: {what}")

    def close(self, ours, theirs, limit, what):
        """Both the norm of the difference and its maximum, relative to the reference's."""
        far = 0.0
        for a, b in zip(ours, theirs, strict=True):
            a, b = a.astype(numpy.float64), b.astype(numpy.float64)
            norm = numpy.linalg.norm(a - b) / numpy.linalg.norm(b)
            far = max(far, norm, numpy.abs(a - b).max() / numpy.abs(b).max())
        self.expect(far <= limit, f"{what}: {far:.1e} apart, limit {limit:.0e}")

    def make(self):
        """Trains, exports, and writes Liftplan's own logits."""
        self.folder.mkdir(parents=True)
        data, config = self.folder / "data.jsonl", self.folder / "config.toml"
        data.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
        # Enough to move the logits well in four steps, and not so far that rounding grows with them.
        lr = 1e-2 if self.policy.startswith(LORA) and self.family != "smollm2" else 2e-3
        config.write_text(
            f'model = "{self.base}"\n[data]\ntrain = "data.jsonl"\nformat = "text"\n[policy]\n{self.policy}'
            f'[train]\nsteps = 4\nbatch_size = 2\n[optimizer]\nlr = {lr}\n[schedule]\nname = "constant"\n'
        )
        self.run = self.folder / "run"
        run(self.args.liftplan, "train", config, "--out", self.run)
        formats = {"hf": ["hf"], "gguf-f16": ["gguf", "--dtype", "f16"], "gguf-q8_0": ["gguf", "--dtype", "q8_0"]}
        if self.packed:
            formats = {base: ["hf", "--base", base] for base in ("dequantised", "packed")} | {"delta": ["delta"]}
        if self.policy.startswith(LORA) or self.policy == MIXED:
            formats["peft"] = ["peft"]
        for name, options in formats.items():
            run(self.args.liftplan, "export", self.run, "--out", self.folder / name, "--format", *options)
        self.tokenizer = AutoTokenizer.from_pretrained(**self.source(self.base))
        self.sequences = [self.tokenizer.encode(text) for text in STRINGS[:4] + STRINGS[8:9]]
        ids, out = self.folder / "ids.json", self.folder / "logits.safetensors"
        ids.write_text(json.dumps(self.sequences))
        run(self.args.logits, self.run, ids, out)
        logits = load_file(out)
        self.ours, untouched = ([logits[f"{name}.{i}"] for i in range(len(self.sequences))] for name in ("run", "base"))
        moved = min(numpy.linalg.norm(a - b) / numpy.linalg.norm(b) for a, b in zip(self.ours, untouched))
        self.expect(moved > 100 * LIMIT, f"training moved the logits by {moved:.1e}")

    @staticmethod
    def source(path):
        """How transformers is told of a directory or a GGUF file."""
        path = Path(path)
        if path.suffix == ".gguf":
            return dict(pretrained_model_name_or_path=str(path.parent), gguf_file=path.name)
        return dict(pretrained_model_name_or_path=str(path))

    def load(self, path, **more):
        options = dict(dtype=torch.float32, attn_implementation="eager") | more
        return AutoModelForCausalLM.from_pretrained(**self.source(path), **options).eval()

    def logits(self, model):
        with torch.no_grad():
            return [model(input_ids=torch.tensor([ids])).logits[0].numpy() for ids in self.sequences]

    def check_peft(self):
        folder = self.folder / "peft"
        if folder.exists():
            model = PeftModel.from_pretrained(self.load(self.base), str(folder)).eval()
            self.close(self.logits(model), self.ours, LIMIT, "peft: logits")
            merged = self.logits(model.merge_and_unload())
            self.close(merged, self.ours, LIMIT, "peft: logits once PEFT has merged it")

    def check_hf(self, name="hf"):
        source = self.source(self.folder / name)
        _, info = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32, output_loading_info=True)
        wrong = {key: found for key, found in info.items() if found}
        self.expect(not wrong, f"{name}: every key is there, none is unexpected {wrong or ''}")
        model = self.load(self.folder / name)
        for module in model.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):
                # Where the processor can, bitsandbytes would compute in bf16, in a layout for which these are too small.
                module.support_avx512bf16_for_cpu = False
        # In 8 bits, bitsandbytes computes with 8-bit inputs, too.
        limit = 5e-2 if name == "packed" and self.name == "int8" else LIMIT
        self.close(self.logits(model), self.ours, limit, f"{name}: logits")
        tokenizer = self.check_tokenizer(name, self.folder / name)
        ends = (tokenizer.bos_token, tokenizer.eos_token)
        self.expect(ends == self.ends(), f"{name}: first and last token {ends}")
        if name == "packed":
            return model
        return {name: weight.numpy() for name, weight in model.state_dict().items()}

    def check_packed(self):
        dequantised = self.check_hf("dequantised")
        model = self.check_hf("packed")
        unpacked = 0
        for name, module in model.named_modules():
            kind = type(module).__name__
            if kind == "Linear4bit":
                weight = functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            elif kind == "Linear8bitLt":
                # The first pass has moved them from the weight.
                weight = functional.int8_vectorwise_dequant(module.state.CB, module.state.SCB)
            else:
                continue
            unpacked += 1
            if not numpy.array_equal(weight.float().numpy(), dequantised[f"{name}.weight"]):
                self.expect(False, f"packed: {name} unpacks to what the run computed with")
        self.expect(unpacked > 0, f"packed: {unpacked} weights are unpacked by bitsandbytes")
        applied = self.folder / "applied"
        options = ["--format", "hf", "--base", "dequantised", "--out", applied]
        run(self.args.liftplan, "export", self.folder / "delta", "--model", self.base, *options)
        ours, theirs = (load_file(folder / "model.safetensors") for folder in (applied, self.folder / "dequantised"))
        same = ours.keys() == theirs.keys() and all(numpy.array_equal(ours[key], theirs[key]) for key in ours)
        self.expect(same, "delta: with its base model, the tensors that the run exports")

    def check_gguf(self, dtype, merged):
        name = f"gguf-{dtype}"
        (path,) = (self.folder / name).glob("*.gguf")
        if self.family in READER_NEEDS_CONFIG:
            model = self.load(path, config=AutoConfig.from_pretrained(str(self.folder / "hf")))
        else:
            model = self.load(path)
        if self.family == "mistral":
            # llama.cpp reads Mistral as `llama`, whose sliding window is in no GGUF file: its weights, with the window.
            windowed = self.load(self.folder / "hf")
            windowed.load_state_dict(model.state_dict())
            model = windowed
        self.close(self.logits(model), self.ours, LOOSE[dtype], f"{name}: logits, to the format's precision")
        loaded = {key: weight.numpy() for key, weight in model.state_dict().items()}
        self.expect(loaded.keys() == merged.keys(), f"{name}: the same tensors")
        keys = sorted(loaded.keys() & merged.keys())
        rounded = [rounding(merged[key], dtype) for key in keys]
        self.close([loaded[key] for key in keys], rounded, LIMIT, f"{name}: the merged weights, rounded")
        self.check_tokenizer(name, path)
        fields = GGUFReader(path).fields
        for key in ("model", "pre", "token_type", "merges", "chat_template"):
            key = key if key == "chat_template" else f"ggml.{key}"
            self.expect(f"tokenizer.{key}" in fields, f"{name}: has tokenizer.{key}")
        # Read from the file itself: transformers' reader takes the first token for the last one, too.
        tokens = fields["tokenizer.ggml.tokens"].contents()
        ends = tuple(tokens[fields[f"tokenizer.ggml.{end}_token_id"].contents()] for end in ("bos", "eos"))
        self.expect(ends == self.ends(), f"{name}: first and last token {ends}")

    def ends(self):
        """The first and the last token that the base model names."""
        return ("<|im_start|>" if self.family == "smollm2" else "<|endoftext|>", "<|im_end|>")

    def check_tokenizer(self, name, path):
        theirs = AutoTokenizer.from_pretrained(**self.source(path))
        # transformers' reader leaves out that each digit stands alone, if the file asks for it: compare on equal terms.
        same = [text for text in STRINGS if theirs.encode(text) != self.tokenizer.encode(text) and "  1" not in text]
        self.expect(not same, f"{name}: token ids of {len(STRINGS)} strings {same or ''}")
        chats = [
            t.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True) for t in (theirs, self.tokenizer)
        ]
        self.expect(chats[0] == chats[1], f"{name}: chat template")
        return theirs

    def check(self):
        print(f"{self.family}, {self.name}", flush=True)
        self.make()
        if self.packed:
            self.check_packed()
            return self.failures
        self.check_peft()
        merged = self.check_hf()
        for dtype in ("f16", "q8_0"):
            self.check_gguf(dtype, merged)
        return self.failures


def rounding(weight, dtype):
    """A merged weight as the format keeps it; vectors stay f32."""
    if weight.ndim < 2:
        return weight
    if dtype == "f16":
        return weight.astype(numpy.float16).astype(numpy.float32)
    kind = GGMLQuantizationType.Q8_0
    return quants.dequantize(quants.quantize(weight, kind), kind)


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\nended with {done.returncode}:\n{done.stdout}{done.stderr}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--liftplan", required=True, help="the command `liftplan`")
    parser.add_argument("--logits", required=True, help="the test binary `logits`")
    parser.add_argument("--work", required=True, help="an empty folder")
    parser.add_argument("--smollm2", help="SmolLM2's GGUF file; without it, it is left out")
    parser.add_argument("--only", help="only the cases whose `family-name` contains this")
    args = parser.parse_args()
    torch.set_num_threads(2)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    failures = []
    for family, name, policy in CASES:
        if (family == "smollm2" and not args.smollm2) or (args.only and args.only not in f"{family}-{name}"):
            continue
        failures += Case(args, family, name, policy).check()
    if failures:
        sys.exit("\n".join(["", *failures, f"{len(failures)} failed"]))
    print("all exports load and agree")


if __name__ == "__main__":
    main()
