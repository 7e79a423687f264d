//! A browser logs in to a Django application and stays logged in, whatever restarts around the server that knows it. Each
//! server has users and sessions of its own: at another one the browser would be a stranger.

use anyhow::{Context, Result, ensure};
use tests::real::browser::Browser;
use tests::real::django::{PASSWORD, USER};
use tests::real::{App, Scene};

/// The browser, and where its session is.
struct Visitor {
    browser: Browser,
    home: String,
    visits: u64,
}

impl Visitor {
    fn log_in(scene: &Scene) -> Result<Self> {
        let mut browser = Browser::start(&scene.town)?;
        browser.visit("/")?;
        ensure!(browser.title()? == "Log in", "a stranger is asked to log in");
        browser.submit(&[("username", USER), ("password", PASSWORD)])?;
        let home = browser.text("server")?.with_context(|| format!("{USER} is not logged in"))?;
        let mut visitor = Self { browser, home, visits: 0 };
        visitor.visits = visitor.shown()?;
        Ok(visitor)
    }

    /// Comes again some times and is still known, at the same server and to the same session.
    fn come_again(&mut self, while_: &str) -> Result<()> {
        for _ in 0..5 {
            self.browser.visit("/")?;
            let visits = self.shown().with_context(|| while_.to_owned())?;
            ensure!(visits == self.visits + 1, "{while_}: visit {visits} after {}", self.visits);
            self.visits = visits;
        }
        Ok(())
    }

    /// The number of the visit that the page shows; fails unless the page is that of the user, from home.
    fn shown(&mut self) -> Result<u64> {
        let (user, server) = (self.browser.text("user")?, self.browser.text("server")?);
        let title = self.browser.title()?;
        ensure!(user.as_deref() == Some(USER), "logged out, at the page {title:?} of {server:?}");
        ensure!(server.as_deref() == Some(self.home.as_str()), "{} became {server:?}", self.home);
        Ok(self.browser.text("visits")?.context("the page counts visits")?.parse()?)
    }
}

#[test]
fn a_browser_stays_logged_in() -> Result<()> {
    Scene::run(App::Django, |scene| {
        let mut visitor = Visitor::log_in(scene)?;
        visitor.come_again("while nothing happens")?;
        // What makes this a test: another server does not know the browser.
        let session = visitor.browser.cookie("sessionid")?.context("a session has a cookie")?;
        let stranger = scene.instances.iter().find(|instance| instance.name() != visitor.home);
        let answer =
            stranger.context("three servers")?.get("/", &format!("Cookie: sessionid={session}\r\n"))?;
        ensure!(answer.starts_with("HTTP/1.1 302"), "another server knows the session: {answer}");

        for i in 0..scene.instances.len() {
            if scene.instances[i].name() == visitor.home {
                continue;
            }
            scene.instances[i].kill();
            scene.await_state(&format!("b{i}"), "down")?;
            visitor.come_again("while another server is down")?;
            scene.instances[i].resume()?;
            scene.lbd.wait_ready()?;
            visitor.come_again("after another server is back")?;
        }
        scene.lbd.kill()?;
        visitor.come_again("while there is no lbd")?;
        scene.lbd.resume()?;
        visitor.come_again("after lbd is back")?;

        let home = scene.instances.iter_mut().find(|instance| instance.name() == visitor.home);
        let home = home.context("home is one of the servers")?;
        home.kill();
        home.resume()?;
        scene.lbd.wait_ready()?;
        visitor.come_again("after its own server is back, with its database")?;

        visitor.browser.submit(&[])?;
        ensure!(visitor.browser.title()? == "Log in", "who logs out is logged out");
        Ok(())
    })
}
