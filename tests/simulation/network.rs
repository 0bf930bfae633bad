//! The network of the simulation: connections between processes, with a delay, and directions in which nothing comes through.
//!
//! It is as TCP is to a program: bytes come in their order, and once. What is sent into a cut arrives when that has ended. Whoever
//! connects to a machine where nobody listens is refused; to one whose process is stopped, is not answered; into a cut, hears nothing.
//! A process that is killed closes its connections.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf, Bytes};
use esker::runtime::network::{Accept, Network, NetworkSocket};
use esker::runtime::presence::ProcessSeen;
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::Sleep;

use crate::bug::Bug;
use crate::world::{Place, ProcessClock, World};

/// Bytes under way in one direction of a connection, at most.
const UNDER_WAY_MAX: usize = 256 << 10;
/// How the name of the header that says an epoch goes over a connection, and another name that is as long.
const EPOCH: &str = "esker-peer-epoch";
const NO_EPOCH: &str = "esker-peer-epocg";
/// Whoever waits for the end of a cut looks so often.
const LOOK: Duration = Duration::from_millis(20);
/// Where what was sent into a cut arrives piece by piece, as what TCP sends again, the next piece is so much later.
const TRICKLE: Duration = Duration::from_millis(60);

/// All connections.
#[derive(Debug, Default)]
pub(crate) struct Wires {
    listeners: Mutex<BTreeMap<SocketAddr, Arc<Listening>>>,
    /// Processes that are there.
    present: Mutex<BTreeSet<String>>,
}

#[derive(Debug, Default)]
struct Listening {
    arrived: Mutex<VecDeque<(Duration, SimSocket)>>,
    told: Notify,
}

/// The network as one process finds it.
#[derive(Debug, Clone)]
pub(crate) struct ReachedNetwork {
    pub(crate) world: Arc<World>,
    pub(crate) wires: Arc<Wires>,
    pub(crate) place: Place,
    pub(crate) clock: ProcessClock,
}

/// One direction of a connection.
#[derive(Debug)]
struct Pipe {
    from: Place,
    to: Place,
    chunks: VecDeque<(Duration, Bytes)>,
    bytes: usize,
    /// From when on there is nothing more.
    ended: Option<Duration>,
    reader_gone: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
    last: Duration,
    /// Something was sent into a cut, and has not all arrived yet.
    was_cut: bool,
}

/// One end of a connection.
pub(crate) struct SimSocket {
    read: Arc<Mutex<Pipe>>,
    write: Arc<Mutex<Pipe>>,
    world: Arc<World>,
    /// Of whoever has this end: told before it is used.
    clock: Option<ProcessClock>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl std::fmt::Debug for SimSocket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimSocket").finish_non_exhaustive()
    }
}

/// Where the machine at a place is.
pub(crate) fn address(place: Place, port: u16) -> SocketAddr {
    (Ipv4Addr::new(127, 0, 0, u8::try_from(place + 1).unwrap()), port).into()
}

fn place_of(address: SocketAddr) -> Place {
    match address {
        SocketAddr::V4(v4) => usize::from(v4.ip().octets()[3]) - 1,
        SocketAddr::V6(_) => unreachable!("there are none"),
    }
}

fn pipe(from: Place, to: Place) -> Arc<Mutex<Pipe>> {
    Arc::new(Mutex::new(Pipe {
        from,
        to,
        chunks: VecDeque::new(),
        bytes: 0,
        ended: None,
        reader_gone: false,
        reader: None,
        writer: None,
        last: Duration::ZERO,
        was_cut: false,
    }))
}

impl Pipe {
    /// What comes next arrives then at the earliest.
    fn next_later(&mut self, at: Duration) {
        match self.chunks.front_mut() {
            Some((due, _)) => *due = at.max(*due),
            None => self.ended = self.ended.map(|ended| ended.max(at)),
        }
        self.was_cut = !self.chunks.is_empty();
    }
}

impl ReachedNetwork {
    /// Connects to an address.
    pub(crate) async fn connect_to(&self, address: SocketAddr) -> io::Result<SimSocket> {
        let (world, here, there) = (&self.world, self.place, place_of(address));
        tokio::time::sleep(world.millis(world.scenario.network.clone())).await;
        while world.is_cut(here, there) || world.is_cut(there, here) {
            tokio::time::sleep(LOOK).await;
        }
        let Some(listening) = self.wires.listeners.lock().get(&address).cloned() else {
            return Err(io::ErrorKind::ConnectionRefused.into());
        };
        let (out, back) = (pipe(here, there), pipe(there, here));
        let end = |read: &Arc<Mutex<Pipe>>, write: &Arc<Mutex<Pipe>>, clock| SimSocket {
            read: Arc::clone(read),
            write: Arc::clone(write),
            world: Arc::clone(world),
            clock,
            timer: None,
        };
        let mine = end(&back, &out, Some(self.clock.clone()));
        listening.arrived.lock().push_back((self.clock.now(), end(&out, &back, None)));
        listening.told.notify_one();
        tokio::time::sleep(world.millis(world.scenario.network.clone())).await;
        Ok(mine)
    }
}

impl Network for ReachedNetwork {
    fn connect<'a>(&'a self, authority: &'a str) -> BoxFuture<'a, io::Result<Box<dyn NetworkSocket>>> {
        async move {
            let address = authority.parse().map_err(io::Error::other)?;
            Ok(Box::new(self.connect_to(address).await?) as Box<dyn NetworkSocket>)
        }
        .boxed()
    }

    fn listen(&self, address: SocketAddr) -> Option<io::Result<(Box<dyn Accept>, SocketAddr)>> {
        let mut listeners = self.wires.listeners.lock();
        if listeners.contains_key(&address) {
            return Some(Err(io::ErrorKind::AddrInUse.into()));
        }
        let listening = Arc::<Listening>::default();
        listeners.insert(address, Arc::clone(&listening));
        let door = Door { listening, address, wires: Arc::clone(&self.wires), clock: self.clock.clone() };
        Some(Ok((Box::new(door), address)))
    }

    fn host(&self) -> String {
        let machine = if self.world.scenario.one_machine { 0 } else { self.place };
        format!("machine {machine}")
    }

    fn show(&self, incarnation: &str) -> io::Result<Box<dyn Any + Send + Sync>> {
        self.wires.present.lock().insert(incarnation.to_owned());
        Ok(Box::new(Shown { wires: Arc::clone(&self.wires), incarnation: incarnation.to_owned() }))
    }

    fn look(&self, incarnation: &str, host: &str) -> ProcessSeen {
        match (host == self.host(), self.wires.present.lock().contains(incarnation)) {
            (false, _) => ProcessSeen::Unknown,
            (true, true) => ProcessSeen::Alive,
            (true, false) => ProcessSeen::Dead,
        }
    }
}

struct Shown {
    wires: Arc<Wires>,
    incarnation: String,
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.wires.present.lock().remove(&self.incarnation);
    }
}

/// Where connections come in.
#[derive(Debug)]
struct Door {
    listening: Arc<Listening>,
    address: SocketAddr,
    wires: Arc<Wires>,
    clock: ProcessClock,
}

impl Accept for Door {
    fn accept(&self) -> BoxFuture<'_, io::Result<(Box<dyn NetworkSocket>, SocketAddr)>> {
        async move {
            loop {
                let told = self.listening.told.notified();
                let next = self.listening.arrived.lock().pop_front();
                if let Some((_, mut socket)) = next {
                    socket.clock = Some(self.clock.clone());
                    let from = address(socket.read.lock().from, 40_000);
                    return Ok((Box::new(socket) as Box<dyn NetworkSocket>, from));
                }
                told.await;
            }
        }
        .boxed()
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.wires.listeners.lock().remove(&self.address);
        // Whoever was not accepted is reset.
        let unmet = std::mem::take(&mut *self.listening.arrived.lock());
        drop(unmet);
    }
}

impl SimSocket {
    fn now(&self) -> Duration {
        self.clock.as_ref().map_or_else(|| self.world.now(), ProcessClock::now)
    }

    /// Has the reader look again after a while.
    fn look_in(&mut self, wait: Duration, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut timer = Box::pin(tokio::time::sleep(wait));
        match timer.as_mut().poll(cx) {
            Poll::Ready(()) => cx.waker().wake_by_ref(),
            Poll::Pending => self.timer = Some(timer),
        }
        Poll::Pending
    }
}

impl AsyncRead for SimSocket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let (now, pipe) = (self.now(), Arc::clone(&self.read));
        let mut pipe = pipe.lock();
        self.timer = None;
        let due = pipe.chunks.front().map(|(due, _)| *due).or(pipe.ended);
        let Some(due) = due else {
            pipe.reader = Some(cx.waker().clone());
            return Poll::Pending;
        };
        // What comes meanwhile wakes it, too.
        pipe.reader = Some(cx.waker().clone());
        if self.world.is_cut(pipe.from, pipe.to) {
            pipe.was_cut = self.world.scenario.trickles;
            return self.look_in(LOOK, cx);
        }
        if due > now {
            return self.look_in(due - now, cx);
        }
        let Some((_, chunk)) = pipe.chunks.front_mut() else { return Poll::Ready(Ok(())) };
        let len = chunk.len().min(buf.remaining());
        buf.put_slice(&chunk[..len]);
        chunk.advance(len);
        if chunk.is_empty() {
            pipe.chunks.pop_front();
        }
        pipe.bytes -= len;
        if std::mem::take(&mut pipe.was_cut) {
            pipe.next_later(now + TRICKLE);
        }
        if let Some(writer) = pipe.writer.take() {
            writer.wake();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for SimSocket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let now = self.now();
        let wire = self.world.millis(self.world.scenario.network.clone());
        let mut pipe = self.write.lock();
        if pipe.reader_gone || pipe.ended.is_some() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if pipe.bytes >= UNDER_WAY_MAX {
            pipe.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let due = pipe.last.max(now + wire);
        pipe.last = due;
        pipe.bytes += buf.len();
        let sent = match self.world.has(Bug::ForAnyEpoch) {
            true => without_epoch(buf),
            false => Bytes::copy_from_slice(buf),
        };
        pipe.chunks.push_back((due, sent));
        let (from, to, reader) = (pipe.from, pipe.to, pipe.reader.take());
        drop(pipe);
        self.world.tell(format_args!("{from}>{to} {}", buf.len()));
        if let Some(reader) = reader {
            reader.wake();
        }
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        end(&self.write, self.world.now());
        Poll::Ready(Ok(()))
    }
}

/// What is sent, with no word about epochs.
fn without_epoch(sent: &[u8]) -> Bytes {
    let (name, other) = (in_header_block(EPOCH), in_header_block(NO_EPOCH));
    let mut sent = sent.to_vec();
    while let Some(at) = sent.windows(name.len()).position(|window| window == name) {
        sent[at..at + name.len()].copy_from_slice(&other);
    }
    sent.into()
}

/// A name as HTTP/2 writes it: in the codes of RFC 7541, appendix B, filled up with ones.
fn in_header_block(name: &str) -> Vec<u8> {
    let mut bits = String::new();
    for letter in name.chars() {
        bits += match letter {
            'c' => "00100",
            'e' => "00101",
            'o' => "00111",
            's' => "01000",
            '-' => "010110",
            'g' => "100110",
            'h' => "100111",
            'p' => "101011",
            'r' => "101100",
            'k' => "1110101",
            other => unreachable!("{other} is in no such name"),
        };
    }
    while !bits.len().is_multiple_of(8) {
        bits.push('1');
    }
    bits.as_bytes().chunks(8).map(|bits| u8::from_str_radix(std::str::from_utf8(bits).unwrap(), 2).unwrap()).collect()
}

fn end(pipe: &Mutex<Pipe>, now: Duration) {
    let mut pipe = pipe.lock();
    let after = pipe.last.max(now + Duration::from_millis(1));
    pipe.ended.get_or_insert(after);
    let reader = pipe.reader.take();
    drop(pipe);
    if let Some(reader) = reader {
        reader.wake();
    }
}

impl Drop for SimSocket {
    fn drop(&mut self) {
        end(&self.write, self.world.now());
        let mut pipe = self.read.lock();
        pipe.reader_gone = true;
        let writer = pipe.writer.take();
        drop(pipe);
        if let Some(writer) = writer {
            writer.wake();
        }
    }
}
