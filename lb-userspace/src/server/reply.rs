//! What goes back to the client: JSON with the session's headers, or an error that says what to do.

use super::condition::etag;
use crate::session::{Refusal, Seen, SessionError, StoreError, TooLarge, Unmet};
use axum::Json;
use axum::http::header::{CACHE_CONTROL, ETAG, RETRY_AFTER, SET_COOKIE};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

pub(super) const LB_SERVER: HeaderName = HeaderName::from_static("lb-server");
pub(super) const LB_EPOCH: HeaderName = HeaderName::from_static("lb-epoch");
pub(super) const LB_SOURCE: HeaderName = HeaderName::from_static("lb-source");

/// An error as the client sees it.
#[derive(Debug)]
pub(super) struct Fault {
    status: StatusCode,
    error: String,
    hint: String,
    /// The session that it is about, with the cookie if the client needs a new one.
    about: Option<Box<(Seen, Option<HeaderValue>)>>,
}

#[derive(Serialize)]
struct FaultView {
    error: String,
    hint: String,
}

impl Fault {
    pub(super) fn new(status: StatusCode, error: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { status, error: error.into(), hint: hint.into(), about: None }
    }

    /// Tells of a session as well.
    pub(super) fn about(self, seen: Seen, cookie: Option<HeaderValue>) -> Self {
        Self { about: Some(Box::new((seen, cookie))), ..self }
    }

    pub(super) fn bad_request(error: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error, hint)
    }
}

impl Fault {
    /// Nothing was changed, as the client asked for.
    pub(super) fn precondition(unmet: Unmet) -> Self {
        let (error, hint) = match unmet {
            Unmet::IfMatch => (
                "this is not, or no longer, what If-Match asks for",
                "nothing was changed; GET it, see what has changed, and try with the tag of that answer",
            ),
            Unmet::IfNoneMatch => (
                "what If-None-Match asks not to be there is there",
                "nothing was changed; GET it to see what is there",
            ),
        };
        Self::new(StatusCode::PRECONDITION_FAILED, error, hint)
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        let Self { status, error, hint, about } = self;
        let mut response = (status, Json(FaultView { error, hint })).into_response();
        if let Some((seen, cookie)) = about.map(|about| *about) {
            response = self::about(&seen, cookie, response);
            if status == StatusCode::PRECONDITION_FAILED {
                response = tagged(&seen, response);
            }
        }
        let headers = response.headers_mut();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::INSUFFICIENT_STORAGE) {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

impl From<TooLarge> for Fault {
    fn from(too_large: TooLarge) -> Self {
        let hint = format!(
            "send less; the limit is {} {} ({} in the service's session settings), and nothing was stored",
            too_large.limit, too_large.unit, too_large.name
        );
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, too_large.to_string(), hint)
    }
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NotFound(error) => {
                Self::new(StatusCode::NOT_FOUND, error, "GET /session shows what there is")
            }
            Refusal::Invalid(error) => Self::bad_request(error, "correct the request, nothing was stored"),
            Refusal::Unfit(error) => Self::new(
                StatusCode::CONFLICT,
                error,
                "GET /session shows what is stored; DELETE the key to begin anew",
            ),
        }
    }
}

impl From<SessionError> for Fault {
    fn from(error: SessionError) -> Self {
        let text = error.to_string();
        match error {
            SessionError::Refused(refusal) => refusal.into(),
            SessionError::TooLarge(too_large) => too_large.into(),
            SessionError::Precondition { unmet, seen: _ } => Self::precondition(unmet),
            SessionError::Reused => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "this Idempotency-Key came with another request before",
                "nothing was changed; a key belongs to one request and its repetitions, so make a new one for this",
            ),
            SessionError::Conflict => {
                Self::new(StatusCode::CONFLICT, text, "nothing was stored; send the request again")
            }
            SessionError::Store(error) => error.into(),
            SessionError::Random(_) | SessionError::Stopping => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                text,
                "send the request again, another server may answer it",
            ),
        }
    }
}

impl From<StoreError> for Fault {
    /// Paths, sizes and addresses are the operator's business; the log has them.
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NoSpace { .. } => Self::new(
                StatusCode::INSUFFICIENT_STORAGE,
                "the session store is out of disk space",
                "nothing was stored; free space where the store is, and send the request again",
            ),
            StoreError::Damaged { .. } => Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "this session is damaged in the store",
                "drop the cookie to begin a new session",
            ),
            StoreError::Unavailable { .. } => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "the session store does not answer, or has too few replicas to be sure of a write",
                "wait as long as Retry-After says; a write may have been stored all the same, so read the session first, or send \
                 the write with an Idempotency-Key",
            ),
            _ => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "the session store failed",
                "it is not certain whether anything was stored: read the session, then send the request again",
            ),
        }
    }
}

/// A response that tells where its session's state came from, with the cookie if the client needs a new one.
pub(super) fn about(seen: &Seen, cookie: Option<HeaderValue>, body: impl IntoResponse) -> Response {
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(LB_SOURCE, HeaderValue::from_static(seen.source.name()));
    headers.insert(LB_EPOCH, HeaderValue::from(seen.owner.epoch));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(cookie) = cookie {
        headers.insert(SET_COOKIE, cookie);
    }
    response
}

/// Adds the validator of the session's state.
pub(super) fn tagged(seen: &Seen, mut response: Response) -> Response {
    response.headers_mut().insert(ETAG, etag(seen.tag()));
    response
}
