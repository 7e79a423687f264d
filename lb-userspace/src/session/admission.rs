//! Who may begin how many sessions. Sessions that are there are never refused anything by this.

use super::Limits;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

/// Networks that are told apart within a second; all others share one bound.
const MAX_NETWORKS: usize = 65_536;

/// Bounds of one service's new sessions, shared by all its servers in this process, and what was refused.
#[derive(Debug)]
pub struct Admission {
    /// [`Limits::max_sessions`].
    most: u64,
    /// [`Limits::new_per_second`].
    per_second: u32,
    begun: Mutex<Begun>,
    full: AtomicU64,
    too_fast: AtomicU64,
}

/// Sessions that were begun within one second.
#[derive(Debug, Default)]
struct Begun {
    /// Since 1970.
    second: u64,
    networks: HashMap<Network, u32>,
    /// Of all networks that there was no place for.
    others: u32,
}

/// The network of a client: what one of them can choose its address from. The first 24 bits of an IPv4 address, the first 56 of
/// an IPv6 address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Network {
    V4([u8; 3]),
    V6([u8; 7]),
}

impl From<IpAddr> for Network {
    fn from(addr: IpAddr) -> Self {
        match addr.to_canonical() {
            IpAddr::V4(addr) => {
                let [a, b, c, _] = addr.octets();
                Self::V4([a, b, c])
            }
            IpAddr::V6(addr) => {
                let [a, b, c, d, e, f, g, ..] = addr.octets();
                Self::V6([a, b, c, d, e, f, g])
            }
        }
    }
}

/// Why a session was not begun; nothing was stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NotAdmitted {
    #[error("this service has as many sessions as it may have")]
    Full,
    #[error("too many sessions were begun from this network within a second")]
    TooFast,
}

impl Admission {
    pub fn new(limits: &Limits) -> Self {
        Self {
            most: limits.max_sessions,
            per_second: limits.new_per_second,
            begun: Mutex::default(),
            full: AtomicU64::new(0),
            too_fast: AtomicU64::new(0),
        }
    }

    /// Lets a session begin, while `there` are so many of the service, for a client, as far as that is known; counts it.
    ///
    /// # Errors
    /// [`NotAdmitted`], counted.
    pub(super) fn admit(
        &self,
        there: Option<u64>,
        client: Option<IpAddr>,
        now: u64,
    ) -> Result<(), NotAdmitted> {
        if there.is_some_and(|there| there >= self.most) {
            self.full.fetch_add(1, Ordering::Relaxed);
            return Err(NotAdmitted::Full);
        }
        let Some(client) = client else { return Ok(()) };
        let mut begun = self.begun.lock();
        if begun.second != now / 1000 {
            *begun = Begun { second: now / 1000, networks: std::mem::take(&mut begun.networks), others: 0 };
            begun.networks.clear();
        }
        let network = Network::from(client);
        let Begun { networks, others, .. } = &mut *begun;
        let room = networks.len() < MAX_NETWORKS || networks.contains_key(&network);
        let count = if room { networks.entry(network).or_default() } else { others };
        if *count >= self.per_second {
            self.too_fast.fetch_add(1, Ordering::Relaxed);
            return Err(NotAdmitted::TooFast);
        }
        *count += 1;
        Ok(())
    }

    /// Names and values, for people.
    pub fn values(&self) -> [(&'static str, u64); 2] {
        [
            ("sessions_full", self.full.load(Ordering::Relaxed)),
            ("new_sessions_refused", self.too_fast.load(Ordering::Relaxed)),
        ]
    }

    /// What a counter of [`Admission::values`] means.
    pub fn describe(name: &str) -> Option<&'static str> {
        Some(match name {
            "sessions_full" => "sessions not begun, because the service had max_sessions",
            "new_sessions_refused" => {
                "sessions not begun, because their network had begun new_per_second in that second"
            }
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(max_sessions: u64, new_per_second: u32) -> Admission {
        Admission::new(&Limits { max_sessions, new_per_second, ..Limits::default() })
    }

    fn client(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn a_network_has_so_many_a_second_whatever_its_addresses() {
        let admission = admission(10, 2);
        let ask = |from: &str, now| admission.admit(None, client(from), now);
        assert_eq!([ask("192.0.2.1", 5_000), ask("192.0.2.250", 5_999)], [Ok(()), Ok(())]);
        assert_eq!(ask("192.0.2.77", 5_999), Err(NotAdmitted::TooFast));
        assert_eq!(ask("::ffff:192.0.2.7", 5_999), Err(NotAdmitted::TooFast), "the same address");
        assert_eq!(ask("192.0.3.1", 5_999), Ok(()), "another network");
        for from in ["2001:db8:0:aa01::1", "2001:db8:0:aaff:1::2"] {
            assert_eq!(ask(from, 5_999), Ok(()));
        }
        assert_eq!(ask("2001:db8:0:aa77::", 5_999), Err(NotAdmitted::TooFast));
        assert_eq!(ask("2001:db8:0:ab01::1", 5_999), Ok(()));
        assert_eq!(admission.admit(None, None, 5_999), Ok(()), "nobody knows where it comes from");
        assert_eq!(ask("192.0.2.1", 6_000), Ok(()), "the next second");
        assert_eq!(admission.values(), [("sessions_full", 0), ("new_sessions_refused", 3)]);
    }

    #[test]
    fn a_service_has_so_many_sessions() {
        let admission = admission(10, 2);
        assert_eq!(admission.admit(Some(9), client("192.0.2.1"), 1), Ok(()));
        for there in [10, 11] {
            assert_eq!(admission.admit(Some(there), client("192.0.2.1"), 1), Err(NotAdmitted::Full));
        }
        assert_eq!(admission.values(), [("sessions_full", 2), ("new_sessions_refused", 0)]);
    }

    #[test]
    fn networks_without_number_take_no_memory_without_end_and_block_nobody_for_long() {
        let admission = admission(10, 2);
        for n in 0..100_000_u32 {
            let _ = admission.admit(None, Some(IpAddr::from((n << 8).to_be_bytes())), 1_000);
        }
        assert_eq!(admission.begun.lock().networks.len(), MAX_NETWORKS);
        assert_eq!(admission.values()[1].1, 100_000 - MAX_NETWORKS as u64 - 2);
        assert_eq!(admission.admit(None, client("250.0.0.1"), 1_500), Err(NotAdmitted::TooFast));
        assert_eq!(admission.admit(None, client("0.0.0.1"), 1_500), Ok(()), "it has a place");
        assert_eq!(admission.admit(None, client("250.0.0.1"), 2_000), Ok(()));
        assert_eq!(admission.begun.lock().networks.len(), 1);
    }
}
