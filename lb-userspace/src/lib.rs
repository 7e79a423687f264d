//! The deciding half of the load balancer, and the library by which Rust web applications keep their sessions so that
//! it can bring them home.
//!
//! # For applications
//!
//! An application needs neither lbd nor XDP to compile, to be tested or to run: alone, the library is a durable session
//! store with a cache that is safe through restarts. Behind the balancer, each request is steered to the process that has
//! its session in its cache.
//!
//! | feature | what it adds |
//! |---|---|
//! | none (`default-features = false`) | [`session`]: [`Sessions`](session::Sessions) and their cache over a [`SessionStore`](session::SessionStore), tokens, [`Member`](session::Member), the store in memory |
//! | `sled`, `redis` | stores: one machine, one process; several machines |
//! | `web` | `web`: a layer for any tower stack of `http` requests |
//! | `axum` | ...whose session is an extractor, and whose errors are responses |
//! | `tower-sessions` | `web::tower_sessions`: applications that use that crate switch by a few lines |
//! | `quinn` | `quic`: connection ids for QUIC servers that use quinn |
//! | `server`, `daemon` (default) | what lbd is made of |
//!
//! docs/library.md leads from an empty directory to an application behind the balancer. Without a web framework, it looks
//! like this:
//!
//! ```
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! use lb_userspace::session::{Keyring, Limits, Member, MemoryStore, Source, TokenKeys};
//! use std::sync::Arc;
//!
//! // One backend of the service "shop". In earnest: SledStore or RedisStore, and Keyring::open with lbd's key file.
//! let member = Member::join(Arc::new(MemoryStore::new()), "shop", "web1").await?;
//! let sessions = member.sessions(Limits::default());
//! let keys = Keyring::from(TokenKeys::generate()?);
//!
//! // A request without a token, which writes: a session begins. It is durable before it is answered.
//! let (seen, total) = sessions
//!     .write(None, |state| {
//!         state.set_as("total", &7).expect("a number is JSON");
//!         Ok(7)
//!     })
//!     .await?;
//! assert_eq!((total, seen.source), (7, Source::New));
//! // What the client presents from now on, and what the balancer reads.
//! let token = keys.sign(seen.record.service, seen.owner, seen.id).expect("the newest key is alive");
//!
//! // The next request: at this instance, its cache answers.
//! let presented = keys.verify(token.as_bytes()).ok();
//! let seen = sessions.find(presented).await?.expect("it lives");
//! assert_eq!((seen.source, seen.record.state.get_as("total")?), (Source::Cache, Some(7)));
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! # }).unwrap();
//! ```

#[cfg(feature = "daemon")]
pub mod cli;
#[cfg(feature = "daemon")]
pub mod config;
#[cfg(feature = "daemon")]
pub mod control;
#[cfg(feature = "daemon")]
pub mod daemon;
#[cfg(feature = "daemon")]
pub mod datapath;
#[cfg(feature = "daemon")]
pub mod health;
#[cfg(feature = "sled")]
mod lock_file;
#[cfg(feature = "daemon")]
pub mod net;
#[cfg(feature = "sled")]
mod panics;
#[cfg(feature = "quinn")]
pub mod quic;
#[cfg(feature = "daemon")]
pub mod registry;
#[cfg(feature = "server")]
pub mod server;
pub mod session;
#[cfg(feature = "daemon")]
pub mod stores;
#[cfg(feature = "daemon")]
pub mod supervisor;
#[cfg(feature = "web")]
pub mod web;

/// The examples of docs/library.md compile.
#[cfg(all(doctest, feature = "axum", feature = "redis"))]
#[doc = include_str!("../../docs/library.md")]
struct Library;
