//! SmolLM2-135M-Instruct, read from its Q4_1 GGUF file: token ids and logits.

use liftplan_engine::Batch;
use liftplan_tests::compare::{assert_close, assert_number};
use liftplan_tests::golden::numbers;
use liftplan_tests::{setup, smollm2};

/// The tokenizer made from the file's metadata gives the ids of the original on some 200 strings.
#[test]
fn tokenizer_gives_the_same_ids() {
    let Some(path) = smollm2::model_or_skip() else { return };
    let base = setup::open(&path).unwrap();
    let strings = smollm2::tokens();
    assert!(strings.len() > 200);
    let mut wrong = Vec::new();
    for s in &strings {
        let ids = base.tokenizer.encode(&s.text, true).unwrap();
        if ids != s.ids {
            wrong.push(format!("{:?}: {ids:?}, expected {:?}", s.text, s.ids));
        }
    }
    assert!(wrong.is_empty(), "{} of {} strings:\n{}", wrong.len(), strings.len(), wrong.join("\n"));
}

/// The logits are those of transformers with the same dequantised weights.
#[test]
fn logits_agree_with_transformers() {
    let Some(path) = smollm2::model_or_skip() else { return };
    let base = setup::open(&path).unwrap();
    let config = setup::config(&path, "[policy]\nname = \"lora\"").unwrap();
    let (_, stepper) = setup::stepper(&base, &config).unwrap();
    let golden = smollm2::logits();
    for (i, prompt) in golden.prompts.iter().enumerate() {
        assert_eq!(base.tokenizer.encode(&prompt.text, true).unwrap(), prompt.ids, "ids of prompt {i}");
        let targets = vec![true; prompt.ids.len()];
        let batch = Batch::pack([(prompt.ids.as_slice(), targets.as_slice())]);
        assert_number(&format!("prompt {i}: loss"), stepper.decoder.loss(&batch).unwrap().mean(), prompt.loss, 1e-4);
        let rows: Vec<usize> = prompt.positions.iter().map(|p| p.position).collect();
        let logits = stepper.decoder.logits(&batch, &rows).unwrap();
        for (row, expected) in prompt.positions.iter().enumerate() {
            let ours = logits.row(row);
            let what = format!("prompt {i}, position {}", expected.position);
            let sampled: Vec<f32> = ours.iter().step_by(golden.stride).copied().collect();
            let reference = numbers(&golden.sampled[&format!("{i}.{}", expected.position)]);
            assert_close(&format!("{what}: sampled logits"), &sampled, &reference, 1e-4);
            let top: Vec<f32> = expected.top_ids.iter().map(|&id| ours[id]).collect();
            assert_close(&format!("{what}: largest logits"), &top, &expected.top_logits, 1e-4);
            let norm = ours.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
            assert_number(&format!("{what}: norm of all logits"), norm, expected.norm, 1e-4);
            let above = ours.iter().filter(|&&x| x > top[9]).count();
            assert_eq!(above, 9, "{what}: as many logits lie above the tenth");
        }
    }
}
