//! The programs between real stacks, in namespaces, without lbd: what becomes of connections.

mod backends;
mod bounds;
mod bulk;
mod far;
mod first;
mod first_segment;
mod generic;
mod losses;
mod network;
mod options;
mod plain;
mod replay;
mod short;
mod testbed;
mod undo;
