//! A scan holds at most three times the largest matrix, however large the model is. Alone in its process, whose peak
//! is measured.
#![allow(clippy::unwrap_used)]
#![cfg(target_os = "linux")]

use std::fs;

use liftplan::report::{Silent, process};
use liftplan::stats::{ModelStatistics, Statistic, scan};
use liftplan_tests::{made_up, setup};
use safetensors::Dtype;

const HIDDEN: usize = 1024;
const INTERMEDIATE: usize = 4096;
const BLOCKS: usize = 3;
const MIB: u64 = 1 << 20;

#[test]
fn a_scan_holds_three_times_the_largest_matrix() {
    process::give_back_large_buffers();
    let dir = tempfile::tempdir().unwrap();
    // 144 MiB in f32, whose largest matrices take 16 MiB each.
    let sizes = [
        ("hidden_size", HIDDEN),
        ("intermediate_size", INTERMEDIATE),
        ("num_hidden_layers", BLOCKS),
        ("num_attention_heads", 8),
        ("num_key_value_heads", 8),
        ("head_dim", HIDDEN / 8),
    ];
    made_up::write_llama(dir.path(), Dtype::F32, &sizes);
    let base = setup::open(dir.path()).unwrap();
    let mut observer = Silent;
    let statistics = ModelStatistics::with_cache(&base, None, &mut observer);

    // From here on the peak is the scan's: Linux starts it anew when 5 is written here.
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = process::peak_bytes().unwrap();
    let found = scan(&base.inventory, &statistics, Statistic::Snr, 25.0).unwrap();
    assert_eq!(found.rows.len(), 7 * BLOCKS);
    let held = process::peak_bytes().unwrap() - before;

    let largest = (4 * HIDDEN * INTERMEDIATE) as u64;
    // Beside the matrices there are the stacks of the threads and the allocator's own pages.
    assert!(held < 3 * largest + 6 * MIB, "{} MiB held, the largest matrix has {}", held / MIB, largest / MIB);
    assert!(held > largest, "{} MiB held: that is less than one matrix, so it was not measured", held / MIB);
}
