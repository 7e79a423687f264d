//! Which cookie a response deletes, and which it leaves (RFC 6265 §5.3): those of one name and another path or domain live on.

use anyhow::Result;
use lb_common::counter::Counter;
use tests::frame::PSH;
use tests::learned::{NAME, connect, counted, forget, head, homes, respond, scene, tag_of};
use tests::scene::Scene;

/// A request for a path, with a cookie or without.
fn get(path: &str, cookie: Option<&str>) -> Vec<u8> {
    let line = cookie.map_or(String::new(), |value| format!("Cookie: {NAME}={value}\r\n"));
    format!("GET {path} HTTP/1.1\r\nHost: shop\r\n{line}\r\n").into_bytes()
}

/// A session begins with these attributes, in answer to a request for a path, and is deleted with others in answer to another. Whether
/// it was forgotten.
fn is_forgotten(scene: &mut Scene, set: (&str, &str), delete: (&str, &str)) -> Result<bool> {
    let (slot, _) = connect(scene, &get(set.0, None))?;
    respond(scene, slot, &[&head(&[&format!("Set-Cookie: {NAME}=live{}", set.1)])])?;
    assert_eq!(homes(scene)?, [(tag_of(scene, "live"), slot)], "{set:?}");
    assert_eq!(connect(scene, &get(delete.0, Some("live")))?, (slot, Counter::AffinityHit));
    respond(scene, slot, &[&head(&[&format!("Set-Cookie: {NAME}=x{}", delete.1)])])?;
    let known = homes(scene)?;
    let forgotten = !known.contains(&(tag_of(scene, "live"), slot));
    assert!(!known.iter().any(|(tag, _)| *tag == tag_of(scene, "x")), "{delete:?} is no session");
    forget(scene)?;
    Ok(forgotten)
}

#[test]
fn a_deletion_of_another_path_or_domain_forgets_nobody() -> Result<()> {
    let mut scene = scene(2)?;
    let rows = [
        // Where it was set, and where it is deleted: the request's path, the attributes.
        ("/", "; Path=/", "/", "; Path=/; Max-Age=0", true),
        ("/", "", "/", "; Max-Age=0", true),
        ("/", "", "/a", "; Path=/; Max-Age=0", true),
        ("/login?to=/a/b", "", "/logout", "; Max-Age=0", true),
        ("/a/login", "; Path=/a", "/a/b/c", "; path = /a ; max-age = 0", true),
        ("/a/login", "", "/", "; Path=/a; Max-Age=0", true),
        ("http://shop/a/login", "", "/", "; Path=/a; Max-Age=0", true),
        ("/", "; Domain=.Example.org; Path=/", "/", "; domain=example.ORG; path=/; max-age=-1", true),
        ("/", "; Path=/a; Path=/", "/", "; Max-Age=0; Path=/", true),
        ("/", "; Path=relative", "/", "; Max-Age=0; Path=", true),
        ("/", "; Path=/", "/", "; Path=/auth/realms/master; Max-Age=0", false),
        ("/", "; Path=/a", "/", "; Path=/A; Max-Age=0", false),
        ("/", "; Path=/a", "/", "; Path=/a/; Max-Age=0", false),
        ("/", "; Path=/", "/old/page", "; Max-Age=0", false),
        ("/a/b", "", "/a/c/d", "; Max-Age=0", false),
        ("/", "; Domain=.example.org; Path=/", "/", "; Path=/; Max-Age=0", false),
        ("/", "; Path=/", "/", "; Path=/; Domain=example.org; Max-Age=0", false),
        ("/", "; Path=/; Domain=a.example.org", "/", "; Path=/; Domain=example.org; Max-Age=0", false),
    ];
    for (path, set, other, delete, expected) in rows {
        let forgotten = is_forgotten(&mut scene, (path, set), (other, delete))?;
        assert_eq!(forgotten, expected, "{path} {set:?}, {other} {delete:?}");
    }
    Ok(())
}

/// RFC 6265 §5.1.1, §5.2.1, §5.2.2: of several the last one counts, an age before a date; what makes no sense is not there.
#[test]
fn a_cookie_is_deleted_by_its_age_or_its_date() -> Result<()> {
    let mut scene = scene(2)?;
    let rows = [
        ("; Max-Age=0", true),
        ("; Max-Age=00", true),
        ("; Max-Age=-3600", true),
        (";\tMAX-AGE\t=\t0", true),
        ("; Max-Age=1; Max-Age=0", true),
        ("; Max-Age=0; Expires=Fri, 31 Dec 2100 23:59:59 GMT", true),
        ("; Expires=Thu, 01 Jan 1970 00:00:00 GMT", true),
        ("; expires=Thu, 01-Jan-1970 00:00:01 GMT", true),
        ("; Expires=Thursday, 01-Jan-70 00:00:00 GMT", true),
        ("; Expires=Thu Jan  1 00:00:00 1970", true),
        ("; Expires=Sun, 06 Nov 1994 08:49:37 GMT", true),
        ("; Expires=Wed, 29 Feb 2012 12:00:00 GMT", true),
        ("; Expires=Fri, 20 Nov 2026 10:00:00 GMT; Secure", true),
        ("; Expires=\"Wed, 1 Jul 2015 1:2:3 UTC\"", true),
    ];
    for (attributes, expected) in rows {
        let delete = format!("{attributes}; Path=/");
        assert_eq!(is_forgotten(&mut scene, ("/", ""), ("/", &delete))?, expected, "{attributes}");
    }
    let lives = [
        "; Max-Age=1",
        "; Max-Age=010",
        "; Max-Age=0; Max-Age=1",
        "; Max-Age=0x",
        "; Max-Age=-",
        "; Max-Age=",
        "; Max-Age",
        "; Max-Age=60; Expires=Thu, 01 Jan 1970 00:00:00 GMT",
        "; Expires=Fri, 31 Dec 2100 23:59:59 GMT",
        "; Expires=Fri, 31-Dec-60 23:59:59 GMT",
        "; Expires=0",
        "; Expires=-1",
        "; Expires=Thu, 01 Jan 1970",
        "; X-Expires=Thu, 01 Jan 1970 00:00:00 GMT",
    ];
    for attributes in lives {
        let (slot, _) = connect(&mut scene, &get("/", None))?;
        respond(&scene, slot, &[&head(&[&format!("Set-Cookie: {NAME}=v{attributes}")])])?;
        assert_eq!(homes(&scene)?, [(tag_of(&scene, "v"), slot)], "{attributes}");
        forget(&mut scene)?;
    }
    Ok(())
}

/// The head goes on in another segment.
#[test]
fn a_set_beats_a_deletion_wherever_the_head_is_cut() -> Result<()> {
    let set = format!("Set-Cookie: {NAME}=new; Path=/");
    let delete = format!("Set-Cookie: {NAME}=; Path=/; Max-Age=0");
    for lines in [[&set, &delete], [&delete, &set]] {
        let whole = head(&[lines[0], lines[1]]);
        for cut in 8..whole.len() {
            let mut scene = scene(2)?;
            let (slot, _) = connect(&mut scene, &get("/", None))?;
            respond(&scene, slot, &[&head(&[&format!("Set-Cookie: {NAME}=old; Path=/")])])?;
            assert_eq!(connect(&mut scene, &get("/", Some("old")))?.0, slot);
            let (a, b) = whole.split_at(cut);
            let counted = respond(&scene, slot, &[a, b])?.concat();
            assert!(!counted.contains(&Counter::Forgotten), "{lines:?}, cut at {cut}: {counted:?}");
            let known = homes(&scene)?;
            assert!(known.contains(&(tag_of(&scene, "new"), slot)), "{lines:?}, cut at {cut}");
            if cut % 16 != 0 {
                continue;
            }
            // Its next request presents the new one, which may be deleted by itself.
            assert_eq!(connect(&mut scene, &get("/", Some("new")))?, (slot, Counter::AffinityHit));
            let counted = respond(&scene, slot, &[&head(&[&delete])])?.concat();
            assert_eq!(counted, [Counter::Forgotten, Counter::FromBackend], "{lines:?}, cut at {cut}");
        }
    }
    Ok(())
}

/// A value that a server writes for two paths: the end of one of them is not the session's.
#[test]
fn a_session_with_two_cookies_outlives_one() -> Result<()> {
    let mut scene = scene(2)?;
    let (slot, _) = connect(&mut scene, &get("/", None))?;
    let both = [format!("Set-Cookie: {NAME}=v; Path=/a"), format!("Set-Cookie: {NAME}=v; Path=/")];
    respond(&scene, slot, &[&head(&[&both[0], &both[1]])])?;
    connect(&mut scene, &get("/", Some("v")))?;
    let delete = head(&[&format!("Set-Cookie: {NAME}=; Path=/a; Max-Age=0")]);
    assert_eq!(respond(&scene, slot, &[&delete])?, [[Counter::FromBackend]]);
    assert_eq!(homes(&scene)?, [(tag_of(&scene, "v"), slot)]);
    Ok(())
}

/// Nothing is left of the path of a request before it.
#[test]
fn each_request_of_a_connection_has_a_path_of_its_own() -> Result<()> {
    let mut scene = scene(2)?;
    let first = get("/a/b/c", None);
    let (slot, _) = connect(&mut scene, &first)?;
    respond(&scene, slot, &[&head(&[&format!("Set-Cookie: {NAME}=v; Path=/")])])?;
    let next = get("/logout", Some("v"));
    scene.xdp(&scene.segment(first.len() as u32, PSH, &next))?;
    let delete = head(&[&format!("Set-Cookie: {NAME}=; Max-Age=0")]);
    let outcome = scene.xdp(&scene.response(slot, 0, PSH, &delete))?;
    assert_eq!(counted(&outcome), [Counter::Forgotten, Counter::FromBackend]);
    Ok(())
}
