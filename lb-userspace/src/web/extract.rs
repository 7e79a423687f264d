//! axum: [`Session`] as an extractor, and [`SessionError`] as a response.

use super::{Problem, Session};
use crate::session::SessionError;
use axum_core::body::Body;
use axum_core::extract::FromRequestParts;
use axum_core::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::request::Parts;

impl<S: Sync> FromRequestParts<S> for Session {
    type Rejection = (StatusCode, &'static str);

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        parts
            .extensions
            .get::<Self>()
            .cloned()
            .ok_or((StatusCode::INTERNAL_SERVER_ERROR, "no session: put a SessionLayer around this route"))
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.to_json()));
        *response.status_mut() = self.status;
        self.sign(response.headers_mut());
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}

impl IntoResponse for SessionError {
    /// As [`Problem`] tells it. The error itself is in the response's extensions, for middleware that wants to say it
    /// differently or to count it.
    fn into_response(self) -> Response {
        let problem = Problem::from(&self);
        if problem.status.is_server_error() {
            tracing::warn!(error = %self, status = problem.status.as_u16(), "session request failed");
        }
        let mut response = problem.into_response();
        response.extensions_mut().insert(self);
        response
    }
}
