//! The cookie in which managed servers hand out tokens: its attributes stand beside the affinity.

use super::{Checker, SECOND};
use crate::config::Cookie;
use crate::config::fault::{Span, suggest};
use crate::config::raw::RawAffinity;
use crate::web::cookie::{Attribute, CookieOptions, MAX_AGE, SameSite};
use serde_spanned::Spanned;

/// As typed.
#[derive(Default)]
pub(super) struct Attributes {
    /// Of the affinity's own cookie's name, or of the affinity.
    name: Span,
    secure: Option<Spanned<bool>>,
    domain: Option<Spanned<String>>,
    path: Option<Spanned<String>>,
    max_age: Option<Spanned<String>>,
    same_site: Option<Spanned<String>>,
}

impl Attributes {
    pub(super) fn of(raw: Option<&Spanned<RawAffinity>>) -> Self {
        let Some(raw) = raw else { return Self::default() };
        let (span, raw) = (raw.span(), raw.get_ref());
        Self {
            name: raw.cookie.as_ref().map_or(span, Spanned::span),
            secure: raw.secure.clone(),
            domain: raw.domain.clone(),
            path: raw.path.clone(),
            max_age: raw.max_age.clone(),
            same_site: raw.same_site.clone(),
        }
    }
}

impl Checker<'_, '_> {
    /// The cookie of that name, if browsers take it.
    pub(super) fn cookie(&mut self, raw: Attributes, name: &str) -> Cookie {
        let faults = self.faults.len();
        let mut options = CookieOptions::named(name)
            .with_secure(raw.secure.as_ref().is_some_and(|secure| *secure.get_ref()))
            .with_same_site(self.same_site(raw.same_site.as_ref()));
        if raw.max_age.is_some() {
            options =
                options.with_max_age(Some(self.duration(&raw.max_age, "max_age", SECOND..=MAX_AGE, MAX_AGE)));
        }
        if let Some(domain) = &raw.domain {
            options = options.with_domain(domain.get_ref());
        }
        if let Some(path) = &raw.path {
            options = options.with_path(path.get_ref());
        }
        for error in options.errors() {
            let text = |raw: &Option<Spanned<String>>| raw.as_ref().map(Spanned::span);
            let span = match error.attribute {
                Attribute::Name => None,
                Attribute::Path => text(&raw.path),
                Attribute::Domain => text(&raw.domain),
                Attribute::MaxAge => text(&raw.max_age),
                Attribute::SameSite => text(&raw.same_site),
            };
            self.faults.push(span.unwrap_or(raw.name.clone()), error.reason, error.help);
        }
        match options.build() {
            Ok(cookie) if self.faults.len() == faults => cookie,
            _ => Cookie::default(),
        }
    }

    fn same_site(&mut self, raw: Option<&Spanned<String>>) -> SameSite {
        let Some(raw) = raw else { return SameSite::Lax };
        match raw.get_ref().as_str() {
            "strict" => SameSite::Strict,
            "lax" => SameSite::Lax,
            "none" => SameSite::None,
            other => {
                let help = suggest(other, &["strict", "lax", "none"]);
                self.faults.push(raw.span(), format!("`{other}` is no value of `same_site`"), help);
                SameSite::Lax
            }
        }
    }

    /// Where nobody sets a cookie on our behalf, attributes would be silently without effect.
    pub(super) fn no_cookie(&mut self, raw: &Attributes) -> Cookie {
        let text = |raw: &Option<Spanned<String>>| raw.as_ref().map(Spanned::span);
        let all = [
            ("secure", raw.secure.as_ref().map(Spanned::span)),
            ("domain", text(&raw.domain)),
            ("path", text(&raw.path)),
            ("max_age", text(&raw.max_age)),
            ("same_site", text(&raw.same_site)),
        ];
        for (key, span) in all.into_iter().filter_map(|(key, span)| Some((key, span?))) {
            let help = "it belongs to the cookie of HTTP servers that lbd runs: this service has none with managed = true";
            self.faults.push(span, format!("`{key}` has no meaning here"), help);
        }
        Cookie::default()
    }
}
