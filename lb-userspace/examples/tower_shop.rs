//! The same shop as `shop.rs`, as it would be if it had been written for tower-sessions: the two lines that bring its
//! sessions home are marked.
//!
//! ```sh
//! cargo run -p lb-userspace --example tower_shop -- --store sled:/tmp/shop
//! ```

mod common;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{Html, Redirect};
use axum::routing::{get, post};
use axum::{Form, Json, Router};
use clap::Parser;
use common::page::{self, Cart, GOODS, MAX_PIECES};
use lb_userspace::session::{Instance, Limits};
use lb_userspace::web::tower_sessions::{AffinityLayer, LbStore};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;
use tower_sessions::session::Error;
use tower_sessions::{Session, SessionManagerLayer};

const NAME: &str = "name";
const CART: &str = "cart";

type Shop = State<watch::Receiver<Instance>>;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let place = common::Options::parse().open().await?;
    let listen = place.listen();
    // In place of the store that it had before...
    let store = LbStore::new(place.member.sessions(Limits::default()));
    let sessions = SessionManagerLayer::new(store.clone()).with_secure(false);
    let app = Router::new()
        .route("/", get(home))
        .route("/me", get(me))
        .route("/login", post(login))
        .route("/logout", post(logout))
        .route("/cart", post(add))
        .with_state(place.member.instance())
        // ...and in place of `.layer(sessions)`.
        .layer(AffinityLayer::new(sessions, &store, place.keys));
    common::serve(listen, app).await
}

async fn home(State(instance): Shop, session: Session) -> Result<Html<String>, StatusCode> {
    let name: Option<String> = session.get(NAME).await.map_err(failed)?;
    let cart: Cart = session.get(CART).await.map_err(failed)?.unwrap_or_default();
    Ok(Html(page::page(&instance.borrow(), name.as_deref(), &cart)))
}

/// The same for programs.
async fn me(State(instance): Shop, session: Session) -> Result<Json<Value>, StatusCode> {
    let name: Option<String> = session.get(NAME).await.map_err(failed)?;
    let cart: Cart = session.get(CART).await.map_err(failed)?.unwrap_or_default();
    let instance = instance.borrow().clone();
    Ok(Json(json!({
        "server": instance.name,
        "epoch": instance.epoch,
        "session": session.id().map(|id| id.to_string()),
        "state": { NAME: name, CART: cart },
    })))
}

#[derive(Deserialize)]
struct Login {
    name: String,
}

async fn login(session: Session, Form(login): Form<Login>) -> Result<Redirect, StatusCode> {
    session.cycle_id().await.map_err(failed)?;
    session.insert(NAME, login.name.trim()).await.map_err(failed)?;
    Ok(Redirect::to("/"))
}

async fn logout(session: Session) -> Result<Redirect, StatusCode> {
    session.flush().await.map_err(failed)?;
    Ok(Redirect::to("/"))
}

#[derive(Deserialize)]
struct Order {
    good: String,
}

async fn add(session: Session, Form(order): Form<Order>) -> Result<Redirect, StatusCode> {
    if !GOODS.iter().any(|(name, _)| *name == order.good) {
        return Err(StatusCode::BAD_REQUEST);
    }
    let mut cart: Cart = session.get(CART).await.map_err(failed)?.unwrap_or_default();
    let pieces = cart.entry(order.good).or_default();
    if *pieces == MAX_PIECES {
        return Err(StatusCode::CONFLICT);
    }
    *pieces += 1;
    session.insert(CART, cart).await.map_err(failed)?;
    Ok(Redirect::to("/"))
}

/// The layer makes it 503, 409 and so on where that is the cause.
fn failed(error: Error) -> StatusCode {
    tracing::warn!(%error, "session request failed");
    StatusCode::INTERNAL_SERVER_ERROR
}
