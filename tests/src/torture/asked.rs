//! What clients ask, as bytes, and the two requests that begin and end a round.

use super::town::Door;
use super::wire::{Ticket, View, tag};
use crate::history::{Call, Operation, Outcome, Shown};
use anyhow::{Context, Result, ensure};
use lb_common::token::SessionId;

/// A request before it is sent.
pub(super) struct Asked {
    pub(super) place: usize,
    pub(super) session: SessionId,
    pub(super) ticket: Ticket,
    pub(super) call: Call,
    /// The client has this version already.
    pub(super) unless: Option<u64>,
}

impl Asked {
    /// The same once more.
    pub(super) fn again(&self) -> Self {
        Self {
            place: self.place,
            session: self.session,
            ticket: self.ticket.clone(),
            call: self.call.clone(),
            unless: self.unless,
        }
    }

    /// As bytes.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let (line, condition, body) = match &self.call {
            Call::Read => {
                let unless =
                    self.unless.map(|version| format!("If-None-Match: {}\r\n", tag(self.session, version)));
                ("GET /session".to_owned(), unless.unwrap_or_default(), String::new())
            }
            Call::Put { key, value } => {
                (format!("PUT /session/{key}"), String::new(), format!("\"{value}\""))
            }
            Call::PutIf { key, value, version } => {
                let condition = format!("If-Match: {}\r\n", tag(self.session, *version));
                (format!("PUT /session/{key}"), condition, format!("\"{value}\""))
            }
            Call::Add { sku, quantity, order } => {
                let order = order.map(|order| format!("Idempotency-Key: \"order-{order}\"\r\n"));
                let body = format!(r#"{{"sku":"{sku}","quantity":{quantity}}}"#);
                let headers = order.unwrap_or_default() + "Content-Type: application/json\r\n";
                ("POST /cart/items".to_owned(), headers, body)
            }
            Call::End => ("DELETE /session".to_owned(), String::new(), String::new()),
        };
        let (cookie, length) = (&self.ticket.text, body.len());
        format!(
            "{line} HTTP/1.1\r\nHost: shop\r\nCookie: lb={cookie}\r\n{condition}Content-Length: {length}\r\n\r\n{body}"
        )
        .into_bytes()
    }
}

/// How a session begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Beginning {
    /// With a read: nothing is in it, and it has version 0.
    Visit,
    /// With its first key in it, and version 1.
    Change,
}

/// Begins a session; also tells its version.
///
/// # Errors
/// It could not be, or is not known to have begun.
pub(super) fn begin(
    beginning: Beginning,
    client: u32,
    door: &Door,
    now: &dyn Fn() -> u64,
) -> Result<(Operation, Ticket, u64)> {
    let (request, call, status) = match beginning {
        Beginning::Visit => ("GET /session", Call::Read, 200),
        Beginning::Change => ("PUT /session/k0", Call::Put { key: "k0".into(), value: "0".into() }, 201),
    };
    let body = if beginning == Beginning::Change { "\"0\"" } else { "" };
    let mut line = door.open()?;
    let invoked = now();
    line.send(
        format!(
            "{request} HTTP/1.1\r\nHost: shop\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .as_bytes(),
    )?;
    let answer = line.answer()?;
    let returned = now();
    ensure!(answer.status == status, "a session could not begin: {}", String::from_utf8_lossy(&answer.body));
    let (view, ticket) =
        (View::read(&answer.body)?, answer.ticket.context("a session began without a token")?);
    let operation = Operation {
        client,
        session: view.session,
        invoked,
        returned,
        call,
        outcome: Outcome::Done(Shown { version: Some(view.version), values: view.values, cart: view.cart }),
        begins: true,
        token: None,
        given: Some(ticket.instance),
        way: door.name.clone(),
        by: Some(answer.by),
    };
    Ok((operation, ticket, view.version))
}

/// Reads a session through a connection of its own.
///
/// # Errors
/// There was no answer that says how the session is.
pub(super) fn look(client: u32, door: &Door, ticket: &Ticket, now: &dyn Fn() -> u64) -> Result<Operation> {
    let mut line = door.open()?;
    let invoked = now();
    line.send(
        format!(
            "GET /session HTTP/1.1\r\nHost: shop\r\nConnection: close\r\nCookie: lb={}\r\n\r\n",
            ticket.text
        )
        .as_bytes(),
    )?;
    let answer = line.answer()?;
    let returned = now();
    ensure!(answer.status == 200, "a session could not be read: {}", String::from_utf8_lossy(&answer.body));
    let view = View::read(&answer.body)?;
    let lives = view.session == ticket.session;
    let shown = Shown { version: Some(view.version), values: view.values, cart: view.cart };
    Ok(Operation {
        client,
        session: ticket.session,
        invoked,
        returned,
        call: Call::Read,
        outcome: if lives { Outcome::Done(shown) } else { Outcome::Gone },
        begins: false,
        token: Some(ticket.instance),
        given: answer.ticket.filter(|_| lives).map(|ticket| ticket.instance),
        way: door.name.clone(),
        by: Some(answer.by),
    })
}
