//! Applications and clients as people run them.

mod browser;
mod keys;
mod plain;
mod sessions;
mod tls;
