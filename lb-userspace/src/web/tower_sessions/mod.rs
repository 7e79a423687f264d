//! For applications that use [tower-sessions](https://docs.rs/tower-sessions): their sessions in our store, and their
//! cookie as our token, so that the balancer steers them home. Handlers stay as they are.
//!
//! ```
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! use axum::http::{Request, StatusCode};
//! use axum::{Router, body::Body, routing::get};
//! use lb_userspace::session::{Keyring, Limits, Member, MemoryStore, TokenKeys};
//! use lb_userspace::web::tower_sessions::{AffinityLayer, LbStore};
//! use std::sync::Arc;
//! use tower::ServiceExt;
//! use tower_sessions::{Session, SessionManagerLayer};
//!
//! async fn visits(session: Session) -> Result<String, StatusCode> {
//!     let failed = |_| StatusCode::INTERNAL_SERVER_ERROR;
//!     let n = session.get::<u64>("n").await.map_err(failed)?.unwrap_or(0) + 1;
//!     session.insert("n", n).await.map_err(failed)?;
//!     Ok(n.to_string())
//! }
//!
//! let member = Member::join(Arc::new(MemoryStore::new()), "shop", "web1").await?;
//! let keys = Keyring::from(TokenKeys::generate()?);
//! let store = LbStore::new(member.sessions(Limits::default()));
//! let sessions = SessionManagerLayer::new(store.clone()).with_secure(false); // as before, but for the store
//! let app = Router::new().route("/", get(visits)).layer(AffinityLayer::new(sessions, &store, keys));
//!
//! let response = app.oneshot(Request::get("/").body(Body::empty())?).await?;
//! assert!(response.headers()["set-cookie"].to_str()?.starts_with("lb=E"));
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! # }).unwrap();
//! ```
//!
//! What becomes better: reads come from this process's cache where that is certain, writes are durable, and requests
//! that change one session at the same time do not undo each other (see [`Conflicts`]).

mod cookies;
mod layer;
mod merge;
mod store;
#[cfg(all(test, feature = "axum"))]
mod tests;
mod visit;

pub use layer::{Affinity, AffinityLayer, Answer, Inner, InnerAnswer};
pub use merge::Conflicts;
pub use store::LbStore;
