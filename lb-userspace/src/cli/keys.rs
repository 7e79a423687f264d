//! `lbctl keys rotate`

use crate::control::Request;
use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Sign new tokens with a new key; tokens signed with the older ones stay good
    Rotate,
}

impl Verb {
    pub(super) fn request(&self) -> Request {
        match self {
            Self::Rotate => Request::KeysRotate {},
        }
    }
}
