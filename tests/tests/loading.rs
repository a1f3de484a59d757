//! Weights are quantised as they are read: while a model is loaded, no more is in memory than what stays and two tensors.
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use liftplan::report::{Silent, process};
use liftplan::stats::ModelStatistics;
use liftplan::train::build;
use liftplan::{model, policy};
use liftplan_tests::{made_up, setup};
use safetensors::Dtype;

/// Counts what is allocated.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all is handed to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(live, Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn loading_in_4_or_8_bits_needs_what_stays_and_two_tensors() {
    let dir = tempfile::tempdir().unwrap();
    process::give_back_large_buffers();
    // A small vocabulary, so that the embedding is not most of it, and matrices so large that also packed most of them are
    // given back to the system when they go: 80 MiB, which would be 160 as f32.
    let sizes = [("hidden_size", 1024), ("intermediate_size", 4096), ("num_hidden_layers", 3)];
    made_up::write_llama(dir.path(), Dtype::BF16, &sizes);
    let base = model::open(dir.path().to_str().unwrap(), dir.path(), &mut Silent).unwrap();
    let largest = base.inventory.tensors.iter().map(|info| 4 * info.len()).max().unwrap();
    for storage in ["nf4", "int8"] {
        let tables = format!(
            "[policy]\nname = \"lora\"\nrank = 2\n[train]\nweights = \"bf16\"\n[storage]\nfrozen = \"{storage}\""
        );
        let config = setup::config(dir.path(), &tables).unwrap();
        let plan = policy::plan(&config, &base.inventory, &ModelStatistics::new(&base, &mut Silent)).unwrap();
        // Threads and tables of codes are made once, by whoever comes first.
        drop(build(&base, &plan, 0, &mut Silent).unwrap());
        let before = LIVE.load(Ordering::Relaxed);
        PEAK.store(before, Ordering::Relaxed);
        let resident_before = start_peak();
        let decoder = build(&base, &plan, 0, &mut Silent).unwrap();
        let (stays, peak) = (LIVE.load(Ordering::Relaxed) - before, PEAK.load(Ordering::Relaxed) - before);
        let resident = resident_before.map(|before| process::peak_bytes().unwrap() - before);
        let weights: usize = decoder.params().map(|param| param.value.bytes()).sum();
        let gradients: usize = decoder.params().filter_map(|param| param.grad()).map(size_of_val).sum();
        assert!(stays < weights + gradients + 100_000, "{storage}: {stays} bytes stay, of which {weights} are weights");
        assert!(peak < stays + 2 * largest, "{storage}: {peak} bytes at most, {stays} stay, a tensor has {largest}");
        // Nor do pages of the model's file stay behind. Beside buffers there are the threads' stacks and the allocator's
        // own pages, and the kernel counts late.
        if let Some(resident) = resident {
            let most = (stays + 2 * largest + (6 << 20)) as u64;
            assert!(resident < most, "{storage}: {resident} bytes resident at most, more than {most}");
            assert!(resident > stays as u64 / 2, "{storage}: {resident} bytes resident: that was not measured");
        }
        // Without streaming all of the model would have been there as f32.
        let whole: usize = base.inventory.tensors.iter().map(|info| 4 * info.len()).sum();
        assert!(2 * peak < whole, "{storage}: {peak} bytes at most, {whole} in f32");
    }
}

/// Starts the process's peak anew, and gives the bytes that are resident; nothing where the system has no such count.
fn start_peak() -> Option<u64> {
    // Linux starts VmHWM anew when 5 is written here.
    std::fs::write("/proc/self/clear_refs", "5").ok()?;
    process::peak_bytes()
}
