//! The deciding half of the load balancer: configuration, registry, data path loading, session servers and control.

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
#[cfg(feature = "daemon")]
pub mod net;
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
