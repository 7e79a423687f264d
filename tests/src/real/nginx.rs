//! nginx with a server of the caller's; one that names its visitors by a cookie of nginx's own; and one that speaks TLS.

use super::{Place, family, tools, visit};
use anyhow::Result;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A command for nginx with those words at the end of `listen`, and that text in its `server` block.
pub(super) fn command(place: &Place, listen: &str, server: &str) -> Result<Command> {
    command_of(place, listen, &[server.to_owned()])
}

/// The same with several `server` blocks, the first of which takes what no other does.
fn command_of(place: &Place, listen: &str, servers: &[String]) -> Result<Command> {
    let dir = place.dir.display();
    let paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {dir}/{name};\n"))
        .concat();
    let server = |text| {
        format!("server {{ listen {} {listen}; add_header X-Server {}; {text} }}\n", place.addr, place.name)
    };
    let servers: String = servers.iter().map(server).collect();
    let config = format!(
        "daemon off; master_process off; pid {dir}/pid; error_log stderr;\n\
         events {{ worker_connections 1000; }}\n\
         http {{ access_log off;\n{paths}{servers}}}\n"
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

/// The names for which each nginx that speaks TLS has a certificate of its own; any others get the first one.
pub const NAMES: [&str; 3] = ["rest.example.test", "shop.example.test", "*.blog.example.test"];

/// Bytes that it serves as `/large`.
pub const LARGE: usize = 4 << 20;

/// The certificate of an instance for one of [`NAMES`], in the directory of the instance.
pub fn certificate(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{}.pem", name.replace('*', "any")))
}

/// With certificates that nobody has signed but themselves, and a connection for each request.
pub(super) fn with_tls(place: &Place) -> Result<Command> {
    fs::write(place.dir.join("large"), place.name.repeat(LARGE / place.name.len()))?;
    let server = |name: &str| -> Result<String> {
        let certificate = certificate(&place.dir, name);
        let key = certificate.with_extension("key");
        if !key.exists() {
            let mut openssl = Command::new("openssl");
            openssl
                .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc"])
                .args(["-subj", "/CN=test", "-addext", &format!("subjectAltName=DNS:{name}"), "-keyout"])
                .arg(&key)
                .arg("-out")
                .arg(&certificate);
            visit::printed(openssl)?;
        }
        Ok(format!(
            "server_name {name}; ssl_certificate {}; ssl_certificate_key {}; keepalive_timeout 0;\n\
             ssl_protocols TLSv1.2 TLSv1.3; default_type text/plain; location = /large {{ root {}; }}\n\
             location / {{ return 200 \"{} $ssl_server_name\\n\"; }}",
            certificate.display(),
            key.display(),
            place.dir.display(),
            place.name
        ))
    };
    command_of(place, "ssl", &NAMES.map(server).into_iter().collect::<Result<Vec<_>>>()?)
}
