//! Validation of generation options: ranges checked, defaults filled in.

use crate::cache::name_digest;
use crate::error::{Error, Result, quote};
use crate::inference::Caller;
use crate::inference::{GenerationRequest, SamplingParams, Scoring};
use crate::openai::chat::ChatCompletionRequest;
use crate::openai::completions::CompletionRequest;
use crate::openai::generation_options::{
    GenerationOptions, MAX_CHOICES, MAX_STOPS, NO_TOKEN_LIMIT, OneOrMany,
};

/// The longest stop string. Text is held back while it could be the beginning of one.
const MAX_STOP_BYTES: usize = 1024;

/// Maximum number of additional stop tokens.
const MAX_STOP_TOKENS: usize = 64;

/// The longest `cache_salt`.
const MAX_SALT_BYTES: usize = 256;

/// OpenAI's limit of `top_logprobs` in a chat completion.
const MAX_TOP_LOGPROBS: u64 = 20;

/// OpenAI's limit of `logprobs` in a text completion.
const MAX_LOGPROBS: u64 = 5;

/// OpenAI's limit of `logit_bias`.
const MAX_LOGIT_BIAS: f32 = 100.0;

/// Range of the repeat penalty. A logit divided by less than the minimum may overflow float32.
const MIN_REPEAT_PENALTY: f32 = 0.01;
const MAX_REPEAT_PENALTY: f32 = 10.0;

/// A limit on the tokens of a response, and the parameter that sets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenLimit {
    /// The parameter.
    pub param: &'static str,
    /// The most tokens.
    pub n_tokens: u64,
}

impl TokenLimit {
    /// The limit of a conversation's response, if the client sets one.
    pub fn for_chat(request: &ChatCompletionRequest) -> Option<Self> {
        let limit = ("max_completion_tokens", request.max_completion_tokens);
        Self::first_of(&[limit, ("max_tokens", request.options.max_tokens)])
    }

    /// The limit of a text completion.
    pub fn for_completion(request: &CompletionRequest) -> Option<Self> {
        Self::first_of(&[("max_tokens", request.options.max_tokens)])
    }

    /// The first that is set, unless it says that there is none.
    fn first_of(limits: &[(&'static str, Option<u64>)]) -> Option<Self> {
        let (param, n_tokens) = limits.iter().find_map(|&(param, limit)| Some((param, limit?)))?;
        (n_tokens != NO_TOKEN_LIMIT).then_some(Self { param, n_tokens })
    }
}

/// Converts a chat request to the engine's request, without its prompt.
///
/// # Errors
/// When a parameter is out of range; the error names it.
pub fn chat_generation_request(request: &ChatCompletionRequest, caller: Caller) -> Result<GenerationRequest> {
    if let Some(budget) = request.thinking_budget.filter(|&budget| budget < -1) {
        let message = format!("`thinking_budget` is {budget}; it must be -1 (no limit) or more");
        return Err(Error::invalid("thinking_budget", message));
    }
    // Zero is refused even in a limit that does not count.
    let limits = [
        ("max_completion_tokens", request.max_completion_tokens),
        ("max_tokens", request.options.max_tokens),
    ];
    if let Some((param, _)) = limits.into_iter().find(|(_, limit)| *limit == Some(0)) {
        return Err(zero_tokens(param));
    }
    let is_limited = request.max_completion_tokens.or(request.options.max_tokens).is_some();
    let limit = TokenLimit::for_chat(request);
    let mut generation = generation_request(&request.options, limit, caller)?;
    if let Some(n) = request.options.default_max_tokens.filter(|_| !is_limited) {
        generation.max_tokens = saturating_usize(n).max(generation.min_tokens);
    }
    Ok(GenerationRequest { top_logprobs: top_logprobs(request)?, ..generation })
}

/// Converts a text completion request to the engine's request, without its prompt.
///
/// # Errors
/// When a parameter is out of range; the error names it.
pub fn completion_generation_request(
    request: &CompletionRequest,
    caller: Caller,
) -> Result<GenerationRequest> {
    check_logprobs(request)?;
    let limit = TokenLimit::for_completion(request);
    let generation = generation_request(&request.options, limit, caller)?;
    let top_logprobs = request.logprobs.map(|n| n as usize);
    let scoring = match (generation.scoring, request.echoed_logprobs()) {
        (Some(Scoring::Prompt { n_top }), Some(n)) => Some(Scoring::Prompt { n_top: n_top.max(n as usize) }),
        (None, Some(n)) => Some(Scoring::Prompt { n_top: n as usize }),
        (scoring, _) => scoring,
    };
    Ok(GenerationRequest {
        is_continuation: true,
        top_logprobs,
        // So the tokens after the prompt are as many as were generated.
        is_end_reported: request.echoed_logprobs().is_some(),
        scoring,
        ..generation
    })
}

/// Converts the options to the engine's request.
fn generation_request(
    options: &GenerationOptions,
    limit: Option<TokenLimit>,
    caller: Caller,
) -> Result<GenerationRequest> {
    let min_tokens = options.min_tokens.map_or(0, saturating_usize);
    if let Some(TokenLimit { param, n_tokens }) =
        limit.filter(|limit| options.min_tokens > Some(limit.n_tokens))
    {
        return Err(Error::invalid(
            "min_tokens",
            format!("`min_tokens` is {min_tokens}, more than `{param}`, which is {n_tokens}"),
        ));
    }
    if options.stream_options.is_some() && !options.is_streamed() {
        return Err(Error::invalid("stream_options", "`stream_options` needs `stream` to be true"));
    }
    Ok(GenerationRequest {
        prompt: Vec::new(),
        prediction: Vec::new(),
        max_tokens: limit.map_or(usize::MAX, |limit| saturating_usize(limit.n_tokens)),
        min_tokens,
        sampling: sampling_params(options)?,
        constraint: None,
        thought_budget: None,
        is_continuation: false,
        stop: stop_strings(options)?,
        stop_tokens: stop_tokens(options)?,
        visible_tokens: Vec::new(),
        ignore_eos: options.ignore_eos.unwrap_or(false),
        top_logprobs: None,
        is_end_reported: false,
        scoring: prompt_logprobs(options)?.map(|n_top| Scoring::Prompt { n_top }),
        caller,
        cache_salt: cache_salt(options)?,
    })
}

fn zero_tokens(param: &'static str) -> Error {
    Error::invalid(param, format!("`{param}` must be at least 1, or -1 for no limit"))
}

/// `n` as a `usize`, or the largest `usize` where it does not fit.
fn saturating_usize(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

/// A request that computes a prompt, scores what `scoring` says, and generates nothing.
pub fn scoring_request(
    prompt: Vec<u32>,
    scoring: Option<Scoring>,
    caller: Caller,
    cache_salt: Option<String>,
) -> GenerationRequest {
    GenerationRequest {
        prompt,
        prediction: Vec::new(),
        max_tokens: 0,
        min_tokens: 0,
        sampling: SamplingParams::default(),
        constraint: None,
        thought_budget: None,
        is_continuation: false,
        stop: Vec::new(),
        stop_tokens: Vec::new(),
        visible_tokens: Vec::new(),
        ignore_eos: false,
        top_logprobs: None,
        is_end_reported: false,
        scoring,
        caller,
        cache_salt,
    }
}

fn stop_strings(options: &GenerationOptions) -> Result<Vec<String>> {
    let stop = match &options.stop {
        None => Vec::new(),
        Some(OneOrMany::One(stop)) => vec![stop.clone()],
        Some(OneOrMany::Many(stops)) => stops.clone(),
    };
    if stop.len() > MAX_STOPS {
        return Err(Error::invalid(
            "stop",
            format!("`stop` has {} strings; at most {MAX_STOPS} are allowed", stop.len()),
        ));
    }
    if stop.iter().any(String::is_empty) {
        return Err(Error::invalid(
            "stop",
            "`stop` contains an empty string, which would never stop anything; leave it out",
        ));
    }
    if let Some(long) = stop.iter().find(|stop| stop.len() > MAX_STOP_BYTES) {
        let message =
            format!("`stop` contains a string of {} bytes; at most {MAX_STOP_BYTES} are allowed", long.len());
        return Err(Error::invalid("stop", message));
    }
    Ok(stop)
}

fn stop_tokens(options: &GenerationOptions) -> Result<Vec<u32>> {
    let tokens = options.stop_token_ids.clone().unwrap_or_default();
    if tokens.len() > MAX_STOP_TOKENS {
        let n = tokens.len();
        let message = format!("`stop_token_ids` has {n} tokens; at most {MAX_STOP_TOKENS} are allowed");
        return Err(Error::invalid("stop_token_ids", message));
    }
    Ok(tokens)
}

/// The digest of the request's salt.
fn cache_salt(options: &GenerationOptions) -> Result<Option<String>> {
    let Some(salt) = &options.cache_salt else { return Ok(None) };
    if salt.len() > MAX_SALT_BYTES {
        let message = format!("`cache_salt` has {} bytes; at most {MAX_SALT_BYTES} are allowed", salt.len());
        return Err(Error::invalid("cache_salt", message));
    }
    Ok(Some(name_digest(salt.as_bytes())))
}

/// Number of choices for each prompt.
///
/// # Errors
/// When it is 0 or too large.
pub fn num_choices(options: &GenerationOptions) -> Result<usize> {
    match options.n.unwrap_or(1) {
        n @ 1..=MAX_CHOICES => Ok(n as usize),
        n => Err(Error::invalid("n", format!("`n` is {n}; it must be from 1 to {MAX_CHOICES}"))),
    }
}

fn check_logprobs(request: &CompletionRequest) -> Result<()> {
    match request.logprobs {
        Some(n) if n > MAX_LOGPROBS => Err(Error::invalid(
            "logprobs",
            format!("`logprobs` is {n}; at most {MAX_LOGPROBS} tokens are reported at each position"),
        )),
        _ => Ok(()),
    }
}

/// How many of the most likely tokens to report at each position of the prompt, if its scores are requested.
fn prompt_logprobs(options: &GenerationOptions) -> Result<Option<usize>> {
    match options.prompt_logprobs {
        Some(n) if n > MAX_TOP_LOGPROBS => Err(Error::invalid(
            "prompt_logprobs",
            format!("`prompt_logprobs` is {n}; at most {MAX_TOP_LOGPROBS} are reported at each position"),
        )),
        Some(_) if options.is_streamed() => Err(Error::invalid(
            "prompt_logprobs",
            "`prompt_logprobs` are part of whole responses only; send them without `stream`",
        )),
        n => Ok(n.map(|n| n as usize)),
    }
}

fn top_logprobs(request: &ChatCompletionRequest) -> Result<Option<usize>> {
    match (request.logprobs.unwrap_or(false), request.top_logprobs) {
        (_, Some(n)) if n > MAX_TOP_LOGPROBS => Err(Error::invalid(
            "top_logprobs",
            format!("`top_logprobs` is {n}; at most {MAX_TOP_LOGPROBS} are reported"),
        )),
        (false, Some(n)) if n > 0 => {
            Err(Error::invalid("top_logprobs", "`top_logprobs` needs `logprobs` to be true"))
        }
        (true, n) => Ok(Some(n.unwrap_or(0) as usize)),
        (false, _) => Ok(None),
    }
}

fn sampling_params(options: &GenerationOptions) -> Result<SamplingParams> {
    let defaults = SamplingParams::default();
    let within = |param: &'static str, value: Option<f32>, min: f32, max: f32, default: f32| match value {
        None => Ok(default),
        Some(value) if (min..=max).contains(&value) => Ok(value),
        Some(value) => {
            Err(Error::invalid(param, format!("`{param}` is {value}; it must be from {min} to {max}")))
        }
    };
    let (param, repeat_penalty) = match (options.repeat_penalty, options.repetition_penalty) {
        (Some(one), Some(other)) if one != other => {
            let message = format!(
                "`repeat_penalty` is {one} and `repetition_penalty` is {other}; both mean the same, so send only one"
            );
            return Err(Error::invalid("repetition_penalty", message));
        }
        (None, Some(penalty)) => ("repetition_penalty", Some(penalty)),
        (penalty, _) => ("repeat_penalty", penalty),
    };
    let repeat_penalty =
        within(param, repeat_penalty, MIN_REPEAT_PENALTY, MAX_REPEAT_PENALTY, defaults.repeat_penalty)?;
    let repeat_last_n = match options.repeat_last_n {
        None => defaults.repeat_last_n,
        Some(-1) => None,
        Some(n) => Some(usize::try_from(n).map_err(|_| {
            Error::invalid(
                "repeat_last_n",
                format!("`repeat_last_n` is {n}; it must be -1 (all tokens) or more"),
            )
        })?),
    };
    let top_k = match options.top_k {
        None | Some(-1) => 0,
        Some(k) => usize::try_from(k).map_err(|_| {
            Error::invalid("top_k", format!("`top_k` is {k}; it must be 0 or -1 (all tokens) or more"))
        })?,
    };
    Ok(SamplingParams {
        temperature: within("temperature", options.temperature, 0.0, 2.0, defaults.temperature)?,
        top_k,
        top_p: within("top_p", options.top_p, 0.0, 1.0, defaults.top_p)?,
        min_p: within("min_p", options.min_p, 0.0, 1.0, defaults.min_p)?,
        seed: options.seed.map(i64::cast_unsigned),
        repeat_penalty,
        repeat_last_n,
        presence_penalty: within("presence_penalty", options.presence_penalty, -2.0, 2.0, 0.0)?,
        frequency_penalty: within("frequency_penalty", options.frequency_penalty, -2.0, 2.0, 0.0)?,
        logit_bias: logit_bias(options)?,
    })
}

fn logit_bias(options: &GenerationOptions) -> Result<Vec<(u32, f32)>> {
    options
        .logit_bias
        .iter()
        .flatten()
        .map(|(token, &bias)| {
            let id = token.parse().map_err(|_| {
                Error::invalid("logit_bias", format!("`logit_bias` key `{}` is not a token id", quote(token)))
            })?;
            if !(-MAX_LOGIT_BIAS..=MAX_LOGIT_BIAS).contains(&bias) {
                let message = format!("`logit_bias` of token {id} is {bias}; it must be from -100 to 100");
                return Err(Error::invalid("logit_bias", message));
            }
            Ok((id, bias))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn request(fields: Value) -> Result<GenerationRequest> {
        let mut body = json!({"messages": [{"role": "user", "content": "hi"}]});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let request = ChatCompletionRequest::from_object(body.as_object().unwrap().clone())?;
        chat_generation_request(&request, Caller::default())
    }

    #[test]
    fn defaults_are_openais() {
        let plain = request(json!({})).unwrap();
        assert_eq!(plain.sampling, SamplingParams::default());
        assert_eq!(plain.max_tokens, usize::MAX);
        let nulls = request(json!({"temperature": null, "stop": null, "seed": null})).unwrap();
        assert_eq!(format!("{nulls:?}"), format!("{plain:?}"));
    }

    #[test]
    fn every_parameter_is_converted() {
        let full = request(json!({
            "max_tokens": 5, "max_completion_tokens": 6, "temperature": 0.5, "top_p": 0.9, "top_k": 3,
            "min_p": 0.1, "seed": -1, "stop": ["a", "b"], "presence_penalty": 1, "frequency_penalty": -1,
            "logit_bias": {"7": -100}, "logprobs": true, "top_logprobs": 2, "repetition_penalty": 1.1,
            "repeat_last_n": -1, "ignore_eos": true, "min_tokens": 3, "stop_token_ids": [4, 5]
        }))
        .unwrap();
        assert_eq!(full.max_tokens, 6);
        assert_eq!(full.stop, ["a", "b"]);
        assert_eq!(full.top_logprobs, Some(2));
        assert!(full.ignore_eos);
        assert_eq!((full.min_tokens, full.stop_tokens), (3, vec![4, 5]));
        let expected = SamplingParams {
            temperature: 0.5,
            top_k: 3,
            top_p: 0.9,
            min_p: 0.1,
            seed: Some(u64::MAX),
            repeat_penalty: 1.1,
            repeat_last_n: None,
            presence_penalty: 1.0,
            frequency_penalty: -1.0,
            logit_bias: vec![(7, -100.0)],
        };
        assert_eq!(full.sampling, expected);
    }

    #[test]
    fn values_out_of_range_are_refused_by_name() {
        for (param, value) in [
            ("max_tokens", json!(0)),
            ("max_completion_tokens", json!(0)),
            ("temperature", json!(2.1)),
            ("temperature", json!("warm")),
            ("top_p", json!(-0.1)),
            ("presence_penalty", json!(3)),
            ("frequency_penalty", json!(-3)),
            ("repeat_penalty", json!(0)),
            ("repeat_penalty", json!(1e-40)),
            ("repetition_penalty", json!(11)),
            ("repeat_last_n", json!(-2)),
            ("top_k", json!(-2)),
            ("stop", json!(vec!["x"; 33])),
            ("stop", json!(5)),
            ("stop", json!("")),
            ("stop", json!(["x", ""])),
            ("stop", json!("x".repeat(1025))),
            ("stop_token_ids", json!(vec![1; 65])),
            ("min_tokens", json!(-1)),
            ("top_logprobs", json!(21)),
            ("top_logprobs", json!(1)),
            ("logit_bias", json!({"x": 1})),
            ("logit_bias", json!({"1": 101})),
            ("stream_options", json!({"include_usage": true})),
            ("cache_salt", json!("s".repeat(257))),
        ] {
            let error = request(json!({ param: value.clone() })).unwrap_err();
            assert_eq!(error.param(), Some(param), "{value}: {error}");
            assert!(error.to_string().contains(param), "{error}");
        }
    }

    #[test]
    fn minus_one_is_no_limit() {
        for fields in [
            json!({"max_tokens": -1}),
            json!({"max_completion_tokens": -1}),
            json!({"max_completion_tokens": -1, "max_tokens": 5}),
            json!({"max_tokens": -1, "min_tokens": 7}),
        ] {
            assert_eq!(request(fields).unwrap().max_tokens, usize::MAX);
        }
        let limited = request(json!({"max_completion_tokens": null, "max_tokens": 5})).unwrap();
        assert_eq!(limited.max_tokens, 5);
    }

    #[test]
    fn the_servers_limit_is_for_requests_without_one() {
        let max_tokens = |fields: Value| {
            let mut body = json!({"messages": [{"role": "user", "content": "hi"}]});
            body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            let mut request = ChatCompletionRequest::from_object(body.as_object().unwrap().clone()).unwrap();
            request.options.default_max_tokens = Some(9);
            chat_generation_request(&request, Caller::default()).unwrap().max_tokens
        };
        assert_eq!(max_tokens(json!({})), 9);
        assert_eq!(max_tokens(json!({"min_tokens": 12})), 12);
        assert_eq!(max_tokens(json!({"max_tokens": 20})), 20);
        assert_eq!(max_tokens(json!({"max_completion_tokens": -1})), usize::MAX);
        assert_eq!(max_tokens(json!({"default_max_tokens": 3})), 9, "no part of the wire");
    }

    #[test]
    fn the_repeat_penalty_has_two_names() {
        let penalty = |fields| request(fields).map(|request| request.sampling.repeat_penalty);
        assert_eq!(penalty(json!({"repeat_penalty": null, "repetition_penalty": 1.1})).unwrap(), 1.1);
        assert_eq!(penalty(json!({"repeat_penalty": 1.1, "repetition_penalty": 1.1})).unwrap(), 1.1);
        let error = penalty(json!({"repeat_penalty": 1.2, "repetition_penalty": 1.1})).unwrap_err();
        assert_eq!(error.param(), Some("repetition_penalty"));
    }

    #[test]
    fn salts_are_stored_as_digests() {
        let digest = |salt: String| request(json!({"cache_salt": salt})).unwrap().cache_salt.unwrap();
        let (short, long) = (digest("s".to_owned()), digest("s".repeat(256)));
        assert!(short.len() == 32 && long.len() == 32 && short != long);
        assert!(request(json!({"cache_salt": "s".repeat(257)})).unwrap_err().to_string().contains("256"));
    }
}
