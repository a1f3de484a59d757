//! What a step keeps, and in what pieces it works, so that it fits the memory there is and is as fast as it then can be.
//!
//! The step itself, run dry, counts what it takes; the plan is searched with that. Blocks near the head are kept first:
//! their memory is given back before the blocks below are computed again.

use super::block::Level;
use crate::error::{EngineError, Result};

/// A step's plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepPlan {
    /// What each block keeps, from first to last.
    pub levels: Vec<Level>,
    /// Rows of the feed-forward layers at once.
    pub mlp_rows: usize,
    /// Rows of the logits at once.
    pub loss_rows: usize,
    /// Pieces of whole documents that blocks which keep only their input take one after another.
    pub pieces: usize,
    /// Whether what is kept of the blocks before the first that keeps its products waits in the host's memory.
    pub offload: bool,
}

impl StepPlan {
    /// The last `products` of `blocks` blocks keep their products, the last `all` of them all.
    pub fn new(blocks: usize, products: usize, all: usize, mlp_rows: usize, loss_rows: usize) -> Self {
        let level = |i: usize| match blocks - i {
            from_end if from_end <= all => Level::All,
            from_end if from_end <= products => Level::Products,
            _ => Level::Input,
        };
        Self { levels: (0..blocks).map(level).collect(), mlp_rows, loss_rows, pieces: 1, offload: false }
    }

    /// The same where blocks that would keep their input only keep what attention gave as well.
    pub fn attended(mut self) -> Self {
        for level in self.levels.iter_mut().filter(|level| **level == Level::Input) {
            *level = Level::Attended;
        }
        self
    }

    /// How many of the first blocks keep no products.
    pub fn again(&self) -> usize {
        self.levels.iter().take_while(|&&level| level < Level::Products).count()
    }

    /// How many blocks keep `level`.
    pub fn count(&self, level: Level) -> usize {
        self.levels.iter().filter(|&&l| l == level).count()
    }
}

/// What a plan costs beside one that keeps everything and takes all rows at once, in forward passes of a block. From
/// measurements on an H100 (host/docs/log.md); only the order of plans matters.
fn cost(plan: &StepPlan, tokens: usize, targets: usize) -> f64 {
    let blocks = plan.levels.len() as f64;
    // How much slower products and attention are in pieces of so many rows.
    let slower = |rows: usize, all: usize| if rows >= all { 0.0 } else { 150.0 / rows as f64 };
    let (again, half) = (plan.again() as f64, plan.count(Level::Products) as f64);
    let spared = 0.2 * plan.count(Level::Attended) as f64;
    let rows = tokens.div_ceil(plan.pieces);
    let feed_forward = (2.0 * blocks + again) * slower(plan.mlp_rows.min(rows), tokens);
    let attention = if plan.pieces > 1 { again * 2.0 * slower(rows, tokens) } else { 0.0 };
    let head = 4.0 * slower(plan.loss_rows, targets.min(4096));
    0.85 * again - spared + 0.08 * half + feed_forward + attention + head
}

/// The fastest plan whose `bytes` fit `available`, for `blocks` of which at most `kept` keep more than their input:
/// `bytes` runs a plan dry. `most_away`: of how many blocks the input may wait on the host, and of how many attention's
/// part as well. The same arguments give the same plan.
///
/// # Errors
/// When not even the leanest fits.
pub fn search(
    [blocks, kept]: [usize; 2],
    most_away: [usize; 2],
    tokens: usize,
    targets: usize,
    available: usize,
    total: usize,
    mut bytes: impl FnMut(&StepPlan) -> Result<usize>,
) -> Result<StepPlan> {
    let mut best: Option<(f64, StepPlan)> = None;
    let mut leanest = usize::MAX;
    let sizes = [
        (tokens, 4096, 1),
        (tokens, 2048, 1),
        (tokens.div_ceil(2), 2048, 1),
        (tokens.div_ceil(2), 1024, 1),
        (tokens.div_ceil(2), 1024, 2),
        (4096, 1024, 1),
        (4096, 1024, 4),
        (2048, 512, 1),
        (2048, 512, 2),
        (2048, 512, 4),
        (1024, 256, 8),
        (512, 128, 64),
    ];
    for (offload, attended) in [(false, false), (true, false), (true, true)] {
        if attended && kept == 0 {
            break;
        }
        let away = if offload { most_away[usize::from(attended)] } else { blocks };
        let least_products = blocks.saturating_sub(away);
        if away == 0 || least_products > kept {
            continue;
        }
        // Attention that is kept is that of the whole batch.
        for (mlp_rows, loss_rows, pieces) in sizes.into_iter().filter(|&(_, _, pieces)| !attended || pieces == 1) {
            let (mlp_rows, loss_rows) = (mlp_rows.min(tokens).max(1), loss_rows.min(targets).max(1));
            let make = |products: usize, all: usize| {
                let plan = StepPlan::new(blocks, products, all, mlp_rows, loss_rows);
                StepPlan { offload, pieces, ..if attended { plan.attended() } else { plan } }
            };
            let mut most = |make: &dyn Fn(usize) -> StepPlan, [from, limit]: [usize; 2]| -> Result<Option<usize>> {
                let least = bytes(&make(from))?;
                leanest = leanest.min(least);
                if least > available {
                    return Ok(None);
                }
                if limit > from && bytes(&make(limit))? <= available {
                    return Ok(Some(limit));
                }
                let (mut fits, mut beyond) = (from, limit.max(from + 1));
                while beyond - fits > 1 {
                    let middle = fits.midpoint(beyond);
                    if bytes(&make(middle))? <= available { fits = middle } else { beyond = middle }
                }
                Ok(Some(fits))
            };
            let Some(products) = most(&|n| make(n, 0), [least_products, kept])? else { continue };
            let all = most(&|n| make(products, n), [0, products])?.unwrap_or(0);
            let plan = make(products, all);
            let cost = cost(&plan, tokens, targets);
            if best.as_ref().is_none_or(|(least, _)| cost < *least) {
                best = Some((cost, plan));
            }
            if products == kept && all == kept {
                break;
            }
        }
        // Where every block keeps its products there is nothing to put away.
        if best.as_ref().is_some_and(|(_, plan)| plan.again() == blocks - kept) {
            break;
        }
    }
    match best {
        Some((_, plan)) => Ok(plan),
        None => Err(EngineError::OutOfDeviceMemory { needed: leanest, free: available, total }),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_blocks_nearest_the_head_and_as_many_as_fit() {
        // A block's products cost 10, all of it 15, attention 8, a piece of the feed-forward layer its rows.
        let bytes = |plan: &StepPlan| {
            let kept = [(Level::Attended, 8), (Level::Products, 10), (Level::All, 15)];
            Ok(plan.mlp_rows + kept.into_iter().map(|(level, bytes)| bytes * plan.count(level)).sum::<usize>())
        };
        let plan = search([4, 4], [4, 4], 8, 8, 8 + 10 + 10 + 15, 0, bytes).unwrap();
        assert_eq!(plan.levels, [Level::Input, Level::Products, Level::Products, Level::All]);
        let plan = search([4, 4], [4, 4], 8, 8, 1000, 0, bytes).unwrap();
        assert_eq!(plan.levels, [Level::All; 4]);
        assert!(search([4, 4], [4, 4], 8, 8, 3, 0, bytes).is_err());
        assert_eq!(search([4, 0], [4, 4], 8, 8, 1000, 0, bytes).unwrap().levels, [Level::Input; 4]);
    }

    #[test]
    fn what_attention_gave_waits_on_the_host_where_that_costs_less_than_products() {
        // On the host nothing is taken but two places, which are larger where attention's part goes along.
        let bytes = |plan: &StepPlan| {
            let waiting = match (plan.offload, plan.count(Level::Attended)) {
                (true, 0) => 2,
                (true, _) => 6,
                (false, _) => plan.again() + 2 * plan.count(Level::Attended),
            };
            Ok(waiting + 20 * plan.count(Level::Products) + 30 * plan.count(Level::All))
        };
        let plan = search([9, 9], [9, 9], 8, 8, 45, 0, bytes).unwrap();
        assert!(plan.offload);
        assert_eq!([Level::Attended, Level::Products, Level::All].map(|level| plan.count(level)), [8, 0, 1]);
        // Where as little as possible is to be kept, and where the places leave no room for anything else.
        let plan = search([9, 0], [9, 9], 8, 8, 45, 0, bytes).unwrap();
        assert_eq!(plan.count(Level::Input), 9);
        let plan = search([9, 9], [9, 9], 8, 8, 5, 0, bytes).unwrap();
        assert_eq!((plan.offload, plan.count(Level::Input)), (true, 9));
        // The host has room for less: for attention's part of eight, of none, for nothing at all.
        let plan = search([9, 9], [9, 8], 8, 8, 45, 0, bytes).unwrap();
        assert_eq!((plan.offload, plan.count(Level::Attended)), (true, 8));
        let plan = search([9, 9], [9, 0], 8, 8, 45, 0, bytes).unwrap();
        assert_eq!(plan.count(Level::Attended), 0);
        let plan = search([9, 9], [0, 0], 8, 8, 45, 0, bytes).unwrap();
        assert!(!plan.offload);
    }
}
