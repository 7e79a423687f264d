//! The deciding half of the load balancer: configuration, registry, data path loading, session servers and control.

pub mod daemon;
