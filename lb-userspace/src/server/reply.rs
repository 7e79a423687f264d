//! What goes back to the client: JSON with the session's headers, or an error that says what to do.

use super::condition::etag;
use crate::session::{Refusal, Seen, SessionError, TooLarge, Unmet, unix_millis};
use crate::web::Problem;
use axum::Json;
use axum::http::header::{CACHE_CONTROL, ETAG, RETRY_AFTER, SET_COOKIE};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use std::sync::atomic::{AtomicU64, Ordering};

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
        if matches!(
            status,
            StatusCode::SERVICE_UNAVAILABLE
                | StatusCode::INSUFFICIENT_STORAGE
                | StatusCode::TOO_MANY_REQUESTS
        ) {
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
    /// In the words of the library, except where this server's own routes are the remedy.
    fn from(error: SessionError) -> Self {
        match error {
            SessionError::Refused(refusal) => refusal.into(),
            SessionError::TooLarge(too_large) => too_large.into(),
            SessionError::Precondition { unmet, seen: _ } => Self::precondition(unmet),
            error => {
                let Problem { status, error: told, hint } = Problem::from(&error);
                // Refusals of new sessions are counted.
                if status.is_server_error() && !matches!(error, SessionError::NotAdmitted(_)) {
                    log(status, &error);
                }
                Self::new(status, told, hint)
            }
        }
    }
}

/// The client is told what to do, the operator why. No more than once a second: it is the same for everyone.
pub(super) fn log(status: StatusCode, error: &SessionError) {
    /// Seconds since 1970, and what was kept quiet since.
    static LAST: AtomicU64 = AtomicU64::new(0);
    static QUIET: AtomicU64 = AtomicU64::new(0);
    let now = unix_millis() / 1000;
    if LAST.swap(now, Ordering::Relaxed) == now {
        QUIET.fetch_add(1, Ordering::Relaxed);
        return;
    }
    let more = QUIET.swap(0, Ordering::Relaxed);
    tracing::warn!(%error, status = status.as_u16(), more, "session request failed");
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::{NotAdmitted, StoreError};

    #[test]
    fn each_failure_has_its_status_and_says_whether_it_is_worth_a_wait() {
        let store = |error: StoreError| SessionError::Store(error);
        let id = lb_common::token::SessionId([1; 16]);
        let damage = crate::session::record::Damage::Checksum;
        let unavailable =
            StoreError::Unavailable { store: "redis 10.0.0.9".into(), reason: "no route".into() };
        let too_many_bytes = StoreError::RecordSize { bytes: 200_000, limit: 100_000 };
        let rows: [(SessionError, u16, bool, &str); 16] = [
            (NotAdmitted::TooFast.into(), 429, true, "nothing was stored"),
            (NotAdmitted::Full.into(), 503, true, "nothing was stored"),
            (SessionError::Busy, 503, true, "nothing was changed"),
            (Refusal::NotFound("no".into()).into(), 404, false, "GET /session"),
            (Refusal::Invalid("no".into()).into(), 400, false, "nothing was stored"),
            (Refusal::Unfit("no".into()).into(), 409, false, "DELETE the key"),
            (too_many_bytes.into(), 413, false, "max_session_bytes"),
            (
                SessionError::Precondition { unmet: Unmet::IfMatch, seen: None },
                412,
                false,
                "nothing was changed",
            ),
            (SessionError::Reused, 422, false, "nothing was changed"),
            (SessionError::Conflict, 409, false, "send the request again"),
            (
                store(StoreError::NoSpace { path: "/secret".into(), free: 0, reserve: 1 }),
                507,
                true,
                "free space",
            ),
            (store(unavailable), 503, true, "Idempotency-Key"),
            (store(StoreError::Failed("disk on fire".into())), 503, true, "not certain"),
            (
                store(StoreError::Stopped { path: "/secret".into(), reason: "fdatasync".into() }),
                503,
                true,
                "not certain",
            ),
            (store(StoreError::Damaged { id, damage }), 500, false, "drop the cookie"),
            (SessionError::Stopping, 503, true, "another server"),
        ];
        for (error, status, wait, words) in rows {
            let text = error.to_string();
            let fault = Fault::from(error);
            assert!(fault.hint.contains(words), "{text}: {}", fault.hint);
            for secret in ["/secret", "10.0.0.9", "disk on fire"] {
                assert!(!fault.error.contains(secret) && !fault.hint.contains(secret), "{text}");
            }
            let response = fault.into_response();
            assert_eq!(response.status().as_u16(), status, "{text}");
            assert_eq!(response.headers().contains_key(RETRY_AFTER), wait, "{text}");
            assert_eq!(response.headers()[CACHE_CONTROL], "no-store");
        }
    }
}
