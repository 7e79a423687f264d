//! nginx in front of PHP: two processes, a socket between them.

use super::{Place, family, nginx, tools};
use anyhow::Result;
use std::fs;
use std::process::Command;

pub(super) fn commands(place: &Place) -> Result<Vec<Command>> {
    let (socket, sessions) = (place.dir.join("php.sock"), place.dir.join("sessions"));
    fs::create_dir_all(&sessions)?;
    let mut php = family::command(&place.netns, tools::program("php-cgi")?);
    php.arg("-b")
        .arg(&socket)
        .args(["-d", &format!("session.save_path={}", sessions.display())])
        .env("PHP_FCGI_CHILDREN", "2");
    let server = format!(
        "location / {{ fastcgi_pass unix:{}; fastcgi_keep_conn off;\n\
         fastcgi_param SCRIPT_FILENAME {}; fastcgi_param LB_SERVER {};\n\
         fastcgi_param REQUEST_METHOD $request_method; fastcgi_param REQUEST_URI $request_uri;\n\
         fastcgi_param QUERY_STRING $query_string; fastcgi_param REMOTE_ADDR $remote_addr;\n\
         fastcgi_param CONTENT_TYPE $content_type; fastcgi_param CONTENT_LENGTH $content_length;\n\
         fastcgi_param REDIRECT_STATUS 200; }}",
        socket.display(),
        tools::fixture("php/index.php").display(),
        place.name
    );
    Ok(vec![php, nginx::command(place, "", &server)?])
}
