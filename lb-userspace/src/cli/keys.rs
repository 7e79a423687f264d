//! `lbctl keys rotate|prepare|reload`

use crate::control::Request;
use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Sign new tokens with a new key, or the prepared one; tokens signed with the older ones stay good
    Rotate,
    /// Make the key that signs after the next rotation; until then it only verifies, and other hosts can get it
    Prepare,
    /// Read the key file again, after it was copied from another host
    Reload,
}

impl Verb {
    pub(super) fn request(&self) -> Request {
        match self {
            Self::Rotate => Request::KeysRotate {},
            Self::Prepare => Request::KeysPrepare {},
            Self::Reload => Request::KeysReload {},
        }
    }
}
