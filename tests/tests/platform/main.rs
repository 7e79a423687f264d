//! The daemon's hands: pins, links and maps of the data path; namespaces, veths and next hops; managed servers; health
//! checks. Each against the real kernel.

mod datapath;
mod names;
mod network;
mod servers;
mod town;
