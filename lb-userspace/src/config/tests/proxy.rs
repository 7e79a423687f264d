use super::{faults, parse};

/// A service with these lines, and a backend that is told so.
fn service(lines: &str, backend: &str) -> String {
    format!(
        "[lbd]\ninterfaces = [\"eth0\"]\n[[service]]\nname = \"web\"\nvip = \"192.0.2.1:80\"\n{lines}\n\
         [[service.backend]]\nname = \"a\"\n{backend}\n"
    )
}

const REMOTE: &str = "addr = \"10.0.0.1:80\"";

#[test]
fn a_service_accepts_headers_of_proxies_when_it_is_told() {
    for (lines, accepts) in [
        ("", false),
        ("accept_proxy = false", false),
        ("accept_proxy = true", true),
        ("accept_proxy = true\naffinity = { kind = \"learned\", cookie = \"sid\" }", true),
        ("accept_proxy = true\naffinity = { kind = \"source\" }", true),
        ("accept_proxy = true\naffinity = { kind = \"none\", sni = true }", true),
        ("accept_proxy = false\naffinity = { kind = \"none\" }", false),
    ] {
        let config = parse(&service(lines, REMOTE)).unwrap_or_else(|error| panic!("{lines}: {error}"));
        assert_eq!(config.services[0].accept_proxy, accepts, "{lines}");
    }
    assert!(parse(&service("accept_proxy = false", "managed = true")).is_ok());
}

#[test]
fn what_cannot_read_a_header_is_told() {
    for (lines, backend, line, reason, help) in [
        ("accept_proxy = true", "managed = true", 6, "backend `a` is managed", "leave `accept_proxy` away"),
        (
            "accept_proxy = true\naffinity = { kind = \"none\" }",
            REMOTE,
            6,
            "affinity `none` reads nothing",
            "go to the backends",
        ),
        (
            "protocol = \"udp\"\naffinity = { kind = \"source\" }\naccept_proxy = true",
            REMOTE,
            8,
            "a udp service has no `accept_proxy`",
            "datagram",
        ),
        (
            "accept_proxy = \"yes\"",
            REMOTE,
            6,
            "`accept_proxy` is text, but must be true or false",
            "without quotes",
        ),
    ] {
        let told = faults(&service(lines, backend));
        let [fault] = &told[..] else { panic!("{lines}: {told:?}") };
        assert!(fault.reason.contains(reason) && fault.help.contains(help), "{fault:?}");
        assert_eq!(fault.line, line, "{fault:?}");
    }
}
