//! Packet tables: one program, one packet at a time, without any network.

mod asked;
mod attack;
mod balance;
mod binding;
mod cookie;
mod datagram;
mod established;
mod forms;
mod handshake;
mod head;
mod key;
mod learned;
mod learned_datagram;
mod open_request;
mod passed;
mod plain;
mod quic;
mod replay;
mod scope;
mod set_cookie;
mod sni;
mod steering;
mod syn;
mod unavailable;
