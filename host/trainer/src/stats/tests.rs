use std::fs;
use std::path::Path;

use faer::{Mat, Par};

use super::*;

/// Numbers in [-1, 1), by xorshift64*.
fn random(rows: usize, cols: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut number = || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..rows * cols).map(|_| number()).collect()
}

/// A matrix with about these singular values: each is put between two random vectors of length about 1.
fn with_spectrum(rows: usize, cols: usize, spectrum: &[f64], seed: u64) -> Vec<f32> {
    let mut elements = vec![0f64; rows * cols];
    for (i, value) in spectrum.iter().enumerate() {
        let left = random(rows, 1, seed + 2 * i as u64);
        let right = random(cols, 1, seed + 2 * i as u64 + 1);
        let scale = value * 3.0 / ((rows * cols) as f64).sqrt();
        for (row, l) in left.iter().enumerate() {
            for (col, r) in right.iter().enumerate() {
                elements[row * cols + col] += scale * f64::from(*l) * f64::from(*r);
            }
        }
    }
    elements.into_iter().map(|element| element as f32).collect()
}

fn directly(elements: &[f32], rows: usize, cols: usize) -> Vec<f64> {
    let matrix = Mat::from_fn(rows, cols, |row, col| f64::from(elements[row * cols + col]));
    matrix.singular_values().unwrap()
}

#[track_caller]
fn agree(found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    let largest = expected[0];
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() <= tolerance * largest, "value {i}: {found}, expected {expected}");
    }
}

#[test]
fn singular_values_agree_with_a_decomposition_of_the_matrix_itself() {
    for (rows, cols) in [(1, 1), (1, 7), (7, 1), (2, 2), (3, 5), (40, 40), (300, 64), (64, 300), (257, 256), (33, 700)]
    {
        let elements = random(rows, cols, 3);
        let expected = directly(&elements, rows, cols);
        for par in [Par::Seq, Par::rayon(2)] {
            let found = singular_values(elements.clone(), rows, cols, par).unwrap();
            assert!(found.windows(2).all(|pair| pair[0] >= pair[1]));
            agree(&found, &expected, 1e-11);
            let found = golub_kahan::singular_values(elements.clone(), rows, cols, par).unwrap();
            agree(&found, &expected, 1e-13);
        }
    }
}

#[test]
fn badly_conditioned_and_deficient_matrices_are_decomposed_directly() {
    for rank in [1, 2, 17, 60] {
        let spectrum: Vec<f64> = (0..rank).map(|i| 10f64.powf(-(i as f64) / 6.0)).collect();
        for (rows, cols) in [(60, 90), (90, 60), (60, 60)] {
            let elements = with_spectrum(rows, cols, &spectrum, 11);
            let found = singular_values(elements.clone(), rows, cols, Par::Seq).unwrap();
            agree(&found, &directly(&elements, rows, cols), 1e-13);
        }
    }
    // Squared, 10⁻⁹ would be lost beside 1.
    let diagonal = |i: usize| [1.0, 1e-3, 1e-6, 1e-9][i];
    let elements: Vec<f32> = (0..16).map(|i| if i % 5 == 0 { diagonal(i / 5) } else { 0.0 }).collect();
    let found = singular_values(elements, 4, 4, Par::Seq).unwrap();
    for (i, value) in found.iter().enumerate() {
        assert!((value / f64::from(diagonal(i)) - 1.0).abs() < 1e-12, "{found:?}");
    }
}

#[test]
fn degenerate_matrices_have_defined_scores() {
    let score = |elements: Vec<f32>, rows, cols, statistic: Statistic| {
        statistic.of(&singular_values(elements, rows, cols, Par::Seq).unwrap(), rows, cols).unwrap()
    };
    let all = [
        Statistic::Snr,
        Statistic::SpectralNorm,
        Statistic::NuclearNorm,
        Statistic::StableRank,
        Statistic::EffectiveRank,
    ];
    for statistic in all {
        assert_eq!(score(vec![0.0; 12], 3, 4, statistic), 0.0, "a zero matrix has no signal");
        assert_eq!(score(vec![0.0], 1, 1, statistic), 0.0);
    }
    // Constant, so of rank one with the value 2·√12: no noise, which counts as 2⁻²³ of it.
    let constant = score(vec![2.0; 12], 3, 4, Statistic::Snr);
    assert_eq!(constant, round_score(f64::from(1u32 << 23) / (2.0 * 12f64.sqrt())));
    assert_eq!(score(vec![2.0; 12], 3, 4, Statistic::StableRank), 1.0);
    assert_eq!(score(vec![2.0; 12], 3, 4, Statistic::EffectiveRank), 1.0);
    let rank_one: Vec<f32> = (0..12).map(|i| [1.0, 2.0, 4.0][i / 4] * [1.0, 0.5, 0.25, 8.0][i % 4]).collect();
    assert_eq!(singular_values(rank_one.clone(), 3, 4, Par::Seq).unwrap()[1..], [0.0, 0.0]);
    assert!(score(rank_one, 3, 4, Statistic::Snr) > 1e4);
    // All singular values the same: no spread, so all are signal.
    let identity: Vec<f32> = (0..25).map(|i| if i % 6 == 0 { 3.0 } else { 0.0 }).collect();
    assert_eq!(score(identity, 5, 5, Statistic::Snr), round_score(5.0 * f64::from(1u32 << 23) / 3.0));
    // Denormal and huge numbers neither vanish nor overflow.
    assert!(score(random(6, 8, 5).iter().map(|x| x * 1e-38).collect(), 6, 8, Statistic::Snr).is_finite());
    let huge = random(6, 8, 5).iter().map(|x| x * 3e38).collect();
    assert!(score(huge, 6, 8, Statistic::Snr) > 0.0);
}

#[test]
fn what_is_not_finite_or_empty_is_an_error() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut elements = random(4, 3, 1);
        elements[7] = bad;
        let error = singular_values(elements, 4, 3, Par::Seq).unwrap_err();
        assert_eq!(error.to_string(), format!("row 2, column 1 is {bad}, and singular values need finite numbers"));
    }
    assert!(singular_values(vec![], 0, 3, Par::Seq).is_err());
    assert!(singular_values(vec![1.0], 1, 2, Par::Seq).is_err());
    assert!(snr(&[], 1, 1).is_err());
    assert!(snr(&[1.0, f64::NAN], 2, 2).is_err());
    assert!(Statistic::StableRank.of(&[1.0, -1.0], 2, 2).is_err());
}

#[test]
fn snr_is_spectrum_s_by_hand() {
    // Ascending 1, 2, 3, 4, 10: q25 = 2, q75 = 4, sigma = 2 / 1.349; square, so the threshold is twice that: 2.965.
    let found = snr(&[10.0, 4.0, 3.0, 2.0, 1.0], 5, 5).unwrap();
    assert!((found - 17.0 / 3.0 / 10.0).abs() < 1e-15);
    // Four times as long: β = 1/4, and the threshold is 2.224.
    let found = snr(&[10.0, 4.0, 2.5, 2.0, 1.0], 20, 5).unwrap();
    assert!((found - 16.5 / 3.0 / 10.0).abs() < 1e-15);
    // NumPy: np.quantile([1, 2, 4, 8], 0.3) = 1.9
    assert!((quantile(&[8.0, 4.0, 2.0, 1.0], 0.3) - 1.9).abs() < 1e-15);
    assert_eq!(quantile(&[5.0], 0.75), 5.0);
    assert_eq!(round_score(0.123_456_789), 0.123_457);
    assert_eq!(round_score(f64::MAX), f64::MAX.min(1.79769e308));
}

#[test]
fn the_top_is_rounded_down_and_ties_go_to_the_earlier_one() {
    assert_eq!([30, 4, 3, 32].map(|count| kept(count, 25.0)), [7, 1, 0, 8]);
    assert_eq!((kept(5, 0.0), kept(5, 100.0)), (0, 5));
    assert_eq!(order(&[1.0, 3.0, 2.0, 3.0, 1.0]), [1, 3, 2, 0, 4]);
}

#[test]
fn a_damaged_cache_entry_counts_as_absent() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::in_directory(dir.path());
    let elements = random(5, 6, 9);
    let key = Cache::key(&elements, 5, 6);
    assert_ne!(key, Cache::key(&elements, 6, 5));
    assert_eq!(cache.get(&key, 3), None);
    let values = [3.0, 2.0, 0.1];
    cache.put(&key, &values).unwrap();
    assert_eq!(cache.get(&key, 3), Some(values.to_vec()));
    assert_eq!(cache.get(&key, 4), None, "another number of values");
    let path = cache.path(&key);
    let whole = fs::read(&path).unwrap();
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        assert_eq!(cache.get(&key, 3), None, "cut to {length} bytes");
    }
    for place in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[place] ^= 4;
        fs::write(&path, bytes).unwrap();
        assert_eq!(cache.get(&key, 3), None, "byte {place} changed");
    }
    let names = fs::read_dir(path.parent().unwrap()).unwrap().count();
    assert_eq!(names, 1, "no temporary file stays");
}

mod files {
    use super::super::spectrum_files::*;

    #[test]
    fn yaml_goes_round() {
        let groups = vec![
            (
                "mlp.up_proj".to_string(),
                vec!["model.layers.1.mlp.up_proj".to_string(), "model.layers.0.mlp.up_proj".into()],
            ),
            ("self_attn.q_proj".to_string(), vec!["model.layers.3.self_attn.q_proj".to_string()]),
        ];
        let text = write_unfrozen(&groups);
        assert!(text.starts_with("unfrozen_parameters:\n# mlp.up_proj layers\n- model.layers.1.mlp.up_proj\n"));
        let names: Vec<String> = groups.into_iter().flat_map(|(_, names)| names).collect();
        assert_eq!(read_unfrozen(&text).unwrap(), names);
    }

    #[test]
    fn yaml_as_it_is_published_is_read() {
        let text = "\u{feff}# from a configuration\r\n---\r\nunfrozen_parameters: # the list\r\n  - ^lm_head.weight$\r\n\r\n  \
                    # input_layernorm layers\r\n  - 'model.layers.0.input_layernorm' # first\r\n  - \"model.layers.1.mlp.up_proj\"\r\n";
        let expected = ["^lm_head.weight$", "model.layers.0.input_layernorm", "model.layers.1.mlp.up_proj"];
        assert_eq!(read_unfrozen(text).unwrap(), expected);
    }

    #[test]
    fn other_yaml_is_refused_by_line() {
        for (text, expected) in [
            ("", "there is no list `unfrozen_parameters` in it"),
            ("unfrozen_parameters:\n# a\n", "its list `unfrozen_parameters` is empty"),
            (
                "base_model: x\nunfrozen_parameters:\n- a\n",
                "line 1: expected `unfrozen_parameters:`, found `base_model: x`",
            ),
            ("unfrozen_parameters:\n- a\nother: 1\n", "line 3: expected an entry, `- NAME`, found `other: 1`"),
            ("unfrozen_parameters: [a]\n", "line 1: `unfrozen_parameters` must be a list with an entry a line"),
            ("unfrozen_parameters:\n- a\n  - b\n", "line 3: this entry is not indented as the first one is"),
            ("unfrozen_parameters:\n- a: b\n", "line 2: `- a: b` is not a plain or quoted text"),
            ("unfrozen_parameters:\n- \"a\\n\"\n", "line 2: `- \"a\\n\"` is not a plain or quoted text"),
            ("unfrozen_parameters:\n-\n", "line 2: expected an entry, `- NAME`, found `-`"),
        ] {
            assert_eq!(read_unfrozen(text).unwrap_err().message(), expected, "{text:?}");
        }
    }

    #[test]
    fn both_kinds_of_scores_are_read_and_infinity_too() {
        let by_layer = "{\"model.layers.0.mlp.up_proj\": {\"snr\": 0.25, \"type\": \"mlp.up_proj\"},\n\
                        \"model.layers.0.Infinity\": {\"snr\": Infinity, \"type\": \"a \\\" NaN\"}}";
        let found = read_scores(by_layer).unwrap();
        assert_eq!(found["model.layers.0.mlp.up_proj"], 0.25);
        assert_eq!(found["model.layers.0.Infinity"], f64::MAX);
        let by_type = "{\"mlp.up_proj\": {\"model.layers.1.mlp.up_proj\": 0.5, \"model.layers.0.mlp.up_proj\": 0.25}}";
        assert_eq!(read_scores(by_type).unwrap().len(), 2);
        let written = write_scores(&[("model.layers.0.mlp.up_proj".into(), "mlp.up_proj".into(), 0.25)]);
        assert_eq!(read_scores(&written).unwrap()["model.layers.0.mlp.up_proj"], 0.25);
        for (text, expected) in [
            ("[1]", "it is not an object"),
            ("{}", "there are no scores in it"),
            ("{\"a\": {\"snr\": NaN, \"type\": \"t\"}}", "the score of `a` is \"NaN\", not a number"),
            ("{\"a\": 1}", "`a` is 1; expected"),
            ("{\"t\": {\"a\": 1}, \"u\": {\"a\": 2}}", "`a` has two scores"),
        ] {
            let error = read_scores(text).unwrap_err();
            assert!(error.message().starts_with(expected), "{error}");
        }
    }

    #[test]
    fn layers_and_their_types_are_named_as_spectrum_does() {
        let named = |tensor: &str| {
            let (layer, kind) = layer_and_type(tensor);
            format!("{layer} {kind}")
        };
        assert_eq!(named("model.layers.12.mlp.up_proj.weight"), "model.layers.12.mlp.up_proj mlp.up_proj");
        assert_eq!(named("lm_head.weight"), "lm_head lm_head");
    }
}

/// The models of two families that the golden tests have, scanned whole.
fn open(family: &str) -> crate::model::BaseModel {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/families").join(family).join("model");
    crate::model::open(&path.display().to_string(), Path::new(""), &mut crate::report::Silent).unwrap()
}

#[derive(Default)]
struct Progress(Vec<(u64, u64)>, Vec<String>);

impl crate::report::Observer for Progress {
    fn on(&mut self, event: &crate::report::Event<'_>) {
        match event {
            crate::report::Event::Progress { done, total, .. } => self.0.push((*done, *total)),
            crate::report::Event::Warning(text) => self.1.push(text.to_string()),
            _ => {}
        }
    }
}

#[test]
fn a_scan_ranks_shows_and_goes_on_from_its_cache() {
    let base = open("qwen3");
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::in_directory(dir.path());
    let run = |cache: Option<Cache>| {
        let mut progress = Progress::default();
        let found =
            scan(&base.inventory, &ModelStatistics::with_cache(&base, cache, &mut progress), Statistic::Snr, 50.0);
        (found.unwrap(), progress)
    };
    let (first, progress) = run(Some(cache.clone()));
    let count = first.rows.len() as u64;
    assert_eq!((progress.0.first(), progress.0.last()), (Some(&(0, count)), Some(&(count, count))));
    assert_eq!(fs::read_dir(dir.path().join("statistics")).unwrap().count(), count as usize);
    assert!(first.rows.iter().all(|row| row.score.is_finite() && row.score > 0.0));
    for role in &first.roles {
        let rows: Vec<_> = first.rows.iter().filter(|row| row.role == *role).collect();
        assert!(rows.windows(2).all(|pair| pair[0].score >= pair[1].score && pair[0].place + 1 == pair[1].place));
        assert_eq!(rows.iter().filter(|row| row.top).count(), rows.len() / 2);
    }

    // One entry is damaged, one is gone, and one holds other numbers: only the last is believed.
    let mut files: Vec<_> =
        fs::read_dir(dir.path().join("statistics")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    fs::write(&files[0], "x").unwrap();
    fs::remove_file(&files[1]).unwrap();
    assert_eq!(run(Some(cache.clone())).0, first);
    assert!(files.iter().all(|file| fs::read(file).unwrap().len() > 8));
    assert_eq!(run(None).0, first);

    let yaml = first.text(Format::Yaml);
    let names = spectrum_files::read_unfrozen(&yaml).unwrap();
    assert_eq!(names.len(), first.rows.iter().filter(|row| row.top).count());
    let scores = spectrum_files::read_scores(&first.text(Format::Json)).unwrap();
    assert!(first.rows.iter().all(|row| scores[row.tensor.trim_end_matches(".weight")] == row.score));
    let heat = first.text(Format::Heat);
    assert_eq!(heat.lines().count(), first.roles.len() + 2, "{heat}");
    let svg = first.text(Format::Svg);
    assert_eq!(svg.matches("<rect x=").count(), first.rows.len());
    assert!(first.text(Format::Table).lines().filter(|line| line.starts_with('*')).count() == names.len());
}

#[test]
fn weights_of_other_than_two_dimensions_are_refused_by_name() {
    let base = open("llama");
    let mut observer = crate::report::Silent;
    let statistics = ModelStatistics::with_cache(&base, None, &mut observer);
    let experts = crate::model::inventory::TensorInfo {
        name: "model.layers.0.mlp.experts.gate_up_proj".into(),
        role: "gate_up_proj".into(),
        kind: crate::model::inventory::Kind::Linear,
        block: Some(0),
        shape: vec![4, 64, 96],
        dtype: "f32".into(),
    };
    let error = statistics.singular_values(&[&experts]).unwrap_err();
    assert_eq!(
        error.message(),
        "tensor `model.layers.0.mlp.experts.gate_up_proj` of shape [4, 64, 96] has no singular values: it must have two \
         dimensions"
    );
}

#[test]
fn a_cache_that_cannot_be_written_is_a_warning() {
    let base = open("llama");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let mut progress = Progress::default();
    let statistics = ModelStatistics::with_cache(&base, Some(Cache::in_directory(&file)), &mut progress);
    scan(&base.inventory, &statistics, Statistic::EffectiveRank, 25.0).unwrap();
    assert_eq!(progress.1.len(), 1);
    assert!(progress.1[0].contains("LIFTPLAN_CACHE"));
}
