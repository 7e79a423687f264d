//! TLS ClientHellos (RFC 8446 §4.1.2), written out by hand.

/// A ClientHello for a name, as curl's begins.
pub fn asks_for(name: &str) -> Vec<u8> {
    hello(32, &[grease(3), server_name(name), grease(40)])
}

/// An extension.
pub fn extension(kind: u16, body: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes(), &(body.len() as u16).to_be_bytes(), body].concat()
}

/// The extension that names the server (RFC 6066 §3).
pub fn server_name(name: &str) -> Vec<u8> {
    let entry = [&[0][..], &(name.len() as u16).to_be_bytes(), name.as_bytes()].concat();
    extension(0, &[&(entry.len() as u16).to_be_bytes(), &entry[..]].concat())
}

/// A ClientHello in one record, with a session id of that length and these extensions.
pub fn hello(session: usize, extensions: &[Vec<u8>]) -> Vec<u8> {
    let extensions = extensions.concat();
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.push(session as u8);
    body.extend(vec![9; session]);
    body.extend([0, 4, 0x13, 1, 0x13, 2, 1, 0]);
    body.extend((extensions.len() as u16).to_be_bytes());
    body.extend(extensions);
    let message = [&[1, 0][..], &(body.len() as u16).to_be_bytes(), &body].concat();
    [&[22, 3, 1][..], &(message.len() as u16).to_be_bytes(), &message].concat()
}

/// An extension of that many bytes that says nothing (RFC 8701).
pub fn grease(len: usize) -> Vec<u8> {
    extension(0x1a1a, &vec![5; len])
}

/// The same message in records of these lengths, and the rest in one more (RFC 8446 §5.1).
pub fn in_records(hello: &[u8], lens: &[usize]) -> Vec<u8> {
    let (mut rest, mut records) = (&hello[5..], Vec::new());
    let mut lens = lens.iter();
    while !rest.is_empty() {
        let len = lens.next().map_or(rest.len(), |len| *len).min(rest.len());
        let (record, behind) = rest.split_at(len);
        records.extend(&hello[..3]);
        records.extend((len as u16).to_be_bytes());
        records.extend(record);
        rest = behind;
    }
    records
}
