//! A stand-in for systemd's file descriptor store: keeps the agent's sockets from one run to the next.

use std::ffi::OsString;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

const PASS: &str = include_str!("keeper.py");
/// How many descriptors are kept; `FileDescriptorStoreMax=`.
pub(crate) const ROOM: usize = 128;

/// Kept descriptors by name, and whether the agent is ready.
#[derive(Debug, Default)]
struct Kept {
    ready: bool,
    sockets: Vec<(String, OwnedFd)>,
}

/// The service manager's end of the agent's notifications, for as many runs as there are.
#[derive(Debug)]
pub struct Keeper {
    path: PathBuf,
    kept: Arc<Mutex<Kept>>,
    reader: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Listens at `path`.
    ///
    /// # Errors
    /// If that can't be done.
    pub fn start(path: &Path) -> Result<Self> {
        let socket = UnixDatagram::bind(path).with_context(|| format!("can't bind {}", path.display()))?;
        let kept = Arc::new(Mutex::new(Kept::default()));
        let shared = Arc::clone(&kept);
        let reader = std::thread::Builder::new()
            .name("keeper".to_owned())
            .spawn(move || {
                while let Some((text, passed)) = receive(&socket) {
                    lock(&shared).take(&text, passed);
                }
            })
            .context("can't start a thread")?;
        Ok(Self {
            path: path.to_owned(),
            kept,
            reader: Some(reader),
        })
    }

    /// The names of what is kept, sorted.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = lock(&self.kept)
            .sockets
            .iter()
            .map(|(name, _)| name.clone())
            .collect();
        names.sort();
        names
    }

    /// The port of the listener of this name.
    ///
    /// # Errors
    /// If there is none.
    pub fn port(&self, name: &str) -> Result<u16> {
        let kept = lock(&self.kept);
        let found = kept.sockets.iter().find(|(kept, _)| kept == name);
        let (_, socket) = found.with_context(|| format!("no {name} is kept"))?;
        Ok(TcpListener::from(socket.try_clone()?).local_addr()?.port())
    }

    /// Keeps one more, as if the agent had asked for it.
    pub fn add(&self, name: &str, socket: OwnedFd) {
        lock(&self.kept).sockets.push((name.to_owned(), socket));
    }

    /// Keeps this one instead of what has the name.
    pub fn replace(&self, name: &str, socket: OwnedFd) {
        lock(&self.kept).sockets.retain(|(kept, _)| kept != name);
        self.add(name, socket);
    }

    /// Lets go of all, as systemd does when the unit is stopped and not to be started again.
    pub fn release(&self) {
        lock(&self.kept).sockets.clear();
    }

    pub(crate) fn environment(&self) -> [(OsString, OsString); 2] {
        [
            ("NOTIFY_SOCKET".into(), self.path.clone().into()),
            ("FDSTORE".into(), ROOM.to_string().into()),
        ]
    }

    /// What to put before the agent's command line, and its standard input.
    pub(crate) fn pass(&self) -> Result<(Vec<OsString>, OwnedFd)> {
        let mut kept = lock(&self.kept);
        kept.ready = false;
        let names: Vec<&str> = kept.sockets.iter().map(|(name, _)| name.as_str()).collect();
        let prefix = ["python3", "-c", PASS, &names.join(":")].map(OsString::from);
        let (ours, theirs) = UnixStream::pair()?;
        let sockets: Vec<BorrowedFd<'_>> = kept.sockets.iter().map(|(_, socket)| socket.as_fd()).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(ROOM))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !sockets.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&sockets)) {
            bail!("more sockets than can be passed");
        }
        sendmsg(
            &ours,
            &[std::io::IoSlice::new(b"x")],
            &mut ancillary,
            SendFlags::empty(),
        )
        .context("can't pass the sockets")?;
        Ok((prefix.to_vec(), theirs.into()))
    }

    pub(crate) fn is_ready(&self) -> bool {
        lock(&self.kept).ready
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let bye = UnixDatagram::unbound().and_then(|socket| socket.send_to(b"", &self.path));
        if let Some(reader) = self.reader.take().filter(|_| bye.is_ok()) {
            drop(reader.join());
        }
    }
}

impl Kept {
    fn take(&mut self, text: &str, passed: Vec<OwnedFd>) {
        let value = |key: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
        };
        let name = value("FDNAME").unwrap_or("stored");
        self.ready |= value("READY") == Some("1");
        if value("FDSTORE") == Some("1") {
            self.sockets
                .extend(passed.into_iter().map(|socket| (name.to_owned(), socket)));
        }
        if value("FDSTOREREMOVE") == Some("1") {
            self.sockets.retain(|(kept, _)| kept != name);
        }
    }
}

fn lock(kept: &Mutex<Kept>) -> MutexGuard<'_, Kept> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The next message with its descriptors; an empty one, or none, is the end.
fn receive(socket: &UnixDatagram) -> Option<(String, Vec<OwnedFd>)> {
    let mut bytes = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(ROOM))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    );
    let length = received.ok().filter(|received| received.bytes > 0)?.bytes;
    let mut passed = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            passed.extend(descriptors);
        }
    }
    Some((String::from_utf8_lossy(bytes.get(..length)?).into_owned(), passed))
}
