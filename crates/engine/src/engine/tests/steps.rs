//! How much a step computes.

use super::*;
use biplane_backend::Device;

#[test]
fn a_gpus_step_takes_more_of_many_than_of_one() {
    let vocabulary = vocabulary();
    let requests: Vec<_> = (0..12).map(|i| request(i, 300, 8)).collect();
    let want = solo(&vocabulary, None, &requests);
    let mut bench = Bench::new(&vocabulary, None, EngineConfig::default());
    (bench.scheduler.chunk_tokens, bench.scheduler.step_tokens) = (64, 256);
    assert_alike(&bench.answers(&requests), &want);
    let most = |n: &std::sync::atomic::AtomicUsize| n.load(Relaxed);
    assert_eq!(most(&bench.watch.most_of_one), 64);
    // Prompts beside the tokens of answers.
    let largest = most(&bench.watch.most_tokens);
    assert!((256..=256 + requests.len()).contains(&largest), "{largest}");
}

#[test]
fn only_a_gpu_takes_more_of_many_and_only_unless_told() {
    let of = |config: &EngineConfig, device| {
        (
            config.chunk_tokens_on(device),
            config.step_tokens_on(device),
        )
    };
    let default = EngineConfig::default();
    assert_eq!(of(&default, Device::Cpu), (512, 512));
    assert_eq!(of(&default, Device::Gpu), (4096, 16384));
    let told = EngineConfig {
        step_tokens: Some(1000),
        ..default
    };
    assert_eq!(of(&told, Device::Cpu), (1000, 1000));
    assert_eq!(of(&told, Device::Gpu), (1000, 1000));
}
