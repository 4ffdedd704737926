//! HTTP/2 frames in a stream of bytes (RFC 9113 section 4.1); payloads are skipped.

const HEAD: usize = 9;
/// The greatest stream number; the bit above it is reserved.
pub(super) const MAX_STREAM: u32 = u32::MAX >> 1;

/// What is looked at of one frame.
pub(super) struct Frame {
    pub(super) length: usize,
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
    /// The payload's first bytes: a reset's code; GOAWAY's last stream and code.
    pub(super) words: [u32; 2],
}

/// Follows the frames through pieces of any size.
#[derive(Debug)]
pub(super) struct Walker {
    /// Bytes of the preface still to come.
    preface: usize,
    head: [u8; HEAD],
    have: usize,
    start: [u8; 8],
    /// Bytes of the present payload that have passed.
    passed: usize,
}

impl Walker {
    pub(super) fn after(preface: usize) -> Self {
        Self {
            preface,
            head: [0; HEAD],
            have: 0,
            start: [0; 8],
            passed: 0,
        }
    }

    pub(super) fn between_frames(&self) -> bool {
        self.have == 0
    }

    /// The frame that has begun, once it is known what it is.
    pub(super) fn begun(&self) -> Option<Frame> {
        (self.have == HEAD).then(|| self.frame())
    }

    /// Calls `seen` for each frame that `bytes` complete.
    pub(super) fn walk(&mut self, bytes: &[u8], mut seen: impl FnMut(&Frame)) {
        let skipped = self.preface.min(bytes.len());
        self.preface -= skipped;
        let mut bytes = bytes.get(skipped..).unwrap_or_default();
        while !bytes.is_empty() {
            bytes = copy(&mut self.head, &mut self.have, bytes);
            if self.have < HEAD {
                return;
            }
            let frame = self.frame();
            let payload = bytes.len().min(frame.length - self.passed);
            let (now, rest) = bytes.split_at_checked(payload).unwrap_or_default();
            copy(&mut self.start, &mut self.passed.min(8), now);
            self.passed += payload;
            bytes = rest;
            if self.passed == frame.length {
                seen(&self.frame());
                (self.have, self.passed, self.start) = (0, 0, [0; 8]);
            }
        }
    }

    fn frame(&self) -> Frame {
        let [a, b, c, kind, flags, stream @ ..] = self.head;
        let [w1, w2, w3, w4, second @ ..] = self.start;
        Frame {
            length: usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c),
            kind,
            flags,
            stream: u32::from_be_bytes(stream) & MAX_STREAM,
            words: [u32::from_be_bytes([w1, w2, w3, w4]), u32::from_be_bytes(second)],
        }
    }
}

/// Fills `into` from `have` on; what is left of `bytes`.
fn copy<'a>(into: &mut [u8], have: &mut usize, bytes: &'a [u8]) -> &'a [u8] {
    let free = into.get_mut(*have..).unwrap_or_default();
    let count = free.len().min(bytes.len());
    let (now, rest) = bytes.split_at_checked(count).unwrap_or_default();
    free.iter_mut().zip(now).for_each(|(to, from)| *to = *from);
    *have += count;
    rest
}
