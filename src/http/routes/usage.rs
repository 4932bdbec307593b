//! `GET /v1/usage`.

use std::collections::BTreeMap;
use std::time::SystemTime;

use axum::Extension;
use axum::extract::State;
use axum::response::Response;

use crate::app::App;
use crate::error::{Error, quote};
use crate::http::error::ApiError;
use crate::http::extract::respond_with;
use crate::http::middleware::auth::Tenant;
use crate::http::query::QueryParams;
use crate::metering::{DAY_SECONDS, day_of};
use crate::openai::usage::{UsageBucket, UsagePage, UsageResult};
use crate::store::run_blocking;

/// Days of a page by default, and at most; OpenAI's own.
const PAGE_DAYS: (usize, usize) = (7, 31);

/// Reports the usage of the client's account by day and model.
pub async fn usage(
    State(app): State<App>,
    Extension(tenant): Extension<Tenant>,
    query: QueryParams,
) -> Result<Response, ApiError> {
    let now = SystemTime::now();
    let today = day_of(now);
    let limit = query.limit(PAGE_DAYS)? as u64;
    if let Some(width) = query.text("bucket_width").filter(|width| *width != "1d") {
        let message = format!("`bucket_width` is `{}`; usage is counted by the day: `1d`", quote(width));
        return Err(Error::invalid("bucket_width", message).into());
    }
    let first_second = match query.number("page")? {
        None => query.number("start_time")?,
        page => page,
    };
    let start = first_second.map_or(today.saturating_sub(limit - 1), |time| time / DAY_SECONDS);
    let end = query.number("end_time")?.map_or(today + 1, |time| time.div_ceil(DAY_SECONDS)).min(today + 1);
    let days = start..end.min(start.saturating_add(limit)).max(start);
    let account = app.account(&tenant.name());
    let (metering, for_account, wanted) = (app.metering().clone(), account.clone(), days.clone());
    let found = run_blocking(move || metering.usage().days(&for_account, wanted, now)).await?;
    let mut found: BTreeMap<u64, _> = found.into_iter().collect();
    let has_more = days.end < end;
    let next_page = has_more.then(|| (days.end * DAY_SECONDS).to_string());
    let bucket = |day: u64| UsageBucket {
        object: "bucket",
        start_time: day * DAY_SECONDS,
        end_time: (day + 1) * DAY_SECONDS,
        results: found
            .remove(&day)
            .into_iter()
            .flatten()
            .map(|(model, counts)| UsageResult {
                object: "organization.usage.completions.result",
                model,
                api_key_id: account.to_string(),
                num_model_requests: counts.requests,
                input_tokens: counts.prompt_tokens,
                input_cached_tokens: counts.cached_tokens,
                output_tokens: counts.completion_tokens,
            })
            .collect(),
    };
    respond_with(&UsagePage { object: "page", data: days.map(bucket).collect(), has_more, next_page })
}
