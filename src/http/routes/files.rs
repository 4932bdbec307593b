//! `/v1/files`: files that clients upload, and that batches make.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::multipart::{Field, MultipartError};
use axum::extract::{FromRequest, Multipart, Request, State};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use futures_util::stream;

use crate::app::{AdmissionGuard, App, unix_time};
use crate::batches::new_file_id;
use crate::error::{Error, Kind, Result, quote};
use crate::http::error::ApiError;
use crate::http::extract::respond_with;
use crate::http::middleware::auth::Owner;
use crate::http::query::{PathId, QueryParams};
use crate::http::route::{BINARY, FORM};
use crate::openai::files::{FileObject, ListPage};
use crate::openai::responses::conversations::Deleted;
use crate::store::files::{FileRecord, FileStore, FileUpload};
use crate::store::run_blocking;

/// The default of `limit` in the list of files, and its maximum.
const LIST_LIMITS: (usize, usize) = (10_000, 10_000);

/// The most bytes of a text field of the form.
const MAX_FIELD_BYTES: usize = 1024;

/// The range of `expires_after[seconds]`: an hour to 30 days.
pub const EXPIRY_SECONDS: std::ops::RangeInclusive<u64> = 3600..=30 * 24 * 3600;

/// How long a file of requests is kept if the client does not say, in seconds.
const BATCH_FILE_TTL: u64 = 30 * 24 * 3600;

/// The fields of an upload's form.
#[derive(Default)]
struct UploadForm {
    file: Option<(String, FileUpload)>,
    purpose: Option<String>,
    anchor: Option<String>,
    seconds: Option<String>,
}

/// Stores a file of a form.
pub async fn upload(
    State(app): State<App>,
    Owner(owner): Owner,
    guard: Option<Extension<Arc<AdmissionGuard>>>,
    request: Request,
) -> Result<Response, ApiError> {
    let media_type = request.headers().get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    if !media_type.to_ascii_lowercase().starts_with(FORM.as_bytes()) {
        let message =
            "an upload must be a form; send the header `content-type: multipart/form-data` with a boundary";
        let code = Some("unsupported_media_type");
        return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, code, message));
    }
    let form = Multipart::from_request(request, &app).await;
    let form = form.map_err(|e| Error::new(Kind::InvalidRequest, quote(&e.body_text())))?;
    let reading = read_form(&app, owner, form);
    let form = match &guard {
        None => reading.await?,
        Some(Extension(guard)) => tokio::select! {
            form = reading => form?,
            e = guard.evicted() => return Err(e.into()),
        },
    };
    if let Some(Extension(guard)) = guard {
        guard.complete_body()?;
    }
    let UploadForm { file, purpose, anchor, seconds } = form;
    let missing = |field: &str| Error::invalid(field, format!("the form has no field `{field}`"));
    let (filename, upload) = file.ok_or_else(|| missing("file"))?;
    let purpose = purpose.filter(|purpose| !purpose.is_empty()).ok_or_else(|| missing("purpose"))?;
    let ttl = match (anchor, seconds) {
        (None, None) if purpose == "batch" => Some(BATCH_FILE_TTL),
        (None, None) => None,
        (anchor, seconds) => Some(time_to_live(anchor.as_deref(), seconds.as_deref())?),
    };
    let now = unix_time();
    let record =
        run_blocking(move || upload.finish(filename, purpose, now, ttl.map(|ttl| now + ttl))).await?;
    respond_with(&file_object(record))
}

/// The time to live that a form asks for, in seconds.
fn time_to_live(anchor: Option<&str>, seconds: Option<&str>) -> Result<u64> {
    let seconds = seconds.and_then(|seconds| seconds.parse().ok());
    match seconds.filter(|seconds| EXPIRY_SECONDS.contains(seconds)) {
        Some(seconds) if anchor == Some("created_at") => Ok(seconds),
        _ => {
            let (least, most) = (EXPIRY_SECONDS.start(), EXPIRY_SECONDS.end());
            let message = format!(
                "`expires_after` must have `anchor`, which is `created_at`, and `seconds` from {least} to {most}"
            );
            Err(Error::invalid("expires_after", message))
        }
    }
}

/// Reads a form, and stores its file as it arrives.
async fn read_form(app: &App, owner: Arc<str>, mut form: Multipart) -> Result<UploadForm> {
    let mut read = UploadForm::default();
    while let Some(mut field) = form.next_field().await.map_err(unreadable)? {
        match field.name() {
            Some("file") if read.file.is_some() => {
                return Err(Error::invalid(
                    "file",
                    "the form has two fields `file`; send one file at a time",
                ));
            }
            Some("file") => {
                let filename = field.file_name().unwrap_or("file").chars().take(256).collect();
                let owner = owner.clone();
                let mut upload = app.with_files(move |files| files.upload(owner, new_file_id())).await?;
                while let Some(chunk) = field.chunk().await.map_err(unreadable)? {
                    let append = move || upload.append(&chunk).map(|()| upload);
                    upload = run_blocking(append).await?;
                }
                read.file = Some((filename, upload));
            }
            Some("purpose") => read.purpose = Some(text_of(field).await?),
            Some("expires_after[anchor]") => read.anchor = Some(text_of(field).await?),
            Some("expires_after[seconds]") => read.seconds = Some(text_of(field).await?),
            name => {
                let name = quote(name.unwrap_or_default());
                let message = format!("the form has a field `{name}`, which is unknown; leave it out");
                return Err(Error::new(Kind::InvalidRequest, message));
            }
        }
    }
    Ok(read)
}

/// The text of a field.
async fn text_of(mut field: Field<'_>) -> Result<String> {
    let mut text = Vec::new();
    while let Some(chunk) = field.chunk().await.map_err(unreadable)? {
        text.extend_from_slice(&chunk);
        if text.len() > MAX_FIELD_BYTES {
            let message = format!("a field of the form is longer than {MAX_FIELD_BYTES} bytes; shorten it");
            return Err(Error::new(Kind::InvalidRequest, message));
        }
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn unreadable(e: MultipartError) -> Error {
    Error::new(Kind::InvalidRequest, format!("the form cannot be read: {}", quote(&e.body_text())))
}

/// Lists files.
pub async fn list(
    State(app): State<App>,
    Owner(owner): Owner,
    query: QueryParams,
) -> Result<Response, ApiError> {
    let list = query.list_within(LIST_LIMITS)?;
    let now = unix_time();
    let mut files = app.with_files(move |files| files.files(&owner)).await?;
    let purpose = query.text("purpose");
    files.retain(|file| !file.is_expired(now) && purpose.is_none_or(|purpose| file.purpose == purpose));
    let (page, has_more) = list.page(&files, |file| Some(&file.id))?;
    let data: Vec<FileObject> = page.into_iter().map(file_object).collect();
    let (first_id, last_id) = (data.first(), data.last());
    let (first_id, last_id) = (first_id.map(|file| file.id.clone()), last_id.map(|file| file.id.clone()));
    respond_with(&ListPage { object: "list", first_id, last_id, data, has_more })
}

/// Describes a file.
pub async fn retrieve(
    State(app): State<App>,
    Owner(owner): Owner,
    PathId(id): PathId,
) -> Result<Response, ApiError> {
    respond_with(&file_object(find(&app, owner, id).await?))
}

/// Sends the content of a file.
pub async fn content(
    State(app): State<App>,
    Owner(owner): Owner,
    PathId(id): PathId,
) -> Result<Response, ApiError> {
    let record = find(&app, owner, id).await?;
    Ok(parts_response(app.files().clone(), record.id, record.n_bytes, BINARY))
}

/// Deletes a file.
pub async fn delete(
    State(app): State<App>,
    Owner(owner): Owner,
    PathId(id): PathId,
) -> Result<Response, ApiError> {
    let record = find(&app, owner.clone(), id).await?;
    let removed = record.id.clone();
    app.with_files(move |files| files.remove_file(&owner, &removed)).await?;
    respond_with(&Deleted { id: record.id, object: "file", deleted: true })
}

/// A tenant's file.
pub async fn find(app: &App, owner: Arc<str>, id: String) -> Result<FileRecord> {
    let wanted = id.clone();
    let found = app.with_files(move |files| files.file(&owner, &wanted, unix_time())).await?;
    let message = || format!("there is no file `{}`; it may have been deleted or have expired", quote(&id));
    found.ok_or_else(|| Error::new(Kind::NotFound, message()))
}

/// A response whose body is the parts of a file, read as fast as the client takes them.
pub fn parts_response(files: Arc<FileStore>, id: String, n_bytes: u64, media_type: &'static str) -> Response {
    let parts = stream::unfold(Some(0), move |index| {
        let (files, id) = (files.clone(), id.clone());
        async move {
            let index = index?;
            match run_blocking(move || files.part(&id, index)).await {
                Ok(part) => part.map(|(index, part)| (Ok::<_, Error>(part), Some(index + 1))),
                Err(e) => {
                    tracing::error!(error = %e, "a file could not be read to its end");
                    Some((Err(e), None))
                }
            }
        }
    });
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static(media_type)),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (CONTENT_LENGTH, HeaderValue::from(n_bytes)),
    ];
    (headers, Body::from_stream(parts)).into_response()
}

fn file_object(record: FileRecord) -> FileObject {
    let FileRecord { id, filename, purpose, n_bytes, created_at, expires_at } = record;
    FileObject {
        id,
        object: "file",
        bytes: n_bytes,
        created_at,
        expires_at,
        filename,
        purpose,
        status: "processed",
    }
}
