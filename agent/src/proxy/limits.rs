//! The limits of DESIGN.md section 6 in the units that each user of them wants.

use std::time::Duration;

use crate::channel;
use crate::http::framing::HeadLimits;
use crate::net::deadline::Deadlines;
use crate::net::frames::FrameLimits;
use crate::net::peek;
use crate::net::splice::Patience;

/// What a connection, a call and a workload may use. Immutable for the worker's life.
#[derive(Clone, Debug)]
pub struct Limits(channel::Limits);

/// HTTP/1 buffer per connection and direction: hyper's own would grow to 400 KiB with a stalled reader.
const HTTP1_BUFFER: usize = 32 * 1024;
/// What HTTP/2 holds back per stream before the sender has to wait.
const HTTP2_SEND_BUFFER: usize = 64 * 1024;
/// What a client may send ahead on one stream. It is on this host: a small window costs it no speed.
const HTTP2_WINDOW: u32 = 64 * 1024;
/// What an upstream may send ahead on one stream: 10 MB a second where a round trip takes 50 ms. A call whose client takes
/// nothing holds as much.
const HTTP2_UPSTREAM_WINDOW: u32 = 512 * 1024;
/// So many calls that stand still stop those beside them on the connection; fewer do not. Room for all 100 that there may
/// be would be as much more memory: of what a client sends the library also holds small frames, which take more than they
/// count for, up to half of the connection's window.
const HTTP2_STALLED: u32 = 16;

impl From<channel::Limits> for Limits {
    fn from(limits: channel::Limits) -> Self {
        Self(limits)
    }
}

impl Limits {
    pub(super) fn peek(&self) -> peek::Limits {
        peek::Limits {
            bytes: size(self.0.client_hello_bytes),
            detection: millis(self.0.detection_ms),
            hello: millis(self.0.client_hello_ms),
        }
    }

    pub(super) fn handshake(&self) -> Duration {
        millis(self.0.client_hello_ms)
    }

    pub(super) fn connect(&self) -> Duration {
        millis(self.0.connect_ms)
    }

    pub(super) fn answer(&self) -> Duration {
        millis(self.0.answer_ms)
    }

    pub(super) fn idle(&self) -> Duration {
        millis(self.0.idle_ms)
    }

    pub(super) fn write_stall(&self) -> Duration {
        millis(self.0.write_stall_ms)
    }

    pub(super) fn http1_deadlines(&self) -> Deadlines {
        Deadlines {
            head: Some(millis(self.0.header_ms)),
            ..self.http2_deadlines()
        }
    }

    pub(super) fn http2_deadlines(&self) -> Deadlines {
        Deadlines {
            idle: millis(self.0.idle_ms),
            head: None,
            write_stall: millis(self.0.write_stall_ms),
        }
    }

    pub(super) fn tunnel_patience(&self) -> Patience {
        Patience {
            idle: millis(self.0.idle_ms),
            stall: millis(self.0.write_stall_ms),
        }
    }

    /// Also the most that a head may have: hyper reads it into this buffer.
    pub(super) fn http1_buffer(&self) -> usize {
        HTTP1_BUFFER.max(self.header_bytes() + 1024)
    }

    pub(super) fn http1_upstream_buffer(&self) -> usize {
        HTTP1_BUFFER
    }

    pub(super) fn head(&self) -> HeadLimits {
        HeadLimits {
            bytes: self.header_bytes(),
            fields: self.header_fields(),
        }
    }

    pub(super) fn header_bytes(&self) -> usize {
        size(self.0.header_bytes)
    }

    pub(super) fn header_bytes_u32(&self) -> u32 {
        self.0.header_bytes
    }

    pub(super) fn header_fields(&self) -> usize {
        size(self.0.header_fields)
    }

    pub(super) fn h2_streams(&self) -> u32 {
        self.0.h2_streams
    }

    pub(super) fn h2_send_buffer(&self) -> usize {
        HTTP2_SEND_BUFFER
    }

    pub(super) fn h2_window(&self) -> u32 {
        HTTP2_WINDOW
    }

    pub(super) fn h2_connection_window(&self) -> u32 {
        HTTP2_STALLED * HTTP2_WINDOW
    }

    pub(super) fn h2_upstream_window(&self) -> u32 {
        HTTP2_UPSTREAM_WINDOW
    }

    pub(super) fn h2_upstream_connection_window(&self) -> u32 {
        HTTP2_STALLED * HTTP2_UPSTREAM_WINDOW
    }

    /// What a client may do on one connection that is no call. A client that measures its path pings often.
    pub(super) fn frames(&self) -> FrameLimits {
        FrameLimits {
            resets: self.0.h2_resets,
            idle_frames: self.0.h2_resets.saturating_mul(50),
            window: millis(self.0.h2_reset_window_ms),
            head: millis(self.0.header_ms),
        }
    }

    /// Streams that were reset before they were served: not the library's to bound, [`Self::frames`] counts all.
    pub(super) fn h2_pending_resets(&self) -> usize {
        size(self.0.h2_resets).saturating_add(1)
    }

    /// What the library reads of a head before it answers 431 by itself, without a record: twice what a request may
    /// have, so that the ordinary too large one is refused here.
    pub(super) fn h2_header_bytes(&self) -> u32 {
        self.0.header_bytes.saturating_mul(2)
    }

    /// Streams that the client makes us reset, over the connection's life (MadeYouReset, CVE-2025-8671).
    pub(super) fn h2_local_resets(&self) -> usize {
        size(self.0.h2_resets)
    }

    /// Connections that one workload may hold.
    #[must_use]
    pub fn connections(&self) -> usize {
        size(self.0.connections)
    }

    /// Bytes of buffers that one workload may hold.
    #[must_use]
    pub fn buffers(&self) -> usize {
        usize::try_from(self.0.buffer_bytes).unwrap_or(usize::MAX)
    }
}

fn size(count: u32) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

fn millis(count: u32) -> Duration {
    Duration::from_millis(u64::from(count))
}
