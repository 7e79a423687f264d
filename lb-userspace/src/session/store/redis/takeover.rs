//! Before a change is acknowledged, no other process answers from a copy: each is told and has said that it obeyed, or its
//! lease is over.

use super::StoreError;
use super::core::{Core, Ticket};
use super::message::Message;
use super::meta::Node;
use crate::session::fault::{Fault, armed};
use lb_common::token::SessionId;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// By how much clocks of two machines may differ in speed, and then some.
const MARGIN: Duration = Duration::from_millis(20);

impl Core {
    /// Voids a session at other nodes. When this returns `Ok`, none of them answers from a copy that is older than the
    /// call.
    pub(super) async fn void_at(&self, id: SessionId, nodes: &[Node]) -> Result<(), StoreError> {
        if armed(Fault::SkipInvalidate) {
            return Ok(());
        }
        let nodes = self.perhaps_alive(nodes);
        if nodes.is_empty() {
            return Ok(());
        }
        let receipt = self.receipt();
        let answered = Arc::new(Notify::new());
        let ticket = Ticket { waiting: nodes.iter().copied().collect(), answered: answered.clone() };
        self.tickets.lock().insert(receipt, ticket);
        let told = self.send(&Message::Void { id, receipt, at: nodes.clone() }, &nodes, self.shared()).await;
        let told = match told {
            Ok(alive) => {
                self.outlast(receipt, &self.ends(&nodes, &alive), &answered).await;
                Ok(())
            }
            Err(error) => Err(error),
        };
        self.tickets.lock().remove(&receipt);
        told
    }

    /// Without those that are known to have no copies.
    fn perhaps_alive(&self, nodes: &[Node]) -> Vec<Node> {
        let (now, dead) = (Instant::now(), self.dead.lock());
        let gone = |node: &Node| self.is_me(*node) || dead.get(node).is_some_and(|from| *from <= now);
        nodes.iter().copied().filter(|node| !gone(node)).collect()
    }

    /// Until when each may answer from a copy, if it was told something just now and says nothing.
    fn ends(&self, nodes: &[Node], alive: &[bool]) -> HashMap<Node, Instant> {
        let end = Instant::now() + self.options.lease + self.options.lease / 20 + MARGIN;
        let ends = nodes.iter().zip(alive).map(|(node, alive)| match alive {
            true => (*node, end),
            // Its name is gone and does not come back. That was so at once or a while ago; its lease is over a lease after
            // the first time that somebody looked, even if the server's clock made its name vanish early.
            false => (*node, self.buried(*node, end)),
        });
        ends.collect()
    }

    /// Waits until each has answered or come to its end.
    async fn outlast(
        &self,
        receipt: super::message::Receipt,
        ends: &HashMap<Node, Instant>,
        answered: &Notify,
    ) {
        loop {
            let now = Instant::now();
            let last = self.tickets.lock().get(&receipt).and_then(|ticket| {
                ticket
                    .waiting
                    .iter()
                    .filter_map(|node| ends.get(node))
                    .filter(|end| **end > now)
                    .max()
                    .copied()
            });
            let Some(last) = last else { return };
            tokio::select! {
                () = answered.notified() => {}
                () = tokio::time::sleep_until(last) => {}
            }
        }
    }
}
