//! Helpers of the packet and whole-system tests.
