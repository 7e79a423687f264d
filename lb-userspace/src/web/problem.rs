//! What a client is told of a [`SessionError`].

use crate::session::{NotAdmitted, Refusal, SessionError, StoreError};
use http::StatusCode;
use http::header::{CACHE_CONTROL, HeaderMap, HeaderValue, RETRY_AFTER};

/// An error as a client may see it: no paths, no addresses, no sizes of disks. Those are in the error itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// 400, 404, 409, 412, 413, 422, 429, 500, 503 or 507.
    pub status: StatusCode,
    /// What is wrong.
    pub error: String,
    /// What to do.
    pub hint: String,
}

impl Problem {
    fn new(status: StatusCode, error: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { status, error: error.into(), hint: hint.into() }
    }

    fn of_store(error: &StoreError) -> Self {
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
                "wait as long as Retry-After says; a write may have been stored all the same, so read the session first, or \
                 send the write with an Idempotency-Key",
            ),
            _ => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "the session store failed",
                "it is not certain whether anything was stored: read the session, then send the request again",
            ),
        }
    }

    /// Whether the same request may succeed if it is sent again, in a second or so.
    pub fn is_temporary(&self) -> bool {
        matches!(
            self.status,
            StatusCode::SERVICE_UNAVAILABLE
                | StatusCode::INSUFFICIENT_STORAGE
                | StatusCode::TOO_MANY_REQUESTS
        )
    }

    /// Writes what the status asks for into a response's headers: `Retry-After`, and that nobody keeps it.
    pub fn sign(&self, headers: &mut HeaderMap) {
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if self.is_temporary() {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
    }

    /// As JSON: `{"error": …, "hint": …}`.
    pub fn to_json(&self) -> String {
        serde_json::json!({ "error": self.error, "hint": self.hint }).to_string()
    }
}

impl From<&SessionError> for Problem {
    fn from(error: &SessionError) -> Self {
        let text = error.to_string();
        match error {
            SessionError::Refused(Refusal::NotFound(_)) => {
                Self::new(StatusCode::NOT_FOUND, text, "look at what is stored, then ask again")
            }
            SessionError::Refused(Refusal::Invalid(_)) => {
                Self::new(StatusCode::BAD_REQUEST, text, "correct the request; nothing was stored")
            }
            SessionError::Refused(Refusal::Unfit(_)) => {
                Self::new(StatusCode::CONFLICT, text, "look at what is stored; nothing was changed")
            }
            SessionError::TooLarge(too_large) => Self::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                text,
                format!(
                    "store less in the session; the limit is {} {} ({}), and nothing was stored",
                    too_large.limit, too_large.unit, too_large.name
                ),
            ),
            SessionError::Precondition { .. } => Self::new(
                StatusCode::PRECONDITION_FAILED,
                text,
                "read the session again and decide anew; nothing was stored",
            ),
            SessionError::Reused => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "this Idempotency-Key came with another request before",
                "nothing was changed; a key belongs to one request and its repetitions, so make a new one for this",
            ),
            SessionError::Conflict => {
                Self::new(StatusCode::CONFLICT, text, "nothing was stored; send the request again")
            }
            SessionError::Store(error) => Self::of_store(error),
            SessionError::NotAdmitted(NotAdmitted::TooFast) => Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                text,
                "nothing was stored; wait as long as Retry-After says. Sessions that there are can be used meanwhile",
            ),
            SessionError::NotAdmitted(NotAdmitted::Full) => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                text,
                "nothing was stored; wait until others have ended. Sessions that there are can be used meanwhile",
            ),
            SessionError::Busy => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                text,
                "nothing was changed; send the request again when Retry-After says so",
            ),
            SessionError::Random(_) | SessionError::Stopping => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                text,
                "send the request again, another server may answer it",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::{TooLarge, Unmet};

    #[test]
    fn each_error_has_a_status_and_tells_no_secrets() {
        let too_large =
            TooLarge { what: "the session".into(), name: "max_keys", found: 9, limit: 8, unit: "keys" };
        let no_space = StoreError::NoSpace { path: "/secret".into(), free: 77, reserve: 88 };
        let unavailable = StoreError::Unavailable { store: "secret:6379".into(), reason: "secret".into() };
        let stopped = StoreError::Stopped { path: "/secret".into(), reason: "secret".into() };
        let rows = [
            (Refusal::NotFound("no".into()).into(), 404, false),
            (Refusal::Invalid("no".into()).into(), 400, false),
            (Refusal::Unfit("no".into()).into(), 409, false),
            (SessionError::TooLarge(too_large), 413, false),
            (SessionError::Conflict, 409, false),
            (SessionError::Precondition { unmet: Unmet::IfMatch, seen: None }, 412, false),
            (no_space.into(), 507, true),
            (unavailable.into(), 503, true),
            (stopped.into(), 503, true),
            (SessionError::Stopping, 503, true),
            (SessionError::Busy, 503, true),
            (NotAdmitted::Full.into(), 503, true),
            (NotAdmitted::TooFast.into(), 429, true),
            (SessionError::Reused, 422, false),
        ];
        for (error, status, temporary) in rows {
            let problem = Problem::from(&error);
            assert_eq!((problem.status.as_u16(), problem.is_temporary()), (status, temporary), "{error}");
            let mut headers = HeaderMap::new();
            problem.sign(&mut headers);
            assert_eq!(headers.contains_key(RETRY_AFTER), temporary, "{error}");
            let text = problem.to_json();
            assert!(!text.contains("secret") && !text.contains("77"), "{text}");
        }
    }
}
