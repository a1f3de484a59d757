//! Policies and plans that don't fit the model: exit code 5.

use crate::Case;

const TRAIN: &[&str] = &["train", "c.toml"];

pub const CASES: [Case; 9] = [
    Case {
        name: "a target that matches nothing",
        arrange: |f| f.set("policy", "targets = [\"q_proj\", \"up_porj\"]"),
        arguments: TRAIN,
        code: 5,
        message: "error: c.toml:8: `policy.targets`: `up_porj` matches no tensor of the model\n  \
                  help: did you mean `up_proj`?",
    },
    Case {
        name: "a glob that matches nothing",
        arrange: |f| f.set("policy", "targets = \"model.layers.[2-9].mlp.*\""),
        arguments: &["plan", "c.toml"],
        code: 5,
        message: "error: c.toml:8: `policy.targets`: `model.layers.[2-9].mlp.*` matches no tensor of the model\n  \
                  help: a glob must match a whole name, such as `model.layers.0.mlp.up_proj`",
    },
    Case {
        name: "an expression that matches nothing",
        arrange: |f| f.set("policy", "targets = \"re:mlp\""),
        arguments: TRAIN,
        code: 5,
        message: "error: c.toml:8: `policy.targets`: `re:mlp` matches no tensor of the model\n  \
                  help: an expression must match a whole name, such as `model.layers.0.self_attn.q_proj`",
    },
    Case {
        name: "a target that takes no adapter",
        arrange: |f| f.set("policy", "targets = \"norm\""),
        arguments: TRAIN,
        code: 5,
        message: "error: c.toml:8: `policy.targets`: `norm` matches `model.norm.weight`, which is a normalisation's \
                  scale, but no linear layer's weight",
    },
    Case {
        name: "a head that is the embedding",
        arrange: |f| f.set("policy", "targets = \"lm_head\""),
        arguments: TRAIN,
        code: 5,
        message: "error: c.toml:8: `policy.targets`: `lm_head` matches no tensor of the model\n  \
                  help: its output head is tied: it is the embedding, `model.embed_tokens.weight`",
    },
    Case {
        name: "rank above the dimension",
        arrange: |f| f.replace("c.toml", "rank = 2", "rank = 64"),
        arguments: TRAIN,
        code: 5,
        message: "error: rank 64 does not fit `model.layers.0.self_attn.k_proj.weight` of shape [48, 64]: it must be \
                  between 1 and 48\n  help: lower the rank to at most 48, or leave this tensor out",
    },
    Case {
        name: "a block that isn't there",
        arrange: |f| f.set("policy", "blocks = \"1-2\""),
        arguments: TRAIN,
        code: 5,
        message: "error: c.toml:8: `policy.blocks` names block 2, and the model's blocks are 0 to 1\n  \
                  help: leave it out for all blocks",
    },
    Case {
        name: "an exclusion of what isn't chosen",
        arrange: |f| f.set("policy", "targets = \"q_proj\"\nexclude = \"v_proj\""),
        arguments: TRAIN,
        code: 5,
        message: "error: c.toml:9: `policy.exclude`: `v_proj` matches none of the tensors that are chosen\n  \
                  help: leave it out, or choose more with policy.targets",
    },
    Case {
        name: "nothing left to train",
        arrange: |f| f.set("policy", "exclude = \"all-linear\""),
        arguments: TRAIN,
        code: 5,
        message: "error: c.toml:8: `policy.exclude` leaves nothing to adapt: it takes away every target\n  \
                  help: narrow policy.exclude, or widen policy.targets",
    },
];
