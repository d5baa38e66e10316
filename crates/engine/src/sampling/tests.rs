use super::*;

fn with(f: impl FnOnce(&mut SamplingParams)) -> SamplingParams {
    let mut params = SamplingParams {
        temperature: 1.0,
        seed: Some(7),
        ..SamplingParams::default()
    };
    f(&mut params);
    params
}

fn take(sampler: &mut Sampler, logits: &[f32]) -> u32 {
    sampler.sample(logits, None, None).unwrap().token
}

fn counts(params: &SamplingParams, logits: &[f32], n: usize) -> Vec<usize> {
    let mut sampler = Sampler::new(params, &[]);
    let mut counts = vec![0; logits.len()];
    for _ in 0..n {
        counts[take(&mut sampler, logits) as usize] += 1;
    }
    counts
}

/// The probabilities, by the definitions, as plainly as can be.
fn plain(params: &SamplingParams, scores: &[f32]) -> Vec<f64> {
    let max = scores.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
    let mut tokens: Vec<(f64, usize)> = scores
        .iter()
        .enumerate()
        .filter(|(_, s)| !s.is_nan())
        .map(|(id, &s)| (f64::from((s - max) / params.temperature).exp(), id))
        .filter(|(p, _)| *p > 0.0)
        .collect();
    tokens.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    if params.top_k > 0 {
        tokens.truncate(params.top_k);
    }
    let normalize = |tokens: &mut Vec<(f64, usize)>| {
        let total: f64 = tokens.iter().map(|t| t.0).sum();
        tokens.iter_mut().for_each(|t| t.0 /= total);
    };
    let nucleus = |tokens: &mut Vec<(f64, usize)>, p: f32| {
        let mut sum = 0.0;
        let fits = tokens.iter().position(|t| {
            sum += t.0;
            sum >= f64::from(p)
        });
        tokens.truncate(fits.map_or(tokens.len(), |i| i + 1));
    };
    normalize(&mut tokens);
    if params.typical_p < 1.0 {
        let entropy: f64 = -tokens.iter().map(|t| t.0 * t.0.ln()).sum::<f64>();
        let off = |t: &(f64, usize)| (-t.0.ln() - entropy).abs();
        tokens.sort_by(|a, b| off(a).total_cmp(&off(b)).then(a.1.cmp(&b.1)));
        nucleus(&mut tokens, params.typical_p);
        normalize(&mut tokens);
        tokens.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    }
    if params.top_p < 1.0 {
        nucleus(&mut tokens, params.top_p);
        normalize(&mut tokens);
    }
    let best = tokens[0].0;
    tokens.retain(|t| t.0 >= f64::from(params.min_p) * best);
    normalize(&mut tokens);
    let mut probabilities = vec![0.0; scores.len()];
    for (p, id) in tokens {
        probabilities[id] = p;
    }
    probabilities
}

/// The token at `uniform` of the probabilities laid end to end.
fn at(probabilities: &[f64], uniform: f64) -> u32 {
    let mut left = uniform;
    let found = probabilities.iter().position(|p| {
        left -= p;
        left < 0.0
    });
    found
        .or(probabilities.iter().rposition(|p| *p > 0.0))
        .unwrap() as u32
}

/// Logits as language models have them: a few likely tokens and a long tail.
fn logits(rng: &mut ChaCha8Rng, size: usize, spread: f32) -> Vec<f32> {
    (0..size)
        .map(|_| {
            let bell: f64 = (0..6).map(|_| uniform(rng)).sum::<f64>() - 3.0;
            (bell as f32 * spread) + 3.0
        })
        .collect()
}

#[test]
fn every_filter_is_what_its_definition_says() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut drawn = 0;
    for round in 0..800u64 {
        let size = 1 + (rng.next_u64() % 700) as usize;
        let spread = [0.1, 1.0, 4.0][(round % 3) as usize];
        let scores = logits(&mut rng, size, spread);
        let mut maybe = |value: f64, off: f64| {
            if uniform(&mut rng) < 0.5 {
                off as f32
            } else {
                (value * uniform(&mut rng)) as f32
            }
        };
        let params = SamplingParams {
            temperature: 0.3 + maybe(2.0, 0.7),
            top_k: maybe(300.0, 0.0) as usize,
            top_p: maybe(1.0, 1.0),
            min_p: maybe(0.5, 0.0),
            typical_p: maybe(1.0, 1.0),
            seed: Some(round),
            ..SamplingParams::default()
        };
        params.validate().unwrap();
        let probabilities = plain(&params, &scores);
        let mut sampler = Sampler::new(&params, &[]);
        let mut numbers = ChaCha8Rng::seed_from_u64(round);
        for _ in 0..4 {
            let token = take(&mut sampler, &scores);
            if params.top_k == 1 {
                assert_eq!(probabilities[token as usize], 1.0);
                continue;
            }
            let uniform = uniform(&mut numbers);
            // The border between two tokens, and of a filter, may round either way.
            let near = [uniform - 1e-5, uniform, uniform + 1e-5];
            assert!(
                near.iter().any(|&u| at(&probabilities, u) == token),
                "{token}, expected {} of {size} with {params:?}",
                at(&probabilities, uniform)
            );
            drawn += 1;
        }
    }
    assert!(drawn > 3000);
}

#[test]
fn frequencies_are_the_softmax() {
    const LOGITS: [f32; 5] = [0.0, 2.0, 1.0, f32::NAN, -1.0];
    let n = 20_000;
    for params in [
        with(|_| {}),
        with(|p| p.temperature = 2.0),
        with(|p| p.top_k = 5),
        with(|p| p.top_p = 0.999),
    ] {
        let got = counts(&params, &LOGITS, n);
        let want = plain(&params, &LOGITS);
        for (got, want) in got.iter().zip(want) {
            let got = *got as f64 / n as f64;
            assert!((got - want).abs() < 0.015, "{got} {want}");
        }
        assert_eq!(got[3], 0);
    }
}

#[test]
fn top_p_over_a_flat_vocabulary_keeps_its_share() {
    let logits = vec![1.0; 5000];
    let got = counts(&with(|p| p.top_p = 0.5), &logits, 20_000);
    assert!(got[2500..].iter().all(|&c| c == 0));
    assert!(got[..2500].iter().filter(|&&c| c > 0).count() > 2400);
}

#[test]
fn a_seed_means_these_tokens_everywhere() {
    let logits: Vec<f32> = (0..1000).map(|i| ((i * 37) % 101) as f32 / 10.0).collect();
    let run = |params: &SamplingParams| -> Vec<u32> {
        let mut sampler = Sampler::new(params, &[]);
        (0..12).map(|_| take(&mut sampler, &logits)).collect()
    };
    let golden: [(SamplingParams, [u32; 12]); 3] = [
        (with(|_| {}), GOLDEN[0]),
        (with(|p| p.top_k = 50), GOLDEN[1]),
        (
            with(|p| (p.top_p, p.min_p, p.temperature) = (0.9, 0.05, 0.7)),
            GOLDEN[2],
        ),
    ];
    for (params, tokens) in golden {
        assert_eq!(run(&params), tokens, "{params:?}");
    }
    assert_ne!(run(&with(|p| p.seed = Some(8))), GOLDEN[0]);
    assert_ne!(run(&with(|p| p.seed = None)), run(&with(|p| p.seed = None)));
}

const GOLDEN: [[u32; 12]; 3] = [
    [160, 166, 706, 734, 603, 363, 84, 854, 363, 996, 199, 387],
    [150, 161, 726, 737, 625, 363, 90, 857, 363, 999, 221, 393],
    [161, 161, 715, 737, 603, 363, 79, 857, 363, 999, 199, 382],
];

#[test]
fn each_token_takes_one_random_number() {
    let flat = vec![0.0; 100];
    let steep: Vec<f32> = (0..100).map(|i| i as f32 * 5.0).collect();
    let only: TokenMask = [3].into_iter().collect();
    let mut plain = Sampler::new(&with(|_| {}), &[]);
    let mut other = plain.clone();
    take(&mut plain, &flat);
    take(&mut plain, &flat);
    // A token without a choice, and tokens that come from elsewhere between.
    assert_eq!(other.sample(&flat, Some(&only), Some(2)).unwrap().token, 3);
    other.accept(3);
    other.accept(4);
    take(&mut other, &steep);
    assert_eq!(take(&mut plain, &flat), take(&mut other, &flat));
}

#[test]
fn penalties_are_those_of_the_definitions() {
    // Token 1 is in the prompt, 2 in the output twice, 3 in both.
    let logits = [4.0, 4.0, 4.0, -4.0, 4.0];
    let scores = |params: SamplingParams| {
        let mut sampler = Sampler::new(&params, &[1, 3]);
        [2, 3, 2].into_iter().for_each(|t| sampler.accept(t));
        sampler
            .sample(&logits, Some(&(0..5).collect()), None)
            .unwrap();
        sampler.scores
    };
    assert_eq!(
        scores(with(|p| p.repetition_penalty = 2.0)),
        [4.0, 2.0, 2.0, -8.0, 4.0]
    );
    assert_eq!(
        scores(with(
            |p| (p.repetition_penalty, p.repetition_window) = (2.0, Some(2))
        )),
        [4.0, 4.0, 2.0, -8.0, 4.0]
    );
    assert_eq!(
        scores(with(
            |p| (p.repetition_penalty, p.repetition_window) = (2.0, Some(1))
        )),
        [4.0, 4.0, 2.0, -4.0, 4.0]
    );
    assert_eq!(
        scores(with(|p| p.presence_penalty = 0.5)),
        [4.0, 4.0, 3.5, -4.5, 4.0]
    );
    assert_eq!(
        scores(with(|p| p.frequency_penalty = -0.5)),
        [4.0, 4.0, 5.0, -3.5, 4.0]
    );
    assert_eq!(
        scores(with(|p| {
            (
                p.repetition_penalty,
                p.presence_penalty,
                p.frequency_penalty,
            ) = (2.0, 0.5, 0.25);
        })),
        [4.0, 2.0, 1.0, -8.75, 4.0]
    );
    let dry = Dry {
        multiplier: 1.0,
        allowed_length: 1,
        ..Dry::default()
    };
    // The end, 3 and 2, was followed by 3.
    assert_eq!(
        scores(with(|p| p.dry = Some(dry))),
        [4.0, 4.0, 4.0, -5.75, 4.0]
    );
}

#[test]
fn biases_and_masks_hold() {
    let logits = [1.0, 5.0, 3.0, 2.0];
    let one = |params: &SamplingParams, mask: Option<&[u32]>| {
        let mask = mask.map(|ids| ids.iter().copied().collect::<TokenMask>());
        let mut sampler = Sampler::new(params, &[]);
        sampler.sample(&logits, mask.as_ref(), Some(1))
    };
    let greedy = SamplingParams::default();
    let biased = |bias: &[(u32, f32)]| SamplingParams {
        logit_bias: bias.to_vec(),
        ..greedy.clone()
    };
    let token = |choice: Option<Choice>| choice.map(|c| c.token);
    assert_eq!(token(one(&greedy, None)), Some(1));
    assert_eq!(token(one(&greedy, Some(&[0, 3]))), Some(3));
    assert_eq!(token(one(&biased(&[(0, 4.5), (9, 100.0)]), None)), Some(0));
    for ban in [-100.0, f32::NEG_INFINITY] {
        assert_eq!(token(one(&biased(&[(1, ban)]), None)), Some(2));
        assert_eq!(one(&biased(&[(1, ban)]), Some(&[1])), None);
    }
    assert_eq!(one(&greedy, Some(&[])), None);
    // Reported is what the model thinks.
    let choice = one(&biased(&[(1, -100.0)]), Some(&[0])).unwrap();
    let reported = choice.logprobs.unwrap();
    assert_eq!((choice.token, reported.token, reported.top[0].0), (0, 0, 1));
    assert_eq!(reported, logprobs(&logits, 0, 1));
}

#[test]
fn tiny_temperatures_take_the_best_and_what_is_no_number_is_never_taken() {
    for temperature in [1e-45, 1e-38, 1e-30, 1e-6] {
        let mut s = Sampler::new(&with(|p| p.temperature = temperature), &[]);
        assert_eq!(take(&mut s, &[1.0, f32::NAN, 3.0, 2.0]), 2);
    }
    let filters: [fn(&mut SamplingParams); 6] = [
        |_| {},
        |p| p.temperature = 0.0,
        |p| p.top_k = 3,
        |p| p.top_p = 0.0,
        |p| p.min_p = 1.0,
        |p| p.typical_p = 0.0,
    ];
    for filter in filters {
        let params = with(filter);
        let mut s = Sampler::new(&params, &[]);
        assert_eq!(s.sample(&[f32::NAN, f32::NEG_INFINITY], None, None), None);
        assert_eq!(s.sample(&[], None, None), None);
        let strange = [f32::NAN, f32::NEG_INFINITY, f32::MIN, 1.0, f32::INFINITY];
        assert_eq!(take(&mut s, &strange), 4, "{params:?}");
    }
}

#[test]
fn nonsense_is_refused() {
    let wrong: [fn(&mut SamplingParams); 14] = [
        |p| p.temperature = f32::NAN,
        |p| p.temperature = -1.0,
        |p| p.temperature = f32::INFINITY,
        |p| p.top_p = 1.5,
        |p| p.min_p = -0.1,
        |p| p.typical_p = 2.0,
        |p| p.repetition_penalty = 0.0,
        |p| p.presence_penalty = 3.0,
        |p| p.frequency_penalty = -2.5,
        |p| p.logit_bias = vec![(0, f32::NAN)],
        |p| p.logit_bias = vec![(0, f32::INFINITY)],
        |p| p.logit_bias = vec![(0, 1.0); 1025],
        |p| {
            p.dry = Some(Dry {
                base: 0.5,
                ..Dry::default()
            })
        },
        |p| {
            p.dry = Some(Dry {
                sequence_breakers: vec![vec![]],
                ..Dry::default()
            })
        },
    ];
    for wrong in wrong {
        let params = with(wrong);
        assert!(params.validate().is_err(), "{params:?}");
    }
    assert_eq!(with(|_| {}).validate(), Ok(()));
}

#[test]
fn only_what_changes_nothing_is_plainly_greedy() {
    let changes: [fn(&mut SamplingParams); 6] = [
        |p| p.temperature = 0.5,
        |p| p.repetition_penalty = 1.1,
        |p| p.presence_penalty = 0.1,
        |p| p.frequency_penalty = 0.1,
        |p| p.logit_bias = vec![(1, 1.0)],
        |p| p.dry = Some(Dry::default()),
    ];
    for change in changes {
        let mut params = SamplingParams::default();
        assert!(params.is_plain_greedy());
        change(&mut params);
        assert!(!params.is_plain_greedy(), "{params:?}");
    }
    assert!(with(|p| p.top_k = 1).is_plain_greedy());
}

#[test]
fn parameters_come_back_from_json() {
    let params = with(|p| {
        p.logit_bias = vec![(3, 0.1), (4, f32::NEG_INFINITY)];
        p.dry = Some(Dry {
            range: Some(9),
            sequence_breakers: vec![vec![1, 2]],
            ..Dry::default()
        });
        p.repetition_window = Some(64);
        p.seed = Some(u64::MAX);
    });
    let json = serde_json::to_string(&params).unwrap();
    let back: SamplingParams = serde_json::from_str(&json).unwrap();
    assert_eq!(
        back,
        SamplingParams {
            logit_bias: vec![(3, 0.1), (4, -100.0)],
            ..params
        }
    );
    assert_eq!(
        serde_json::from_str::<SamplingParams>("{}").unwrap(),
        SamplingParams::default()
    );
    assert!(serde_json::from_str::<SamplingParams>(r#"{"top_n": 1}"#).is_err());
}

/// `cargo test --release -p biplane sampling_costs -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn sampling_costs() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let prompt: Vec<u32> = (0..4000).map(|_| rng.next_u64() as u32 % 5000).collect();
    let cases: [(&str, SamplingParams); 10] = [
        ("greedy", SamplingParams::default()),
        ("temperature", with(|_| {})),
        (
            "top_k 64, top_p 0.95",
            with(|p| (p.top_k, p.top_p) = (64, 0.95)),
        ),
        ("top_p 0.95", with(|p| p.top_p = 0.95)),
        (
            "sharp, top_p 0.95",
            with(|p| (p.top_p, p.temperature) = (0.95, 0.3)),
        ),
        ("min_p 0.05", with(|p| p.min_p = 0.05)),
        ("typical 0.9", with(|p| p.typical_p = 0.9)),
        (
            "top_k 64, repetition",
            with(|p| (p.top_k, p.repetition_penalty) = (64, 1.1)),
        ),
        (
            "top_k 64, dry of 4000",
            with(|p| (p.top_k, p.dry) = (64, Some(Dry::default()))),
        ),
        (
            "flat, top_p 0.95",
            with(|p| (p.top_p, p.temperature) = (0.95, 20.0)),
        ),
    ];
    let logits = logits(&mut rng, 262_144, 5.0);
    let mask: TokenMask = (0..262_144).filter(|id| id % 3 == 0).collect();
    for (name, params) in cases {
        let mut sampler = Sampler::new(&params, &prompt);
        for (what, mask, top) in [
            ("", None, None),
            (" + mask", Some(&mask), None),
            (" + 5 logprobs", None, Some(5)),
        ] {
            let n = 100;
            let start = std::time::Instant::now();
            for _ in 0..n {
                std::hint::black_box(sampler.sample(&logits, mask, top));
            }
            println!("{name}{what}: {} us", start.elapsed().as_micros() / n);
        }
    }
}
