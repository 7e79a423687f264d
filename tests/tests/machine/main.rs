//! Tests that need a kernel or network cards which build machines lack. `cargo xtask test` leaves them out; `cargo xtask test
//! --kernel` runs them in its virtual machines, with every other test of the packet programs. docs/kernels.md says how to
//! write one.

mod cards;
mod links;
mod nic;
mod vlan;
