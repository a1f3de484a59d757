//! Comparisons that can't be.

use super::Case;
use super::fixture::Folder;

const GOOD: &str = r#"base = "c.toml"
out = "out"
[run.data]
test = "train.jsonl"
[[method]]
name = "A"
policy = { name = "lora", rank = 2 }
[[method]]
name = "B"
policy = { name = "full" }
"#;

const RUN: &[&str] = &["compare", "x.toml"];

/// Writes the comparison with `from` replaced by `to`.
fn change(folder: &Folder, from: &str, to: &str) {
    assert!(GOOD.contains(from));
    folder.write("x.toml", GOOD.replacen(from, to, 1));
}

pub const CASES: [Case; 22] = [
    Case {
        name: "a comparison's unknown key",
        arrange: |f| change(f, "out = ", "baselin = \"A\"\nout = "),
        arguments: RUN,
        code: 2,
        message: "error: x.toml:2: `baselin` is not a known setting\n  help: did you mean `baseline`?",
    },
    Case {
        name: "a training configuration's section at the top of a comparison",
        arrange: |f| f.write("x.toml", GOOD),
        arguments: &["compare", "x.toml", "--set", "train.steps=2"],
        code: 2,
        message: "error: --set train.steps=2: `train` is not a known setting\n  help: did you mean `run.train`?",
    },
    Case {
        name: "a method's unknown key",
        arrange: |f| change(f, "name = \"B\"", "name = \"B\"\npolcy = 3"),
        arguments: RUN,
        code: 2,
        message: "error: x.toml:10: `method.1.polcy` is not a known setting\n  help: did you mean `method.1.policy`?",
    },
    Case {
        name: "a policy's setting in a comparison",
        arrange: |f| change(f, "rank = 2", "rnak = 2"),
        arguments: RUN,
        code: 2,
        message: "error: x.toml:7: `policy.rnak` is not a setting of policy `lora`\n  help: did you mean `policy.rank`?",
    },
    Case {
        name: "no method",
        arrange: |f| f.write("x.toml", GOOD.split("[[method]]").next().unwrap_or_default()),
        arguments: RUN,
        code: 2,
        message: "error: there is no method to compare\n  help: add some: [[method]] with a name and a policy",
    },
    Case {
        name: "two methods of one name",
        arrange: |f| change(f, "\"B\"", "\"A\""),
        arguments: RUN,
        code: 2,
        message: "error: x.toml:9: `method.1.name` is \"A\" twice\n  help: give each method a name of its own",
    },
    Case {
        name: "no test data to score on",
        arrange: |f| change(f, "test = \"train.jsonl\"", ""),
        arguments: RUN,
        code: 2,
        message: "error: there is no test data, and scores are measured on it\n  help: set test in [run.data]; learning rates are chosen on the validation data, and never on the test data",
    },
    Case {
        name: "a choice without validation data",
        arrange: |f| change(f, "[[method]]", "[search]\nlearning_rates = [1e-3, 1e-2]\n[[method]]"),
        arguments: RUN,
        code: 2,
        message: "error: there is no validation data to choose among 2 learning rates by\n  help: set validation or validation_split in [run.data], or give one learning rate",
    },
    Case {
        name: "a baseline that is no method",
        arrange: |f| change(f, "out = ", "baseline = \"a\"\nout = "),
        arguments: RUN,
        code: 2,
        message: "error: x.toml:2: `baseline`: there is no method \"a\"\n  help: did you mean \"A\"?",
    },
    Case {
        name: "unequal searches",
        arrange: |f| change(f, "name = \"B\"", "name = \"B\"\nlearning_rates = [1e-3, 1e-2]"),
        arguments: RUN,
        code: 2,
        message: "error: x.toml:10: `method.1.learning_rates`: \"B\" tries 2 of them, and \"A\" 1\n  help: give every method as many learning rates: one that searches longer finds more",
    },
    Case {
        name: "a method with a budget of its own",
        arrange: |f| change(f, "name = \"B\"", "name = \"B\"\ntrain = { steps = 9 }"),
        arguments: RUN,
        code: 2,
        message: "error: x.toml:10: `method.1.train.steps` cannot differ between methods, which share data, order and budget\n  help: set it for all of them, as budget.steps",
    },
    Case {
        name: "two budgets",
        arrange: |f| change(f, "[[method]]", "[budget]\nsteps = 1\ntokens = 5\n[[method]]"),
        arguments: RUN,
        code: 2,
        message: "error: x.toml:6: `budget.steps` and `budget.tokens` are both set\n  help: keep one of them; budget.memory can stand beside it",
    },
    Case {
        name: "a score that the task doesn't have",
        arrange: |f| change(f, "[[method]]", "[score]\nname = \"acuracy\"\n[[method]]"),
        arguments: RUN,
        code: 2,
        message: "error: x.toml:6: `score.name`: this task has no score \"acuracy\"\n  help: it has loss and perplexity; a score of your own needs score.command",
    },
    Case {
        name: "one seed twice",
        arrange: |f| change(f, "[[method]]", "[search]\nseeds = [1, 1]\n[[method]]"),
        arguments: RUN,
        code: 2,
        message: "error: x.toml:6: `search.seeds` has 1 twice\n  help: the same seed gives the same run, which would count twice",
    },
    Case {
        name: "a budget of no steps",
        arrange: |f| change(f, "[[method]]", "[budget]\nsteps = 0\n[[method]]"),
        arguments: RUN,
        code: 2,
        message: "error: x.toml:6: `budget.steps` must be at least 1",
    },
    Case {
        name: "a latency that is neither on nor off nor a table",
        arrange: |f| change(f, "out = ", "latency = 3\nout = "),
        arguments: RUN,
        code: 2,
        message: "error: x.toml:2: `latency` must be true, false or a table, not 3\n  help: as in latency = { prompt_tokens = 64, new_tokens = 32, repeats = 5 }",
    },
    Case {
        name: "a method's name of two lines",
        arrange: |f| change(f, "\"B\"", "\"B\\nC\""),
        arguments: RUN,
        code: 2,
        message: "error: x.toml:9: `method.1.name` has the control character '\\n'\n  help: it is a line of text in the report",
    },
    Case {
        name: "a method that is called as another's random counterpart",
        arrange: |f| change(f, "\"B\"", "\"A · random layers\""),
        arguments: RUN,
        code: 2,
        message: "error: a method is called \"A · random layers\", as a random counterpart will be\n  help: give it another name, or set controls = false",
    },
    Case {
        name: "a command's score under the name of one that there is",
        arrange: |f| change(f, "[[method]]", "[score]\nname = \"loss\"\ncommand = [\"true\"]\n[[method]]"),
        arguments: RUN,
        code: 2,
        message: "error: x.toml:6: `score.name`: \"loss\" is a score of Liftplan's own\n  help: give what score.command prints a name of its own",
    },
    Case {
        name: "a title of nothing",
        arrange: |f| change(f, "out = ", "title = \" \"\nout = "),
        arguments: RUN,
        code: 2,
        message: "error: x.toml:2: `title` is empty\n  help: it is a line of text in the report",
    },
    Case {
        name: "forgetting measured on no rows",
        arrange: |f| change(f, "[[method]]", "[forgetting]\ndata = \"train.jsonl\"\nlimit = 0\n[[method]]"),
        arguments: RUN,
        code: 2,
        message: "error: x.toml:7: `forgetting.limit` must be at least 1\n  help: leave it out for all rows",
    },
    Case {
        name: "a comparison in a folder of something else",
        arrange: |f| {
            f.write("x.toml", GOOD);
            f.write("out/letter.txt", "dear");
        },
        arguments: RUN,
        code: 7,
        message: "error: {dir}/out is not empty and holds no comparison\n  help: choose another directory with --out",
    },
];
