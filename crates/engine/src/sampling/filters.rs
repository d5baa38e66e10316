//! The choice among scores: temperature, top-k, typical, top-p, min-p, and the draw.

use std::cmp::Ordering;

use super::{
    SamplingParams,
    math::{self, exp_neg},
};

/// Weights whose sum is known as one, so that the draw need not walk through all.
const BLOCK: usize = 256;

/// A token that may be chosen.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    id: u32,
    /// How far its score is below the best one's, in units of the temperature.
    distance: f32,
    /// `e^-distance`: its probability but for a common factor.
    weight: f32,
}

/// Working memory, kept from token to token.
#[derive(Clone, Debug, Default)]
pub(super) struct Filters {
    top: Vec<(f32, u32)>,
    candidates: Vec<Candidate>,
    weights: Vec<f32>,
    sums: Vec<f64>,
}

impl Filters {
    /// A token for a `uniform` random number in [0, 1). `max` is the largest of the scores.
    pub fn choose(
        &mut self,
        params: &SamplingParams,
        scores: &[f32],
        max: f32,
        uniform: f64,
    ) -> Option<u32> {
        let distance = |score: f32| math::below(max, score) / params.temperature;
        let mut total = 0.0;
        if params.top_k > 0 {
            math::top_k(scores, params.top_k, &mut self.top);
            self.candidates.clear();
            self.candidates.extend(self.top.iter().map(|&(score, id)| {
                let distance = distance(score);
                Candidate {
                    id,
                    distance,
                    weight: exp_neg(distance),
                }
            }));
            total = sum(&self.candidates);
        } else {
            self.weigh(scores, distance);
            total = self.sums.iter().fold(total, |total, sum| total + sum);
            if params.typical_p >= 1.0 && params.top_p >= 1.0 && params.min_p <= 0.0 {
                return self.draw_from_all(uniform * total);
            }
            let floor = floor(params, &self.weights, total);
            self.candidates.clear();
            for ((&weight, &score), id) in self.weights.iter().zip(scores).zip(0..) {
                if weight > 0.0 && weight >= floor {
                    self.candidates.push(Candidate {
                        id,
                        distance: distance(score),
                        weight,
                    });
                }
            }
        }
        if params.typical_p < 1.0 {
            // How far each token's information is from the entropy: the normalization's logarithm,
            // which is part of both, goes away.
            let spread: f64 = self
                .candidates
                .iter()
                .map(|c| f64::from(c.weight) * f64::from(c.distance))
                .sum();
            let mean = (spread / total) as f32;
            let off = |c: &Candidate| (c.distance - mean).abs();
            total = keep_first(
                &mut self.candidates,
                f64::from(params.typical_p) * total,
                |a, b| off(a).total_cmp(&off(b)).then(a.id.cmp(&b.id)),
            );
        }
        if params.top_p < 1.0 {
            let goal = f64::from(params.top_p) * total;
            keep_first(&mut self.candidates, goal, heavier_first);
        }
        if params.min_p > 0.0 {
            let best = self
                .candidates
                .iter()
                .fold(0.0, |best: f32, c| best.max(c.weight));
            self.candidates.retain(|c| c.weight >= params.min_p * best);
        }
        self.draw(uniform)
    }

    /// All tokens' weights, and the sums of their blocks.
    fn weigh(&mut self, scores: &[f32], distance: impl Fn(f32) -> f32) {
        self.weights.resize(scores.len(), 0.0);
        for (weight, &score) in self.weights.iter_mut().zip(scores) {
            *weight = exp_neg(distance(score));
        }
        self.sums.clear();
        self.sums.extend(
            self.weights
                .chunks(BLOCK)
                .map(|block| math::sum_from(0.0, block)),
        );
    }

    /// The token at `left` in the weights laid end to end.
    fn draw_from_all(&self, mut left: f64) -> Option<u32> {
        let mut last = None;
        for (i, (block, sum)) in self.weights.chunks(BLOCK).zip(&self.sums).enumerate() {
            if *sum == 0.0 {
                continue;
            }
            if left >= *sum {
                left -= sum;
                last = Some((i, block));
                continue;
            }
            last = Some((i, block));
            break;
        }
        let (i, block) = last?;
        let mut chosen = None;
        for (j, &weight) in block
            .iter()
            .enumerate()
            .filter(|(_, weight)| **weight > 0.0)
        {
            chosen = Some((i * BLOCK + j) as u32);
            left -= f64::from(weight);
            if left < 0.0 {
                break;
            }
        }
        chosen
    }

    /// The candidate at `uniform` of the weights laid end to end by rising ids, so that the selection's
    /// order means nothing.
    fn draw(&mut self, uniform: f64) -> Option<u32> {
        self.candidates.sort_unstable_by_key(|c| c.id);
        let mut left = uniform * sum(&self.candidates);
        let passes = |c: &&Candidate| {
            left -= f64::from(c.weight);
            left < 0.0
        };
        let found = self.candidates.iter().find(passes);
        // Rounding may leave the end uncovered.
        found.or(self.candidates.last()).map(|c| c.id)
    }
}

/// A weight below which no token is kept, whatever the filters see; the most likely token's is 1.
fn floor(params: &SamplingParams, weights: &[f32], total: f64) -> f32 {
    if params.typical_p < 1.0 {
        return 0.0;
    }
    if params.top_p >= 1.0 {
        return params.min_p;
    }
    let goal = f64::from(params.top_p) * total;
    // Where the tokens from some weight up reach the goal, top-p keeps none below.
    let reaches = |&floor: &f32| math::sum_from(floor, weights) > goal * (1.0 + 1e-9);
    let floors = [1.0 / 8.0, 1.0 / 64.0, 1.0 / 512.0, 1.0 / 8192.0];
    params
        .min_p
        .max(floors.into_iter().find(reaches).unwrap_or(0.0))
}

fn sum(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(|c| f64::from(c.weight)).sum()
}

fn heavier_first(a: &Candidate, b: &Candidate) -> Ordering {
    b.weight.total_cmp(&a.weight).then(a.id.cmp(&b.id))
}

/// Keeps the fewest candidates, first ones first, whose weights reach `goal`, at least one; gives their
/// weights' sum.
fn keep_first(
    candidates: &mut Vec<Candidate>,
    goal: f64,
    order: impl Fn(&Candidate, &Candidate) -> Ordering + Copy,
) -> f64 {
    // Those before `sure` are kept, those from `end` on are not; halves until few are left to sort.
    let (mut sure, mut end) = (0, candidates.len());
    let mut kept = 0.0;
    while end - sure > 64 {
        let middle = (end - sure) / 2;
        let Some(open) = candidates.get_mut(sure..end) else {
            break;
        };
        let (first, ..) = open.select_nth_unstable_by(middle, order);
        let first = sum(first);
        if kept + first >= goal {
            end = sure + middle;
        } else {
            kept += first;
            sure += middle;
        }
    }
    if let Some(open) = candidates.get_mut(sure..end) {
        open.sort_unstable_by(order);
        for (i, candidate) in open.iter().enumerate() {
            kept += f64::from(candidate.weight);
            if kept >= goal {
                candidates.truncate(sure + i + 1);
                return kept;
            }
        }
    }
    candidates.truncate(end);
    kept
}
