//! Coding agents and frameworks, unmodified, against a scripted model. `tests/agents/run` installs them and runs this.

use std::env;
use std::process::Command;

use predict_otron_9000::config::Limits;
use predict_otron_9000::inference::EngineOptions;

use crate::support::{ENGINE_OPTIONS, Script, scripted_server};

/// Shows all that a client sends, tools and calls included.
const TEMPLATE: &str = "{% if tools %}TOOLS:{{ tools | tojson }} <tool_call>{% endif %}\
    {% for m in messages %}<|start|>{{ m.role }}:{{ m.content }}\
    {% for call in m.tool_calls %}[{{ call.id }} {{ call.function.name }} {{ call.function.arguments | tojson }}]\
    {% endfor %}{{ m.tool_call_id }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|start|>assistant:{% endif %}";

/// A call of a tool.
fn call(name: &str, arguments: &str) -> String {
    format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {arguments}}}\n</tool_call>")
}

/// Texts in prompts, and the answers to them. Results of tools come first: the text that asked for the call is still
/// in a prompt that has them.
fn answers() -> Vec<(&'static str, String)> {
    let shell_call = |name: &str, arguments: &str| format!("I look.\n{}", call(name, arguments));
    vec![
        ("42-seen", "The tool said it.".to_owned()),
        ("20 degrees", "It is warm there.".to_owned()),
        (
            "Use Claude Code's shell.",
            shell_call("Bash", r#"{"command": "echo $((40+2))-seen", "description": "Look"}"#),
        ),
        ("Use Codex's shell.", shell_call("exec_command", r#"{"cmd": "echo $((40+2))-seen"}"#)),
        (
            "Use opencode's shell.",
            shell_call("bash", r#"{"command": "echo $((40+2))-seen", "description": "Look"}"#),
        ),
        ("Rewrite greeting.py.", "greeting.py\n```\nprint(\"goodbye\")\n```\n".to_owned()),
        ("How warm is it in Rome?", call("get_weather", r#"{"city": "Rome"}"#)),
        ("Call Weather.", call("Weather", r#"{"city": "Rome", "celsius": 20}"#)),
        ("Answer in JSON.", r#"{"city": "Rome", "celsius": 20}"#.to_owned()),
        ("Answer with a city.", "Rome".to_owned()),
    ]
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the clients that tests/agents/run installs, and the command $CLIENTS that runs them"]
async fn clients_of_a_scripted_model() {
    let options = EngineOptions {
        kv_bytes: 1 << 26,
        prefill_chunk_tokens: 8192,
        queued_tokens: 1 << 20,
        ..ENGINE_OPTIONS
    };
    // Claude Code asks for an answer of up to 32,000 tokens.
    let script = Script {
        template: Some(TEMPLATE),
        context_length: Some(1 << 18),
        after: answers(),
        ..Script::saying("Hello.")
    };
    let server = scripted_server(script, Limits::default(), options).await;
    let mut clients = Command::new(env::var("CLIENTS").expect("CLIENTS is a command"));
    clients.env("SERVER", server.url(""));
    let status = tokio::task::spawn_blocking(move || clients.status()).await.unwrap().unwrap();
    assert!(status.success(), "{status}");
}
