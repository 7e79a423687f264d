//! Every verdict and every drop has a name. The program counts by these indices; `lbctl stats` prints these names.

/// Declares the counters once: variant, printed name, and whether the packet was dropped.
macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal $kind:ident,)+) => {
        /// What happened to a packet.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u32)]
        pub enum Counter { $($(#[doc = $doc])+ $variant,)+ }

        impl Counter {
            /// All of them, in the order of their indices.
            pub const ALL: [Self; COUNTERS] = [$(Self::$variant),+];

            /// The name under which it is printed.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }

            /// One sentence for people.
            pub const fn describe(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+)),+ }
            }

            /// Whether it is a steering decision, a packet handled, or a packet dropped.
            pub const fn kind(self) -> Kind {
                match self { $(Self::$variant => Kind::$kind),+ }
            }
        }

        /// How many there are.
        pub const COUNTERS: usize = [$($name),+].len();
    };
}

/// What a counter counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// One for each flow that was steered, saying why there.
    Steering,
    /// A packet that was forwarded, answered or passed on.
    Packet,
    /// A packet that was dropped.
    Drop,
}

counters! {
    /// A valid token named a backend that serves.
    AffinityHit = "affinity_hit" Steering,
    /// As affinity_hit, but the token's epoch is not the backend's current one: the server reloads.
    StaleInstance = "stale_instance" Steering,
    /// A valid token named a backend that is down, in maintenance or gone: the session moves to another one.
    Redispatched = "redispatched" Steering,
    /// No token: a new session.
    NewSession = "new_session" Steering,
    /// A token that does not verify; treated as absent, so new_session counts as well. In UDP once for each datagram with such
    /// a token, while what is decided (all other reasons but rejected) counts once a flow, and again when the flow moves.
    InvalidToken = "invalid_token" Steering,
    /// What the service steers by (the client's address, for one) was hashed to a backend.
    Hashed = "hashed" Steering,
    /// A key that no backend is known to have handed out (or that was forgotten): hashed, so that every node chooses the same.
    UnknownKey = "unknown_key" Steering,
    /// A QUIC connection id that names no server of the service: by the flow, or else hashed.
    Unroutable = "unroutable" Steering,
    /// The session's backend does not serve, and the service gives its sessions to no other one: refused. In UDP once for each
    /// datagram, since nothing remembers those that were dropped.
    Rejected = "rejected" Steering,
    /// A TLS client asked for a name that no backend is listed for, or for none, and every backend is listed for names: refused.
    UnknownName = "unknown_name" Steering,
    /// The chosen backend refused or did not answer: the flow was offered to another one.
    Retried = "retried" Steering,
    /// SYN answered with a SYN cookie.
    SynAnswered = "syn_answered" Packet,
    /// The client's bare ACK completed its half of the handshake.
    HandshakeAck = "handshake_ack" Packet,
    /// A keep-alive probe on a connection that has not sent data yet was answered.
    KeepAliveAnswered = "keepalive_answered" Packet,
    /// A FIN on a connection that has not sent data was answered.
    FinAnswered = "fin_answered" Packet,
    /// First payload: a backend was chosen and received a SYN.
    Bound = "bound" Packet,
    /// What is steered by may stand in what the client sends next: that is waited for, and a segment that is not full acknowledged.
    HeadAwaited = "head_awaited" Packet,
    /// What is steered by was not found in what is stashed, and may stand behind that: it counts as absent.
    HeadIncomplete = "head_incomplete" Packet,
    /// The service's clients begin with a header of the PROXY protocol (`accept_proxy`), and this one did not: bound by what it sent.
    ProxyMissing = "proxy_missing" Packet,
    /// A header of the PROXY protocol that makes no sense: bound without a key, by the connection's own address.
    ProxyInvalid = "proxy_invalid" Packet,
    /// A header of the PROXY protocol where the service has no `accept_proxy`, or a second one: it counts as part of what is said.
    ProxyUnexpected = "proxy_unexpected" Packet,
    /// A client began with HTTP/2 without TLS: nothing is read of it, so it was bound without a key.
    Http2 = "http2_prior_knowledge" Packet,
    /// A request without TLS asked to go on with HTTP/2: nothing is read of what follows it.
    Http2Upgrade = "http2_upgrade" Packet,
    /// A ClientHello whose TLS records make no sense: bound without its name.
    HelloBroken = "client_hello_broken" Packet,
    /// A request carries the service's key more often than is looked at: the rest was ignored.
    KeysIgnored = "keys_ignored" Packet,
    /// A later request on a connection belongs to a session that is at home at another backend, which serves: the connection stays.
    KeptElsewhere = "kept_elsewhere" Packet,
    /// A key was read from a backend's response, and its sessions belong there from now on.
    Learned = "learned" Packet,
    /// A backend deleted its cookie, and the session was forgotten.
    Forgotten = "forgotten" Packet,
    /// A learned session had to make room for another one: the table was full there.
    LearnedEvicted = "learned_evicted" Packet,
    /// A key in a response was cut by the end of its segment and could not be learned.
    LearnedCut = "learned_cut" Packet,
    /// A connection or flow of datagrams handed out more new keys in a second than are learned of one: this one was not.
    LearnedRefused = "learned_refused" Packet,
    /// A steering decision that `lbctl trace` could not be told: its ring buffer was full.
    TraceLost = "trace_lost" Packet,
    /// More payload was stashed while the backend had not answered.
    Stashed = "stashed" Packet,
    /// A retransmission from the client repeated the SYN to the backend.
    SynRepeated = "syn_repeated" Packet,
    /// A backend refused, the next one received the SYN.
    SynRetried = "syn_retried" Packet,
    /// The client reset a flow whose backend had not answered.
    ClientReset = "client_reset_while_binding" Packet,
    /// A backend ended the connection before it answered a GET or HEAD: the next one received the request.
    Replayed = "replayed" Packet,
    /// The backend answered: both halves were spliced.
    Spliced = "spliced" Packet,
    /// What a client was told had arrived was sent to its backend once more.
    StashRepeated = "stash_repeated" Packet,
    /// A FIN, an RST or a packet from another router whose sequence number is far from what its flow's backend has acknowledged, or a
    /// datagram from another router while its client is heard by the former one: forwarded, but it ends and moves nothing.
    OutOfWindow = "out_of_window" Packet,
    /// A backend that still knew the 4-tuple was reset and got the SYN again.
    ChallengeReset = "challenge_reset" Packet,
    /// A flow made room for another one: the table was full there, or its service had as many flows as it may. It was opening, waited
    /// for the rest of its head, or was idle for more than a minute.
    FlowEvicted = "flow_evicted" Packet,
    /// A flow that waited for the rest of its head lost its stash to another one that needed it.
    StashEvicted = "stash_evicted" Packet,
    /// Forwarded from a client to its backend.
    FromClient = "from_client" Packet,
    /// Forwarded from a backend to its client.
    FromBackend = "from_backend" Packet,
    /// Passed to the host: not addressed to a service.
    Passed = "passed" Packet,
    /// From a backend, belonging to no flow; passed to the host (a health check, mostly).
    PassedFromBackend = "passed_from_backend" Packet,
    /// A SYN-ACK or challenge ACK of a half-bound flow went up to the joint.
    PassedToJoint = "passed_to_joint" Packet,
    /// No backend takes an HTTP request: the client was told with 503.
    Unavailable = "unavailable" Packet,
    /// Something else from a client that was told so: acknowledged, or absorbed.
    UnavailableHeard = "unavailable_heard" Packet,
    /// A segment of an unknown flow was answered with RST.
    ResetUnknownFlow = "reset_unknown_flow" Packet,
    /// Every backend refused: the client was told with RST.
    ResetRefused = "reset_refused" Packet,
    /// No backend is ready: the client was told with RST.
    ResetNoBackend = "reset_no_backend" Packet,
    /// A late SYN-ACK from an abandoned backend was answered with RST.
    ResetLateSynAck = "reset_late_synack" Packet,
    /// A datagram carried a token of its session's backend, and the flow moved there.
    FlowMoved = "flow_moved" Packet,
    /// A datagram carried another key than its flow, which its client has confirmed: it went where that leads, and the flow stays.
    FlowKept = "flow_kept" Packet,
    /// An IPv4 fragment: its ports are not in sight.
    DropFragment = "drop_fragment" Drop,
    /// A head that goes on, and what has come of it has a wrong checksum: nobody may be told that it had arrived.
    DropChecksum = "drop_checksum" Drop,
    /// From a client whose backend has not answered, and it acknowledges something else than our SYN-ACK.
    DropBadClientAck = "drop_bad_client_ack" Drop,
    /// An IPv4 header with options.
    DropIpOptions = "drop_ip_options" Drop,
    /// Lengths in the headers contradict the frame's length.
    DropTruncated = "drop_truncated" Drop,
    /// Impossible combination of TCP flags (SYN+FIN, SYN+RST, none at all).
    DropBadFlags = "drop_bad_flags" Drop,
    /// The time to live ran out.
    DropTtl = "drop_ttl_expired" Drop,
    /// Neither RST nor SYN, without ACK.
    DropNoAck = "drop_no_ack" Drop,
    /// RST for a flow that is not known, or with a sequence number that its client cannot have reached.
    DropUnknownRst = "drop_unknown_rst" Drop,
    /// The first segment was lost or reordered; the client sends it again.
    DropFirstSegmentMissing = "drop_first_segment_missing" Drop,
    /// Nothing to add while the backend has not answered yet.
    DropBinding = "drop_while_binding" Drop,
    /// Does not fit in the stash; the client sends it again.
    DropStashFull = "drop_stash_full" Drop,
    /// No free stash: too many flows are waiting for a backend.
    DropNoStash = "drop_no_stash" Drop,
    /// No room in the flow table.
    DropFlowTableFull = "drop_flow_table_full" Drop,
    /// The service has as many flows as it may (`max_flows`), and none of them can make room.
    DropFlowShare = "drop_flow_share" Drop,
    /// As many flows of the service wait for a backend as may (`max_pending`).
    DropPendingShare = "drop_pending_share" Drop,
    /// As many flows wait for the backend as may (`max_backend_pending`), and the session belongs there or no other one has room.
    DropBackendPending = "drop_backend_pending" Drop,
    /// A datagram for which no backend is ready.
    DropNoBackend = "drop_no_backend" Drop,
    /// The flow's backend is no longer in the map.
    DropNoBackendEntry = "drop_no_backend_entry" Drop,
    /// The backend's next hop is not known yet.
    DropNoNextHop = "drop_no_next_hop" Drop,
    /// The backend sent a SYN-ACK again after the splice.
    DropDuplicateSynAck = "drop_duplicate_synack" Drop,
    /// The backend's RST or ACK does not belong to the SYN it was sent.
    DropBadBackendAck = "drop_bad_backend_ack" Drop,
    /// In the name of a backend, and not from the interface that leads to it (`check_interfaces`).
    DropOtherInterface = "drop_other_interface" Drop,
    /// From a backend that is not the flow's.
    DropOtherBackend = "drop_other_backend" Drop,
    /// A SYN from the backend's side.
    DropBackendSyn = "drop_backend_syn" Drop,
    /// Another processor was changing the same flow.
    DropBusy = "drop_busy" Drop,
    /// The kernel refused to resize the packet.
    DropNoRoom = "drop_no_room" Drop,
    /// The joint could not complete the splice.
    DropJoint = "drop_joint" Drop,
    /// The service is not delivering: its slot in the map is empty.
    DropNoService = "drop_no_service" Drop,
    /// Begins something, and cannot be answered: its IPv4 source is no host's own address (0/8, 127/8, multicast, broadcast), or
    /// an Ethernet address is a group's.
    DropBadSource = "drop_bad_source" Drop,
}

/// Counters of one service, or, at index 0, of packets that belong to none. One such value for each processor.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct ServiceCounters(pub [u64; COUNTER_ROOM]);

/// Room for counters in a map value; larger than their number so that adding one keeps the maps.
pub const COUNTER_ROOM: usize = 128;
const _: () = assert!(COUNTERS <= COUNTER_ROOM);

/// Counters of one backend. One such value for each processor.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct BackendCounters {
    /// Flows steered here by a valid token, stale ones included.
    pub affinity_hit: u64,
    /// Those of them whose token names an older epoch.
    pub stale_instance: u64,
    /// Flows steered here in place of a backend that does not serve.
    pub redispatched: u64,
    /// New sessions.
    pub new_session: u64,
    /// Flows spliced.
    pub spliced: u64,
    /// SYNs that this backend refused or left unanswered.
    pub failed: u64,
    pub packets_from_client: u64,
    pub bytes_from_client: u64,
    pub packets_from_backend: u64,
    pub bytes_from_backend: u64,
}

crate::map_types! { ServiceCounters: 1024, BackendCounters: 80 }

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_indices_dense() {
        for (i, counter) in Counter::ALL.iter().enumerate() {
            assert_eq!(*counter as usize, i);
            assert!(Counter::ALL[..i].iter().all(|other| other.name() != counter.name()));
            assert_eq!(counter.kind() == Kind::Drop, counter.name().starts_with("drop_"));
        }
    }
}
