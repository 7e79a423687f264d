//! The kinds of everything that a service can be told, each with a row: what has no row yet does not compile.

use lb_common::token::TOKEN_TEXT_LEN;
use lb_userspace::config::{
    Affinity, Anchor, Backend, Balance, OnUnavailable, Place, Protocol, QuicConfig, ServerName, Service,
};
use std::collections::BTreeSet;

/// All kinds of a value, and a function that tells which one it is of. The compiler wants a row for every value; those that
/// no configuration can have stand behind `never`.
macro_rules! kinds {
    ($all:ident, $of:ident($type:ty) { $($kind:literal: $pattern:pat $(if $guard:expr)?,)* } never { $($never:pat,)* }) => {
        const $all: &[&str] = &[$($kind),*];

        fn $of(value: $type) -> &'static str {
            match value {
                $($pattern $(if $guard)? => $kind,)*
                $($never => unreachable!("the configuration refuses this"),)*
            }
        }
    };
}

/// Bytes of a signed token that is written as text.
const TEXT: u8 = TOKEN_TEXT_LEN as u8;

kinds!(RULES, rule((Protocol, &Affinity)) {
    "signed, by a cookie": (Protocol::Tcp, Affinity::Signed(Place::Cookie(_))),
    "signed, by a header": (Protocol::Tcp, Affinity::Signed(Place::Header(_))),
    "signed, by a query": (Protocol::Tcp, Affinity::Signed(Place::Query(_))),
    "signed, as text at an offset":
        (Protocol::Udp, Affinity::Signed(Place::Datagram { from: Anchor::Offset(_), bytes: TEXT })),
    "signed, as text at the end":
        (Protocol::Udp, Affinity::Signed(Place::Datagram { from: Anchor::End(_), bytes: TEXT })),
    "signed, as text behind a marker":
        (Protocol::Udp, Affinity::Signed(Place::Datagram { from: Anchor::Marker(_), bytes: TEXT })),
    "signed, raw at an offset":
        (Protocol::Udp, Affinity::Signed(Place::Datagram { from: Anchor::Offset(_), bytes: _ })),
    "signed, raw at the end":
        (Protocol::Udp, Affinity::Signed(Place::Datagram { from: Anchor::End(_), bytes: _ })),
    "signed, raw behind a marker":
        (Protocol::Udp, Affinity::Signed(Place::Datagram { from: Anchor::Marker(_), bytes: _ })),
    "hashed, by a cookie": (Protocol::Tcp, Affinity::Hashed(Place::Cookie(_))),
    "hashed, by a header": (Protocol::Tcp, Affinity::Hashed(Place::Header(_))),
    "hashed, by a query": (Protocol::Tcp, Affinity::Hashed(Place::Query(_))),
    "hashed, by name": (Protocol::Tcp, Affinity::Hashed(Place::Sni)),
    "hashed, at an offset":
        (Protocol::Udp, Affinity::Hashed(Place::Datagram { from: Anchor::Offset(_), bytes: _ })),
    "hashed, at the end":
        (Protocol::Udp, Affinity::Hashed(Place::Datagram { from: Anchor::End(_), bytes: _ })),
    "hashed, behind a marker":
        (Protocol::Udp, Affinity::Hashed(Place::Datagram { from: Anchor::Marker(_), bytes: _ })),
    "learned, by a cookie": (Protocol::Tcp, Affinity::Learned { place: Place::Cookie(_), idle: _ }),
    "learned, at an offset": (
        Protocol::Udp,
        Affinity::Learned { place: Place::Datagram { from: Anchor::Offset(_), bytes: _ }, idle: _ },
    ),
    "learned, at the end": (
        Protocol::Udp,
        Affinity::Learned { place: Place::Datagram { from: Anchor::End(_), bytes: _ }, idle: _ },
    ),
    "learned, behind a marker": (
        Protocol::Udp,
        Affinity::Learned { place: Place::Datagram { from: Anchor::Marker(_), bytes: _ }, idle: _ },
    ),
    "quic, one configuration": (Protocol::Udp, Affinity::Quic(configs)) if configs.len() == 1,
    "quic, several configurations": (Protocol::Udp, Affinity::Quic(_)),
    "source, tcp": (Protocol::Tcp, Affinity::Source { sni: false }),
    "source, by name": (Protocol::Tcp, Affinity::Source { sni: true }),
    "source, udp": (Protocol::Udp, Affinity::Source { sni: false }),
    "none, tcp": (Protocol::Tcp, Affinity::None { sni: false }),
    "none, by name": (Protocol::Tcp, Affinity::None { sni: true }),
    "none, udp": (Protocol::Udp, Affinity::None { sni: false }),
} never {
    (Protocol::Tcp, Affinity::Signed(Place::Sni | Place::Datagram { .. })),
    (Protocol::Tcp, Affinity::Hashed(Place::Datagram { .. })),
    (
        Protocol::Tcp,
        Affinity::Learned {
            place: Place::Header(_) | Place::Query(_) | Place::Sni | Place::Datagram { .. },
            idle: _,
        },
    ),
    (Protocol::Tcp, Affinity::Quic(_)),
    (
        Protocol::Udp,
        Affinity::Signed(Place::Cookie(_) | Place::Header(_) | Place::Query(_) | Place::Sni)
        | Affinity::Hashed(Place::Cookie(_) | Place::Header(_) | Place::Query(_) | Place::Sni)
        | Affinity::Learned {
            place: Place::Cookie(_) | Place::Header(_) | Place::Query(_) | Place::Sni,
            idle: _,
        },
    ),
    (Protocol::Udp, Affinity::Source { sni: true } | Affinity::None { sni: true }),
});

kinds!(BALANCES, balance((Balance, &Affinity)) {
    "maglev": (Balance::Maglev, _),
    "least, signed": (Balance::Least, Affinity::Signed(_)),
    "least, learned": (Balance::Least, Affinity::Learned { .. }),
    "least, none": (Balance::Least, Affinity::None { .. }),
} never {
    (Balance::Least, Affinity::Hashed(_) | Affinity::Quic(_) | Affinity::Source { .. }),
});

kinds!(UNAVAILABLE, unavailable((OnUnavailable, &Affinity)) {
    "redispatch": (OnUnavailable::Redispatch, _),
    "reject, signed": (OnUnavailable::Reject, Affinity::Signed(_)),
    "reject, learned": (OnUnavailable::Reject, Affinity::Learned { .. }),
    "reject, quic": (OnUnavailable::Reject, Affinity::Quic(_)),
} never {
    (OnUnavailable::Reject, Affinity::Hashed(_) | Affinity::Source { .. } | Affinity::None { .. }),
});

kinds!(SERVERS, server((Protocol, bool)) {
    "a managed server, tcp": (Protocol::Tcp, true),
    "a managed server, udp": (Protocol::Udp, true),
    "a server elsewhere, tcp": (Protocol::Tcp, false),
    "a server elsewhere, udp": (Protocol::Udp, false),
} never {});

kinds!(NAMES, name(Option<&ServerName>) {
    "an exact name": Some(ServerName::Exact(_)),
    "a wildcard": Some(ServerName::Wildcard(_)),
    "the rest": None,
} never {});

kinds!(QUIC_KEYS, quic_key(&QuicConfig) {
    "ids in the clear": QuicConfig { key: None, .. },
    "ids encrypted in one pass": QuicConfig { key: Some(_), server_id_bytes, nonce_bytes, .. }
        if server_id_bytes + nonce_bytes == 16,
    "ids encrypted in several passes": QuicConfig { key: Some(_), .. },
} never {});

kinds!(REPLAYS, replay((Protocol, bool)) {
    "requests repeated": (Protocol::Tcp, true),
    "requests not repeated": (Protocol::Tcp, false),
    "datagrams": (Protocol::Udp, _),
} never {});

kinds!(ACCEPTS, accept((bool, &Affinity)) {
    "no header of a proxy": (false, _),
    "a header of a proxy, whose address counts": (true, Affinity::Source { sni: false }),
    "a header of a proxy": (true, _),
} never {});

/// All kinds that there are.
pub(super) fn all() -> BTreeSet<&'static str> {
    [RULES, BALANCES, UNAVAILABLE, SERVERS, NAMES, QUIC_KEYS, REPLAYS, ACCEPTS].concat().into_iter().collect()
}

/// Those of a service. A field that a service has newly does not compile here: decide whether it has kinds.
pub(super) fn of(service: &Service) -> BTreeSet<&'static str> {
    let Service {
        name: _,
        vip: _,
        protocol,
        affinity,
        balance: balanced,
        on_unavailable,
        window_scale: _,
        max_tries: _,
        affinity_group: _,
        max_flows: _,
        max_pending: _,
        max_backend_pending: _,
        replay: replayed,
        accept_proxy,
        health: _,
        cookie: _,
        session: _,
        backends,
    } = service;
    let mut kinds = BTreeSet::from([
        rule((*protocol, affinity)),
        balance((*balanced, affinity)),
        unavailable((*on_unavailable, affinity)),
        replay((*protocol, *replayed)),
        accept((*accept_proxy, affinity)),
    ]);
    if let Affinity::Quic(configs) = affinity {
        kinds.extend(configs.iter().map(quic_key));
    }
    for Backend { name: _, managed, addr: _, weight: _, server_ids: _, sni } in backends {
        kinds.insert(server((*protocol, *managed)));
        kinds.extend(sni.iter().map(|listed| name(Some(listed))));
        if affinity.place() == Some(&Place::Sni) && sni.is_empty() {
            kinds.insert(name(None));
        }
    }
    kinds
}
