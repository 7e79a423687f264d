//! The deciding half of the load balancer: configuration, registry, data path loading, session servers and control.

pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod datapath;
pub mod health;
pub mod net;
pub mod registry;
pub mod server;
pub mod session;
pub mod supervisor;
