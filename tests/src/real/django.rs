//! Django under gunicorn, with a database of its own for users and sessions.

use super::{Place, family, tools};
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::{fs, io};

/// The user whom every instance knows.
pub const USER: &str = "anna";
/// Her password.
pub const PASSWORD: &str = "mugs and plates";

pub(super) fn command(place: &Place) -> Result<Command> {
    let database = place.dir.join("database");
    if !database.exists() {
        fs::write(&database, template()?)?;
    }
    let mut gunicorn = family::command(&place.netns, tools::python()?);
    settings(&mut gunicorn, &database)
        .args(["-m", "gunicorn", "--threads", "8", "--no-control-socket", "--bind", &place.addr.to_string()])
        .arg("--worker-tmp-dir")
        .arg(&place.dir)
        .arg("--chdir")
        .arg(site())
        .arg("wsgi")
        .env("LB_SERVER", &place.name);
    Ok(gunicorn)
}

fn site() -> PathBuf {
    tools::fixture("python/site")
}

fn settings<'a>(command: &'a mut Command, database: &Path) -> &'a mut Command {
    command
        .env("DJANGO_SETTINGS_MODULE", "settings")
        .env("LB_DATABASE", database)
        // The fixtures stay as they are in the repository.
        .env("PYTHONDONTWRITEBYTECODE", "1")
}

/// A database with its tables and the user, made once for each test program.
fn template() -> Result<&'static [u8]> {
    static TEMPLATE: OnceLock<Result<Vec<u8>, String>> = OnceLock::new();
    let made = TEMPLATE.get_or_init(|| make_template().map_err(|error| format!("{error:#}")));
    made.as_deref().map_err(|error| anyhow::anyhow!("{error}"))
}

fn make_template() -> Result<Vec<u8>> {
    let dir = tempfile::tempdir()?;
    let database = dir.path().join("database");
    let mut prepare = Command::new(tools::python()?);
    settings(&mut prepare, &database).arg(site().join("prepare.py")).args([USER, PASSWORD]);
    let output = prepare.output().context("running Python")?;
    ensure!(output.status.success(), "making Django's database: {}", String::from_utf8_lossy(&output.stderr));
    let made: io::Result<Vec<u8>> = fs::read(database);
    Ok(made?)
}
