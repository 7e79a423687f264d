//! OpenSSH's server: it speaks first, and its clients remember its host key.

use super::{Place, family, tools, visit};
use anyhow::Result;
use std::fs;
use std::process::Command;

pub(super) fn command(place: &Place) -> Result<Command> {
    let key = place.dir.join("key");
    if !key.exists() {
        let mut keygen = Command::new("ssh-keygen");
        keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", &place.name, "-f"]).arg(&key);
        visit::printed(keygen)?;
    }
    // Debian's service makes it at every boot, and sshd does not start without.
    fs::create_dir_all("/run/sshd")?;
    let config =
        format!("ListenAddress {}\nHostKey {}\nPidFile none\nUsePAM no\n", place.addr, key.display());
    let file = place.dir.join("sshd_config");
    fs::write(&file, config)?;
    let mut sshd = family::command(&place.netns, tools::program("sshd")?);
    sshd.args(["-D", "-e", "-f"]).arg(file);
    Ok(sshd)
}
