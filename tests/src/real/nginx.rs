//! nginx with a server of the caller's; one that names its visitors by a cookie of nginx's own; and one that speaks TLS.

use super::{Place, family, tools, visit};
use anyhow::Result;
use std::fs;
use std::process::Command;

/// A command for nginx with those words at the end of `listen`, and that text in its `server` block.
pub(super) fn command(place: &Place, listen: &str, server: &str) -> Result<Command> {
    let dir = place.dir.display();
    let paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {dir}/{name};\n"))
        .concat();
    let config = format!(
        "daemon off; master_process off; pid {dir}/pid; error_log stderr;\n\
         events {{ worker_connections 1000; }}\n\
         http {{ access_log off;\n{paths}\
         server {{ listen {} {listen}; add_header X-Server {}; {server} }} }}\n",
        place.addr, place.name
    );
    let file = place.dir.join("nginx.conf");
    fs::write(&file, config)?;
    let mut command = family::command(&place.netns, tools::program("nginx")?);
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
    command(place, "", &server)
}

/// With a certificate that nobody has signed but itself, and a connection for each request.
pub(super) fn with_tls(place: &Place) -> Result<Command> {
    let (key, certificate) = (place.dir.join("key.pem"), place.dir.join("certificate.pem"));
    if !key.exists() {
        let mut openssl = Command::new("openssl");
        openssl
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc"])
            .args(["-subj", "/CN=test", "-keyout"])
            .arg(&key)
            .arg("-out")
            .arg(&certificate);
        visit::printed(openssl)?;
    }
    let server = format!(
        "ssl_certificate {}; ssl_certificate_key {}; keepalive_timeout 0;\n\
         default_type text/plain; location / {{ return 200 \"{} $ssl_server_name\\n\"; }}",
        certificate.display(),
        key.display(),
        place.name
    );
    command(place, "ssl", &server)
}
