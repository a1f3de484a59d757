//! Devices that are none, and settings that one of them does not have.

use crate::Case;

const TRAIN: &[&str] = &["train", "c.toml"];
const ON_CUDA: &[&str] = &["train", "c.toml", "--set", "device=cuda"];

pub const CASES: [Case; 9] = [
    Case {
        name: "a device that is none",
        arrange: |_| {},
        arguments: &["train", "c.toml", "--set", "device=gpu"],
        code: 2,
        message: "error: --set device=gpu: `device`: \"gpu\" is not \"auto\", \"cpu\", \"cuda\" or \"cuda:\" and a GPU's number",
    },
    Case {
        name: "an amount of memory without a unit",
        arrange: |f| f.replace("c.toml", "model = ", "vram = \"24\"\nmodel = "),
        arguments: TRAIN,
        code: 2,
        message: "error: c.toml:1: `vram`: \"24\" is not an amount of memory such as \"24GiB\" or \"800MiB\"",
    },
    Case {
        name: "a GPU's memory on the processor",
        arrange: |f| f.replace("c.toml", "model = ", "device = \"cpu\"\nvram = \"24GiB\"\nmodel = "),
        arguments: TRAIN,
        code: 2,
        message: "error: c.toml:2: `vram` has no effect on the processor\n  \
                  help: leave vram out, or set device to \"cuda\" or \"auto\"",
    },
    Case {
        name: "an order of sums on the processor",
        arrange: |f| {
            f.replace("c.toml", "model = ", "device = \"cpu\"\nmodel = ");
            f.set("train", "deterministic = false");
        },
        arguments: &["train", "c.toml"],
        code: 2,
        message: "error: c.toml:13: `train.deterministic` = false has no effect: the processor's sums always have one order\n  \
                  help: leave it out, or set device to \"cuda\" or \"auto\"",
    },
    Case {
        name: "an embedding beside the GPU, on the processor",
        arrange: |f| {
            f.replace("c.toml", "model = ", "device = \"cpu\"\nmodel = ");
            f.set("storage", "offload_embedding = true");
        },
        arguments: TRAIN,
        code: 2,
        message: "error: c.toml:20: `storage.offload_embedding` has no effect on the processor: all its memory is the host's\n  \
                  help: leave it out, or set device to \"cuda\" or \"auto\"",
    },
    Case {
        name: "an update inside the backward pass, on the processor",
        arrange: |f| {
            f.replace("c.toml", "model = ", "device = \"cpu\"\nmodel = ");
            f.set("train", "max_grad_norm = 0");
            f.set("train", "update_in_backward = true");
        },
        arguments: TRAIN,
        code: 2,
        message: "error: c.toml:13: `train.update_in_backward` = true has no effect on the processor: it saves a GPU's memory\n  \
                  help: leave it out, or set device to \"cuda\" or \"auto\"",
    },
    Case {
        name: "an update inside the backward pass, and clipping",
        arrange: |f| f.set("train", "update_in_backward = true"),
        arguments: TRAIN,
        code: 2,
        message: "error: c.toml:12: `train.update_in_backward` = true does not go with train.max_grad_norm = 1: the norm of all \
                  gradients is known when all of them are, and most weights have changed by then\n  \
                  help: set train.max_grad_norm = 0, which never clips, or leave update_in_backward out",
    },
    Case {
        name: "a run that began on the processor, resumed on a GPU",
        arrange: |f| f.train(),
        arguments: &["train", "c.toml", "--resume", "--set", "device=cuda"],
        code: 2,
        message: "error: `device` is \"cuda:0\", and the run in {dir}/run began on \"cpu\"\n  \
                  help: a resumed run is the same as one that never stopped, and devices round differently: set device to \
                  \"cpu\", leave it out, or start another run",
    },
    Case {
        name: "a GPU's number that is none",
        arrange: |_| {},
        arguments: &["train", "c.toml", "--set", "device=cuda:-1"],
        code: 2,
        message: "error: --set device=cuda:-1: `device`: \"cuda:-1\" is not \"auto\", \"cpu\", \"cuda\" or \"cuda:\" and a GPU's \
                  number",
    },
];

pub const WITHOUT_DRIVER: [Case; 2] = [
    Case {
        name: "no GPU",
        arrange: |_| {},
        arguments: ON_CUDA,
        code: 2,
        message: "error: `device` is \"cuda:0\": libcuda cannot be opened: install NVIDIA's driver (it brings libcuda)\n  \
                  help: `liftplan doctor` lists what is missing; device = \"cpu\" needs none of it",
    },
    Case {
        name: "a scan without a GPU",
        arrange: |_| {},
        arguments: &["scan", "model", "--device", "cuda"],
        code: 2,
        message: "error: `device` is \"cuda:0\": libcuda cannot be opened: install NVIDIA's driver (it brings libcuda)\n  \
                  help: `liftplan doctor` lists what is missing; device = \"cpu\" needs none of it",
    },
];
