//! Built-in chat templates, for models whose files have none: one for each common format.

/// Name and source of each template. Tokens that start and end a text come from the model's tokenizer.
const BUILTIN: [(&str, &str); 8] = [
    (
        "alpaca",
        "{% for message in messages %}\
         {% if message.role == 'system' %}{{ message.content + '\n\n' }}\
         {% elif message.role == 'assistant' %}{{ '### Response:\n' + message.content + '\n\n' }}\
         {% else %}{{ '### Instruction:\n' + message.content + '\n\n' }}{% endif %}\
         {% endfor %}\
         {% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}",
    ),
    (
        "chatml",
        "{% for message in messages %}\
         {{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}\
         {% endfor %}\
         {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    ),
    (
        "gemma",
        "{{ bos_token }}\
         {% set ns = namespace(system='') %}\
         {% for message in messages %}\
         {% if message.role == 'system' %}{% set ns.system = message.content + '\n\n' %}\
         {% elif message.role == 'assistant' %}\
         {{ '<start_of_turn>model\n' + message.content|trim + '<end_of_turn>\n' }}\
         {% else %}\
         {{ '<start_of_turn>user\n' + ns.system + message.content|trim + '<end_of_turn>\n' }}\
         {% set ns.system = '' %}\
         {% endif %}\
         {% endfor %}\
         {% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
    ),
    (
        "llama-2",
        "{% set ns = namespace(system='') %}\
         {% for message in messages %}\
         {% if message.role == 'system' %}\
         {% set ns.system = '<<SYS>>\n' + message.content + '\n<</SYS>>\n\n' %}\
         {% elif message.role == 'assistant' %}{{ ' ' + message.content|trim + ' ' + eos_token }}\
         {% else %}\
         {{ bos_token + '[INST] ' + ns.system + message.content|trim + ' [/INST]' }}\
         {% set ns.system = '' %}\
         {% endif %}\
         {% endfor %}",
    ),
    (
        "llama-3",
        "{{ bos_token }}\
         {% for message in messages %}\
         {{ '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content|trim + '<|eot_id|>' }}\
         {% endfor %}\
         {% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    ),
    (
        "mistral",
        "{{ bos_token }}\
         {% set ns = namespace(system='') %}\
         {% for message in messages %}\
         {% if message.role == 'system' %}{% set ns.system = message.content + '\n\n' %}\
         {% elif message.role == 'assistant' %}{{ ' ' + message.content|trim + eos_token }}\
         {% else %}\
         {{ '[INST] ' + ns.system + message.content + ' [/INST]' }}\
         {% set ns.system = '' %}\
         {% endif %}\
         {% endfor %}",
    ),
    (
        "phi-3",
        "{% for message in messages %}\
         {{ '<|' + message.role + '|>\n' + message.content + '<|end|>\n' }}\
         {% endfor %}\
         {% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
    ),
    (
        "zephyr",
        "{% for message in messages %}\
         {{ '<|' + message.role + '|>\n' + message.content + eos_token + '\n' }}\
         {% endfor %}\
         {% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
    ),
];

/// The source of the template called `name`.
pub fn builtin_template(name: &str) -> Option<&'static str> {
    BUILTIN.iter().find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, source)| *source)
}

/// The names of all built-in templates.
pub fn builtin_names() -> impl Iterator<Item = &'static str> {
    BUILTIN.iter().map(|(name, _)| *name)
}
