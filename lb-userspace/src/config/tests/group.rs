use super::{faults, parse};

/// Two services on the hosts 10.0.0.1 and 10.0.0.2, with these lines each, and backends of the second.
fn two(lines: [&str; 2], second: &str) -> String {
    let [a, b] = lines;
    format!(
        "[lbd]\ninterfaces = [\"eth0\"]\n[[service]]\nname = \"web\"\nvip = \"192.0.2.1:80\"\n{a}\n\
         [[service.backend]]\nname = \"a\"\naddr = \"10.0.0.1:80\"\n\
         [[service.backend]]\nname = \"b\"\naddr = \"10.0.0.2:80\"\nweight = 3\n\
         [[service]]\nname = \"tls\"\nvip = \"192.0.2.1:443\"\n{b}\n{second}"
    )
}

const SOURCE: &str = "affinity = { kind = \"source\" }\naffinity_group = \"web\"";
const SAME: &str = "[[service.backend]]\nname = \"b\"\naddr = \"10.0.0.2:443\"\nweight = 3\n\
                    [[service.backend]]\nname = \"a\"\naddr = \"10.0.0.1:443\"\n";

#[test]
fn services_of_a_group_have_the_same_hosts() {
    let config = parse(&two([SOURCE; 2], SAME)).unwrap_or_else(|error| panic!("{error}"));
    let groups: Vec<_> = config.services.iter().map(|service| service.affinity_group.as_deref()).collect();
    assert_eq!(groups, [Some("web"); 2]);
    assert_eq!(config.services[0].backends.len(), 2);
}

#[test]
fn what_would_split_a_group_is_told() {
    let hashed = "affinity = { kind = \"hashed\", header = \"X-User\" }\naffinity_group = \"web\"";
    assert!(parse(&two([hashed, SOURCE], SAME)).is_ok());
    let more = |text: &str| format!("{SAME}[[service.backend]]\nname = \"c\"\n{text}\n");
    for (lines, second, reason, help) in [
        (
            SOURCE,
            SAME.replace("weight = 3", "weight = 2"),
            "the host 10.0.0.2 has weight 2 in service `tls`, and 3",
            "same weight",
        ),
        (
            SOURCE,
            SAME.replace("10.0.0.2", "10.0.0.9"),
            "service `web` has the host 10.0.0.2, service `tls`",
            "same hosts",
        ),
        (
            SOURCE,
            more("addr = \"10.0.0.3:443\""),
            "service `tls` has the host 10.0.0.3, service `web`",
            "same hosts",
        ),
        (SOURCE, more("addr = \"10.0.0.1:444\""), "two backends on the host 10.0.0.1", "leave one away"),
        (SOURCE, more("managed = true"), "backend `c` of service `tls` has no address", "`addr`"),
        (
            &SOURCE.replace("source\"", "source\", sni = true"),
            SAME.replace("weight = 3", "weight = 3\nsni = [\"a.example\"]"),
            "backend `b` of service `tls` is listed for names",
            "`sni`",
        ),
        (
            &SOURCE.replace("{ kind = \"source\" }", "{ kind = \"none\" }"),
            SAME.to_owned(),
            "affinity `none`, which follows no hash",
            "`source` or `hashed`",
        ),
        (
            &SOURCE.replace("\"web\"", "\"two words\""),
            SAME.to_owned(),
            "`two words` cannot name a group",
            "letters",
        ),
    ] {
        let found = faults(&two([SOURCE, lines], &second));
        let [fault] = &found[..] else { panic!("{reason}: {found:?}") };
        assert!(fault.reason.contains(reason), "{}", fault.reason);
        assert!(fault.help.contains(help), "{}", fault.help);
        assert_eq!(fault.line, 19, "{reason}");
    }
}
