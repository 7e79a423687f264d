//! A table of kernels, and what is said of each.

use super::*;

/// A kernel with everything, asked by root.
fn full(release: &str) -> Facts {
    Facts {
        root: true,
        release: release.to_owned(),
        bpf: Some(true),
        refusal: None,
        jit: Some(true),
        bpf_loop: Some(true),
        load_bytes: Some(true),
        tcx: Some(true),
        lost: Some(true),
        membarrier: Some(true),
        network: Trial { namespaces: Some(true), veth: Some(true), filter: Some(true) },
    }
}

/// The same asked by somebody who may ask little.
fn unprivileged(release: &str) -> Facts {
    Facts {
        release: release.to_owned(),
        jit: Some(true),
        membarrier: Some(true),
        network: Trial { namespaces: Some(true), ..Trial::default() },
        ..Facts::default()
    }
}

const BPF: &str = "the system call bpf";
const LOOP: &str = "the helper bpf_loop";
const LOAD_BYTES: &str = "the helper bpf_xdp_load_bytes";
const JIT: &str = "the BPF JIT";
const FILTERS: &str = "filters of clsact";
const TCX: &str = "TCX links";
const TRACEPOINTS: &str = "tracepoints of XDP";
const VETH: &str = "network namespaces with veth pairs";
const MEMBARRIER: &str = "membarrier for all processors";

#[test]
fn what_a_kernel_lacks_is_named() {
    let without_modules = Trial { namespaces: Some(true), veth: Some(false), filter: Some(false) };
    let no_namespaces = Trial { namespaces: Some(false), veth: None, filter: None };
    // Name, facts, what is missing, what was not looked at, whether lbd starts.
    type Row = (&'static str, Facts, &'static [&'static str], &'static [&'static str], bool);
    let rows: [Row; 16] = [
        ("everything", full("6.18.44-fc"), &[], &[], true),
        ("Debian 12", Facts { tcx: Some(false), ..full("6.1.0-57-cloud-amd64") }, &[TCX], &[], true),
        (
            "and no module can be loaded",
            Facts { tcx: Some(false), network: without_modules, ..full("6.1.0-57-cloud-amd64") },
            &[FILTERS, TCX, VETH],
            &[],
            false,
        ),
        (
            "filters matter only without TCX",
            Facts { network: without_modules, ..full("6.12.117") },
            &[VETH],
            &[],
            true,
        ),
        ("no namespaces", Facts { network: no_namespaces, ..full("6.12.117") }, &[VETH], &[], true),
        ("the JIT is off", Facts { jit: Some(false), ..full("6.12.117") }, &[JIT], &[], false),
        ("no type information", Facts { lost: Some(false), ..full("6.12.117") }, &[TRACEPOINTS], &[], true),
        ("no membarrier", Facts { membarrier: Some(false), ..full("6.12.117") }, &[MEMBARRIER], &[], true),
        ("older than those that are tested", Facts { tcx: Some(false), ..full("5.19.0") }, &[TCX], &[], true),
        (
            "old, but with what newer ones have",
            Facts { tcx: Some(false), ..full("5.14.0-503.el9.x86_64") },
            &[TCX],
            &[],
            true,
        ),
        (
            "too old",
            Facts { bpf_loop: Some(true), load_bytes: Some(false), tcx: Some(false), ..full("5.17.0") },
            &[LOAD_BYTES, TCX],
            &[],
            false,
        ),
        (
            "no bpf at all",
            Facts {
                bpf: Some(false),
                jit: None,
                bpf_loop: None,
                load_bytes: None,
                tcx: None,
                ..full("6.6.0")
            },
            &[BPF],
            &[JIT, TCX],
            false,
        ),
        (
            "a refusal that nobody has thought of",
            Facts { refusal: Some("Invalid argument".into()), ..full("6.6.0") },
            &[],
            &[],
            false,
        ),
        ("not root", unprivileged("6.12.117"), &[], &[BPF, FILTERS, TCX, TRACEPOINTS, VETH], false),
        (
            "not root, too old",
            unprivileged("5.10.0"),
            &[LOOP, LOAD_BYTES, TCX],
            &[BPF, FILTERS, TRACEPOINTS, VETH],
            false,
        ),
        (
            "not root, a release without numbers",
            unprivileged("strange"),
            &[],
            &[BPF, LOOP, LOAD_BYTES, FILTERS, TCX, TRACEPOINTS, VETH],
            false,
        ),
    ];
    for (name, facts, missing, unseen, starts) in rows {
        let kernel = Kernel(facts);
        let all = [Weight::Required, Weight::Warn, Weight::Note];
        let found: Vec<_> =
            all.into_iter().flat_map(|weight| kernel.missing(weight)).map(|feature| feature.name).collect();
        assert_eq!(found, missing, "{name}");
        let found: Vec<_> = kernel.unseen().map(|feature| feature.name).collect();
        assert_eq!(found, unseen, "{name}");
        assert_eq!(kernel.check().is_ok(), starts, "{name}");
    }
}

#[test]
fn people_are_told() {
    let rows = [
        (full("6.18.44-fc"), "this machine's kernel 6.18.44-fc has everything that lbd uses"),
        (
            Facts { tcx: Some(false), ..full("5.19.0") },
            "this machine's kernel 5.19.0 lacks something that lbd can do without\n  older than Linux 6.1, the oldest that \
             is tested: it may refuse the programs\n  without TCX links (Linux 6.6): `lb_joint` is attached as a filter of \
             clsact; `tc` can remove it, and filters of others can come before it, and then connections whose request \
             chooses the backend do not open",
        ),
        (
            Facts { jit: Some(false), ..full("6.1.0-57-amd64") },
            "this machine's kernel 6.1.0-57-amd64 cannot run lbd\n  without the BPF JIT (CONFIG_BPF_JIT, \
             net.core.bpf_jit_enable): the kernel refuses programs with callbacks, as these are; switch it on with \
             `sysctl -w net.core.bpf_jit_enable=1`",
        ),
        (
            unprivileged("6.12.117"),
            "this machine's kernel 6.12.117 lacks nothing that could be looked at\n  not looked at, for only root may ask: \
             the system call bpf, filters of clsact, TCX links, tracepoints of XDP, network namespaces with veth pairs",
        ),
    ];
    for (facts, told) in rows {
        assert_eq!(Kernel(facts).to_string(), told);
    }
    let refused = Kernel(Facts { jit: Some(false), ..full("6.1.0") }).check().unwrap_err().to_string();
    assert!(
        refused.starts_with("kernel 6.1.0 cannot run the packet programs; it is without the BPF JIT"),
        "{refused}"
    );
    let refused = Kernel(Facts { root: true, ..unprivileged("6.1.0") }).check().unwrap_err();
    assert!(matches!(refused, DatapathError::Forbidden), "{refused}");
}

#[test]
fn the_page_for_operators_has_every_feature() {
    let page = include_str!("../../../../docs/kernels.md");
    for Feature { name, since, .. } in &FEATURES {
        let since = since.split(", ").flat_map(|word| word.split("; ")).next().unwrap();
        let row = page.lines().find(|line| line.starts_with(&format!("| {name} |")));
        assert!(row.is_some_and(|row| row.contains(since)), "no row with {name} and {since}");
    }
}

#[test]
fn the_running_kernel_is_looked_at() {
    let facts = Facts::look();
    assert!(!facts.release.is_empty());
    assert!(facts.network.namespaces.is_some());
}

#[test]
fn releases_are_read() {
    for (release, version) in [
        ("6.18.44-fc", Some((6, 18))),
        ("5.17.0", Some((5, 17))),
        ("6.1.0-13-amd64", Some((6, 1))),
        ("strange", None),
    ] {
        assert_eq!(parse_release(release), version, "{release}");
    }
}
