//! What tests need of npm's and PyPI's packages: installed below target/tools, for this checkout alone, in exactly the
//! versions of the lock files under tests/fixtures.

use crate::{steps, workspace};
use anyhow::{Context, Result};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// Where packages come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Library {
    Npm,
    PyPi,
}

impl Library {
    pub(crate) const ALL: [Self; 2] = [Self::Npm, Self::PyPi];

    /// What tests find in it, for messages.
    pub(crate) fn contents(self) -> &'static str {
        match self {
            Self::Npm => "express, express-session and fetch-cookie",
            Self::PyPi => "Django, gunicorn, requests and aiosmtpd",
        }
    }

    /// The file that says which versions, as seen from the top of the checkout.
    pub(crate) fn lock(self) -> &'static str {
        match self {
            Self::Npm => "tests/fixtures/node/package-lock.json",
            Self::PyPi => "tests/fixtures/python/requirements.txt",
        }
    }

    /// The directory's name below target/tools.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Npm => "node",
            Self::PyPi => "python",
        }
    }

    fn directory(self) -> PathBuf {
        workspace::tools().join(self.name())
    }

    fn locked(self) -> Result<String> {
        let path = workspace::root().join(self.lock());
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    /// Whether what the lock file says is there, from its first package to its last.
    pub(crate) fn installed(self) -> Result<bool> {
        let complete = fs::read_to_string(self.directory().join("installed")).unwrap_or_default();
        let runs = match self {
            Self::Npm => true,
            // It leads to the machine's Python, which may have gone or changed since.
            Self::PyPi => Command::new(self.python())
                .args(["-c", "import django"])
                .output()
                .is_ok_and(|output| output.status.success()),
        };
        Ok(runs && complete == self.locked()?)
    }

    pub(crate) fn install(self) -> Result<()> {
        let directory = self.directory();
        if directory.exists() {
            fs::remove_dir_all(&directory)
                .with_context(|| format!("cannot remove {}", directory.display()))?;
        }
        fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let lock = workspace::root().join(self.lock());
        match self {
            Self::Npm => {
                for file in ["package.json", "package-lock.json"] {
                    let from = lock.with_file_name(file);
                    fs::copy(&from, directory.join(file))
                        .with_context(|| format!("cannot copy {}", from.display()))?;
                }
                let mut npm = Command::new("npm");
                npm.current_dir(&directory).args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]);
                steps::run("npm ci for the tests", &mut npm)?;
            }
            Self::PyPi => {
                let mut venv = Command::new("python3");
                steps::run("python3 -m venv for the tests", venv.args(["-m", "venv"]).arg(&directory))?;
                let mut pip = Command::new(self.python());
                pip.args(["-m", "pip", "install", "--require-hashes", "--no-deps", "--only-binary=:all:"])
                    .args(["--disable-pip-version-check", "--requirement"])
                    .arg(&lock);
                steps::run("pip install for the tests", &mut pip)?;
            }
        }
        Ok(fs::write(directory.join("installed"), self.locked()?)?)
    }

    fn python(self) -> PathBuf {
        self.directory().join("bin/python")
    }
}
