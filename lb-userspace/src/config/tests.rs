mod affinity;
mod cookie;
mod faults;
mod group;
mod name;
mod proxy;
mod quic;
mod store;

use super::raw;
use super::*;

const MINIMAL: &str = r#"
[lbd]
interfaces = ["eth0"]
[[service]]
name = "shop"
vip = "192.0.2.1:80"
[[service.backend]]
name = "s1"
managed = true
[[service.backend]]
name = "web1"
addr = "192.0.2.10:8080"
"#;
const EXAMPLE: &str = include_str!("../../../docs/lb.example.toml");

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(Path::new("lb.toml"), text)
}

fn faults(text: &str) -> Vec<Fault> {
    match parse(text) {
        Ok(_) => Vec::new(),
        Err(ConfigError::Faults(faults)) => faults,
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn defaults_are_what_was_promised() {
    let config = parse(MINIMAL).unwrap();
    assert_eq!(config.limits, Limits::default());
    assert_eq!(config.timeouts, Timeouts::default());
    assert_eq!(config.lbd.socket, Path::new("/run/lb/lbd.sock"));
    assert_eq!(config.lbd.mode, Mode::Auto);
    assert!(config.lbd.announce);
    let service = &config.services[0];
    assert_eq!(service.affinity, Affinity::Signed(Place::Cookie("lb".into())));
    assert_eq!((service.window_scale, service.max_tries), (7, 3));
    assert_eq!(service.health, Health::default());
    assert_eq!(service.session, SessionLimits::default());
    let s1 = &service.backends[0];
    assert_eq!((s1.name.as_str(), s1.managed, s1.addr, s1.weight), ("s1", true, None, 1));
    assert_eq!(config.managed.gateway(), Ipv4Addr::new(10, 254, 0, 1));
    assert_eq!(config.managed.server(254), Ipv4Addr::new(10, 254, 1, 0));
}

#[test]
fn the_example_writes_every_default() {
    assert_eq!(parse(EXAMPLE).unwrap_or_else(|error| panic!("{error}")), parse(MINIMAL).unwrap());
    let keys = [
        raw::RawLbd::KEYS,
        raw::RawLimits::KEYS,
        raw::RawTimeouts::KEYS,
        raw::RawManaged::KEYS,
        raw::RawHealth::KEYS,
        raw::RawSession::KEYS,
        raw::RawBackend::KEYS,
        raw::RawAffinity::KEYS,
        raw::StoreTable::KEYS,
    ];
    for key in keys.concat() {
        let written = format!("{key} = ");
        assert!(EXAMPLE.contains(&written), "`{key}` is not in docs/lb.example.toml");
    }
    for key in raw::RawService::KEYS {
        // One that is nothing when it is left away stands in a comment.
        let written =
            ["\n{} = ", "\n# {} = ", "[service.{}]", "[[service.{}]]"].map(|w| w.replace("{}", key));
        assert!(
            written.iter().any(|w| EXAMPLE.contains(w.as_str())),
            "`{key}` of a service is not in the example"
        );
    }
}

#[test]
fn an_error_shows_its_line_and_what_to_do() {
    let error = parse(&MINIMAL.replace("managed = true", "manged = true")).unwrap_err().to_string();
    assert_eq!(
        error,
        "lb.toml:9:1: unknown key `manged` in [[service.backend]]
   |
 9 | manged = true
   | ^^^^^^
   = did you mean `managed`?"
    );
    let several =
        MINIMAL.replace("managed = true", "managed = 1").replace("name = \"shop\"", "nme = \"shop\"");
    let error = parse(&several).unwrap_err().to_string();
    assert!(error.starts_with("lb.toml:5:1: ") && error.contains("\nlb.toml:9:11: "), "{error}");
    assert!(error.ends_with("\n2 errors in the configuration"), "{error}");
}

#[test]
fn pending_is_rounded_up_and_paths_start_at_the_file() {
    let text = MINIMAL.replace("[lbd]", "[limits]\npending = 1000\n[lbd]\nstore = \"s\"\nkeys = \"/k\"");
    let config = Config::parse(Path::new("/etc/lb/lb.toml"), &text).unwrap();
    assert_eq!(config.limits.pending, 1024);
    assert_eq!(config.lbd.store, Store::Sled { path: "/etc/lb/s".into() });
    assert_eq!(config.lbd.keys, Path::new("/k"));
}

#[test]
fn a_missing_file_says_what_to_do() {
    let error = Config::load(Path::new("/nowhere/lb.toml")).unwrap_err().to_string();
    assert!(error.starts_with("cannot read the configuration /nowhere/lb.toml: No such file"), "{error}");
    assert!(error.contains("--config"), "{error}");
}

proptest::proptest! {
    /// Whatever is in the file: an answer, not a panic.
    #[test]
    fn no_text_makes_it_panic(cut in 0..EXAMPLE.len(), insert in ".{0,12}") {
        let at = (0..=cut).rev().find(|at| EXAMPLE.is_char_boundary(*at)).unwrap();
        let text = format!("{}{insert}{}", &EXAMPLE[..at], &EXAMPLE[at..]);
        let _ = parse(&text).map_err(|error| error.to_string());
    }
}
