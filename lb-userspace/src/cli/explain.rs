//! `lbctl explain --token T`, `lbctl explain --connection-id HEX`, `lbctl explain --name N`

use super::table::sheet;
use crate::control::{ExplainView, Request};
use std::net::IpAddr;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The value of the session cookie: a token, or the key of a service that learns its sessions.
    #[arg(long, required_unless_present_any = ["connection_id", "name"])]
    token: Option<String>,
    /// The destination connection id of a QUIC packet, in hexadecimal.
    #[arg(long, value_name = "HEX", conflicts_with = "token")]
    connection_id: Option<String>,
    /// The server's name in a TLS ClientHello; "" for one that has none.
    #[arg(long, conflicts_with_all = ["token", "connection_id"])]
    name: Option<String>,
    /// The address that a TLS client with that name has.
    #[arg(long, value_name = "ADDR", requires = "name")]
    client: Option<IpAddr>,
    /// The service that the request is sent to; without it, the one that the token names, or the only one that reads names.
    #[arg(long)]
    service: Option<String>,
}

impl Args {
    pub(super) fn request(&self) -> Request {
        if let Some(name) = &self.name {
            return Request::ExplainName {
                name: name.clone(),
                service: self.service.clone(),
                client: self.client,
            };
        }
        let token = self.token.as_ref().or(self.connection_id.as_ref()).cloned().unwrap_or_default();
        Request::Explain { token, service: self.service.clone() }
    }
}

pub(super) fn text(view: &ExplainView) -> String {
    let mut lines = vec![("verdict", view.verdict.clone())];
    lines.push(("backend", view.backend.clone().unwrap_or_else(|| "-".to_owned())));
    lines.push(("why", view.why.clone()));
    lines.push(("counters", view.counters.join(" ")));
    lines.push(("service", view.service.clone()));
    if let Some(token) = &view.token {
        let backend = token.backend.clone().unwrap_or_else(|| format!("slot {}", token.slot));
        let says = format!(
            "session {}, {backend} in epoch {}, signed with key {}",
            token.session, token.epoch, token.key
        );
        lines.push(("token", says));
    }
    sheet(&lines)
}
