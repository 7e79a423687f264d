use super::*;
use crate::config::Config;
use std::path::Path;

/// The answer of a managed server whose service has this rule, if the configuration is accepted.
fn app(shop: &Shop, rule: &str) -> Option<Arc<http::App>> {
    let text = format!(
        "[lbd]\ninterfaces = [\"eth0\"]\n[[service]]\nname = \"shop\"\nvip = \"192.0.2.1:80\"\naffinity = {rule}\n\
         backend = [{{ name = \"s1\", managed = true }}]\n"
    );
    let mut config = Config::parse(Path::new("lb.toml"), &text).ok()?;
    let ServerContext { instance, store, keys, peers, limits, clock, .. } = shop.context.clone();
    let sessions = Sessions::new(instance, store, limits, peers, clock);
    Some(http::App::new(sessions, keys, config.services.remove(0).cookie))
}

#[tokio::test]
async fn every_accepted_cookie_name_is_served() {
    let shop = Shop::new();
    for length in 0..=40 {
        for (kind, more) in [("signed", ""), ("signed", ", secure = true"), ("learned", "")] {
            let name = "n".repeat(length);
            let rule = format!("{{ kind = \"{kind}\", cookie = \"{name}\"{more} }}");
            let app = app(&shop, &rule);
            assert_eq!(app.is_some(), (1..=31).contains(&length), "{rule}");
            let Some(app) = app else { continue };
            let request = axum::http::Request::put("/session/a")
                .extension(super::super::Client([192, 0, 2, 9].into()))
                .body("1".to_owned())
                .unwrap();
            let response = tower::ServiceExt::oneshot(http::router(app), request).await.unwrap();
            let set = response.headers()["set-cookie"].to_str().unwrap();
            assert!(set.starts_with(&format!("{name}=")), "{rule}: {set}");
            assert_eq!(set.contains("; Secure"), !more.is_empty(), "{rule}: {set}");
        }
    }
}

#[tokio::test]
async fn a_cookie_with_a_maximum_age_does_not_end_under_a_client_that_is_there() {
    let shop = Shop::new();
    let app = app(&shop, "{ max_age = \"1h\" }").unwrap();
    let router = http::router(app);
    let ask = async |method: &str, path: &str, cookie: &str| {
        let request = axum::http::Request::builder().method(method).uri(path).header("cookie", cookie);
        let request = request.extension(super::super::Client([192, 0, 2, 9].into()));
        let response =
            tower::ServiceExt::oneshot(router.clone(), request.body("1".to_owned()).unwrap()).await.unwrap();
        response.headers().get("set-cookie").map(|set| set.to_str().unwrap().to_owned())
    };
    let first = ask("PUT", "/session/a", "").await.unwrap();
    assert!(first.contains("; Max-Age=3600;"), "{first}");
    let again = ask("GET", "/session", first.split(';').next().unwrap()).await;
    assert_eq!(again.as_deref(), Some(&*first), "each answer moves its end");
}
