//! Learning-rate schedules.

use std::path::Path;

use liftplan::train::Schedule;
use liftplan_tests::{golden, setup};

/// The factor at every step is that of transformers' `get_*_schedule_with_warmup`.
#[test]
fn schedules_agree_with_transformers() {
    let schedules = golden::schedules();
    assert!(schedules.len() > 10);
    for s in &schedules {
        let floor = if s.name == "constant" { String::new() } else { format!("min_lr_ratio = {:?}\n", s.min_lr_ratio) };
        let decay = match s.name.as_str() {
            "wsd" => format!("decay_ratio = {:?}\n", s.decay_steps as f64 / s.steps as f64),
            _ => String::new(),
        };
        let tables = format!(
            "[policy]\nname = \"lora\"\n[train]\nsteps = {}\n[schedule]\nname = {:?}\nwarmup_steps = {}\n{floor}{decay}",
            s.steps, s.name, s.warmup_steps,
        );
        let config = setup::config(Path::new("unused"), &tables).unwrap();
        let schedule = Schedule::new(&config.schedule, s.steps);
        for (step, expected) in s.factors.iter().enumerate() {
            let factor = schedule.factor(step as u64);
            assert!((factor - expected).abs() < 1e-12, "{s:?}: step {step} has {factor}, expected {expected}");
        }
    }
}
