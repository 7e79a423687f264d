//! The real lbd in a town of namespaces: sessions, stores, and backends that come and go.

mod come_and_go;
mod come_and_go_http;
mod come_and_go_udp;
mod datagrams;
mod devices;
mod disk;
mod durability;
mod half_sent;
mod interfaces;
mod learned;
mod proxy;
mod quic;
mod rules;
mod rust_app;
mod sessions;
mod starting;
mod status;
mod store;
mod takeover;
mod vips;
