//! The envelope of errors that clients of Ollama's API expect, on its routes alone.

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;

use crate::http::error::in_ollama_form;
use crate::http::route::is_ollama;

/// Gives the errors of Ollama's routes their envelope, whatever they come from.
pub async fn envelope(request: Request, next: Next) -> Response {
    let is_ollama = is_ollama(request.uri().path());
    let response = next.run(request).await;
    if is_ollama { in_ollama_form(response) } else { response }
}
