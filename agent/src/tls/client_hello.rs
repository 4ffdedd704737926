//! Sans-IO reader of the ClientHello: found, not TLS, need more.
//!
//! Pure: bytes in, an answer out. The answer to a prefix is [`Hello::NeedMore`] until it is final, and more
//! bytes never change a final one, so a caller may read in any pieces. Only what routing needs is read; the
//! handshake itself is rustls', which parses the same bytes again and has to agree on the name
//! (`tls::downstream`).
//!
//! Formats: RFC 8446 sections 4.1.2 (ClientHello) and 5.1 (records), RFC 6066 section 3 (server_name),
//! RFC 7301 (ALPN).

#[cfg(test)]
mod tests;

use std::borrow::Cow;

use crate::addr::{HostName, HostNameError};

/// Bytes on the wire within which every answer is final: the largest hello with all its headers.
pub const MAX_BYTES: usize = MAX_HELLO + 4 + MAX_RECORDS * 5;
/// Largest hello that is read: post-quantum key shares make them some 2 KiB, nothing honest comes near this.
pub const MAX_HELLO: usize = 64 * 1024;
/// A hello may be cut into records at will; more than this serve nobody.
const MAX_RECORDS: usize = 256;
/// RFC 8446 section 5.1.
const MAX_RECORD: usize = 1 << 14;

const CONTENT_HANDSHAKE: u8 = 22;
const HANDSHAKE_CLIENT_HELLO: u8 = 1;
const EXTENSION_SERVER_NAME: u16 = 0;
const EXTENSION_ALPN: u16 = 16;
/// RFC 9849; also sent as decoy (GREASE), which can't be told apart from outside.
const EXTENSION_ECH: u16 = 0xfe0d;

/// What the first bytes of a connection say.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Hello {
    /// A whole ClientHello.
    Found(ClientHello),
    /// These bytes don't begin a TLS handshake.
    NotTls,
    /// So far it may be one.
    NeedMore,
    /// Over [`MAX_HELLO`], or in too many records.
    TooLarge,
    /// It begins like one and then breaks the format.
    Malformed,
}

/// What routing needs of a ClientHello.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ClientHello {
    /// The server's name; `None` if there is no such extension or it holds an IP address (which RFC 6066
    /// forbids and rustls ignores too).
    pub sni: Option<HostName>,
    /// The application protocols on offer.
    pub alpn: Alpn,
    /// The encrypted_client_hello extension is there, real or as a decoy.
    pub ech: bool,
}

/// The application protocols that a client offers.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Alpn {
    /// `http/1.1`.
    pub http1: bool,
    /// `h2`.
    pub http2: bool,
    /// Anything else.
    pub other: bool,
}

impl Alpn {
    /// No ALPN extension at all, as simple HTTP/1.1 clients do.
    #[must_use]
    pub fn is_empty(self) -> bool {
        !(self.http1 || self.http2 || self.other)
    }
}

/// Reads the beginning of a connection.
#[must_use]
pub fn parse(bytes: &[u8]) -> Hello {
    match message(bytes) {
        Ok(message) => client_hello(&message).map_or(Hello::Malformed, Hello::Found),
        Err(answer) => answer,
    }
}

/// The body of the handshake message, out of its records; or the answer, if there is no whole one.
///
/// A record need not be whole for its beginning to show that the message is none of ours.
fn message(bytes: &[u8]) -> Result<Cow<'_, [u8]>, Hello> {
    let mut rest = bytes;
    let mut joined = Cow::Borrowed([].as_slice());
    for nth in 0..MAX_RECORDS {
        let (payload, whole) = record(&mut rest).map_err(|answer| {
            if nth > 0 && answer == Hello::NotTls {
                Hello::Malformed
            } else {
                answer
            }
        })?;
        if joined.is_empty() {
            joined = Cow::Borrowed(payload);
        } else {
            joined.to_mut().extend_from_slice(payload);
        }
        if let Some(length) = body_length(&joined)?
            && let Some(end) = length.checked_add(4).filter(|end| *end <= joined.len())
        {
            return Ok(match joined {
                Cow::Borrowed(message) => message.get(4..end).unwrap_or_default().into(),
                Cow::Owned(message) => message.get(4..end).unwrap_or_default().to_vec().into(),
            });
        }
        if !whole {
            return Err(Hello::NeedMore);
        }
    }
    Err(Hello::TooLarge)
}

/// What is there of the next record's payload, taken off `rest`, and whether it is all.
fn record<'a>(rest: &mut &'a [u8]) -> Result<(&'a [u8], bool), Hello> {
    match *rest {
        [kind, ..] if *kind != CONTENT_HANDSHAKE => return Err(Hello::NotTls),
        [_, major, ..] if *major != 3 => return Err(Hello::NotTls),
        _ => {}
    }
    let Some((&[_, _, _, high, low], after)) = rest.split_first_chunk() else {
        return Err(Hello::NeedMore);
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length == 0 || length > MAX_RECORD {
        return Err(Hello::Malformed);
    }
    let (payload, after) = after.split_at(length.min(after.len()));
    *rest = after;
    Ok((payload, payload.len() == length))
}

/// The body's announced length, once the message's first four bytes are there.
fn body_length(message: &[u8]) -> Result<Option<usize>, Hello> {
    if message
        .first()
        .is_some_and(|kind| *kind != HANDSHAKE_CLIENT_HELLO)
    {
        return Err(Hello::Malformed);
    }
    let Some(&[_, high, middle, low]) = message.first_chunk() else {
        return Ok(None);
    };
    match usize::try_from(u32::from_be_bytes([0, high, middle, low])) {
        Ok(length) if length <= MAX_HELLO => Ok(Some(length)),
        Ok(_) | Err(_) => Err(Hello::TooLarge),
    }
}

/// `None` if the body breaks the format.
fn client_hello(body: &[u8]) -> Option<ClientHello> {
    let mut body = Reader(body);
    body.take(2 + 32)?;
    let session_id = body.vector8()?;
    let suites = body.vector16()?.0;
    let compressions = body.vector8()?.0;
    let well_formed = session_id.0.len() <= 32
        && suites.len() >= 2
        && suites.len().is_multiple_of(2)
        && !compressions.is_empty();
    if !well_formed {
        return None;
    }
    // Clients from before TLS 1.2 may have no extensions at all.
    if body.0.is_empty() {
        return Some(ClientHello {
            sni: None,
            alpn: Alpn::default(),
            ech: false,
        });
    }
    let extensions = body.vector16()?;
    body.end()?;
    read_extensions(extensions)
}

fn read_extensions(mut extensions: Reader<'_>) -> Option<ClientHello> {
    let (mut sni, mut alpn, mut ech) = (None, None, None);
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let data = extensions.vector16()?;
        // Twice the same is forbidden, and which one counts would be anybody's guess.
        let twice = match kind {
            EXTENSION_SERVER_NAME => sni.replace(server_name(data)?).is_some(),
            EXTENSION_ALPN => alpn.replace(protocols(data)?).is_some(),
            EXTENSION_ECH => ech.replace(()).is_some(),
            _ => false,
        };
        if twice {
            return None;
        }
    }
    Some(ClientHello {
        sni: sni.flatten(),
        alpn: alpn.unwrap_or_default(),
        ech: ech.is_some(),
    })
}

/// The outer `None` is a broken format, the inner one an IP address.
fn server_name(mut extension: Reader<'_>) -> Option<Option<HostName>> {
    let mut list = extension.vector16()?;
    extension.end()?;
    // Only host_name (0) was ever defined, and at most one name of a kind may be there.
    if list.u8()? != 0 {
        return None;
    }
    let name = list.vector16()?.0;
    list.end()?;
    match HostName::parse(std::str::from_utf8(name).ok()?) {
        Ok(name) => Some(Some(name)),
        Err(HostNameError::IpAddress) => Some(None),
        Err(HostNameError::Empty | HostNameError::TooLong | HostNameError::Label) => None,
    }
}

fn protocols(mut extension: Reader<'_>) -> Option<Alpn> {
    let mut list = extension.vector16()?;
    extension.end()?;
    let mut alpn = Alpn::default();
    while !list.0.is_empty() {
        match list.vector8()?.0 {
            b"" => return None,
            b"http/1.1" => alpn.http1 = true,
            b"h2" => alpn.http2 = true,
            _ => alpn.other = true,
        }
    }
    (!alpn.is_empty()).then_some(alpn)
}

/// Takes bytes off the front, or nothing.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }
    fn u8(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }
    fn u16(&mut self) -> Option<u16> {
        self.take(2)?.first_chunk().copied().map(u16::from_be_bytes)
    }
    /// A vector with its length in one byte.
    fn vector8(&mut self) -> Option<Self> {
        let length = self.u8()?;
        self.take(length.into()).map(Self)
    }
    /// A vector with its length in two bytes.
    fn vector16(&mut self) -> Option<Self> {
        let length = self.u16()?;
        self.take(length.into()).map(Self)
    }
    fn end(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}
