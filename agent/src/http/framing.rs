//! Where a request ends, read strictly: heads and bodies that two parsers could read differently are faults.
//!
//! Pure. hyper reads some of them in one of the two ways (RFC 9112 permits it: a bare LF, a length beside a
//! transfer coding); here they are told apart before hyper sees them.

#[cfg(test)]
mod tests;

/// What is wrong with a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fault {
    /// It is not HTTP/1.0 or 1.1, or not in one way only.
    Malformed(&'static str),
    /// Its head has more bytes or fields than the limits allow.
    TooLarge,
}

/// How much a head may have.
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    /// Bytes, request line included.
    pub bytes: usize,
    /// Fields.
    pub fields: usize,
}

/// How a body is delimited.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Framing {
    /// By its length, which may be zero.
    Length(u64),
    /// In chunks.
    Chunked,
}

/// A head that has come in whole.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Head {
    /// Its bytes, blank lines before it and the empty line after it included.
    pub bytes: usize,
    /// What follows it.
    pub framing: Framing,
}

/// Reads a head line by line as it comes in; no byte is read twice.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeadReader {
    /// Where the line begins that is not whole yet.
    position: usize,
    /// Up to where that line has been searched for its end.
    searched: usize,
    began: bool,
    http10: bool,
    fields: usize,
    length: Option<u64>,
    chunked: bool,
}

impl HeadReader {
    /// Goes on with the head that `bytes` begins with; to be called again with more of it after `None`.
    ///
    /// # Errors
    /// See [`Fault`]; the connection can carry no further request then.
    pub fn read(&mut self, bytes: &[u8], limits: HeadLimits) -> Result<Option<Head>, Fault> {
        while let Some(unread) = bytes.get(self.searched..)
            && let Some(end) = memchr::memchr(b'\n', unread)
        {
            let end = self.searched + end;
            let line = bytes.get(self.position..end);
            let line = line.and_then(|line| line.strip_suffix(b"\r"));
            let line = line.ok_or(Fault::Malformed("a line ends in a bare LF"))?;
            self.position = end + 1;
            self.searched = self.position;
            if self.position > limits.bytes {
                return Err(Fault::TooLarge);
            }
            if !line.is_empty() {
                self.line(line, limits)?;
            } else if self.began {
                return Ok(Some(Head {
                    bytes: self.position,
                    framing: self.framing()?,
                }));
            }
        }
        self.searched = bytes.len();
        if bytes.len() > limits.bytes {
            return Err(Fault::TooLarge);
        }
        Ok(None)
    }

    fn line(&mut self, line: &[u8], limits: HeadLimits) -> Result<(), Fault> {
        if self.began {
            self.fields += 1;
            if self.fields > limits.fields {
                return Err(Fault::TooLarge);
            }
            return self.field(line);
        }
        self.began = true;
        self.http10 = line.ends_with(b" HTTP/1.0");
        let mut parts = line.split(|byte| *byte == b' ');
        let method = parts.next().unwrap_or_default();
        let target = parts.next().unwrap_or_default();
        let version = parts.next().unwrap_or_default();
        let good = is_token(method)
            && is_target(target)
            && (version == b"HTTP/1.1" || self.http10)
            && parts.next().is_none();
        good.then_some(())
            .ok_or(Fault::Malformed("the request line is no HTTP/1.1 one"))
    }

    fn field(&mut self, line: &[u8]) -> Result<(), Fault> {
        if line.starts_with(b" ") || line.starts_with(b"\t") {
            return Err(Fault::Malformed("a header field is folded"));
        }
        let colon = line.iter().position(|byte| *byte == b':');
        let (name, value) = colon
            .and_then(|colon| line.split_at_checked(colon))
            .ok_or(Fault::Malformed("a header line has no colon"))?;
        if !is_token(name) {
            return Err(Fault::Malformed(
                "a header's name has a character that none can have",
            ));
        }
        let value = value.get(1..).unwrap_or_default();
        if value.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t') {
            return Err(Fault::Malformed("a header's value has a control character"));
        }
        match name.len() {
            14 if name.eq_ignore_ascii_case(b"content-length") => self.length(value.trim_ascii()),
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => self.coding(value.trim_ascii()),
            _ => Ok(()),
        }
    }

    fn length(&mut self, value: &[u8]) -> Result<(), Fault> {
        if self.length.is_some() {
            return Err(Fault::Malformed("there are two Content-Length fields"));
        }
        let digits = (1..=19).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
        let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
        self.length = number.filter(|_| digits);
        self.length
            .map(drop)
            .ok_or(Fault::Malformed("the Content-Length is no number"))
    }

    fn coding(&mut self, value: &[u8]) -> Result<(), Fault> {
        if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
            return Err(Fault::Malformed("the Transfer-Encoding is not chunked alone"));
        }
        self.chunked = true;
        Ok(())
    }

    fn framing(&self) -> Result<Framing, Fault> {
        match (self.length, self.chunked) {
            (Some(_), true) => Err(Fault::Malformed(
                "there is a Content-Length beside a Transfer-Encoding",
            )),
            (None, true) if self.http10 => Err(Fault::Malformed("HTTP/1.0 has no Transfer-Encoding")),
            (None, true) => Ok(Framing::Chunked),
            (length, false) => Ok(Framing::Length(length.unwrap_or(0))),
        }
    }
}

/// What the `http` crate takes whole; a `#` it would cut off. What it does not take, hyper would answer by itself,
/// without a record.
fn is_target(target: &[u8]) -> bool {
    let graphic = |byte: &u8| byte.is_ascii_graphic() && !b"#<>`".contains(byte);
    target.iter().all(graphic) && http::Uri::try_from(target).is_ok()
}

/// `token` of RFC 9110 section 5.6.2.
fn is_token(bytes: &[u8]) -> bool {
    let tchar = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !bytes.is_empty() && bytes.iter().all(tchar)
}

/// The most that a chunk's extensions, or all trailers together, may have in bytes.
const MAX_LINES: usize = 16 * 1024;

/// Finds the end of a chunked body (RFC 9112 section 7.1); stricter than what decodes it after us.
#[derive(Clone, Copy, Debug, Default)]
pub struct ChunkReader {
    at: At,
    left: u64,
    digits: u8,
    line: usize,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum At {
    #[default]
    Size,
    Extension,
    SizeEnd,
    Data,
    DataCr,
    DataLf,
    TrailerStart,
    Trailer,
    TrailerEnd,
    LastLf,
}

impl ChunkReader {
    /// Goes on with the body; `Some(n)` if it ends after `n` of these bytes.
    ///
    /// # Errors
    /// See [`Fault`].
    pub fn read(&mut self, bytes: &[u8]) -> Result<Option<usize>, Fault> {
        let mut index = 0;
        while let Some(byte) = bytes.get(index) {
            if self.at == At::Data {
                let here = bytes.len() - index;
                let skipped = usize::try_from(self.left).map_or(here, |left| left.min(here));
                self.left -= skipped as u64;
                index += skipped;
                if self.left == 0 {
                    self.at = At::DataCr;
                }
                continue;
            }
            index += 1;
            if self.at == At::LastLf && *byte == b'\n' {
                return Ok(Some(index));
            }
            self.at = self.step(*byte).ok_or(Fault::Malformed("a chunk is malformed"))?;
        }
        Ok(None)
    }

    fn step(&mut self, byte: u8) -> Option<At> {
        match (self.at, byte) {
            (At::Size, b'\r') if self.digits > 0 => Some(At::SizeEnd),
            (At::Size, b';') if self.digits > 0 => Some(At::Extension),
            (At::Size, _) => self.digit(byte),
            (At::Extension, b'\r') => Some(At::SizeEnd),
            (At::TrailerStart, b'\r') => Some(At::LastLf),
            (At::Trailer, b'\r') => Some(At::TrailerEnd),
            (At::Extension | At::Trailer | At::TrailerStart, b'\n' | 0) => None,
            (At::Extension, _) => self.lengthen(At::Extension),
            (At::TrailerStart | At::Trailer, _) => self.lengthen(At::Trailer),
            (At::SizeEnd, b'\n') if self.left == 0 => {
                self.line = 0;
                Some(At::TrailerStart)
            }
            (At::SizeEnd, b'\n') => Some(At::Data),
            (At::DataCr, b'\r') => Some(At::DataLf),
            (At::DataLf, b'\n') => {
                (self.left, self.digits, self.line) = (0, 0, 0);
                Some(At::Size)
            }
            (At::TrailerEnd, b'\n') => Some(At::TrailerStart),
            (At::SizeEnd | At::Data | At::DataCr | At::DataLf | At::TrailerEnd | At::LastLf, _) => None,
        }
    }

    fn digit(&mut self, byte: u8) -> Option<At> {
        let digit = char::from(byte).to_digit(16)?;
        self.digits += 1;
        self.left = self.left * 16 + u64::from(digit);
        // 15 digits can't overflow, and are more than anybody sends.
        (self.digits <= 15).then_some(At::Size)
    }

    fn lengthen(&mut self, at: At) -> Option<At> {
        self.line += 1;
        (self.line <= MAX_LINES).then_some(at)
    }
}
