//! Express with express-session: one process of Node.

use super::{Place, family, tools};
use anyhow::Result;
use std::process::Command;

pub(super) fn command(place: &Place) -> Result<Command> {
    let mut node = family::command(&place.netns, tools::program("node")?);
    node.arg(tools::fixture("node/counter.js"))
        .args([place.addr.ip().to_string(), place.addr.port().to_string(), place.name.clone()])
        .env("NODE_PATH", tools::node_path()?)
        .env("NODE_ENV", "production");
    Ok(node)
}
