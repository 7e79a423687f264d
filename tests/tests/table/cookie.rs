//! Finding the token in a first payload: wherever the cookie stands, and nowhere else.

use anyhow::Result;
use lb_common::counter::Counter;
use lb_common::token::TOKEN_TEXT_LEN;
use tests::scene::Scene;
use tests::table::{steer, steer_all, with_header, with_token};

/// RFC 9110 §5.1 and RFC 6265 §4.2: header names in any case, cookies in any order.
#[test]
fn the_cookie_is_found_wherever_it_stands() -> Result<()> {
    let mut scene = Scene::new(4)?;
    let token = scene.runner.setup.token(2, 7);
    let other = scene.runner.setup.token(3, 7);
    let long = "a".repeat(900);
    let found = [
        format!("Cookie: lb={token}"),
        format!("cookie: lb={token}"),
        format!("COOKIE: lb={token}"),
        format!("cOOkiE:lb={token}"),
        format!("Cookie:  \tlb={token}"),
        format!("Cookie: a=b; lb={token}"),
        format!("Cookie: lb={token}; a=b"),
        format!("Cookie: a=b;lb={token};c=d"),
        format!("Cookie: xlb=1; lbx=2; l=b; b=lb; lb={token}"),
        format!("Cookie: xlb={other}; lb={token}"),
        format!("Cookie: a=lb={other}; lb={token}"),
        format!("Cookie: x={long}; lb={token}"),
        format!("X-Long: {long}\r\nCookie: lb={token}"),
        format!("X-Cookie: lb={other}\r\nCookie: lb={token}"),
        format!("Cookies: lb={other}\r\nCookie: lb={token}"),
        format!("C: 1\r\nCo: 2\r\nCookie: lb={token}"),
        format!("C:\r\nCookie: lb={token}"),
        format!("X: {}\r\nCookie: lb={token}", "c00k".repeat(30)),
        format!("Cookie: {}lb={token}", "b=1; ".repeat(60)),
    ];
    for line in found {
        let steered = steer(&mut scene, &with_header(&line))?;
        assert_eq!(
            (steered.counted, steered.slot),
            (vec![Counter::AffinityHit, Counter::Bound], 2),
            "{line}"
        );
    }
    for pad in 0..17 {
        let line = format!("X: {}\r\nCookie: {}=1; lb={token}", "p".repeat(pad), "q".repeat(17 - pad));
        assert_eq!(steer(&mut scene, &with_header(&line))?.slot, 2, "{line}");
    }
    Ok(())
}

#[test]
fn what_is_not_the_cookie_is_not_taken_for_it() -> Result<()> {
    let mut scene = Scene::new(4)?;
    let token = scene.runner.setup.token(2, 7);
    let cut = &token[..TOKEN_TEXT_LEN - 1];
    let absent = [
        format!("X-Cookie: lb={token}"),
        format!("Cookie2: lb={token}"),
        format!("Cookie: xlb={token}"),
        format!("Cookie: a=b\r\nX: lb={token}"),
        format!("Referer: http://shop/?Cookie: lb={token}"),
    ];
    for line in absent {
        let steered = steer(&mut scene, &with_header(&line))?;
        assert_eq!(steered.counted, [Counter::NewSession, Counter::Bound], "{line}");
    }
    // The segment ends within the token: nothing that a former request left in memory may complete it.
    let whole = with_token(&token);
    steer(&mut scene, &whole)?;
    let end =
        whole.windows(token.len()).position(|w| w == token.as_bytes()).expect("it is there") + cut.len();
    let steered = steer_all(&mut scene, &whole[..end])?;
    let counted = [Counter::NewSession, Counter::Bound, Counter::HeadIncomplete];
    assert_eq!(steered.counted, counted, "cut short");
    Ok(())
}

#[test]
fn any_first_payload_is_steered() -> Result<()> {
    let mut scene = Scene::new(4)?;
    for len in [1, 2, 3, 7, 8, 9, 15, 16, 17, 500, 1446, 1447] {
        for byte in [b'\n', b'C', b'=', 0, 0xff] {
            let steered = steer_all(&mut scene, &vec![byte; len])?;
            // What does not begin as a request does is not waited for.
            let expected = [Counter::NewSession, Counter::Bound, Counter::HeadIncomplete];
            // Empty lines before a request are passed over, but not any number of them.
            let may_go_on = byte == b'C' || byte == b'\n' && len < 8;
            let expected = &expected[..if may_go_on { 3 } else { 2 }];
            assert_eq!(steered.counted, expected, "{len} times {byte}");
        }
    }
    Ok(())
}

#[test]
fn another_cookie_name_is_another_cookie() -> Result<()> {
    let mut scene = Scene::new(4)?;
    let token = scene.runner.setup.token(2, 7);
    for name in ["s", "session", "fifteen-letters"] {
        scene.runner.change(|setup| assert!(setup.services[0].set_cookie_name(name)))?;
        let line = format!("Cookie: lb={token}; x{name}={token}; {name}={token}");
        assert_eq!(steer(&mut scene, &with_header(&line))?.slot, 2, "{line}");
        let counted = steer(&mut scene, &with_token(&token))?.counted;
        assert_eq!(counted, [Counter::NewSession, Counter::Bound], "{name}");
    }
    Ok(())
}
