//! The chat page for people: files that are part of the program, at `/` and below `/page/`. They need no key, but the
//! requests of the page do.

use std::sync::LazyLock;

use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};

use crate::cache::name_digest;
use crate::error::{Error, Kind, quote};
use crate::http::error::ApiError;

/// The path below which the page's files are.
pub const ASSET_PREFIX: &str = "/page/";

/// Scripts, styles and requests of this server alone, nothing inline, and no text that becomes HTML.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
    require-trusted-types-for 'script'; trusted-types 'none'";

/// A file of the page.
struct Asset {
    name: &'static str,
    bytes: &'static [u8],
}

macro_rules! assets {
    ($($name:literal)*) => {
        &[$(Asset { name: $name, bytes: include_bytes!(concat!("assets/", $name)) }),*]
    };
}

/// The page itself.
const INDEX: &str = "index.html";

static ASSETS: &[Asset] = assets! {
    "index.html"
    "announcer.js"
    "answer.js"
    "api.js"
    "chat.js"
    "code_block.js"
    "composer.js"
    "conversation.js"
    "decisions.js"
    "dialogs.js"
    "dom.js"
    "drawers.js"
    "embeddings.js"
    "highlight.js"
    "main.js"
    "markdown.js"
    "markdown_view.js"
    "message.js"
    "message_forms.js"
    "models.js"
    "parameters.js"
    "preferences.js"
    "probabilities.js"
    "server_panel.js"
    "settings.js"
    "sidebar.js"
    "sse.js"
    "store.js"
    "style.css"
    "vendor/README.md"
    "vendor/highlight.LICENSE"
    "vendor/highlight.min.js"
    "vendor/marked.LICENSE"
    "vendor/marked.esm.js"
};

/// The tag of the files' versions: they change together, with the program.
static VERSION_TAG: LazyLock<String> = LazyLock::new(|| {
    let all: Vec<u8> = ASSETS.iter().flat_map(|asset| asset.bytes).copied().collect();
    format!("\"{}\"", name_digest(&all))
});

/// `GET /`.
pub async fn index(headers: HeaderMap) -> Result<Response, ApiError> {
    respond(INDEX, &headers)
}

/// `GET /page/{file}`.
pub async fn file(
    name: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let Path(name) = name.map_err(|_| Error::new(Kind::NotFound, "the file's name is not UTF-8"))?;
    respond(&name, &headers)
}

fn respond(name: &str, headers: &HeaderMap) -> Result<Response, ApiError> {
    let Some(asset) = ASSETS.iter().find(|asset| asset.name == name) else {
        let message = format!("the chat page has no file `{}`; open `/`", quote(name));
        return Err(Error::new(Kind::NotFound, message).into());
    };
    let own_headers = [
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_FRAME_OPTIONS, "DENY"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        // A newer program has other files.
        (CACHE_CONTROL, "no-cache"),
        (ETAG, &VERSION_TAG),
    ];
    if headers.get(IF_NONE_MATCH).is_some_and(|tag| tag.as_bytes() == VERSION_TAG.as_bytes()) {
        return Ok((StatusCode::NOT_MODIFIED, own_headers).into_response());
    }
    Ok((own_headers, [(CONTENT_TYPE, media_type(name))], asset.bytes).into_response())
}

fn media_type(name: &str) -> &'static str {
    match name.rsplit_once('.').map(|(_, extension)| extension) {
        Some("html") => "text/html; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        _ => "text/plain; charset=utf-8",
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    /// The files of a folder and of its folders, by their paths from it.
    fn files(folder: &Path, prefix: &str) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
        let mut names: Vec<String> = entries
            .flat_map(|entry| {
                let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
                if entry.path().is_dir() { files(&entry.path(), &format!("{name}/")) } else { vec![name] }
            })
            .collect();
        names.sort();
        names
    }

    #[test]
    fn every_file_is_served() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/http/page/assets");
        let mut served: Vec<&str> = ASSETS.iter().map(|asset| asset.name).collect();
        served.sort_unstable();
        assert_eq!(served, files(&folder, ""));
    }
}
