//! Parameters in the path and the query of a request.

use std::collections::HashMap;

use axum::extract::{FromRequestParts, Path, Query};
use axum::http::request::Parts;

use super::error::ApiError;
use crate::app::App;
use crate::error::{Error, Kind, Result, quote};

/// The default of `limit`, and its maximum.
const PAGE_LIMITS: (usize, usize) = (20, 100);

/// The only id in a path.
pub struct PathId(pub String);

/// Two ids in a path, the outer first.
pub struct PathIds(pub String, pub String);

/// The parameters of a query. Of several with one name, the last counts.
pub struct QueryParams(HashMap<String, String>);

/// The parameters of a list: a page of it, in an order, up to a limit.
pub struct ListQuery {
    /// The id after which the page begins.
    after: Option<String>,
    /// Whether the oldest come first.
    is_ascending: bool,
    limit: usize,
}

impl FromRequestParts<App> for PathId {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let path = Path::<String>::from_request_parts(parts, app).await;
        path.map(|Path(id)| Self(id)).map_err(|_| unreadable_path())
    }
}

impl FromRequestParts<App> for PathIds {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let path = Path::<(String, String)>::from_request_parts(parts, app).await;
        path.map(|Path((outer, inner))| Self(outer, inner)).map_err(|_| unreadable_path())
    }
}

fn unreadable_path() -> ApiError {
    Error::new(Kind::NotFound, "the id in the path is not UTF-8").into()
}

impl FromRequestParts<App> for QueryParams {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let query = Query::<HashMap<String, String>>::from_request_parts(parts, app).await;
        let unreadable = |_| {
            Error::new(Kind::InvalidRequest, "the query of the address cannot be read; encode it as a form")
        };
        Ok(Self(query.map_err(unreadable)?.0))
    }
}

impl QueryParams {
    /// Whether the parameter `name` is true.
    ///
    /// # Errors
    /// When it is neither true nor false.
    pub fn flag(&self, name: &str) -> Result<bool> {
        match self.0.get(name).map(String::as_str) {
            None | Some("false" | "0" | "") => Ok(false),
            Some("true" | "1") => Ok(true),
            Some(other) => Err(Error::invalid(
                name,
                format!("`{name}` is `{}`; it must be `true` or `false`", quote(other)),
            )),
        }
    }

    /// The parameter `name` as a number.
    ///
    /// # Errors
    /// When it is none.
    pub fn number(&self, name: &str) -> Result<Option<u64>> {
        let Some(text) = self.0.get(name).filter(|text| !text.is_empty()) else { return Ok(None) };
        let invalid = |_| {
            Error::invalid(name, format!("`{name}` is `{}`; it must be an integer of 0 or more", quote(text)))
        };
        text.parse().map(Some).map_err(invalid)
    }

    /// The parameter `name` as a text.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|text| !text.is_empty())
    }

    /// The parameter `limit`, with its default and its maximum.
    ///
    /// # Errors
    /// When it is out of range.
    pub fn limit(&self, (default, max): (usize, usize)) -> Result<usize> {
        match self.number("limit")? {
            None => Ok(default),
            Some(n) if (1..=max as u64).contains(&n) => Ok(n as usize),
            Some(n) => Err(Error::invalid("limit", format!("`limit` is {n}; it must be from 1 to {max}"))),
        }
    }

    /// The parameters of a list.
    ///
    /// # Errors
    /// When one is out of range.
    pub fn list(&self) -> Result<ListQuery> {
        self.list_within(PAGE_LIMITS)
    }

    /// The parameters of a list with this default of `limit`, and this maximum.
    ///
    /// # Errors
    /// When one is out of range.
    pub fn list_within(&self, limits: (usize, usize)) -> Result<ListQuery> {
        let limit = self.limit(limits)?;
        let is_ascending = match self.0.get("order").map(String::as_str) {
            None | Some("desc" | "") => false,
            Some("asc") => true,
            Some(other) => {
                return Err(Error::invalid(
                    "order",
                    format!("`order` is `{}`; it must be `asc` or `desc`", quote(other)),
                ));
            }
        };
        let after = self.0.get("after").filter(|after| !after.is_empty()).cloned();
        Ok(ListQuery { after, is_ascending, limit })
    }
}

impl ListQuery {
    /// The page of `items`, the oldest first, each with its id; and whether more follow.
    ///
    /// # Errors
    /// When `after` is not among them.
    pub fn page<T: Clone>(&self, items: &[T], id: impl Fn(&T) -> Option<&str>) -> Result<(Vec<T>, bool)> {
        let mut ordered: Vec<&T> = items.iter().collect();
        if !self.is_ascending {
            ordered.reverse();
        }
        let start = match self.after.as_deref() {
            None => 0,
            Some(after) => {
                let position = ordered.iter().position(|item| id(item) == Some(after));
                let message = || format!("`after` is `{}`, which is not in the list", quote(after));
                1 + position.ok_or_else(|| Error::invalid("after", message()))?
            }
        };
        let rest = &ordered[start..];
        let n = rest.len().min(self.limit);
        Ok((rest[..n].iter().map(|item| (*item).clone()).collect(), n < rest.len()))
    }
}
