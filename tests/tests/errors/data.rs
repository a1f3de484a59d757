//! The data: exit code 4, or 2 where it is the configuration that doesn't fit it.

use crate::Case;

const TRAIN: &[&str] = &["train", "c.toml"];

pub const CASES: [Case; 17] = [
    Case {
        name: "no training file",
        arrange: |f| f.remove("train.jsonl"),
        arguments: TRAIN,
        code: 4,
        message: "error: cannot read {dir}/train.jsonl: No such file or directory (os error 2)\n  \
                  help: paths in a configuration are seen from its directory, and those on the command line from the current one",
    },
    Case {
        name: "an empty training file",
        arrange: |f| f.write("train.jsonl", ""),
        arguments: TRAIN,
        code: 4,
        message: "error: train.jsonl: there are no rows",
    },
    Case {
        name: "a file of a kind that isn't read",
        arrange: |f| {
            f.write("train.docx", "x");
            f.replace("c.toml", "train.jsonl", "train.docx")
        },
        arguments: TRAIN,
        code: 4,
        message: "error: train.docx: a data file must end in one of .jsonl, .ndjson, .json, .csv, .tsv, .parquet\n  \
                  help: rename the file, or convert it to one of these",
    },
    Case {
        name: "a line that is no JSON",
        arrange: |f| f.replace("train.jsonl", "{\"text\": \"the dog", "{\"text: \"the dog"),
        arguments: TRAIN,
        code: 4,
        message: "error: train.jsonl:2: not valid JSON at column 10: expected `:`\n  \
                  help: mend the row, or leave such rows out with data.undecodable = \"drop\"",
    },
    Case {
        name: "a line that is no object",
        arrange: |f| f.replace("train.jsonl", "{\"text\": \"the dog ran to the door\", \"label\": \"busy\"}", "[1, 2]"),
        arguments: TRAIN,
        code: 4,
        message: "error: train.jsonl:2: expected an object, found a list\n  \
                  help: mend the row, or leave such rows out with data.undecodable = \"drop\"",
    },
    Case {
        name: "a line that is no UTF-8",
        arrange: |f| f.change("train.jsonl", |b| b[60] = 0xff),
        arguments: TRAIN,
        code: 4,
        message: "error: train.jsonl:2: not valid UTF-8 at byte 9\n  \
                  help: mend the row, or leave such rows out with data.undecodable = \"drop\"",
    },
    Case {
        name: "a Parquet file that is none",
        arrange: |f| {
            f.write("train.parquet", "PAR2 and so on");
            f.replace("c.toml", "train.jsonl", "train.parquet")
        },
        arguments: TRAIN,
        code: 4,
        message: "error: train.parquet is not a readable Parquet file: Parquet error: Invalid Parquet file. Corrupt footer\n  \
                  help: the file may be cut short or damaged; fetch or write it again",
    },
    Case {
        name: "columns that no format has",
        arrange: |f| f.write("train.jsonl", "{\"question\": \"a\", \"reply\": \"b\"}"),
        arguments: TRAIN,
        code: 4,
        message: "error: train.jsonl: the format cannot be told from the columns `question`, `reply`\n  \
                  help: set data.format, and name the columns in [data.fields]; without that, messages, conversations, prompt + completion, instruction + output, text + label, or text are looked for",
    },
    Case {
        name: "a column that isn't there",
        arrange: |f| f.set("data", "format = \"label\"\nfields = { label = \"labels\" }"),
        arguments: TRAIN,
        code: 4,
        message: "error: train.jsonl: the format \"label\" needs `labels`, but the file has the columns `label`, `text`\n  \
                  help: did you mean `label`? Name the columns in [data.fields]",
    },
    Case {
        name: "a row without its label",
        arrange: |f| f.replace("train.jsonl", "\"busy\"", "null"),
        arguments: TRAIN,
        code: 4,
        message: "error: train.jsonl:2: no `label`\n  \
                  help: mend the row, or leave such rows out with data.unlabelled = \"drop\"",
    },
    Case {
        name: "a label that isn't among the labels",
        arrange: |f| f.set("data", "labels = [\"calm\", \"bussy\"]"),
        arguments: TRAIN,
        code: 4,
        message: "error: train.jsonl:2: the label \"busy\" is not among \"calm\", \"bussy\" (3 rows like this, also train.jsonl:4, train.jsonl:6)\n  \
                  help: mend the row, or leave such rows out with data.unlabelled = \"drop\"",
    },
    Case {
        name: "classification of text without labels",
        arrange: |f| {
            f.write("train.jsonl", "{\"text\": \"the cat\"}\n{\"text\": \"the dog\"}\n{\"text\": \"the bird\"}");
            f.write("test.jsonl", "{\"text\": \"the cat\"}");
            f.set("data", "test = \"test.jsonl\"");
            f.set("eval", "task = \"classification\"")
        },
        arguments: TRAIN,
        code: 4,
        message: "error: test.jsonl:1 has no label\n  \
                  help: classification needs rows with a text and a label; set eval.task for other data",
    },
    Case {
        name: "summaries of rows without any",
        arrange: |f| {
            f.write("train.jsonl", "{\"text\": \"the cat\"}\n{\"text\": \"the dog\"}\n{\"text\": \"the bird\"}");
            f.set("data", "validation_split = 0.4");
            f.set("eval", "task = \"summarization\"")
        },
        arguments: TRAIN,
        code: 4,
        message: "error: train.jsonl:2 has no answer to compare a summary with\n  \
                  help: use rows with a completion, or set eval.task = \"lm\"",
    },
    Case {
        name: "rows that are too long",
        arrange: |f| f.set("data", "max_length = 8\ntoo_long = \"error\""),
        arguments: TRAIN,
        code: 4,
        message: "error: train.jsonl:1: 46 tokens (6 rows like this, also train.jsonl:2, train.jsonl:3, train.jsonl:4, train.jsonl:5, …)\n  \
                  help: mend the row, or leave such rows out with data.too_long = \"drop\", cut them with data.too_long = \"truncate\", or raise data.max_length",
    },
    Case {
        name: "rows that are all dropped",
        arrange: |f| f.set("data", "max_length = 8\ntoo_long = \"drop\""),
        arguments: TRAIN,
        code: 4,
        message: "error: train.jsonl: none of the 6 rows can be used: 6 left out: longer than max_length (train.jsonl:1: 46 tokens)\n  \
                  help: mend the data, or raise data.max_length if rows were cut or left out for their length",
    },
    Case {
        name: "a validation share that is none",
        arrange: |f| f.set("data", "validation_split = 1.5"),
        arguments: TRAIN,
        code: 2,
        message: "error: c.toml:5: `data.validation_split` must be in (0, 1), not 1.5",
    },
    Case {
        name: "a column in the prompt that isn't there",
        arrange: |f| f.set("data", "prompt = \"{txt} is\""),
        arguments: TRAIN,
        code: 2,
        message: "error: c.toml:5: `data.prompt` names the column `txt`, but train.jsonl has `label`, `text`",
    },
];
