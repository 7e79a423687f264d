//! What a client may ask to be true before its request has any effect: the preconditions of RFC 9110 §13, on versions of
//! a session's state. How they are written in headers is not known here.

use lb_common::token::SessionId;
use std::fmt;

/// Names one version of one session's state: a strong validator (RFC 9110 §8.8.1). One tag is good for all that is made
/// from the state, be it the whole, the value of one key or a view of it, because none changes without it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tag {
    /// The first half of the session's id: enough that the tag of another session never matches.
    session: u64,
    version: u64,
}

impl Tag {
    pub fn new(id: SessionId, version: u64) -> Self {
        let mut half = [0; 8];
        half.copy_from_slice(&id.0[..8]);
        Self { session: u64::from_be_bytes(half), version }
    }

    /// Reads what [`Tag`]'s `Display` wrote. `None` for anything else, and so for what no session ever had.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let (session, version) = std::str::from_utf8(text).ok()?.split_once('-')?;
        let tag = Self { session: u64::from_str_radix(session, 16).ok()?, version: version.parse().ok()? };
        // One way to write it only: tags are compared as text by everybody else.
        (tag.to_string().as_bytes() == text).then_some(tag)
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{}", self.session, self.version)
    }
}

/// Which versions a precondition speaks of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Tags {
    /// `*`: any, as long as there is one that was written.
    Any,
    /// One of these. Tags that no session of ours can have are left out; an empty list matches nothing.
    Of(Vec<Tag>),
}

impl Tags {
    fn matches(&self, current: Option<Tag>) -> bool {
        match (self, current) {
            (_, None) => false,
            // Nothing of version 0 was ever written.
            (Self::Any, Some(current)) => current.version > 0,
            (Self::Of(tags), Some(current)) => tags.contains(&current),
        }
    }
}

/// What must be true of the target of a request.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Preconditions {
    /// The target is there, in one of these versions.
    pub if_match: Option<Tags>,
    /// The target is not there, or in none of these versions.
    pub if_none_match: Option<Tags>,
}

/// The precondition that is not met.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unmet {
    IfMatch,
    IfNoneMatch,
}

impl Preconditions {
    /// Compares with the target as it is: its tag, or `None` while it does not exist.
    ///
    /// # Errors
    /// The first one that is not met, in the order of RFC 9110 §13.2.2.
    pub fn check(&self, current: Option<Tag>) -> Result<(), Unmet> {
        if self.if_match.as_ref().is_some_and(|tags| !tags.matches(current)) {
            return Err(Unmet::IfMatch);
        }
        if self.if_none_match.as_ref().is_some_and(|tags| tags.matches(current)) {
            return Err(Unmet::IfNoneMatch);
        }
        Ok(())
    }
}

/// What a request is about: whose existence preconditions ask for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Target {
    /// The session as a whole; it exists from its first write to its end.
    #[default]
    Session,
    /// The value of a key.
    Key(String),
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: SessionId = SessionId([7; 16]);

    #[test]
    fn the_first_unmet_one_is_told() {
        let now = Tag::new(ID, 5);
        let (old, of_another) = (Tag::new(ID, 4), Tag::new(SessionId([8; 16]), 5));
        let of = |tags: &[Tag]| Some(Tags::Of(tags.to_vec()));
        let any = Some(Tags::Any);
        // If-Match, If-None-Match, then the result while the target is there and while it is not.
        let rows = [
            (None, None, Ok(()), Ok(())),
            (of(&[now]), None, Ok(()), Err(Unmet::IfMatch)),
            (of(&[old, of_another, now]), None, Ok(()), Err(Unmet::IfMatch)),
            (of(&[old]), None, Err(Unmet::IfMatch), Err(Unmet::IfMatch)),
            (of(&[of_another]), None, Err(Unmet::IfMatch), Err(Unmet::IfMatch)),
            (of(&[]), None, Err(Unmet::IfMatch), Err(Unmet::IfMatch)),
            (any.clone(), None, Ok(()), Err(Unmet::IfMatch)),
            (None, of(&[now]), Err(Unmet::IfNoneMatch), Ok(())),
            (None, of(&[old, of_another]), Ok(()), Ok(())),
            (None, any.clone(), Err(Unmet::IfNoneMatch), Ok(())),
            (of(&[old]), any.clone(), Err(Unmet::IfMatch), Err(Unmet::IfMatch)),
            (of(&[now]), any, Err(Unmet::IfNoneMatch), Err(Unmet::IfMatch)),
        ];
        for (if_match, if_none_match, there, absent) in rows {
            let preconditions = Preconditions { if_match, if_none_match };
            assert_eq!(preconditions.check(Some(now)), there, "{preconditions:?}");
            assert_eq!(preconditions.check(None), absent, "{preconditions:?}");
        }
    }

    #[test]
    fn a_tag_is_written_in_one_way_only() {
        assert_eq!(Tag::new(ID, 5).to_string(), "0707070707070707-5");
        for other in [
            "",
            "-",
            "5",
            "0707070707070707",
            "0707070707070707-05",
            "707070707070707-5",
            "0707070707070707-+5",
            "0707070707070707-5 ",
            "070707070707070A-5",
            "0707070707070707-",
        ] {
            assert_eq!(Tag::parse(other.as_bytes()), None, "{other:?}");
        }
    }

    proptest! {
        #[test]
        fn parse_undoes_display(id: [u8; 16], version: u64) {
            let tag = Tag::new(SessionId(id), version);
            prop_assert_eq!(Tag::parse(tag.to_string().as_bytes()), Some(tag));
        }

        #[test]
        fn arbitrary_bytes_are_no_tag_or_their_own(bytes: Vec<u8>) {
            if let Some(tag) = Tag::parse(&bytes) {
                prop_assert_eq!(tag.to_string().into_bytes(), bytes);
            }
        }
    }
}
