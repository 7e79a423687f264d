//! Session stores on real redis-servers.

mod cluster;
mod fixture;
mod shared;
mod store;
