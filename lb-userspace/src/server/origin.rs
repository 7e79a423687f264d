//! Changes that another site has a browser make are refused: by Sec-Fetch-Site, or else by Origin (RFC 6454 §7). Who sends
//! neither is no browser, and nobody's session rides along.

use super::reply::Fault;
use axum::extract::Request;
use axum::http::header::{CONTENT_TYPE, HOST, ORIGIN};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Lets what changes nothing pass, and changes that this site's own pages or no browser asks for.
pub(super) async fn own(request: Request, next: Next) -> Response {
    if request.method().is_safe() || is_own(request.uri(), request.headers()) {
        return next.run(request).await;
    }
    let hint =
        "nothing was changed; send it from a page of this very origin, or without Origin and Sec-Fetch-Site";
    Fault::new(StatusCode::FORBIDDEN, "another site asks for this change", hint).into_response()
}

fn is_own(uri: &Uri, headers: &HeaderMap) -> bool {
    let mut sites = headers.get_all(SEC_FETCH_SITE).iter().peekable();
    if sites.peek().is_some() {
        return sites.all(|site| site == "same-origin" || site == "none");
    }
    let mut origins = headers.get_all(ORIGIN).iter();
    let Some(origin) = origins.next() else { return true };
    // Of an absolute target, Host counts for nothing (RFC 9112 §3.2.2).
    let authority = uri.authority().map(|authority| authority.as_str());
    let host = authority.or_else(|| headers.get(HOST)?.to_str().ok());
    // TLS ends before this server, so the scheme is not known here.
    let of = |origin: &HeaderValue| {
        let (_, rest) = origin.to_str().ok()?.split_once("://")?;
        Some(rest.eq_ignore_ascii_case(host?))
    };
    origins.next().is_none() && of(origin) == Some(true)
}

/// # Errors
/// The body does not say that it is JSON: a form of another site could have sent it without being asked.
pub(super) fn json(headers: &HeaderMap) -> Result<(), Fault> {
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    let is_json = |value: &HeaderValue| {
        let essence = value.to_str().ok()?.split(';').next()?.trim();
        Some(essence.eq_ignore_ascii_case("application/json"))
    };
    if types.next().and_then(is_json) == Some(true) && types.next().is_none() {
        return Ok(());
    }
    Err(Fault::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "the body is not said to be JSON",
        "nothing was changed; send it with Content-Type: application/json",
    ))
}
