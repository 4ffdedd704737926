//! Tests of `dns::resolver`, against a small DNS server on the loopback.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering};

use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::{RData, Record};
use tokio::net::UdpSocket;
use tokio::task::AbortHandle;

use super::*;

/// Answers `two.example` with a v4 and a v6 address, `busy.example` with another v4 address each time, `broken.example` with a
/// failure, all else with "no such name"; counts questions.
struct Server {
    address: SocketAddr,
    questions: Arc<AtomicUsize>,
    task: AbortHandle,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn server_on_loopback() -> Server {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let questions = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&questions);
    let task = tokio::spawn(async move {
        let mut buffer = [0; 1500];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            let count = counter.fetch_add(1, Ordering::Relaxed);
            let answer = answer(&Message::from_vec(&buffer[..length]).unwrap(), count);
            socket.send_to(&answer.to_vec().unwrap(), from).await.unwrap();
        }
    });
    Server {
        address,
        questions,
        task: task.abort_handle(),
    }
}

fn answer(question: &Message, count: usize) -> Message {
    let query = question.queries[0].clone();
    let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
    let name = query.name().clone();
    if name.to_ascii() == "two.example." {
        let data = if query.query_type() == RecordType::A {
            RData::A(Ipv4Addr::new(192, 0, 2, 1).into())
        } else {
            RData::AAAA(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into())
        };
        answer.add_answer(Record::from_rdata(name, 60, data));
    } else if name.to_ascii() == "busy.example." {
        if query.query_type() == RecordType::A {
            let data = RData::A(Ipv4Addr::new(198, 51, 100, u8::try_from(count).unwrap()).into());
            answer.add_answer(Record::from_rdata(name, 0, data));
        }
    } else if name.to_ascii() == "broken.example." {
        answer.metadata.response_code = ResponseCode::ServFail;
    } else {
        answer.metadata.response_code = ResponseCode::NXDomain;
    }
    answer.add_query(query);
    answer
}

fn asker() -> WorkloadName {
    WorkloadName::parse("asker").unwrap()
}

fn resolver(server: &Server, hosts: &str) -> Resolver {
    let settings = Settings {
        resolvers: vec![server.address],
        hosts: hosts.to_owned(),
    };
    Resolver::new(&Names::new(&settings).unwrap(), Given::default()).unwrap()
}

#[tokio::test]
async fn both_families_come_from_the_resolvers_and_are_kept() {
    let server = server_on_loopback().await;
    let resolver = resolver(&server, "");
    let host = "Two.Example".parse().unwrap();
    for _ in 0..3 {
        let mut addresses = resolver.addresses(&asker(), &host).await.unwrap();
        addresses.sort();
        let expected: [IpAddr; 2] = ["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        assert_eq!(addresses, expected);
    }
    assert_eq!(server.questions.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_name_in_the_hosts_file_is_not_asked_for() {
    let server = server_on_loopback().await;
    let hosts = "# local\n127.0.0.7 API.example alias.example\n::7 api.example\n";
    let resolver = resolver(&server, hosts);
    let addresses = resolver
        .addresses(&asker(), &"api.example".parse().unwrap())
        .await
        .unwrap();
    let expected: [IpAddr; 2] = ["127.0.0.7".parse().unwrap(), "::7".parse().unwrap()];
    assert_eq!(addresses, expected);
    assert_eq!(
        resolver
            .addresses(&asker(), &"alias.example".parse().unwrap())
            .await
            .unwrap(),
        expected[..1]
    );
    assert_eq!(server.questions.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_name_that_does_not_exist_is_told_apart_from_a_failure() {
    let server = server_on_loopback().await;
    let error = resolver(&server, "")
        .addresses(&asker(), &"none.example".parse().unwrap())
        .await
        .unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error}");
    let error = resolver(&server, "")
        .addresses(&asker(), &"broken.example".parse().unwrap())
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Failed { .. }), "{error}");
}

#[tokio::test]
async fn without_resolvers_only_the_hosts_file_answers() {
    let settings = Settings {
        resolvers: Vec::new(),
        hosts: "192.0.2.9 listed.example".into(),
    };
    let resolver = Resolver::new(&Names::new(&settings).unwrap(), Given::default()).unwrap();
    let listed = resolver
        .addresses(&asker(), &"listed.example".parse().unwrap())
        .await
        .unwrap();
    assert_eq!(listed, ["192.0.2.9".parse::<IpAddr>().unwrap()]);
    let error = resolver
        .addresses(&asker(), &"other.example".parse().unwrap())
        .await
        .unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error}");
}

#[tokio::test]
async fn who_asks_for_ever_so_many_names_takes_no_address_from_another() {
    let server = server_on_loopback().await;
    let wild: Vec<HostName> = (0..10_000)
        .map(|n| format!("n{n}.wild.example").parse().unwrap())
        .collect();
    let hosts: String = wild.iter().map(|name| format!("192.0.2.9 {name}\n")).collect();
    let resolver = resolver(&server, &hosts);
    let (modest, greedy) = (asker(), WorkloadName::parse("greedy").unwrap());
    let busy = "busy.example".parse().unwrap();
    let given = resolver.addresses(&modest, &busy).await.unwrap()[0];
    for name in &wild {
        resolver.addresses(&greedy, name).await.unwrap();
    }
    assert!(resolver.gives(&modest, &busy, given).await.unwrap());
    assert_ne!(resolver.addresses(&modest, &busy).await.unwrap(), [given]);
}
