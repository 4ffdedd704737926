//! Round trips, descriptors, and what is refused.

use std::io::{Read, Seek, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use super::frame::{Reader, Writer, pair, split};
use super::supervisor::Breach;
use super::worker::{AskError, Channel, Client, Event, StartDescriptors};
use super::*;
use crate::credential::secret::Secret;
use crate::identity::Cgroup;

fn name(text: &str) -> WorkloadName {
    WorkloadName::parse(text).unwrap()
}

fn host(text: &str) -> HostName {
    HostName::parse(text).unwrap()
}

fn identity() -> Identity {
    Identity {
        workload: name("billing"),
        cgroup: Cgroup {
            id: 7,
            path: Some("/callgate.slice/callgate-billing.slice".into()),
        },
        unit: None,
        invocation: None,
        container: None,
        uid: 1000,
        gid: 1000,
        user: None,
        process: None,
        executable: None,
        netns_cookie: 1,
    }
}

fn start() -> Start {
    Start {
        threads: 2,
        limits: Limits::default(),
        upstream_roots: vec![vec![1, 2, 3]],
        resolvers: vec!["192.0.2.53:53".parse().unwrap()],
        hosts: "127.0.0.1 localhost".into(),
        query_values: false,
        slots_per_workload: 512,
        netns: 1,
    }
}

fn intermediate(host: &HostName) -> Intermediate {
    let dir = tempfile::tempdir().unwrap();
    let now = std::time::SystemTime::now();
    let root = crate::tls::ca::Root::load_or_create(&dir.path().join("ca.pem"), now).unwrap();
    root.issue_intermediate(host, now).unwrap()
}

struct Ends {
    sender: supervisor::Sender,
    receiver: supervisor::Receiver,
    channel: Channel,
    client: Client,
}

fn ends() -> Ends {
    let (above, below) = pair().unwrap();
    let (sender, receiver) = supervisor::open(above).unwrap();
    let (channel, client) = Channel::open(below).unwrap();
    Ends {
        sender,
        receiver,
        channel,
        client,
    }
}

fn raw() -> (UnixStream, Reader) {
    let (ours, theirs) = pair().unwrap();
    let (reader, _writer) = split(theirs, MAX_TO_SUPERVISOR).unwrap();
    let ours = UnixStream::from(ours);
    ours.set_nonblocking(false).unwrap();
    (ours, reader)
}

fn file_with(text: &str) -> OwnedFd {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file.rewind().unwrap();
    file.into()
}

fn read_all(file: OwnedFd) -> String {
    let mut text = String::new();
    std::fs::File::from(file).read_to_string(&mut text).unwrap();
    text
}

#[tokio::test]
async fn start_arrives_with_its_four_descriptors_in_order() {
    let mut ends = ends();
    let descriptors = StartDescriptors {
        origins: file_with("origins"),
        liveness: file_with("liveness"),
        audit: file_with("audit"),
        inflight: file_with("inflight"),
    };
    ends.sender.start(start(), descriptors).unwrap();
    let Some(Event::Start(got, files)) = ends.channel.next().await.unwrap() else {
        panic!("no start");
    };
    assert_eq!(*got, start());
    assert_eq!(read_all(files.origins), "origins");
    assert_eq!(read_all(files.liveness), "liveness");
    assert_eq!(read_all(files.audit), "audit");
    assert_eq!(read_all(files.inflight), "inflight");
}

#[tokio::test]
async fn a_listener_that_was_handed_over_accepts() {
    let mut ends = ends();
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let info = ListenerInfo {
        workload: name("billing"),
        number: 3,
        addr: socket.local_addr().unwrap(),
        netns: 1,
    };
    ends.sender.listener(info.clone(), socket).unwrap();
    let Some(Event::Listener(got, socket)) = ends.channel.next().await.unwrap() else {
        panic!("no listener");
    };
    assert_eq!(got, info);
    let client = TcpStream::connect(info.addr).unwrap();
    let socket = tokio::net::TcpListener::from_std(socket).unwrap();
    let (_stream, peer) = socket.accept().await.unwrap();
    assert_eq!(peer, client.local_addr().unwrap());
}

#[tokio::test]
async fn descriptors_stay_with_their_message_when_many_are_queued() {
    let mut ends = ends();
    for number in 0..40_u32 {
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let info = ListenerInfo {
            workload: name("billing"),
            number,
            addr: socket.local_addr().unwrap(),
            netns: 1,
        };
        ends.sender
            .send(ToWorker::Status {
                request: number.into(),
            })
            .unwrap();
        ends.sender.listener(info, socket).unwrap();
    }
    let mut listeners = 0;
    while listeners < 40 {
        if let Some(Event::Listener(info, socket)) = ends.channel.next().await.unwrap() {
            assert_eq!(socket.local_addr().unwrap(), info.addr);
            assert_eq!(info.number, listeners);
            listeners += 1;
        }
    }
}

#[tokio::test]
async fn a_policy_of_ten_megabytes_arrives_whole() {
    let mut ends = ends();
    let sources = vec![PolicySource {
        name: "big.toml".into(),
        text: "# all comment\n".repeat(750_000),
    }];
    let policy = ToWorker::Policy {
        generation: 4,
        sources: sources.clone(),
    };
    ends.sender.send(policy).unwrap();
    let Some(Event::Policy {
        generation,
        sources: got,
    }) = ends.channel.next().await.unwrap()
    else {
        panic!("no policy");
    };
    assert_eq!(generation, 4);
    assert!(got == sources);
}

#[tokio::test]
async fn a_question_gets_its_own_answer_whatever_the_order() {
    let mut ends = ends();
    let (first, second) = (ends.client.clone(), ends.client.clone());
    let first = tokio::spawn(async move { first.identify(&name("billing"), b"one", false).await });
    let second = tokio::spawn(async move { second.identify(&name("billing"), b"two", true).await });
    let mut asked = Vec::new();
    while asked.len() < 2 {
        if let Some(ToSupervisor::Identify {
            request,
            origin,
            digest,
        }) = ends.receiver.next().await.unwrap()
        {
            assert_eq!(digest, origin == b"two");
            asked.push((request, origin));
        }
    }
    for (request, origin) in asked.into_iter().rev() {
        let result = if origin == b"one" {
            Ok(Box::new(identity()))
        } else {
            Err(Refusal::new("the process is gone"))
        };
        ends.sender.send(ToWorker::Identity { request, result }).unwrap();
    }
    assert_eq!(first.await.unwrap().unwrap(), identity());
    let error = second.await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "the process is gone");
}

#[tokio::test]
async fn askers_of_one_intermediate_share_one_question() {
    let mut ends = ends();
    let askers: Vec<_> = (0..10)
        .map(|_| {
            let client = ends.client.clone();
            tokio::spawn(async move {
                client
                    .intermediate(&name("billing"), &host("api.example.com"))
                    .await
            })
        })
        .collect();
    let Some(ToSupervisor::Intermediate { host: asked }) = ends.receiver.next().await.unwrap() else {
        panic!("no question");
    };
    let intermediate = intermediate(&asked);
    let answer = ToWorker::Intermediate {
        host: asked,
        result: Ok(intermediate),
    };
    ends.sender.send(answer).unwrap();
    for asker in askers {
        assert_eq!(asker.await.unwrap().unwrap().host, host("api.example.com"));
    }
    ends.client.ready().await.unwrap();
    let next = ends.receiver.next().await.unwrap();
    assert!(matches!(next, Some(ToSupervisor::Ready)), "{next:?}");
}

#[tokio::test]
async fn open_questions_fail_when_the_supervisor_goes() {
    let ends = ends();
    let Ends {
        sender,
        mut receiver,
        mut channel,
        client,
    } = ends;
    let asker = tokio::spawn(async move { client.executable(&name("billing"), b"one", false).await });
    assert!(receiver.next().await.unwrap().is_some());
    drop((sender, receiver));
    assert!(channel.next().await.unwrap().is_none());
    assert!(matches!(asker.await.unwrap(), Err(AskError::Closed)));
}

#[tokio::test]
async fn an_overlong_frame_is_refused_before_it_is_read() {
    let (mut ours, mut reader) = raw();
    ours.write_all(&[0xff, 0xff, 0xff, 0x7f, 0]).unwrap();
    let error = reader.next::<ToSupervisor>().await.unwrap_err();
    assert!(matches!(error, FrameError::TooLong { .. }), "{error}");
}

#[tokio::test]
async fn a_malformed_body_is_refused() {
    for body in [&[0xee][..], &[4, 3, b'a', b' ', b'b'], &[0, 0]] {
        let (mut ours, mut reader) = raw();
        let length = u32::try_from(body.len()).unwrap().to_le_bytes();
        ours.write_all(&length).unwrap();
        ours.write_all(&[0]).unwrap();
        ours.write_all(body).unwrap();
        assert!(reader.next::<ToSupervisor>().await.is_err(), "{body:?}");
    }
}

#[tokio::test]
async fn a_frame_that_is_cut_off_is_an_error_and_not_an_end() {
    let (mut ours, mut reader) = raw();
    ours.write_all(&[5, 0, 0, 0, 0, 1]).unwrap();
    drop(ours);
    let error = reader.next::<ToSupervisor>().await.unwrap_err();
    assert!(matches!(error, FrameError::Truncated), "{error}");
}

#[tokio::test]
async fn a_frame_that_claims_descriptors_it_did_not_bring_is_refused() {
    let (mut ours, mut reader) = raw();
    ours.write_all(&[1, 0, 0, 0, 1, 0]).unwrap();
    let error = reader.next::<ToSupervisor>().await.unwrap_err();
    assert!(matches!(error, FrameError::Descriptors { .. }), "{error}");
}

async fn breach_of(message: ToSupervisor, descriptors: Vec<OwnedFd>) -> Option<Breach> {
    let (above, below) = pair().unwrap();
    let (_sender, mut receiver) = supervisor::open(above).unwrap();
    let (_reader, mut writer): (Reader, Writer) = split(below, MAX_TO_WORKER).unwrap();
    writer.send(&message, &descriptors, MAX_TO_WORKER).await.unwrap();
    receiver.next().await.err()
}

#[tokio::test]
async fn the_supervisor_takes_nothing_out_of_bounds_from_the_worker() {
    let origin = |length| ToSupervisor::Identify {
        request: 1,
        origin: vec![0; length],
        digest: false,
    };
    assert!(breach_of(origin(100), Vec::new()).await.is_none());
    assert!(matches!(
        breach_of(origin(0), Vec::new()).await,
        Some(Breach::Field { .. })
    ));
    assert!(matches!(
        breach_of(origin(10_000), Vec::new()).await,
        Some(Breach::Field { .. })
    ));
    let fault = ToSupervisor::Fault {
        message: "x".repeat(10_000),
    };
    assert!(matches!(
        breach_of(fault, Vec::new()).await,
        Some(Breach::Field { .. })
    ));
    let with_file = breach_of(ToSupervisor::Ready, vec![file_with("")]).await;
    assert!(matches!(
        with_file,
        Some(Breach::Frame(FrameError::Descriptors { .. }))
    ));
}

#[test]
fn a_secret_on_its_way_is_not_shown() {
    let state = CredentialState::Available {
        value: Secret::new(b"hunter2".to_vec()).unwrap().for_channel(),
        version: "v1".into(),
    };
    assert!(!format!("{state:?}").contains("hunter2"));
}

#[tokio::test]
async fn a_workload_that_names_ever_new_hosts_gets_no_more_signed_and_another_does() {
    let mut ends = ends();
    let client = ends.client.clone();
    let flood = tokio::spawn(async move {
        for number in 0.. {
            let asked = client
                .intermediate(&name("a"), &host(&format!("h{number}.example.com")))
                .await;
            if let Err(error) = asked {
                return (number, error, client);
            }
        }
        unreachable!("the numbers have no end");
    });
    let signed = intermediate(&host("example.com"));
    let answer = async |ends: &mut Ends| {
        while let Some(message) = ends.receiver.next().await.unwrap() {
            if let ToSupervisor::Intermediate { host } = message {
                // The channel looks into none.
                let result = Ok(Intermediate {
                    host: host.clone(),
                    ..signed.clone()
                });
                ends.sender.send(ToWorker::Intermediate { host, result }).unwrap();
                ends.channel.next().await.unwrap();
            }
        }
    };
    let (number, error, client) = tokio::select! {
        ended = flood => ended.unwrap(),
        () = answer(&mut ends) => panic!("the channel ended"),
    };
    assert!(number >= 1000, "{number}");
    assert!(matches!(error, AskError::Limit), "{error}");
    let (other, wanted) = (name("b"), host("api.example.com"));
    tokio::select! {
        got = client.intermediate(&other, &wanted) => drop(got.unwrap()),
        () = answer(&mut ends) => panic!("the channel ended"),
    }
}
