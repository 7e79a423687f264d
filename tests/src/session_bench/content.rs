//! What a session holds here, the same for all that are compared: a visitor, a cart of five things, a secret.

use serde::{Deserialize, Serialize};

pub(super) const VISITOR: &str = "visitor";
pub(super) const CART: &str = "cart";
pub(super) const SECRET: &str = "csrf";

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct Visitor {
    pub(super) number: u64,
    pub(super) name: String,
    pub(super) language: String,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct Item {
    pub(super) sku: String,
    pub(super) quantity: u32,
}

/// All of it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct Content {
    pub(super) visitor: Visitor,
    pub(super) cart: Vec<Item>,
    pub(super) csrf: String,
}

impl Content {
    pub(super) fn new(number: u64) -> Self {
        let skus = ["teapot-418", "mug-blue", "kettle-1l", "tea-assam-250", "spoon-set"];
        Self {
            visitor: Visitor { number, name: format!("Visitor {number}"), language: "en-GB".into() },
            cart: skus.map(|sku| Item { sku: sku.into(), quantity: 1 + (number % 7) as u32 }).into(),
            csrf: format!("{:032x}", u128::from(number) * 0x9e37_79b9_7f4a_7c15),
        }
    }
}
