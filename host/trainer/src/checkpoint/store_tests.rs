//! Checkpoints: written, found, verified and pruned.

use super::*;
use crate::checkpoint::{NamedTensor, TensorData};
use crate::report::LossAt;

fn hashes() -> Hashes {
    let hash = |c: char| c.to_string().repeat(64);
    Hashes { model: hash('a'), plan: hash('b'), config: hash('c'), data: hash('d'), plugin: None }
}

fn state(step: u64) -> State {
    State {
        step,
        sampler: serde_json::json!({"epoch": 1, "order": [3, 1, 2], "x": 0.1}),
        rng: [("dropout".to_string(), u64::MAX)].into(),
        best_eval_loss: Some(LossAt { step: 4, loss: 1.0 / 3.0 }),
        hashes: hashes(),
        ..State::default()
    }
}

fn tensors(step: u64) -> Vec<NamedTensor> {
    let data = (0..4096).map(|i| i as f32 * 0.1 + step as f32).collect();
    vec![NamedTensor { name: "w.lora_A.weight".to_string(), shape: vec![64, 64], data: TensorData::F32(data) }]
}

fn write(store: &Store, step: u64) -> Result<PathBuf> {
    store.write(state(step), &tensors(step), &tensors(step + 1))
}

fn entries(store: &Store) -> Vec<String> {
    store.names().unwrap()
}

#[test]
fn a_checkpoint_comes_back_as_it_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::of(dir.path());
    for step in [9, 10] {
        assert_eq!(write(&store, step).unwrap(), dir.path().join(format!("checkpoints/step-{step}")));
    }
    assert_eq!(store.latest().unwrap(), Some(10));
    let read = store.read(None).unwrap();
    assert_eq!(read.trainable.all().unwrap(), tensors(10));
    assert_eq!(read.optimizer.all().unwrap(), tensors(11));
    let State { version, files, checksum, .. } = read.state.clone();
    assert_eq!(read.state, State { version, files, checksum, ..state(10) });
    read.check(&hashes()).unwrap();
}

#[test]
fn writing_the_same_step_again_replaces_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::of(dir.path());
    write(&store, 3).unwrap();
    store.write(state(3), &tensors(7), &tensors(8)).unwrap();
    assert_eq!(store.read(Some(3)).unwrap().trainable.all().unwrap(), tensors(7));
    assert_eq!(entries(&store), ["step-3"]);
}

#[test]
fn pruning_keeps_the_newest_and_the_best() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::of(dir.path());
    (1..=6).for_each(|s| drop(write(&store, s).unwrap()));
    assert_eq!(store.prune(2, Some(3)).unwrap(), [1, 2, 4]);
    assert_eq!(store.steps().unwrap(), [3, 5, 6]);
    store.prune(0, None).unwrap();
    assert_eq!(store.steps().unwrap(), [6]);
}

#[test]
fn what_a_dead_process_left_is_cleared() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::of(dir.path());
    write(&store, 1).unwrap();
    let at = |name: &str| dir.path().join("checkpoints").join(name);
    // Died while replacing step 1, and before that while writing step 2.
    fs::rename(at("step-1"), at(".old-step-1")).unwrap();
    fs::create_dir(at(".tmp-step-2")).unwrap();
    let lock = RunLock::acquire(dir.path()).unwrap();
    store.recover(&lock).unwrap();
    assert_eq!(entries(&store), ["step-1"]);
    store.read(None).unwrap();
}

#[test]
fn damage_names_the_file_and_offers_the_checkpoint_before() {
    for (file, damage, expected) in [
        (TRAINABLE, "flip", "its content is not what state.json says was written"),
        (OPTIMIZER, "cut", "bytes, and"),
        (OPTIMIZER, "remove", "No such file"),
        (STATE, "flip", "its content doesn't have its checksum"),
        (STATE, "cut", "EOF while parsing"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::of(dir.path());
        write(&store, 4).unwrap();
        let path = write(&store, 8).unwrap().join(file);
        let mut bytes = fs::read(&path).unwrap();
        match damage {
            "flip" if file == STATE => {
                let text = String::from_utf8(bytes).unwrap().replace("\"tokens\": 0", "\"tokens\": 1");
                fs::write(&path, text).unwrap();
            }
            "flip" => {
                *bytes.last_mut().unwrap() ^= 1;
                fs::write(&path, &bytes).unwrap();
            }
            "cut" => fs::write(&path, &bytes[..bytes.len() / 2]).unwrap(),
            _ => fs::remove_file(&path).unwrap(),
        }
        let error = store.read(None).unwrap_err();
        assert!(error.message().contains(&format!("step-8/{file}")), "{error}");
        assert!(error.message().contains(expected), "{error}");
        assert!(error.help_text().unwrap().ends_with("to go on from the checkpoint before it, step-4"), "{error}");
        store.read(Some(4)).unwrap();
    }
}

#[test]
fn another_plan_or_model_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::of(dir.path());
    write(&store, 1).unwrap();
    let read = store.read(None).unwrap();
    let error = read.check(&Hashes { plan: "e".repeat(64), ..hashes() }).unwrap_err();
    assert!(error.message().contains("another plan (sha256 bbbbbbbbbbbb there, eeeeeeeeeeee here)"), "{error}");
    let error = read.check(&Hashes { model: String::new(), ..hashes() }).unwrap_err();
    assert!(error.message().contains("another model (sha256 aaaaaaaaaaaa there, none here)"), "{error}");
}

#[test]
fn a_missing_checkpoint_is_an_error_that_lists_those_there_are() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::of(dir.path());
    assert!(store.read(None).unwrap_err().message().starts_with("there is no checkpoint in"));
    write(&store, 2).unwrap();
    write(&store, 4).unwrap();
    let error = store.read(Some(3)).unwrap_err();
    assert_eq!(error.help_text(), Some("there are checkpoints of the steps 2, 4"));
}

/// The kernel refuses to let a file grow past a limit, exactly as it refuses on a full disk or quota: the test
/// starts itself again under such a limit, and that process writes a checkpoint that is larger.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_leaves_no_half_checkpoint_and_the_old_ones_whole() {
    const CHILD: &str = "LIFTPLAN_TEST_FULL_DISK";
    const NAME: &str = "checkpoint::store::tests::a_full_disk_leaves_no_half_checkpoint_and_the_old_ones_whole";
    if let Ok(run) = std::env::var(CHILD) {
        let store = Store::of(Path::new(&run));
        let error = write(&store, 2).unwrap_err();
        assert_eq!(error.exit_code(), 7);
        assert!(error.message().contains("step-2 was not written: cannot write"), "{error}");
        assert!(error.message().contains("File too large"), "{error}");
        assert!(error.help_text().unwrap().contains("free some space"), "{error}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = Store::of(dir.path());
    write(&store, 1).unwrap();
    // 8 blocks of 512 bytes or 1 KiB; the tensors have 16 KiB.
    let status = std::process::Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 8; exec \"$0\" --exact \"$1\" --nocapture"])
        .arg(std::env::current_exe().unwrap())
        .arg(NAME)
        .env(CHILD, dir.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&status.stdout);
    assert!(status.status.success() && text.contains("1 passed"), "{text}");
    assert_eq!(entries(&store), ["step-1"]);
    assert_eq!(store.read(None).unwrap().trainable.all().unwrap(), tensors(1));
}
