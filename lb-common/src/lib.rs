//! What things are: the types and pure rules that the packet programs and the daemon share.
//!
//! `no_std`, no unsafe beyond plain-data markers, tested on the host without root. Every map key and value has a fixed
//! layout without padding; integers on the wire carry their byte order in their type.
#![no_std]

#[cfg(any(feature = "std", test))]
extern crate std;

pub mod addr;
pub mod aes;
pub mod backend;
#[cfg(feature = "std")]
pub mod buckets;
pub mod checksum;
pub mod counter;
pub mod date;
pub mod endpoint;
pub mod flow;
pub mod hash;
pub mod home;
pub mod lost;
pub mod maglev;
pub mod name;
pub mod proxy;
pub mod quic_lb;
pub mod service;
pub mod settings;
pub mod stash;
pub mod syn_cookie;
pub mod tcp;
pub mod token;
pub mod trace;

/// Version of the layout of every map in this crate. It names the directory of the pinned maps, so a daemon never
/// takes over maps that it would misread. Grows with any change to a map type.
pub const MAP_LAYOUT_VERSION: u32 = 7;

/// Declares that types may cross into the kernel as map values, once `aya` is there to ask for it.
macro_rules! map_types {
    ($($t:ty: $size:literal),+ $(,)?) => {$(
        const _: () = assert!(core::mem::size_of::<$t>() == $size);
        // SAFETY: the type is `bytemuck::Pod`: no padding, every bit pattern valid.
        #[cfg(feature = "aya")]
        unsafe impl aya::Pod for $t {}
    )+};
}
pub(crate) use map_types;
