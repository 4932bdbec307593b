//! The OpenAPI document and the page at `/docs`, both made from a table of routes.

pub mod docs_page;
pub mod document;
pub mod html;
