//! Tokenizing and detokenizing for clients (`/tokenize` and `/detokenize`).

use std::sync::Arc;

use super::{App, LoadedModel};
use crate::chat::RenderedPrompt;
use crate::error::{Error, Result};
use crate::openai::chat::ChatCompletionRequest;
use crate::openai::tokens::{
    ApplyTemplateRequest, ApplyTemplateResponse, DetokenizeRequest, DetokenizeResponse, TokenizeRequest,
    TokenizeResponse, TokenizerInfo,
};

impl App {
    /// Tokenizes a text or a conversation, on behalf of a tenant. `then` gets the result, and the paths of fields that
    /// are not part of the prompt, on the thread that computed it, before it reaches the caller; `n_bytes` is the size
    /// of the request.
    ///
    /// # Errors
    /// When no model has the requested name, or the text is too long.
    pub async fn tokenize<T: Send + 'static>(
        &self,
        request: TokenizeRequest,
        tenant: &Arc<str>,
        n_bytes: usize,
        then: impl FnOnce(TokenizeResponse, Vec<String>) -> T + Send + 'static,
    ) -> Result<T> {
        let model = self.load_any(request.model.as_deref()).await?;
        let max_bytes = self.limits().tokenize_bytes;
        let work = move || -> Result<T> {
            let return_token_strs = request.return_token_strs.unwrap_or(false);
            let (tokens, ignored) = token_ids(request, &model, max_bytes)?;
            let tokenizer = model.tokenizer();
            let texts = || tokens.iter().map(|&id| tokenizer.token_text(id)).collect();
            let response = TokenizeResponse {
                count: tokens.len(),
                max_model_len: model.max_tokens(),
                token_strs: return_token_strs.then(texts),
                tokens,
            };
            Ok(then(response, ignored))
        };
        self.queues.tools.run(tenant, n_bytes, work).await?
    }

    /// Describes the tokenizer of the first chat model.
    ///
    /// # Errors
    /// When there is no chat model, or it cannot be loaded.
    pub async fn tokenizer_info(&self) -> Result<TokenizerInfo> {
        let chat = self.chat(None, 0)?;
        let model = chat.load().await?;
        let (tokenizer, template) = (model.tokenizer(), model.template().ok());
        let special =
            |name: &str| template.and_then(|template| template.special_token(name)).map(str::to_owned);
        Ok(TokenizerInfo {
            model: chat.id().to_owned(),
            tokenizer_class: "PreTrainedTokenizerFast",
            bos_token: tokenizer.bos().map(str::to_owned),
            eos_token: tokenizer.eos().map(str::to_owned),
            unk_token: special("unk_token"),
            pad_token: special("pad_token"),
            vocab_size: tokenizer.n_vocab(),
            model_max_length: model.engine().context_length(),
            chat_template: template.map(|template| template.source().to_owned()),
        })
    }

    /// Renders a conversation with the model's chat template, on behalf of a tenant. For `then` and `n_bytes`, see
    /// [`App::tokenize`].
    ///
    /// # Errors
    /// When no chat model has the requested name, or the template refuses the conversation.
    pub async fn apply_template<T: Send + 'static>(
        &self,
        request: ApplyTemplateRequest,
        tenant: &Arc<str>,
        n_bytes: usize,
        then: impl FnOnce(ApplyTemplateResponse, Vec<String>) -> T + Send + 'static,
    ) -> Result<T> {
        let ApplyTemplateRequest { model, messages, tools, chat_template_kwargs } = request;
        let model = self.chat(model.as_deref(), n_bytes)?.load().await?;
        let request = ChatCompletionRequest {
            messages,
            tools,
            chat_template_kwargs,
            ..ChatCompletionRequest::default()
        };
        let work = move || -> Result<T> {
            let (prompt, ignored) = model.prompt_text(&request)?;
            Ok(then(ApplyTemplateResponse { prompt }, ignored))
        };
        self.queues.tools.run(tenant, n_bytes, work).await?
    }

    /// Number of tokens of a conversation's prompt, on behalf of a tenant. `n_bytes` is the size of the request.
    ///
    /// # Errors
    /// When no chat model has the requested name, or the conversation is invalid.
    pub async fn count_prompt_tokens(
        &self,
        request: ChatCompletionRequest,
        tenant: &Arc<str>,
        n_bytes: usize,
    ) -> Result<usize> {
        let model = self.chat(request.options.model.as_deref(), n_bytes)?.load().await?;
        self.queues.tools.run(tenant, n_bytes, move || model.count_prompt_tokens(&request)).await?
    }

    /// Converts token ids into text, on behalf of a tenant. For `then` and `n_bytes`, see [`App::tokenize`].
    ///
    /// # Errors
    /// When no model has the requested name, an id is not in its vocabulary, or the text would be too long.
    pub async fn detokenize<T: Send + 'static>(
        &self,
        request: DetokenizeRequest,
        tenant: &Arc<str>,
        n_bytes: usize,
        then: impl FnOnce(DetokenizeResponse) -> T + Send + 'static,
    ) -> Result<T> {
        let model = self.load_any(request.model.as_deref()).await?;
        let max_bytes = self.limits().detokenize_bytes;
        let work = move || -> Result<T> {
            let tokenizer = model.tokenizer();
            let n_text_bytes: usize = request.tokens.iter().map(|&id| tokenizer.n_text_bytes(id)).sum();
            if n_text_bytes > max_bytes {
                let message = format!(
                    "the text of `tokens` may have {n_text_bytes} bytes, and {max_bytes} is the limit; send the tokens \
                     in several requests"
                );
                return Err(Error::invalid("tokens", message));
            }
            Ok(then(DetokenizeResponse { prompt: tokenizer.decode(&request.tokens)? }))
        };
        self.queues.tools.run(tenant, n_bytes, work).await?
    }
}

/// The token ids of a text or a conversation, and the paths of fields that are not part of the prompt.
fn token_ids(
    request: TokenizeRequest,
    model: &LoadedModel,
    max_bytes: usize,
) -> Result<(Vec<u32>, Vec<String>)> {
    let TokenizeRequest { prompt, messages, tools, chat_template_kwargs, add_special_tokens, .. } = request;
    let TokenizeRequest { add_generation_prompt, continue_final_message, .. } = request;
    match (prompt, messages, model) {
        (Some(_), Some(_), _) => Err(Error::invalid(
            "messages",
            "`prompt` and `messages` are mutually exclusive; send one of them",
        )),
        (Some(text), None, _) if text.len() > max_bytes => Err(Error::invalid(
            "prompt",
            format!(
                "`prompt` has {} bytes, and {max_bytes} is the limit; send it in several requests",
                text.len()
            ),
        )),
        (Some(text), None, _) => {
            let tokens = model.tokenizer().encode_text(&text, add_special_tokens.unwrap_or(true))?;
            // These are for conversations.
            let ignored = [
                ("tools", tools.is_some()),
                ("chat_template_kwargs", chat_template_kwargs.is_some()),
                ("add_generation_prompt", add_generation_prompt.is_some()),
                ("continue_final_message", continue_final_message.is_some()),
            ];
            let ignored = ignored.into_iter().filter(|(_, is_set)| *is_set);
            Ok((tokens, ignored.map(|(name, _)| name.to_owned()).collect()))
        }
        (None, Some(messages), LoadedModel::Chat(model)) => {
            let request = ChatCompletionRequest {
                messages,
                tools,
                chat_template_kwargs,
                add_generation_prompt,
                continue_final_message,
                ..ChatCompletionRequest::default()
            };
            let RenderedPrompt { tokens, ignored_fields, .. } = model.prompt(&request)?;
            Ok((tokens, ignored_fields))
        }
        (None, Some(_), LoadedModel::Text(_)) => {
            Err(Error::invalid("messages", "this model has no chat template; send `prompt`"))
        }
        (None, None, _) => Err(Error::invalid("prompt", "`prompt` is missing; send it or `messages`")),
    }
}
