//! aiosmtpd: it speaks first, and puts all mail into `mail`, a maildir.

use super::{Place, family, tools};
use anyhow::Result;
use std::process::Command;

pub(super) fn command(place: &Place) -> Result<Command> {
    let mut smtp = family::command(&place.netns, tools::python()?);
    smtp.args(["-m", "aiosmtpd", "--nosetuid", "--listen", &place.addr.to_string()])
        .args(["--class", "aiosmtpd.handlers.Mailbox"])
        .arg(place.dir.join("mail"));
    Ok(smtp)
}
