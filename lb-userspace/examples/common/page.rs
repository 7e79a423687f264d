//! The shop as its visitors see it.

use lb_userspace::session::Instance;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Pieces by name.
pub(crate) type Cart = BTreeMap<String, u32>;

/// Name and price in hundredths.
pub(crate) const GOODS: [(&str, u32); 4] =
    [("teapot", 4180), ("kettle", 6400), ("mug", 1275), ("honey", 890)];
pub(crate) const MAX_PIECES: u32 = 99;

/// Price of what has one.
pub(crate) fn total(cart: &Cart) -> u64 {
    let price = |name: &str| GOODS.iter().find(|(good, _)| *good == name).map_or(0, |(_, price)| *price);
    cart.iter().map(|(name, pieces)| u64::from(price(name)) * u64::from(*pieces)).sum()
}

pub(crate) fn page(instance: &Instance, name: Option<&str>, cart: &Cart) -> String {
    let mut goods = String::new();
    for (good, price) in GOODS {
        let price = money(u64::from(price));
        write!(
            goods,
            "<li>{good} <b>{price}</b> <form method=post action=/cart>\
             <input type=hidden name=good value={good}><button>Into the cart</button></form>"
        )
        .expect("writing to a string does not fail");
    }
    let mut lines = String::new();
    for (good, pieces) in cart {
        write!(lines, "<li>{pieces} × {}", escaped(good)).expect("writing to a string does not fail");
    }
    let greeting = match name {
        Some(name) => format!(
            "<p>Hello, {}. <form method=post action=/logout><button>Leave</button></form>",
            escaped(name)
        ),
        None => {
            "<form method=post action=/login><input name=name placeholder='Your name' required maxlength=40>\
                 <button>Come in</button></form>"
                .to_owned()
        }
    };
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>\
         <title>The little shop</title>\
         <style>body{{font:16px/1.6 system-ui,sans-serif;max-width:40rem;margin:2rem auto;padding:0 1rem}}\
         form{{display:inline}}footer{{color:#777;font-size:.85rem}}</style>\
         <h1>The little shop</h1>{greeting}<h2>Goods</h2><ul>{goods}</ul>\
         <h2>Cart</h2><ul>{lines}</ul><p>Together <b>{}</b>\
         <footer>{} answered, epoch {}</footer></html>\n",
        money(total(cart)),
        escaped(&instance.name),
        instance.epoch,
    )
}

fn money(hundredths: u64) -> String {
    format!("{}.{:02}", hundredths / 100, hundredths % 100)
}

fn escaped(text: &str) -> String {
    text.chars().fold(String::new(), |mut out, c| {
        match c {
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '&' => out += "&amp;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            c => out.push(c),
        }
        out
    })
}
