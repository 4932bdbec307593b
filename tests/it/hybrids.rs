//! Models with recurrent layers behind the server: their state in the prefix cache, beside other sequences, and with
//! draft tokens.

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::support::tiny::tiny_server;
use crate::support::{Server, json as body};

/// One of each kind of recurrent layer.
const FAMILIES: [&str; 3] = ["qwen3_5", "granitemoehybrid", "lfm2"];

const COMPLETIONS: &str = "/v1/completions";

/// A text of `n` letters, which are as many tokens.
fn text(n: usize, seed: u32) -> String {
    (0..n as u32).map(|i| char::from(b'a' + ((i * i + 7 * i * seed + seed) % 26) as u8)).collect()
}

/// A completion, and its prompt tokens from the prefix cache.
struct Completion {
    text: String,
    n_cached: u64,
}

/// The greedy completion of a prompt by letters.
async fn complete(server: &Server, prompt: &str, fields: Value) -> Completion {
    let mut request =
        json!({"prompt": prompt, "max_tokens": 40, "temperature": 0, "guided_regex": "[a-z]{50}"});
    request.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let answer = body(server.post(COMPLETIONS, &request).await).await;
    let text = answer["choices"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}"));
    assert_eq!(answer["usage"]["completion_tokens"], 40, "{answer}");
    Completion {
        text: text.to_owned(),
        n_cached: answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap(),
    }
}

#[tokio::test]
async fn a_conversation_goes_on_from_its_last_state() {
    for family in FAMILIES {
        let (server, _folder) = tiny_server(family, &["--no-speculation"]).await;
        let beginning = text(150, 1);
        let first = complete(&server, &beginning, json!({})).await;
        assert_eq!(first.n_cached, 0, "{family}");
        // The answer's blocks are cached with a state after the last full one.
        let prompt = [&beginning, &first.text, &text(9, 2)[..]].concat();
        let cold = complete(&server, &prompt, json!({"cache_salt": "cold"})).await;
        assert_eq!(cold.n_cached, 0);
        let warm = complete(&server, &prompt, json!({})).await;
        assert_eq!(warm.text, cold.text, "{family}");
        assert_eq!(warm.n_cached, (150 + 39) / 16 * 16, "{family}");
        // Another continuation of the first prompt starts at its end.
        let other = [&beginning, &text(30, 3)[..]].concat();
        assert_eq!(complete(&server, &other, json!({})).await.n_cached, 144, "{family}");
        // A prompt that differs before any snapshot has nothing to start from.
        let shorter = [&beginning[..100], &text(30, 4)].concat();
        assert_eq!(complete(&server, &shorter, json!({})).await.n_cached, 0, "{family}");
    }
}

#[tokio::test]
async fn tokens_are_the_same_alone_and_where_batches_may_have_drafts() {
    for family in FAMILIES {
        let (plain, _folder) = tiny_server(family, &["--no-speculation"]).await;
        let (speculative, _folder) = tiny_server(family, &[]).await;
        // The end of a prompt repeats its beginning, so that there are drafts.
        let prompts: Vec<String> =
            (0..4).map(|n| [text(60 + 7 * n, n as u32), text(30, n as u32)].concat()).collect();
        let mut alone = Vec::new();
        for prompt in &prompts {
            alone.push(complete(&plain, prompt, json!({})).await.text);
        }
        let together = join_all(prompts.iter().map(|prompt| complete(&speculative, prompt, json!({})))).await;
        let texts: Vec<String> = together.into_iter().map(|completion| completion.text).collect();
        assert_eq!(texts, alone, "{family}");
    }
}
