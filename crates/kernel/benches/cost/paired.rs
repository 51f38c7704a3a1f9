//! Two things measured in turns.
//!
//! Criterion measures one thing after the other. On a busy machine the changes in between are larger than the few
//! percent that matter here. So the two sides alternate in short rounds, and the medians are compared.

use std::time::Instant;

fn once(iterations: usize, work: &mut impl FnMut()) -> f64 {
    let begun = Instant::now();
    for _ in 0..iterations {
        work();
    }
    begun.elapsed().as_nanos() as f64 / iterations as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Nanoseconds of one call, the median over rounds.
pub(crate) fn median_ns(rounds: usize, iterations: usize, mut work: impl FnMut()) -> f64 {
    median((0..rounds).map(|_| once(iterations, &mut work)).collect())
}

/// Nanoseconds of one call of each, measured in turns.
pub(crate) fn measure(rounds: usize, iterations: usize, a: impl FnMut(), b: impl FnMut()) -> (f64, f64) {
    alternate(rounds, iterations, || {}, a, || {}, b)
}

/// The same, with a step before each side's turn that is not measured.
pub(crate) fn alternate(
    rounds: usize,
    iterations: usize,
    mut before_a: impl FnMut(),
    mut a: impl FnMut(),
    mut before_b: impl FnMut(),
    mut b: impl FnMut(),
) -> (f64, f64) {
    let (mut of_a, mut of_b) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        before_a();
        of_a.push(once(iterations, &mut a));
        before_b();
        of_b.push(once(iterations, &mut b));
    }
    (median(of_a), median(of_b))
}

/// How many times as long `a` takes as `b`.
pub(crate) fn ratio(rounds: usize, iterations: usize, a: impl FnMut(), b: impl FnMut()) -> f64 {
    let (a, b) = measure(rounds, iterations, a, b);
    a / b
}
