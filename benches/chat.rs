//! Whole chat requests to a running engine with the default model: small, medium and large prompts with 16
//! generated tokens, and 8 requests at once.

#![allow(clippy::unwrap_used, reason = "a failed bench may panic")]

use std::time::Duration;

use clap::Parser;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use predict_otron_9000::app::App;
use predict_otron_9000::chat::{Caller, ChatEvent};
use predict_otron_9000::config::{Args, Config};
use predict_otron_9000::openai::chat::{ChatCompletionRequest, Usage};
use serde_json::json;
use tokio::runtime::Runtime;

const ANSWER_TOKENS: usize = 16;

/// Name and number of prompt words of each size.
const SIZES: [(&str, usize); 3] = [("small", 10), ("medium", 200), ("large", 1500)];

fn request(n_words: usize) -> ChatCompletionRequest {
    let body = json!({
        "messages": [{"role": "user", "content": "river ".repeat(n_words)}],
        "temperature": 0, "max_tokens": ANSWER_TOKENS, "ignore_eos": true
    });
    ChatCompletionRequest::from_object(body.as_object().unwrap().clone()).unwrap()
}

async fn answer(app: &App, request: &ChatCompletionRequest) -> Usage {
    let model = app.chat(None, 0).unwrap().load().await.unwrap();
    let mut events =
        model.start_chat(model.engine().admit().unwrap(), request, None, Caller::default()).unwrap();
    while let Some((_, event)) = events.next().await {
        match event {
            ChatEvent::Finished { usage, .. } => return usage,
            ChatEvent::Failed(e) => panic!("{e}"),
            ChatEvent::Content { .. } => {}
        }
    }
    panic!("the answer ended early")
}

fn requests(criterion: &mut Criterion) {
    let app = App::new(&Config::resolve(Args::parse_from(["predict-otron-9000"]).serve).unwrap()).unwrap();
    app.preload(false).unwrap();
    let runtime = Runtime::new().unwrap();
    let mut group = criterion.benchmark_group("chat");
    group.sample_size(10).measurement_time(Duration::from_secs(15));
    for (name, n_words) in SIZES {
        let request = request(n_words);
        let usage = runtime.block_on(answer(&app, &request));
        assert_eq!(usage.completion_tokens, ANSWER_TOKENS);
        group.throughput(Throughput::Elements(usage.total_tokens as u64));
        group.bench_function(
            BenchmarkId::new("alone", format!("{name}, {} prompt tokens", usage.prompt_tokens)),
            |b| {
                b.iter(|| runtime.block_on(answer(&app, &request)));
            },
        );
    }
    let request = request(SIZES[0].1);
    group.throughput(Throughput::Elements(8 * ANSWER_TOKENS as u64));
    group.bench_function("8 at once, small", |b| {
        b.iter(|| runtime.block_on(futures_util::future::join_all((0..8).map(|_| answer(&app, &request)))));
    });
    group.finish();
}

criterion_group!(benches, requests);
criterion_main!(benches);
