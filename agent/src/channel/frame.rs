//! Frames on the stream socket: a header, a postcard body, descriptors attached to the header's first byte.
//!
//! Header: body length (u32, little endian), number of descriptors (u8). The kernel never merges the data
//! of two sends that both carry descriptors into one receive (net/unix/af_unix.c, `unix_stream_read_generic`),
//! and keeps their order, so a queue of received descriptors and the counts in the headers are enough.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::net::UnixStream;
use zeroize::Zeroizing;

/// Most descriptors that one frame carries.
pub const MAX_DESCRIPTORS: usize = 8;
const HEADER: usize = 5;
const CHUNK: usize = 64 << 10;

/// Why the channel can't be used any more.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The socket failed.
    #[error("the socket between supervisor and worker failed: {source}")]
    Io {
        /// From the kernel.
        #[from]
        source: io::Error,
    },
    /// The other side closed inside a frame.
    #[error("the other process ended within a message")]
    Truncated,
    /// A frame is larger than its direction allows.
    #[error("a message of {length} bytes is larger than the {limit} that this direction allows")]
    TooLong {
        /// The announced length.
        length: usize,
        /// What is allowed.
        limit: usize,
    },
    /// The body is no message of this direction.
    #[error("a message is malformed: {source}")]
    Malformed {
        /// What postcard says.
        source: postcard::Error,
    },
    /// Bytes are left over after the message.
    #[error("a message has {count} bytes too many")]
    TrailingBytes {
        /// How many.
        count: usize,
    },
    /// More or fewer descriptors than the message says, or more than one frame may carry.
    #[error("a message came with {got} descriptors where {expected} belong")]
    Descriptors {
        /// What belongs to it.
        expected: usize,
        /// What came.
        got: usize,
    },
}

/// Makes the pair: both ends close-on-exec and non-blocking.
///
/// # Errors
/// If the process or the system is out of descriptors.
pub fn pair() -> Result<(OwnedFd, OwnedFd), FrameError> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let ends = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(io::Error::from)?;
    Ok(ends)
}

/// Splits an end into its two directions. Must be called within a tokio runtime.
///
/// # Errors
/// If the socket can't be polled.
pub fn split(socket: OwnedFd, read_limit: usize) -> Result<(Reader, Writer), FrameError> {
    let socket = std::os::unix::net::UnixStream::from(socket);
    socket.set_nonblocking(true)?;
    let socket = Arc::new(UnixStream::from_std(socket)?);
    let reader = Reader {
        socket: Arc::clone(&socket),
        limit: read_limit,
        bytes: Zeroizing::new(Vec::new()),
        descriptors: VecDeque::new(),
    };
    Ok((reader, Writer { socket }))
}

/// The receiving direction.
#[derive(Debug)]
pub struct Reader {
    socket: Arc<UnixStream>,
    limit: usize,
    bytes: Zeroizing<Vec<u8>>,
    descriptors: VecDeque<OwnedFd>,
}

impl Reader {
    /// The next message with its descriptors; `None` if the other side closed between two messages.
    /// Dropping the future loses nothing.
    ///
    /// # Errors
    /// As [`FrameError`] says; the channel is of no use afterwards.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<(T, Vec<OwnedFd>)>, FrameError> {
        loop {
            if let Some(message) = self.take_frame()? {
                return Ok(Some(message));
            }
            if self.fill().await? == 0 {
                return if self.bytes.is_empty() {
                    Ok(None)
                } else {
                    Err(FrameError::Truncated)
                };
            }
        }
    }

    fn take_frame<T: DeserializeOwned>(&mut self) -> Result<Option<(T, Vec<OwnedFd>)>, FrameError> {
        let Some((header, rest)) = self.bytes.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let [a, b, c, d, count] = *header;
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        if length > self.limit {
            return Err(FrameError::TooLong {
                length,
                limit: self.limit,
            });
        }
        let Some(body) = rest.get(..length) else {
            return Ok(None);
        };
        let (message, left) =
            postcard::take_from_bytes(body).map_err(|source| FrameError::Malformed { source })?;
        if !left.is_empty() {
            return Err(FrameError::TrailingBytes { count: left.len() });
        }
        let count = usize::from(count);
        if count > self.descriptors.len() {
            return Err(FrameError::Descriptors {
                expected: count,
                got: self.descriptors.len(),
            });
        }
        let descriptors = self.descriptors.drain(..count).collect();
        self.consume(HEADER + length);
        Ok(Some((message, descriptors)))
    }

    /// Moves what is left to the front and wipes what was read: it may have been a secret.
    fn consume(&mut self, length: usize) {
        let left = self.bytes.len() - length;
        self.bytes.copy_within(length.., 0);
        if let Some(used) = self.bytes.get_mut(left..) {
            used.fill(0);
        }
        self.bytes.truncate(left);
    }

    async fn fill(&mut self) -> Result<usize, FrameError> {
        let mut chunk = Zeroizing::new(vec![0; CHUNK]);
        let (length, descriptors) = self
            .socket
            .async_io(Interest::READABLE, || receive(self.socket.as_fd(), &mut chunk))
            .await?;
        if self.descriptors.len() + descriptors.len() > 2 * MAX_DESCRIPTORS {
            return Err(FrameError::Descriptors {
                expected: MAX_DESCRIPTORS,
                got: self.descriptors.len() + descriptors.len(),
            });
        }
        self.descriptors.extend(descriptors);
        grow_wiping(&mut self.bytes, chunk.get(..length).unwrap_or_default());
        Ok(length)
    }
}

/// Appends; when the buffer has to move, the old copy is wiped.
fn grow_wiping(bytes: &mut Zeroizing<Vec<u8>>, more: &[u8]) {
    let needed = bytes.len() + more.len();
    if needed > bytes.capacity() {
        let mut larger = Zeroizing::new(Vec::with_capacity(needed.next_power_of_two()));
        larger.extend_from_slice(bytes);
        *bytes = larger;
    }
    bytes.extend_from_slice(more);
}

fn receive(socket: BorrowedFd<'_>, chunk: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut buffers = [IoSliceMut::new(chunk)];
    let received = recvmsg(socket, &mut buffers, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "descriptors were cut off",
        ));
    }
    Ok((received.bytes, descriptors))
}

/// The sending direction.
#[derive(Debug)]
pub struct Writer {
    socket: Arc<UnixStream>,
}

impl Writer {
    /// Sends one message and its descriptors; `limit` is the receiver's. Not to be dropped half way: the
    /// rest of the frame would be missing.
    ///
    /// # Errors
    /// If the message is too long, there are too many descriptors, or the socket fails.
    pub async fn send<T: Serialize + Sync>(
        &mut self,
        message: &T,
        descriptors: &[OwnedFd],
        limit: usize,
    ) -> Result<(), FrameError> {
        let frame = encode(message, descriptors.len(), limit)?;
        let mut rest = frame.as_slice();
        let mut attached = descriptors;
        while !rest.is_empty() {
            let sent = self
                .socket
                .async_io(Interest::WRITABLE, || {
                    transmit(self.socket.as_fd(), rest, attached)
                })
                .await?;
            attached = &[];
            rest = rest.get(sent..).unwrap_or_default();
        }
        Ok(())
    }
}

fn encode<T: Serialize>(message: &T, count: usize, limit: usize) -> Result<Zeroizing<Vec<u8>>, FrameError> {
    let descriptors = u8::try_from(count)
        .ok()
        .filter(|count| usize::from(*count) <= MAX_DESCRIPTORS)
        .ok_or(FrameError::Descriptors {
            expected: MAX_DESCRIPTORS,
            got: count,
        })?;
    let length = postcard::experimental::serialized_size(message)
        .map_err(|source| FrameError::Malformed { source })?;
    let announced = u32::try_from(length)
        .ok()
        .filter(|_| length <= limit)
        .ok_or(FrameError::TooLong { length, limit })?;
    // Sized at once, so that no half-filled copy with a secret in it is left behind by a reallocation.
    let mut frame = Zeroizing::new(vec![0; HEADER + length]);
    let (header, body) = frame.split_at_mut(HEADER);
    let [a, b, c, d] = announced.to_le_bytes();
    header.copy_from_slice(&[a, b, c, d, descriptors]);
    postcard::to_slice(message, body).map_err(|source| FrameError::Malformed { source })?;
    Ok(frame)
}

fn transmit(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[OwnedFd]) -> io::Result<usize> {
    let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let sent = sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    Ok(sent)
}
