//! Synthetic results whose truth is known: how often intervals cover it, how often nothing is called something, and how
//! often something is found.

use super::*;

/// A normal number, by Box and Muller, that depends on nothing but its indices.
fn normal(trial: u32, i: u32, purpose: u32) -> f64 {
    let [a, b, ..] = philox(7, [trial, i, purpose, 0]);
    let unit = |word: u32| (f64::from(word) + 0.5) / 4_294_967_296.0;
    (-2.0 * unit(a).ln()).sqrt() * (std::f64::consts::TAU * unit(b)).cos()
}

const TRIALS: u32 = 2000;

#[test]
fn students_numbers_are_those_of_the_tables() {
    // Quantile 0.975 with 4 degrees of freedom is 2.776445.
    let values = [1.0, 2.0, 3.0, 4.0, 5.0];
    let half = 2.776_445 * (2.5f64 / 5.0).sqrt();
    let found = interval(&values).unwrap();
    assert!((found.high - 3.0 - half).abs() < 1e-5 && (3.0 - found.low - half).abs() < 1e-5, "{found:?}");
    // t = 3 / (1.5811 / √5) = 4.2426 with 4 degrees of freedom: p = 0.013236 (R: 2 * pt(-4.242641, 4)).
    assert!((p_value(&values).unwrap() - 0.013_236).abs() < 1e-5, "{:?}", p_value(&values));
}

#[test]
fn the_interval_covers_the_truth_as_often_as_it_says() {
    for n in [2, 3, 5, 10] {
        let covered = (0..TRIALS)
            .filter(|&trial| {
                let values: Vec<f64> = (0..n).map(|i| 0.8 + 0.03 * normal(trial, i, n)).collect();
                interval(&values).unwrap().contains(0.8)
            })
            .count();
        let share = covered as f64 / f64::from(TRIALS);
        // Three standard errors of a share of 0.95 in 2000 trials are 0.0146.
        assert!((share - LEVEL).abs() < 0.0146, "{n} seeds: {share}");
    }
}

#[test]
fn the_bootstraps_interval_covers_the_truth_nearly_as_often_as_it_says() {
    let trials = 300;
    let covered = (0..trials)
        .filter(|&trial| {
            let differences: Vec<f64> = (0..80).map(|i| 0.1 + normal(trial, i, 100)).collect();
            bootstrap(&differences, &[1.0; 80], u64::from(trial)).unwrap().contains(0.1)
        })
        .count();
    let share = covered as f64 / f64::from(trials);
    assert!((0.91..=0.98).contains(&share), "{share}");
}

#[test]
fn weights_are_the_examples_tokens() {
    let found = bootstrap(&[1.0, 0.0], &[1.0, 3.0], 0).unwrap();
    assert_eq!((found.low, found.high), (0.0, 1.0));
    let same = bootstrap(&[0.25; 30], &[2.0; 30], 0).unwrap();
    assert_eq!((same.low, same.high), (0.25, 0.25));
}

/// Scores of `methods` and a baseline over `seeds` seeds: what the seed does to all of them, and noise of each.
fn scores(trial: u32, methods: u32, seeds: u32, effect: f64) -> Vec<Pair> {
    let run = |method: u32, seed: u32| 0.7 + 0.05 * normal(trial, seed, 1) + 0.01 * normal(trial, seed, 10 + method);
    let others: Vec<f64> = (0..seeds).map(|seed| run(0, seed)).collect();
    (1..=methods)
        .map(|method| Pair {
            with: "baseline".into(),
            scores: (0..seeds).map(|seed| run(method, seed) + effect).collect(),
            others: others.clone(),
            examples: None,
        })
        .collect()
}

fn share_with_a_finding(methods: u32, seeds: u32, effect: f64) -> f64 {
    let found = |trial: &u32| {
        let judged = judge(&scores(*trial, methods, seeds, effect), true);
        judged.iter().any(|paired| matches!(paired.finding, Finding::Better | Finding::Worse))
    };
    (0..TRIALS).filter(found).count() as f64 / f64::from(TRIALS)
}

#[test]
fn methods_that_are_the_same_but_for_noise_are_rarely_told_apart() {
    let one = share_with_a_finding(1, 5, 0.0);
    assert!((one - 0.05).abs() < 0.0146, "{one}");
    // Any false alarm among five comparisons: without the correction, some 16 % of the time.
    let any_of_five = share_with_a_finding(5, 5, 0.0);
    assert!(any_of_five < 0.05 + 0.0146, "{any_of_five}");
}

#[test]
fn what_is_there_is_found_the_more_seeds_the_surer_and_pairing_is_why() {
    // The effect is twice the noise of a difference, and less than half of what the seed does to both.
    let effect = 0.0283;
    let [three, five, ten] = [3, 5, 10].map(|seeds| share_with_a_finding(1, seeds, effect));
    assert!(three > 0.4 && five > 0.85 && ten > 0.99, "{three} {five} {ten}");
    let found = judge(&scores(0, 1, 10, effect), true).remove(0);
    assert_eq!(found.finding, Finding::Better);
    assert_eq!(judge(&scores(0, 1, 10, effect), false).remove(0).finding, Finding::Worse);
}

#[test]
fn the_extremes_of_methods_that_are_the_same_are_rarely_apart_and_those_of_others_are() {
    let runs =
        |trial: u32, method: u32| -> Vec<f64> { (0..3).map(|i| 8.0 + 0.1 * normal(trial, i, 50 + method)).collect() };
    let false_alarms = (0..TRIALS)
        .filter(|&trial| {
            let mut methods: Vec<Vec<f64>> = (0..5).map(|method| runs(trial, method)).collect();
            methods.sort_by(|a, b| mean(a).total_cmp(&mean(b)));
            apart(&methods[4], &methods[0], 5)
        })
        .count();
    assert!(false_alarms as f64 / f64::from(TRIALS) < 0.05 + 0.0146, "{false_alarms}");
    // Three times as fast, where runs differ by a hundredth.
    assert!(apart(&[9.01, 9.0, 9.02], &[7.91, 7.92, 7.9], 5));
    // Counted, not timed; one run each; nothing at all.
    assert!(apart(&[3.0, 3.0], &[2.0, 2.0], 2));
    assert!(!apart(&[3.0, 3.0], &[3.0, 3.0], 2) && !apart(&[3.0], &[2.0], 2) && !apart(&[], &[], 2));
}

#[test]
fn identical_methods_come_out_as_no_difference() {
    let scores = vec![0.81, 0.79, 0.84];
    let pair = Pair {
        with: "b".into(),
        scores: scores.clone(),
        others: scores,
        examples: Some((vec![0.0; 50], vec![1.0; 50])),
    };
    let judged = judge(&[pair.clone(), pair], true);
    for paired in judged {
        assert_eq!(paired.finding, Finding::Identical);
        assert_eq!((paired.difference, paired.p_value), (0.0, Some(1.0)));
        assert_eq!(paired.example_interval, Some(Interval { low: 0.0, high: 0.0 }));
    }
}

#[test]
fn one_seed_decides_nothing_and_the_same_step_at_every_seed_leaves_it_to_the_examples() {
    let one = Pair { scores: vec![0.9], others: vec![0.1], ..Pair::default() };
    assert_eq!(judge(&[one], true)[0].finding, Finding::OneSeed);
    // Accuracies that differ by the same one example at each seed: Student's t would be infinite.
    let mut steps = vec![0.0; 300];
    steps[0] = 1.0;
    let same_step = Pair {
        scores: vec![0.50, 0.75],
        others: vec![0.25, 0.50],
        examples: Some((steps, vec![1.0; 300])),
        ..Pair::default()
    };
    let judged = judge(std::slice::from_ref(&same_step), true).remove(0);
    assert_eq!((judged.p_value, judged.finding), (None, Finding::Undecided));
    let all = Pair { examples: Some((vec![0.25; 300], vec![1.0; 300])), ..same_step.clone() };
    assert_eq!(judge(&[all], true)[0].finding, Finding::Better);
    let no_examples = Pair { examples: None, ..same_step };
    assert_eq!(judge(&[no_examples], true)[0].finding, Finding::Undecided);
}

#[test]
fn a_difference_must_stand_out_among_the_examples_too() {
    // All of it comes from one example of three hundred, however sure the seeds are.
    let mut from_one = vec![0.0; 300];
    from_one[7] = 3.0;
    let pair = Pair {
        scores: vec![0.810, 0.812, 0.811, 0.809],
        others: vec![0.800, 0.801, 0.802, 0.799],
        examples: Some((from_one, vec![1.0; 300])),
        ..Pair::default()
    };
    let judged = judge(std::slice::from_ref(&pair), true).remove(0);
    assert!(judged.p_value.unwrap() < 0.01);
    assert_eq!(judged.finding, Finding::Undecided);
    assert_eq!(judge(&[Pair { examples: None, ..pair }], true)[0].finding, Finding::Better);
}

#[test]
fn holms_correction_by_hand() {
    assert_eq!(holm(&[0.01, 0.04, 0.03]), [0.03, 0.06, 0.06]);
    assert_eq!(holm(&[0.9, 0.8]), [1.0, 1.0]);
    assert_eq!(holm(&[]), [0.0; 0]);
}

#[test]
fn medians() {
    assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
    assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    assert_eq!(median(&[]), 0.0);
}
