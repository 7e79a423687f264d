//! What processes tell each other, as bytes: a letter, then fields of fixed size, big endian.

use super::meta::{Node, decode_nodes};
use lb_common::token::SessionId;

/// One message to everyone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Message {
    /// A session has changed hands: those named forget it and say so.
    Void { id: SessionId, receipt: Receipt, at: Vec<Node> },
    /// Nobody at these nodes answers from a copy of what these were about.
    Voided(Vec<(Receipt, Node)>),
    /// A slot has a new epoch.
    Epoch { by: Node, slot: u16, epoch: u32 },
    /// A node has no copies any more, and never will have.
    Bye(Node),
}

/// Names a message that is to be answered.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Receipt {
    pub(super) to: Node,
    pub(super) number: u64,
}

impl Message {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(64);
        match self {
            Self::Void { id, receipt, at } => {
                bytes.push(b'v');
                bytes.extend(id.0);
                receipt.write(&mut bytes);
                at.iter().for_each(|node| bytes.extend(node.to_be_bytes()));
            }
            Self::Voided(receipts) => {
                bytes.push(b'a');
                for (receipt, node) in receipts {
                    receipt.write(&mut bytes);
                    bytes.extend(node.to_be_bytes());
                }
            }
            Self::Epoch { by, slot, epoch } => {
                bytes.push(b'e');
                bytes.extend(by.to_be_bytes());
                bytes.extend(slot.to_be_bytes());
                bytes.extend(epoch.to_be_bytes());
            }
            Self::Bye(node) => {
                bytes.push(b'b');
                bytes.extend(node.to_be_bytes());
            }
        }
        bytes
    }

    /// `None` for what is no message.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (kind, mut rest) = bytes.split_first()?;
        let message = match kind {
            b'v' => {
                let id = SessionId(take(&mut rest)?);
                let receipt = Receipt::read(&mut rest)?;
                let at = decode_nodes(std::mem::take(&mut rest))?;
                Self::Void { id, receipt, at }
            }
            b'a' => {
                let mut receipts = Vec::new();
                while !rest.is_empty() {
                    receipts.push((Receipt::read(&mut rest)?, Node::from_be_bytes(take(&mut rest)?)));
                }
                Self::Voided(receipts)
            }
            b'e' => Self::Epoch {
                by: Node::from_be_bytes(take(&mut rest)?),
                slot: u16::from_be_bytes(take(&mut rest)?),
                epoch: u32::from_be_bytes(take(&mut rest)?),
            },
            b'b' => Self::Bye(Node::from_be_bytes(take(&mut rest)?)),
            _ => return None,
        };
        rest.is_empty().then_some(message)
    }
}

impl Receipt {
    fn write(&self, bytes: &mut Vec<u8>) {
        bytes.extend(self.to.to_be_bytes());
        bytes.extend(self.number.to_be_bytes());
    }

    fn read(bytes: &mut &[u8]) -> Option<Self> {
        Some(Self { to: Node::from_be_bytes(take(bytes)?), number: u64::from_be_bytes(take(bytes)?) })
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_message() -> impl Strategy<Value = Message> {
        let receipt = || any::<(Node, u64)>().prop_map(|(to, number)| Receipt { to, number });
        prop_oneof![
            (any::<[u8; 16]>(), receipt(), any::<Vec<Node>>()).prop_map(|(id, receipt, at)| Message::Void {
                id: SessionId(id),
                receipt,
                at
            }),
            proptest::collection::vec((receipt(), any::<Node>()), 0..5).prop_map(Message::Voided),
            any::<(Node, u16, u32)>().prop_map(|(by, slot, epoch)| Message::Epoch { by, slot, epoch }),
            any::<Node>().prop_map(Message::Bye),
        ]
    }

    proptest! {
        #[test]
        fn decode_undoes_encode(message in any_message()) {
            let bytes = message.encode();
            prop_assert_eq!(Message::decode(&bytes), Some(message));
            prop_assert_ne!(Message::decode(&[&bytes[..], &[0]].concat()), Message::decode(&bytes));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = Message::decode(&bytes);
        }
    }
}
