//! What was computed once serves others, and changes nothing.

use super::*;

#[test]
fn company_and_kept_prefixes_change_nothing() {
    let vocabulary = vocabulary();
    for window in [None, Some(64)] {
        let requests = many();
        let want = solo(&vocabulary, window, &requests);
        for n in [1, 2, 4, 8, 16, 64] {
            let mut bench = Bench::new(
                &vocabulary,
                window,
                EngineConfig {
                    max_sequences: n,
                    step_tokens: Some(128),
                    ..EngineConfig::default()
                },
            );
            assert_alike(&bench.answers(&requests), &want);
            // Once more, with everything kept.
            assert_alike(&bench.answers(&requests), &want);
            bench.nothing_leaks();
        }
    }
}

#[test]
fn a_common_beginning_is_computed_once() {
    let vocabulary = vocabulary();
    let requests: Vec<_> = many().into_iter().skip(2).step_by(3).collect();
    let mut bench = Bench::new(&vocabulary, None, EngineConfig::default());
    let answers = bench.answers(&requests);
    for answer in &answers[1..] {
        assert_eq!(answer.timings.cached_tokens, 700);
    }
    let computed = bench.scheduler.counters.read().prompt_tokens;
    assert_eq!(computed, 700 + 40 * requests.len() as u64);
}

#[test]
fn sliding_windows_keep_what_others_need() {
    let vocabulary = vocabulary();
    // Long answers: what was shared is out of reach when they end.
    let long = |mut r: Request| {
        let own = r.tokens[700..].to_vec();
        r.tokens.extend(own.repeat(2));
        Request {
            ignore_eos: true,
            max_tokens: Some(100),
            ..r
        }
    };
    let requests: Vec<_> = many().into_iter().skip(2).step_by(3).map(long).collect();
    let mut bench = Bench::new(&vocabulary, Some(64), EngineConfig::default());
    let one_by_one: Vec<_> = requests
        .iter()
        .map(|r| {
            bench.answers(std::slice::from_ref(r))[0]
                .timings
                .cached_tokens
        })
        .collect();
    // The second finds the copy at a regular distance, and marks where it parted; the third uses that.
    assert_eq!(one_by_one[..4], [0, 512, 700, 700]);
}

#[test]
fn a_conversation_goes_on_where_it_was() {
    let vocabulary = vocabulary();
    for window in [None, Some(64)] {
        let mut bench = Bench::new(&vocabulary, window, EngineConfig::default());
        let first = request(1, 200, 50);
        let answer = bench.answers(std::slice::from_ref(&first)).remove(0);
        let mut tokens = [&first.tokens[..], &answer.tokens].concat();
        let before = tokens.len();
        tokens.extend(prompt(5, 30));
        let next = Request {
            max_tokens: Some(5),
            ..Request::new(tokens)
        };
        let answer = bench.answers(&[next]).remove(0);
        // The last token was never computed.
        assert_eq!(answer.timings.cached_tokens, before - 1);
        bench.nothing_leaks();
    }
}

#[test]
fn stored_prompts_serve_the_next_run() {
    let vocabulary = vocabulary();
    let dir = tempfile::tempdir().unwrap();
    let config = EngineConfig {
        prompt_cache: Some(dir.path().to_owned()),
        ..EngineConfig::default()
    };
    let r = seeded(1, 300, 20);
    let want = solo(&vocabulary, None, std::slice::from_ref(&r));
    let run = |config: &EngineConfig| {
        let mut bench = Bench::new(&vocabulary, None, config.clone());
        let answer = bench.answers(std::slice::from_ref(&r)).remove(0);
        bench.nothing_leaks();
        answer
    };
    assert_eq!(run(&config).timings.cached_tokens, 0);
    let again = run(&config);
    assert_eq!(again.timings.cached_tokens, 299);
    assert_alike(&[again], &want);
    // A damaged file is no cache, and no harm.
    let file = std::fs::read_dir(dir.path())
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() - 40;
    bytes[middle] ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    let damaged = run(&config);
    assert_eq!(damaged.timings.cached_tokens, 0);
    assert_alike(&[damaged], &want);
    std::fs::write(&file, &bytes[..50]).unwrap();
    assert_eq!(run(&config).timings.cached_tokens, 0);
}
