//! For web applications: a layer for any tower stack of `http` requests that checks the token, loads the session when it
//! is asked for, and sets the cookie; with axum, the session is an extractor.
//!
//! ```
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! use axum::{Router, body::Body, http::Request, routing::post};
//! use lb_userspace::session::{Keyring, Limits, Member, MemoryStore, SessionError, TokenKeys};
//! use lb_userspace::web::{Session, SessionLayer};
//! use std::sync::Arc;
//! use tower::ServiceExt;
//!
//! async fn login(session: Session, name: String) -> Result<String, SessionError> {
//!     session.set("name", &name).await?; // durable when this returns
//!     Ok(format!("hello {name}"))
//! }
//!
//! let member = Member::join(Arc::new(MemoryStore::new()), "shop", "web1").await?;
//! let keys = Keyring::from(TokenKeys::generate()?);
//! let app = Router::new()
//!     .route("/login", post(login))
//!     .layer(SessionLayer::new(member.sessions(Limits::default()), keys));
//!
//! let request = Request::post("/login").body(Body::from("ada"))?;
//! let response = app.oneshot(request).await?;
//! let cookie = response.headers()["set-cookie"].to_str()?;
//! assert!(cookie.starts_with("lb=E") && cookie.ends_with("; Path=/; HttpOnly; SameSite=Lax"));
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! # }).unwrap();
//! ```

pub mod cookie;
#[cfg(feature = "axum")]
mod extract;
mod handle;
mod problem;
mod service;
#[cfg(all(test, feature = "axum"))]
mod tests;
#[cfg(feature = "tower-sessions")]
pub mod tower_sessions;

pub use cookie::{Cookie, CookieError, CookieOptions, SameSite};
pub use handle::Session;
#[cfg(feature = "server")]
pub(crate) use handle::token;
pub use problem::Problem;
pub use service::{ResponseFuture, SessionLayer, SessionService};
