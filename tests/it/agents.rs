//! Coding agents, unmodified, against a scripted model. They are not part of the repository: to run this by hand,
//! install `@anthropic-ai/claude-code` and set CLAUDE to the path of its program.

use std::process::Command;
use std::{env, fs};

use predict_otron_9000::config::Limits;
use predict_otron_9000::inference::EngineOptions;

use crate::support::{ENGINE_OPTIONS, Script, scripted_server};

/// Calls a tool and, once it sees the result, ends.
fn script() -> Script {
    let call = "I look.\n<tool_call>\n{\"name\": \"Bash\", \"arguments\": {\"command\": \"echo $((40+2))-seen\", \
                \"description\": \"Look\"}}\n</tool_call>";
    let template = "{% if tools %}TOOLS:{{ tools | tojson }} <tool_call>{% endif %}{% for m in messages %}<|start|>{{ m.role }}:\
        {{ m.content }}{% for call in m.tool_calls %}[{{ call.id }} {{ call.function.name }} {{ call.function.arguments | tojson }}]\
        {% endfor %}{{ m.tool_call_id }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|start|>assistant:{% endif %}";
    Script {
        template: Some(template),
        context_length: Some(1 << 18),
        after: Some(("42-seen", "The tool said it.")),
        ..Script::saying(call)
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Claude Code at $CLAUDE"]
async fn claude_code_runs_its_shell_and_reads_the_result() {
    let options = EngineOptions {
        kv_bytes: 1 << 26,
        prefill_chunk_tokens: 8192,
        queued_tokens: 1 << 20,
        ..ENGINE_OPTIONS
    };
    let script = script();
    let server = scripted_server(script.clone(), Limits::default(), options).await;
    let home = env::temp_dir().join(format!("claude-code-{}", std::process::id()));
    fs::create_dir_all(&home).unwrap();
    let mut agent = Command::new("timeout");
    agent
        .arg("300")
        .arg(env::var("CLAUDE").expect("CLAUDE is the path of Claude Code"))
        .args(["--model", "scripted", "--allowedTools", "Bash", "-p", "Use your shell."])
        .current_dir(&home)
        .env("HOME", &home)
        .env("ANTHROPIC_BASE_URL", server.url(""))
        .env("ANTHROPIC_API_KEY", "none")
        .env("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1");
    let output = tokio::task::spawn_blocking(move || agent.output()).await.unwrap().unwrap();
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("The tool said it."), "{said}");
    fs::remove_dir_all(&home).unwrap();
}
