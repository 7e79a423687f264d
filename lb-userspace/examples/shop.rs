//! A small shop, complete: axum, and sessions that the balancer brings home. docs/library.md tells how to run it.
//!
//! ```sh
//! cargo run -p lb-userspace --example shop -- --store sled:/tmp/shop
//! ```

mod common;

use axum::extract::State;
use axum::response::{Html, Redirect};
use axum::routing::{get, post};
use axum::{Form, Json, Router};
use clap::Parser;
use common::page::{self, Cart, GOODS, MAX_PIECES};
use lb_userspace::session::{Instance, Limits, Refusal, SessionError, State as SessionState};
use lb_userspace::web::{Session, SessionLayer};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;

const NAME: &str = "name";
const CART: &str = "cart";

type Shop = State<watch::Receiver<Instance>>;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let place = common::Options::parse().open().await?;
    let listen = place.listen();
    let sessions = place.member.sessions(Limits::default());
    let app = Router::new()
        .route("/", get(home))
        .route("/me", get(me))
        .route("/login", post(login))
        .route("/logout", post(logout))
        .route("/cart", post(add))
        .with_state(place.member.instance())
        .layer(SessionLayer::new(sessions, place.keys));
    common::serve(listen, app).await
}

async fn home(State(instance): Shop, session: Session) -> Result<Html<String>, SessionError> {
    let name: Option<String> = session.get(NAME).await?;
    let cart: Cart = session.get(CART).await?.unwrap_or_default();
    Ok(Html(page::page(&instance.borrow(), name.as_deref(), &cart)))
}

/// The same for programs, with where it came from.
async fn me(State(instance): Shop, session: Session) -> Result<Json<Value>, SessionError> {
    let instance = instance.borrow().clone();
    let Some(seen) = session.seen().await? else {
        return Ok(Json(json!({ "server": instance.name, "epoch": instance.epoch })));
    };
    Ok(Json(json!({
        "server": instance.name,
        "epoch": seen.owner.epoch,
        "session": seen.id.to_string(),
        "version": seen.record.version,
        "source": session.source().map(|source| source.name()),
        "state": seen.record.state,
    })))
}

#[derive(Deserialize)]
struct Login {
    name: String,
}

async fn login(session: Session, Form(login): Form<Login>) -> Result<Redirect, SessionError> {
    // Whoever knew the session's id before does not know this one.
    session.renew().await?;
    session.set(NAME, login.name.trim()).await?;
    Ok(Redirect::to("/"))
}

async fn logout(session: Session) -> Result<Redirect, SessionError> {
    session.end().await?;
    Ok(Redirect::to("/"))
}

#[derive(Deserialize)]
struct Order {
    good: String,
}

async fn add(session: Session, Form(order): Form<Order>) -> Result<Redirect, SessionError> {
    session.update(move |state| put_in(state, &order.good)).await?;
    Ok(Redirect::to("/"))
}

/// May be called several times, each time with the state as it is by then.
fn put_in(state: &mut SessionState, good: &str) -> Result<(), Refusal> {
    if !GOODS.iter().any(|(name, _)| *name == good) {
        return Err(Refusal::Invalid(format!("{good:?} is not sold here")));
    }
    let mut cart: Cart = state.get_as(CART).ok().flatten().unwrap_or_default();
    let pieces = cart.entry(good.to_owned()).or_default();
    if *pieces == MAX_PIECES {
        return Err(Refusal::Unfit(format!(
            "{MAX_PIECES} of {good} are in the cart, which is all there are"
        )));
    }
    *pieces += 1;
    state.set_as(CART, &cart).map_err(|error| Refusal::Invalid(error.to_string()))
}
