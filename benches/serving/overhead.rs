//! What the server adds to the library for one stream: the same conversation, 64 greedy tokens, through the
//! library's streaming call and as SSE over loopback, in turns.
//!
//! `cargo run --release -p biplane-benches --bin overhead -- FILE.gguf PORT [ROUNDS] [TOKENS]`, beside
//! `biplane serve -m FILE.gguf --port PORT`. Only one of the two computes at a time.

use std::{
    env,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use biplane::{BackendKind, ChatEvent, ChatRequest, Message, Model, ModelBuilder};
use tokio::runtime::Runtime;

const PROMPT: &str = "Write a long story about a lighthouse keeper and the sea.";

/// Milliseconds of one answer.
struct Times {
    first: f64,
    between: f64,
    whole: f64,
}

fn main() -> Result<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [file, port, ..] = &args[..] else {
        anyhow::bail!("usage: overhead FILE.gguf PORT [ROUNDS] [TOKENS]");
    };
    let number = |i: usize, default: usize| -> Result<usize> {
        args.get(i).map_or(Ok(default), |s| {
            s.parse().with_context(|| format!("{s:?} is no number"))
        })
    };
    let (port, rounds, tokens) = (port.parse()?, number(2, 15)?, number(3, 64)?);
    ensure!(
        rounds > 0 && tokens > 1,
        "at least one round and two tokens"
    );
    let model = ModelBuilder::new(file)
        .with_backend(BackendKind::Candle)
        .build_blocking()?;
    let runtime = Runtime::new()?;
    let ways: [(&str, &dyn Fn() -> Result<Times>); 2] = [
        ("library", &|| library(&runtime, &model, tokens)),
        ("server", &|| server(port, tokens)),
    ];
    let mut all: [Vec<Times>; 2] = Default::default();
    for round in 0..=rounds {
        for i in 0..2 {
            // Neither is always the first.
            let i = (i + round) % 2;
            let times = ways[i].1()?;
            // The first answers warm caches.
            if round > 0 {
                all[i].push(times);
            }
        }
    }
    let medians = all.each_ref().map(|times| {
        let of = |part: fn(&Times) -> f64| median(times.iter().map(part).collect());
        [of(|t| t.first), of(|t| t.between), of(|t| t.whole)]
    });
    println!("{rounds} rounds of {tokens} tokens, medians in ms");
    println!(
        "{:8} {:>12} {:>14} {:>10}",
        "", "first token", "between tokens", "whole"
    );
    for ((name, _), [first, between, whole]) in ways.iter().zip(medians) {
        println!("{name:8} {first:12.2} {between:14.3} {whole:10.1}");
    }
    let more = |i: usize| 100.0 * (medians[1][i] / medians[0][i] - 1.0);
    // Of each round's two answers, which noise that lasts meets alike.
    let paired = |part: fn(&Times) -> f64| {
        let pairs = all[0].iter().zip(&all[1]);
        100.0 * (median(pairs.map(|(l, s)| part(s) / part(l)).collect()) - 1.0)
    };
    println!(
        "between tokens {:+.2} %, in pairs {:+.2} %",
        more(1),
        paired(|t| t.between)
    );
    println!(
        "whole          {:+.2} %, in pairs {:+.2} %",
        more(2),
        paired(|t| t.whole)
    );
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    match values.len() % 2 {
        0 => (values[half - 1] + values[half]) / 2.0,
        _ => values[half],
    }
}

/// From when pieces came: the middle of the times between them, so that one pause of the machine does
/// not count.
fn times(begun: Instant, came: &[Instant], tokens: usize) -> Result<Times> {
    // The detokenizer holds back a piece that is no whole character yet.
    ensure!(
        came.len() * 10 >= tokens * 9,
        "{} pieces of {tokens} tokens",
        came.len()
    );
    let ms = |from: Instant, to: Instant| (to - from).as_secs_f64() * 1e3;
    let gaps = came.windows(2).map(|pair| ms(pair[0], pair[1]));
    Ok(Times {
        first: ms(begun, came[0]),
        between: median(gaps.collect()),
        whole: ms(begun, came[came.len() - 1]),
    })
}

fn library(runtime: &Runtime, model: &Model, tokens: usize) -> Result<Times> {
    let mut request = ChatRequest::new(vec![Message::new("user", PROMPT)]);
    request.generation.max_tokens = Some(tokens);
    request.generation.ignore_eos = true;
    let begun = Instant::now();
    let mut came = Vec::with_capacity(tokens);
    runtime.block_on(async {
        let mut events = model.stream_chat_request(request).await?;
        while let Some(event) = events.next().await {
            match event {
                ChatEvent::Token { deltas, .. } if !deltas.is_empty() => came.push(Instant::now()),
                ChatEvent::Failed(error) => return Err(anyhow::Error::from(error)),
                _ => {}
            }
        }
        Ok(())
    })?;
    times(begun, &came, tokens)
}

fn server(port: u16, tokens: usize) -> Result<Times> {
    let body = serde_json::json!({
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": true,
        "stream": true,
    })
    .to_string();
    let begun = Instant::now();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).context("the server")?;
    stream.set_nodelay(true)?;
    write!(
        stream,
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = BufReader::new(stream);
    let mut line = String::new();
    answer.read_line(&mut line)?;
    if !line.contains(" 200 ") {
        answer.read_to_string(&mut line)?;
        anyhow::bail!("{line}");
    }
    let mut came = Vec::with_capacity(tokens);
    loop {
        line.clear();
        if answer.read_line(&mut line)? == 0 {
            break;
        }
        // As cheap as a client can be: the pieces' text is not what is measured.
        if line.starts_with("data: ")
            && line.contains("\"content\":\"")
            && !line.contains("\"role\"")
        {
            came.push(Instant::now());
        }
    }
    times(begun, &came, tokens)
}
