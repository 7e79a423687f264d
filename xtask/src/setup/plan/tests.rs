//! A table of machines, and what setup decides for each.

use super::*;
use std::collections::BTreeSet;
use std::path::PathBuf;

const ALL: [Need; 6] = [Need::Run, Need::Peers, Need::Guests, Need::Kernels, Need::Fuzzer, Need::Lint];

/// Debian 12 with stable Rust and root, package lists fetched, nothing else.
fn fresh() -> Machine {
    Machine {
        root: true,
        rustup: true,
        host_lints: true,
        absent_commands: COMMANDS.iter().map(|(command, ..)| *command).collect(),
        absent_libraries: Library::ALL.into(),
        apt: Some(Apt { offered: offered(), rustc: Some((1, 96)) }),
        ..Machine::default()
    }
}

/// What bookworm and its security updates have.
fn offered() -> BTreeSet<&'static str> {
    packages().into_iter().filter(|package| !package.contains("-21-") && !package.contains("-23-")).collect()
}

/// `fresh` after setup.
fn complete() -> Machine {
    let debian = Debian {
        rustc: true,
        cargo: true,
        core: true,
        clippy: true,
        llvm: 22,
        linker: Some("/linker".into()),
    };
    Machine {
        debian,
        linker_seen: true,
        absent_commands: BTreeSet::new(),
        absent_libraries: BTreeSet::new(),
        ..fresh()
    }
}

fn nightly(linker: Option<&str>) -> Option<Nightly> {
    Some(Nightly { directory: "/nightly".into(), clippy: true, llvm: 22, linker: linker.map(PathBuf::from) })
}

fn steps(plan: Plan) -> Vec<Step> {
    match plan {
        Plan::Do { steps, .. } => steps,
        other => panic!("expected steps, got {other:?}"),
    }
}

fn advice(plan: Plan) -> String {
    match plan {
        Plan::Stuck(advice) => advice,
        other => panic!("expected advice, got {other:?}"),
    }
}

#[test]
fn a_complete_machine_is_ready() {
    let toolchain = Toolchain { compiler: Compiler::Debian, linker: "/linker".into() };
    assert_eq!(decide(&complete(), &ALL), Plan::Ready(toolchain.clone()));
    let unasked = Machine { apt: None, ..complete() };
    assert_eq!(decide(&unasked, &ALL), Plan::Ready(toolchain), "apt is not asked when nothing is missing");
}

#[test]
fn each_machine_gets_just_what_it_lacks() {
    let everything = vec![
        Step::AptInstall(vec![
            "rustc-web",
            "cargo-web",
            "libstd-rust-web-dev-bpf",
            "rust-web-clippy",
            "llvm-22-dev",
            "libpolly-22-dev",
            "iproute2",
            "ethtool",
            "curl",
            "nginx-light",
            "redis-server",
            "openssl",
            "e2fsprogs",
            "php-cgi",
            "nodejs",
            "npm",
            "python3",
            "python3-venv",
            "openssh-server",
            "openssh-client",
            "wget",
            "chromium",
            "qemu-system-x86",
            "kmod",
            "binutils",
            "iputils-ping",
            "ipvsadm",
            "g++",
        ]),
        Step::BuildLinker(22),
        Step::Library(Library::Npm),
        Step::Library(Library::PyPi),
    ];
    let no_lists = Some(Apt::default());
    let old_lists = Some(Apt { rustc: Some((1, 85)), offered: offered() });
    let to_build = vec![
        Step::AptInstall(vec![
            "rustc-web",
            "cargo-web",
            "libstd-rust-web-dev-bpf",
            "llvm-22-dev",
            "libpolly-22-dev",
        ]),
        Step::BuildLinker(22),
    ];
    let compiler = Step::AptInstall(vec!["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"]);
    let nightly_to_come = Step::Rustup { toolchain: "nightly", components: &["rust-src", "clippy"] };
    let without_linker = Debian { linker: None, ..complete().debian };

    let rows: Vec<(&str, Machine, &[Need], Vec<Step>)> = vec![
        ("fresh", fresh(), &ALL, everything),
        ("fresh, to build only", fresh(), &[], to_build),
        (
            "fresh, lists never fetched",
            Machine { apt: no_lists.clone(), ..fresh() },
            &ALL,
            vec![Step::AptUpdate],
        ),
        ("lists from before the update", Machine { apt: old_lists, ..fresh() }, &ALL, vec![Step::AptUpdate]),
        (
            "one command missing",
            Machine { absent_commands: ["ethtool"].into(), ..complete() },
            &ALL,
            vec![Step::AptInstall(vec!["ethtool"])],
        ),
        (
            "fresh, to run and torture",
            fresh(),
            &[Need::Run, Need::Peers],
            vec![
                Step::AptInstall(vec![
                    "rustc-web",
                    "cargo-web",
                    "libstd-rust-web-dev-bpf",
                    "llvm-22-dev",
                    "libpolly-22-dev",
                    "iproute2",
                    "ethtool",
                    "curl",
                    "nginx-light",
                    "redis-server",
                    "openssl",
                    "e2fsprogs",
                ]),
                Step::BuildLinker(22),
            ],
        ),
        (
            "an old version of a library",
            Machine { absent_libraries: [Library::PyPi].into(), ..complete() },
            &[Need::Guests],
            vec![Step::Library(Library::PyPi)],
        ),
        (
            "linker there, compiler not",
            Machine { linker_seen: true, absent_commands: BTreeSet::new(), ..fresh() },
            &[],
            vec![compiler.clone()],
        ),
        (
            "linker too old",
            Machine { debian: without_linker.clone(), ..complete() },
            &[],
            vec![Step::AptInstall(vec!["llvm-22-dev", "libpolly-22-dev"]), Step::BuildLinker(22)],
        ),
        (
            "linker gone, LLVM there",
            Machine { debian: without_linker, llvm_dev: [22].into(), ..complete() },
            &[],
            vec![Step::BuildLinker(22)],
        ),
        (
            "nightly without a linker",
            Machine { nightly: nightly(None), linker_seen: false, debian: Debian::default(), ..complete() },
            &ALL,
            vec![Step::AptInstall(vec!["llvm-22-dev", "libpolly-22-dev"]), Step::BuildLinker(22)],
        ),
        (
            "another distribution, rustup",
            Machine { apt: None, ..fresh() },
            &[],
            vec![nightly_to_come.clone()],
        ),
        (
            "Ubuntu: apt without rustc-web",
            Machine { apt: no_lists, apt_updated: true, ..fresh() },
            &[],
            vec![nightly_to_come.clone()],
        ),
        ("not root, rustup", Machine { root: false, ..fresh() }, &[], vec![nightly_to_come]),
        (
            "host without clippy",
            Machine { host_lints: false, ..complete() },
            &[Need::Lint],
            vec![Step::Rustup { toolchain: "stable", components: &["rustfmt", "clippy"] }],
        ),
    ];
    for (name, machine, needs, expected) in rows {
        assert_eq!(steps(decide(&machine, needs)), expected, "{name}");
    }
}

#[test]
fn a_usable_nightly_is_preferred() {
    let machine = Machine { nightly: nightly(Some("/linker")), ..complete() };
    let Plan::Ready(toolchain) = decide(&machine, &ALL) else { panic!("not ready") };
    assert_eq!(toolchain.compiler, Compiler::Nightly("/nightly".into()));
}

#[test]
fn each_package_is_named_before_it_is_installed() {
    let Plan::Do { missing, steps } = decide(&fresh(), &ALL) else { panic!("no plan") };
    let named = missing.join("\n");
    let Some(Step::AptInstall(packages)) = steps.first() else { panic!("no packages first") };
    for package in packages {
        assert!(named.contains(package), "{package} is not in {named}");
    }
    assert!(named.contains("bpf-linker 0.13.0"), "{named}");
}

#[test]
fn who_cannot_be_helped_is_told_what_to_do() {
    let neither = Machine { apt: None, rustup: false, ..fresh() };
    let rustup_failed = Machine { apt: None, rustup_failed: true, ..fresh() };
    let not_root = Machine { root: false, absent_commands: ["curl"].into(), ..complete() };
    let no_root_no_rustup = Machine { root: false, rustup: false, ..fresh() };
    let no_apt = Machine { apt: None, absent_commands: ["ethtool"].into(), ..complete() };
    let without_linker = Debian { linker: None, ..complete().debian };
    let old_linker = Debian { linker: None, llvm: 24, ..complete().debian };
    let rows: Vec<(&str, Machine, &[&str])> = vec![
        ("no way", neither, &["rustup.rs", "rustc-web", "bpf-linker"]),
        ("rustup without rust-src", rustup_failed, &["rustc-web"]),
        ("not root", not_root, &["sudo apt-get install", "curl"]),
        ("not root, no rustup", no_root_no_rustup, &["sudo apt-get install", "rustc-web", "llvm-22-dev"]),
        ("no apt", no_apt, &["ethtool", "not a Debian"]),
        (
            "built, and does not link",
            Machine { debian: without_linker, linkers_built: [22].into(), ..complete() },
            &["trying-", "LLVM 22"],
        ),
        ("LLVM to come", Machine { debian: old_linker, ..complete() }, &["bpf-linker", "LLVM 24"]),
        (
            "unknown even after an update",
            Machine {
                absent_commands: ["nginx"].into(),
                apt: Some(Apt::default()),
                apt_updated: true,
                ..complete()
            },
            &["nginx-light", "sources.list"],
        ),
    ];
    for (name, machine, words) in rows {
        let advice = advice(decide(&machine, &ALL));
        for word in words {
            assert!(advice.contains(word), "{name}: no {word} in: {advice}");
        }
    }
}

#[test]
fn an_old_kernel_is_warned_of() {
    for (kernel, warned) in [
        ("6.18.44-fc", false),
        ("6.1.0-57-cloud-amd64", false),
        ("5.19.0", true),
        ("4.19.0-27-amd64", true),
        ("strange", false),
    ] {
        assert_eq!(warning(kernel).is_some(), warned, "{kernel}");
    }
}
