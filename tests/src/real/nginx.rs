//! nginx with a server of the caller's, and one that names its visitors by a cookie of nginx's own.

use super::{Place, family, tools};
use anyhow::Result;
use std::fs;
use std::process::Command;

/// A command for nginx with that text in its `server` block.
pub(super) fn command(place: &Place, server: &str) -> Result<Command> {
    let dir = place.dir.display();
    let paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {dir}/{name};\n"))
        .concat();
    let config = format!(
        "daemon off; master_process off; pid {dir}/pid; error_log stderr;\n\
         events {{ worker_connections 1000; }}\n\
         http {{ access_log off;\n{paths}\
         server {{ listen {}; add_header X-Server {}; {server} }} }}\n",
        place.addr, place.name
    );
    let file = place.dir.join("nginx.conf");
    fs::write(&file, config)?;
    let mut command = family(&place.netns, tools::program("nginx")?);
    command.args(["-e", "stderr", "-c"]).arg(file);
    Ok(command)
}

/// By `ngx_http_userid_module`, which sets the cookie of whoever has none.
pub(super) fn naming_visitors(place: &Place) -> Result<Command> {
    let server = format!(
        "default_type text/plain;\n\
         location = /plain {{ return 200 \"{0} -\\n\"; }}\n\
         location / {{ userid on; userid_name uid; userid_expires max; return 200 \"{0} $uid_got$uid_set\\n\"; }}",
        place.name
    );
    command(place, &server)
}
