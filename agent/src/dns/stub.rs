//! What a workload may ask, and the answers: names that its rules let it reach, and nothing else. By UDP here, by TCP in
//! [`super::stream`].
//!
//! The kernel turns a workload's port 53 round to a socket of its own here, so whose question it is needs no
//! guessing. Answers come from the agent's own resolver; only addresses are told (A, AAAA): HTTPS and SVCB
//! records would lead clients to HTTP/3 and encrypted ClientHellos (RFC 9460), and TXT would be a way in and
//! out. A name that no allow or tunnel names does not exist, and asking for it is on record: a label can carry data.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hickory_proto::ProtoError;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, RData, Record, RecordType};
use tokio::net::UdpSocket;
use tokio::sync::Semaphore;

use super::Error;
use super::resolver::Resolver;
use crate::addr::HostName;
use crate::identity::WorkloadName;

/// Seconds that a client may keep an answer: rules and addresses change.
const TTL: u32 = 30;
/// No question is longer (RFC 1035 section 2.3.4; EDNS does not lengthen questions).
pub(super) const MAX_QUESTION: usize = 1232;
/// What a client takes in a datagram if it does not say (RFC 1035 section 4.2.1).
const DATAGRAM: u16 = 512;
/// The longest datagram that is sent, whatever a client says: it passes every path unfragmented (RFC 9715).
const MAX_DATAGRAM: u16 = 1232;

/// What is asked of policy and told to the log.
pub trait Rules: Send + Sync + 'static {
    /// Who asks.
    fn workload(&self) -> &WorkloadName;
    /// Whether a rule of the workload lets something through to this name.
    fn may_ask(&self, host: &HostName) -> bool;
    /// A name was asked for that may not be.
    fn refused(&self, name: &str);
    /// A name that may be asked for could not be looked up. Which names there are below a wildcard is the workload's choice.
    fn failed(&self, error: &Error);
}

/// Answers one workload's questions until the socket breaks. Questions beyond `turns` at once are dropped: the client
/// asks again.
pub async fn serve(socket: UdpSocket, resolver: Resolver, rules: Arc<dyn Rules>, turns: Arc<Semaphore>) {
    let socket = Arc::new(socket);
    let mut buffer = [0; MAX_QUESTION];
    loop {
        let (length, client) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                // The answer to an earlier client that is gone comes back as an error of this call.
                tracing::debug!(%error, "a DNS client is gone");
                continue;
            }
        };
        let Ok(turn) = Arc::clone(&turns).try_acquire_owned() else {
            continue;
        };
        let Ok(question) = Message::from_vec(buffer.get(..length).unwrap_or_default()) else {
            continue;
        };
        let (socket, resolver, rules) = (Arc::clone(&socket), resolver.clone(), Arc::clone(&rules));
        tokio::spawn(async move {
            let reply = answer(&question, &resolver, rules.as_ref()).await;
            send(&socket, &reply, room(&question), client).await;
            drop(turn);
        });
    }
}

/// How long an answer in a datagram may be (RFC 6891 section 6.2.3).
fn room(question: &Message) -> usize {
    let asked = question.edns.as_ref().map_or(DATAGRAM, Edns::max_payload);
    asked.clamp(DATAGRAM, MAX_DATAGRAM).into()
}

/// The answer's bytes; one that is too long is cut to nothing and marked so, and the client asks again by TCP.
fn within(reply: &Message, room: usize) -> Result<Vec<u8>, ProtoError> {
    match reply.to_vec()? {
        bytes if bytes.len() <= room => Ok(bytes),
        _ => reply.truncate().to_vec(),
    }
}

async fn send(socket: &UdpSocket, reply: &Message, room: usize, client: SocketAddr) {
    let sent = match within(reply, room) {
        Ok(bytes) => socket.send_to(&bytes, client).await.map(drop),
        Err(error) => Err(std::io::Error::other(error)),
    };
    if let Err(error) = sent {
        tracing::debug!(%error, "a DNS answer could not be sent");
    }
}

/// The answer to a question.
pub(super) async fn answer(question: &Message, resolver: &Resolver, rules: &dyn Rules) -> Message {
    let id = question.metadata.id;
    let fail = |code| Message::error_msg(id, question.metadata.op_code, code);
    let is_query =
        question.metadata.message_type == MessageType::Query && question.metadata.op_code == OpCode::Query;
    let [query] = question.queries.as_slice() else {
        return fail(ResponseCode::FormErr);
    };
    if !is_query || query.query_class() != DNSClass::IN {
        return fail(ResponseCode::NotImp);
    }
    let mut reply = Message::response(id, OpCode::Query);
    reply.metadata.recursion_desired = question.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.add_query(query.clone());
    if question.edns.is_some() {
        // Who speaks of EDNS is spoken to with it (RFC 6891 section 6.1.1).
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_DATAGRAM);
        reply.set_edns(edns);
    }
    match records(query, resolver, rules).await {
        Ok(records) => {
            reply.add_answers(records);
        }
        Err(code) => reply.metadata.response_code = code,
    }
    reply
}

async fn records(query: &Query, resolver: &Resolver, rules: &dyn Rules) -> Result<Vec<Record>, ResponseCode> {
    let name = query.name().to_ascii();
    let host = HostName::parse(&name).ok().filter(|host| rules.may_ask(host));
    let Some(host) = host else {
        rules.refused(&name);
        return Err(ResponseCode::NXDomain);
    };
    if !matches!(query.query_type(), RecordType::A | RecordType::AAAA) {
        // The name is there, this kind of record is not.
        return Ok(Vec::new());
    }
    let addresses = resolver
        .addresses(rules.workload(), &host)
        .await
        .map_err(|error| match error {
            Error::NotFound { .. } => ResponseCode::NXDomain,
            Error::Hosts { .. } | Error::Setup { .. } | Error::Failed { .. } | Error::Timeout { .. } => {
                rules.failed(&error);
                ResponseCode::ServFail
            }
        })?;
    let wanted = |address: IpAddr| match (address, query.query_type()) {
        (IpAddr::V4(v4), RecordType::A) => Some(RData::A(v4.into())),
        (IpAddr::V6(v6), RecordType::AAAA) => Some(RData::AAAA(v6.into())),
        (IpAddr::V4(_) | IpAddr::V6(_), _) => None,
    };
    let records = addresses.into_iter().filter_map(wanted);
    Ok(records
        .map(|data| Record::from_rdata(query.name().clone(), TTL, data))
        .collect())
}

#[cfg(test)]
pub(super) mod tests {
    use std::str::FromStr as _;
    use std::sync::Mutex;

    use hickory_proto::rr::Name;

    use super::super::given::Given;
    use super::super::resolver::{Names, Settings};
    use super::*;

    pub(in crate::dns) struct Only {
        workload: WorkloadName,
        refused: Mutex<Vec<String>>,
        failed: Mutex<Vec<String>>,
    }

    impl Default for Only {
        fn default() -> Self {
            Self {
                workload: WorkloadName::parse("asker").unwrap(),
                refused: Mutex::default(),
                failed: Mutex::default(),
            }
        }
    }

    impl Rules for Only {
        fn workload(&self) -> &WorkloadName {
            &self.workload
        }
        fn may_ask(&self, host: &HostName) -> bool {
            host.as_str() == "api.example.com"
        }
        fn refused(&self, name: &str) {
            self.refused.lock().unwrap().push(name.to_owned());
        }
        fn failed(&self, error: &Error) {
            self.failed.lock().unwrap().push(error.to_string());
        }
    }

    pub(in crate::dns) fn ask(name: &str, kind: RecordType) -> Message {
        let mut question = Message::query();
        question.add_query(Query::query(Name::from_str(name).unwrap(), kind));
        question
    }

    pub(in crate::dns) fn resolver() -> Resolver {
        let hosts =
            "192.0.2.7 api.example.com\n2001:db8::7 api.example.com\n192.0.2.8 other.example.com".into();
        let settings = Settings {
            resolvers: Vec::new(),
            hosts,
        };
        Resolver::new(&Names::new(&settings).unwrap(), Given::default()).unwrap()
    }

    #[tokio::test]
    async fn a_mentioned_name_has_its_addresses_and_no_other_records() {
        let (resolver, rules) = (resolver(), Only::default());
        for (kind, expected) in [
            (RecordType::A, 1),
            (RecordType::AAAA, 1),
            (RecordType::HTTPS, 0),
            (RecordType::TXT, 0),
        ] {
            let reply = answer(&ask("API.example.com.", kind), &resolver, &rules).await;
            assert_eq!(reply.metadata.response_code, ResponseCode::NoError, "{kind}");
            assert_eq!(reply.answers.len(), expected, "{kind}");
        }
        assert!(rules.refused.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_name_that_may_not_be_asked_for_does_not_exist_and_is_told_to_the_log() {
        let (resolver, rules) = (resolver(), Only::default());
        let reply = answer(&ask("other.example.com.", RecordType::A), &resolver, &rules).await;
        assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
        assert!(reply.answers.is_empty());
        assert_eq!(*rules.refused.lock().unwrap(), ["other.example.com."]);
    }

    #[tokio::test]
    async fn an_answer_too_long_for_the_clients_datagram_sends_it_to_tcp() {
        let (resolver, rules) = (resolver(), Only::default());
        let mut question = ask("api.example.com.", RecordType::A);
        assert_eq!(room(&question), 512);
        let mut reply = answer(&question, &resolver, &rules).await;
        assert!(reply.edns.is_none());
        let one = reply.answers[0].clone();
        reply.add_answers(std::iter::repeat_n(one, 60));
        let whole = reply.to_vec().unwrap();
        let cut = Message::from_vec(&within(&reply, 512).unwrap()).unwrap();
        assert!(cut.metadata.truncation && cut.answers.is_empty(), "{cut:?}");
        assert_eq!(
            (cut.metadata.id, &cut.queries),
            (reply.metadata.id, &reply.queries)
        );
        for (says, room_for) in [(100, 512), (1000, 1000), (4096, 1232)] {
            let mut edns = Edns::new();
            edns.set_max_payload(says);
            question.set_edns(edns);
            assert_eq!(room(&question), room_for);
        }
        assert_eq!(within(&reply, room(&question)).unwrap(), whole);
        assert!(answer(&question, &resolver, &rules).await.edns.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_can_not_be_looked_up_is_told_to_who_keeps_count() {
        let closed = std::net::UdpSocket::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let settings = Settings {
            resolvers: vec![closed],
            hosts: String::new(),
        };
        let resolver = Resolver::new(&Names::new(&settings).unwrap(), Given::default()).unwrap();
        let rules = Only::default();
        let reply = answer(&ask("api.example.com.", RecordType::A), &resolver, &rules).await;
        assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
        let failed = rules.failed.lock().unwrap();
        assert!(
            failed.len() == 1 && failed[0].contains("api.example.com"),
            "{failed:?}"
        );
    }

    #[tokio::test]
    async fn other_messages_than_one_question_are_refused() {
        let (resolver, rules) = (resolver(), Only::default());
        let reply = answer(&Message::query(), &resolver, &rules).await;
        assert_eq!(reply.metadata.response_code, ResponseCode::FormErr);
        let mut two = ask("api.example.com.", RecordType::A);
        two.add_query(two.queries[0].clone());
        let reply = answer(&two, &resolver, &rules).await;
        assert_eq!(reply.metadata.response_code, ResponseCode::FormErr);
    }
}
