//! io_uring in its modes: who works the entries off, and by what they name a socket.

use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;

use io_uring::squeue::{Entry, Flags};
use io_uring::{IoUring, opcode, types};
use socket2::{Domain, SockAddr, Socket, Type};

use super::{PATIENCE, answer};

/// How long the kernel's own thread looks for entries before it sleeps, in milliseconds.
const IDLE: u32 = 200;
/// The slot of a socket that has no descriptor.
const SLOT: u32 = 0;

/// `plain`: entries are worked off by the caller; `polled`: by the kernel's thread; `workers`: by its pool.
fn ring(mode: &str) -> io::Result<(IoUring, Flags)> {
    match mode {
        "plain" => Ok((IoUring::new(8)?, Flags::empty())),
        "polled" => Ok((IoUring::builder().setup_sqpoll(IDLE).build(8)?, Flags::empty())),
        "workers" => Ok((IoUring::new(8)?, Flags::ASYNC)),
        _ => Err(io::Error::other("unknown mode")),
    }
}

/// Makes the socket and connects it through a ring, without socket(2) or connect(2).
#[expect(unsafe_code, reason = "the kernel just made this descriptor for us")]
pub(super) fn tcp(mode: &str, to: SocketAddr) -> io::Result<String> {
    let (mut ring, flags) = ring(mode)?;
    let domain = Domain::for_address(to).into();
    let made = opcode::Socket::new(domain, Type::STREAM.into(), 0).build();
    let number = one(&mut ring, made.flags(flags))?;
    // SAFETY: nobody else owns it.
    let socket = unsafe { <Socket as std::os::fd::FromRawFd>::from_raw_fd(number) };
    let address = SockAddr::from(to);
    let connect = opcode::Connect::new(types::Fd(number), address.as_ptr().cast(), address.len());
    one(&mut ring, connect.build().flags(flags))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    answer(&socket)
}

/// The same as one chain, with a socket that is in the ring's table only; gives what the other end says.
pub(super) fn chain(mode: &str, to: SocketAddr) -> io::Result<String> {
    let (mut ring, flags) = ring(mode)?;
    ring.submitter().register_files_sparse(1)?;
    let slot = types::DestinationSlot::try_from_slot_target(SLOT)
        .map_err(|slot| io::Error::other(format!("no slot {slot}")))?;
    let address = SockAddr::from(to);
    let mut said = [0; 256];
    let fixed = types::Fixed(SLOT);
    let length = u32::try_from(said.len()).map_err(io::Error::other)?;
    let domain = Domain::for_address(to).into();
    let entries = [
        opcode::Socket::new(domain, Type::STREAM.into(), 0)
            .file_index(Some(slot))
            .build()
            .flags(flags | Flags::IO_LINK),
        opcode::Connect::new(fixed, address.as_ptr().cast(), address.len())
            .build()
            .flags(flags | Flags::IO_LINK),
        opcode::Shutdown::new(fixed, libc::SHUT_WR)
            .build()
            .flags(flags | Flags::IO_LINK),
        opcode::Recv::new(fixed, said.as_mut_ptr(), length)
            .build()
            .flags(flags),
    ];
    let read = all(&mut ring, &entries)?;
    let read = usize::try_from(read).map_err(io::Error::other)?;
    Ok(String::from_utf8_lossy(said.get(..read).unwrap_or_default()).into_owned())
}

/// Sends a datagram by this operation; gives how much was sent.
pub(super) fn udp(mode: &str, operation: &str, to: SocketAddr) -> io::Result<String> {
    let (mut ring, flags) = ring(mode)?;
    let socket = Socket::new(Domain::for_address(to), Type::DGRAM, None)?;
    let address = SockAddr::from(to);
    let mut text = *b"ring";
    let mut piece = libc::iovec {
        iov_base: text.as_mut_ptr().cast(),
        iov_len: text.len(),
    };
    let message = message(&address, &mut piece);
    let number = types::Fd(socket.as_raw_fd());
    let entry = match operation {
        "send" => opcode::Send::new(number, text.as_ptr(), 4)
            .dest_addr(address.as_ptr().cast())
            .dest_addr_len(address.len())
            .build(),
        "sendmsg" => opcode::SendMsg::new(number, &raw const message).build(),
        "sendmsg-zc" => opcode::SendMsgZc::new(number, &raw const message).build(),
        _ => return Err(io::Error::other("unknown operation")),
    };
    one(&mut ring, entry.flags(flags)).map(|sent| sent.to_string())
}

#[expect(unsafe_code, reason = "the structure has private padding in some C libraries")]
fn message(address: &SockAddr, piece: &mut libc::iovec) -> libc::msghdr {
    // SAFETY: all zero is a message without anything.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_name = address.as_ptr().cast_mut().cast();
    message.msg_namelen = address.len();
    message.msg_iov = piece;
    message.msg_iovlen = 1;
    message
}

/// The result of one entry.
fn one(ring: &mut IoUring, entry: Entry) -> io::Result<i32> {
    all(ring, &[entry])
}

/// The last one's result, or the first that failed and took the rest of its chain along.
#[expect(
    unsafe_code,
    reason = "entries point to memory that outlives them, which the kernel can't know"
)]
fn all(ring: &mut IoUring, entries: &[Entry]) -> io::Result<i32> {
    // SAFETY: callers keep what the entries point to until all are completed, which is waited for here.
    unsafe { ring.submission().push_multiple(entries) }.map_err(io::Error::other)?;
    ring.submit_and_wait(entries.len())?;
    let mut last = Err(io::Error::other("nothing was completed"));
    for entry in ring.completion().take(entries.len()) {
        let result = entry.result();
        if result < 0 {
            return Err(io::Error::from_raw_os_error(-result));
        }
        last = Ok(result);
    }
    last
}
