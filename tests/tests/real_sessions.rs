//! Applications with sessions of their own, and clients as people have them: whoever comes again, on whatever connection,
//! is where its session is.

use anyhow::{Result, ensure};
use std::collections::BTreeMap;
use tests::real::visit::{Program, homes};
use tests::real::{App, Scene};

/// Clients of each program that come at once, and how often each comes.
const CLIENTS: usize = 12;
const VISITS: usize = 5;

fn everybody_is_at_home(scene: &mut Scene) -> Result<()> {
    let mut all = BTreeMap::<String, usize>::new();
    for program in Program::ALL {
        let walks = scene.visit(program, "/count", CLIENTS, VISITS)?;
        for (home, clients) in homes(&walks, 1)? {
            *all.entry(home).or_default() += clients;
        }
    }
    ensure!(all.len() == scene.instances.len(), "{} clients are not spread: {all:?}", 5 * CLIENTS);
    Ok(())
}

#[test]
fn php_finds_its_sessions() -> Result<()> {
    Scene::run(App::Php, everybody_is_at_home)
}

#[test]
fn express_finds_its_sessions() -> Result<()> {
    Scene::run(App::Express, everybody_is_at_home)
}

#[test]
fn django_finds_its_sessions() -> Result<()> {
    Scene::run(App::Django, everybody_is_at_home)
}
