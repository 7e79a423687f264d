//! A shopping cart over the session's state: the demonstration of what the state is good for.

use super::Client;
use super::http::{App, Origin, Shared, bad_path, read, terms};
use super::once::once;
use super::reply::Fault;
use crate::session::{Changed, Refusal, Seen, SessionError, State as SessionState, Target};
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Method, Uri};
use axum::response::Response;
use axum::{Extension, Json};
use lb_common::token::Token;
use serde::{Deserialize, Serialize};
use std::sync::OnceLock;

/// Key of the session's state.
const KEY: &str = "cart";
const MAX_QUANTITY: u32 = 999;
const MAX_SKU: usize = 64;

/// What the shop sells. A cart may hold other things as well; they have no name and no price here.
#[derive(Serialize)]
struct Product {
    sku: &'static str,
    name: &'static str,
    about: &'static str,
    /// Hundredths.
    price: u32,
    hue: u16,
}

const PRODUCTS: [Product; 6] = [
    Product { sku: "teapot", name: "Teapot 418", about: "Refuses to brew coffee.", price: 4180, hue: 18 },
    Product { sku: "kettle", name: "Kernel kettle", about: "Boils before you ask.", price: 6400, hue: 205 },
    Product { sku: "mug", name: "Maglev mug", about: "Hovers 2 mm above the table.", price: 1275, hue: 265 },
    Product { sku: "honey", name: "Bee honey", about: "From extended hives.", price: 890, hue: 42 },
    Product {
        sku: "biscuit",
        name: "Cookie, signed",
        about: "Cannot be forged. Contains nuts.",
        price: 350,
        hue: 96,
    },
    Product {
        sku: "spoon",
        name: "Splicing spoon",
        about: "Joins two halves of sugar.",
        price: 520,
        hue: 335,
    },
];

/// One line of the cart, as stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Item {
    sku: String,
    quantity: u32,
}

/// What `POST /cart/items` takes.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    sku: String,
    #[serde(default = "one")]
    quantity: u32,
}

fn one() -> u32 {
    1
}

#[derive(Serialize)]
struct CartView {
    #[serde(flatten)]
    origin: Origin,
    items: Vec<ItemView>,
    /// Pieces in the cart.
    count: u64,
    /// Price of what has one, in hundredths.
    total: u64,
}

#[derive(Serialize)]
struct ItemView {
    #[serde(flatten)]
    item: Item,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    price: Option<u32>,
}

pub(super) async fn show(State(app): Shared, headers: HeaderMap) -> Result<Response, Fault> {
    let read = app.read(&headers).await?;
    let items = items(&read.seen.record.state)?;
    Ok(read.answer(&app, || view(&app, &read.seen, items)))
}

pub(super) async fn add(
    State(app): Shared,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    client: Extension<Client>,
    body: Body,
) -> Result<Response, Fault> {
    super::origin::json(&headers)?;
    let token = app.token(&headers);
    let text = read(body, app.sessions.limits().max_value_bytes, "max_value_bytes").await?;
    let order: Order = serde_json::from_slice(&text).map_err(|error| {
        Fault::bad_request(
            format!("the body is not an order: {error}"),
            r#"send JSON like {"sku": "teapot", "quantity": 1}"#,
        )
    })?;
    if order.sku.is_empty() || order.sku.len() > MAX_SKU || order.sku.chars().any(char::is_control) {
        return Err(Fault::bad_request(
            format!("a sku has 1 to {MAX_SKU} bytes and no control characters"),
            "the page / shows what is sold here",
        ));
    }
    let once = once(&headers, &method, &uri, &text, Some(KEY))?;
    let terms = terms(&headers, Target::Session, once, client)?;
    let written = app.sessions.write_on(token, terms, move |state| put_in(state, &order)).await;
    answer(&app, token, written)
}

pub(super) async fn remove(
    State(app): Shared,
    sku: Result<Path<String>, PathRejection>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    client: Extension<Client>,
) -> Result<Response, Fault> {
    let Path(sku) = sku.map_err(bad_path)?;
    let token = app.token(&headers);
    let once = once(&headers, &method, &uri, b"", Some(KEY))?;
    let terms = terms(&headers, Target::Session, once, client)?;
    let written = app.sessions.write_on(token, terms, move |state| take_out(state, &sku)).await;
    answer(&app, token, written)
}

/// Answers with the cart after a change.
fn answer(
    app: &App,
    token: Option<Token>,
    written: Result<Changed, SessionError>,
) -> Result<Response, Fault> {
    let changed = written.map_err(|error| app.fault(token, error))?;
    let items = items(&changed.seen.record.state)?;
    Ok(app.changed(token, &changed, view(app, &changed.seen, items)))
}

/// The page that uses all this, with what is sold filled in.
pub(super) fn page() -> &'static str {
    static PAGE: OnceLock<String> = OnceLock::new();
    PAGE.get_or_init(|| {
        let products = serde_json::to_string(&PRODUCTS).expect("strings and numbers are JSON");
        include_str!("shop.html").replace("/*PRODUCTS*/[]", &products)
    })
}

fn put_in(state: &mut SessionState, order: &Order) -> Result<(), Refusal> {
    let mut items = items(state)?;
    let line = match items.iter_mut().position(|item| item.sku == order.sku) {
        Some(at) => &mut items[at],
        None => {
            items.push(Item { sku: order.sku.clone(), quantity: 0 });
            items.last_mut().expect("an item was just added")
        }
    };
    line.quantity = line
        .quantity
        .checked_add(order.quantity)
        .filter(|quantity| order.quantity > 0 && *quantity <= MAX_QUANTITY)
        .ok_or_else(|| {
            Refusal::Invalid(format!(
                "the cart would hold {} + {} of {:?}: add 1 or more, up to {MAX_QUANTITY} in all",
                line.quantity, order.quantity, order.sku
            ))
        })?;
    store(state, &items)
}

fn take_out(state: &mut SessionState, sku: &str) -> Result<(), Refusal> {
    let mut items = items(state)?;
    let before = items.len();
    items.retain(|item| item.sku != sku);
    if items.len() == before {
        return Err(Refusal::NotFound(format!("the cart has no {sku:?}")));
    }
    store(state, &items)
}

fn items(state: &SessionState) -> Result<Vec<Item>, Refusal> {
    state.get_as(KEY).map(Option::unwrap_or_default).map_err(|error| {
        Refusal::Unfit(format!("the value of {KEY:?} in this session is not a cart: {error}"))
    })
}

fn store(state: &mut SessionState, items: &[Item]) -> Result<(), Refusal> {
    state.set_as(KEY, &items).map_err(|error| Refusal::Invalid(error.to_string()))
}

fn view(app: &App, seen: &Seen, items: Vec<Item>) -> Json<CartView> {
    let items: Vec<_> = items
        .into_iter()
        .map(|item| {
            let product = PRODUCTS.iter().find(|product| product.sku == item.sku);
            ItemView { name: product.map(|p| p.name), price: product.map(|p| p.price), item }
        })
        .collect();
    Json(CartView {
        origin: Origin::new(app, seen),
        count: items.iter().map(|view| u64::from(view.item.quantity)).sum(),
        total: items
            .iter()
            .filter_map(|view| Some(u64::from(view.price?) * u64::from(view.item.quantity)))
            .sum(),
        items,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(sku: &str, quantity: u32) -> Order {
        Order { sku: sku.into(), quantity }
    }

    #[test]
    fn the_same_thing_twice_is_one_line() {
        let mut state = SessionState::default();
        put_in(&mut state, &order("mug", 2)).unwrap();
        put_in(&mut state, &order("own", 1)).unwrap();
        put_in(&mut state, &order("mug", 3)).unwrap();
        let expected = [("mug", 5), ("own", 1)].map(|(sku, quantity)| Item { sku: sku.into(), quantity });
        assert_eq!(items(&state).unwrap(), expected);
        take_out(&mut state, "mug").unwrap();
        assert_eq!(items(&state).unwrap(), expected[1..]);
        assert!(matches!(take_out(&mut state, "mug"), Err(Refusal::NotFound(_))));
    }

    #[test]
    fn quantities_have_bounds_and_nothing_is_stored_past_them() {
        let mut state = SessionState::default();
        for quantity in [0, 1000, u32::MAX] {
            assert!(matches!(put_in(&mut state, &order("mug", quantity)), Err(Refusal::Invalid(_))));
        }
        put_in(&mut state, &order("mug", 999)).unwrap();
        assert!(matches!(put_in(&mut state, &order("mug", 1)), Err(Refusal::Invalid(_))));
        assert_eq!(items(&state).unwrap()[0].quantity, 999);
    }

    #[test]
    fn a_value_that_is_no_cart_is_left_alone() {
        let mut state = SessionState::default();
        state.set_as(KEY, &"mine").unwrap();
        assert!(matches!(put_in(&mut state, &order("mug", 1)), Err(Refusal::Unfit(_))));
        assert_eq!(state.get(KEY).unwrap().get(), "\"mine\"");
    }

    #[test]
    fn the_page_has_the_products_and_needs_nothing_else() {
        let page = page();
        assert!(page.contains("Teapot 418") && !page.contains("/*PRODUCTS*/"));
        assert!(!page.contains("http://") && !page.contains("https://") && !page.contains("src="));
    }
}
