//! What a workload may ask by UDP, and the answers: names that its rules mention, and nothing else.
//!
//! The kernel turns a workload's port 53 round to a socket of its own here, so whose question it is needs no
//! guessing. Answers come from the agent's own resolver; only addresses are told (A, AAAA): HTTPS and SVCB
//! records would lead clients to HTTP/3 and encrypted ClientHellos (RFC 9460), and TXT would be a way in and
//! out. A name that no rule mentions does not exist, and asking for it is on record: a label can carry data.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, RData, Record, RecordType};
use tokio::net::UdpSocket;
use tokio::sync::Semaphore;

use super::Error;
use super::resolver::Resolver;
use crate::addr::HostName;

/// Seconds that a client may keep an answer: rules and addresses change.
const TTL: u32 = 30;
/// Questions of one workload that are worked on at once; more are dropped, and the client asks again.
const AT_ONCE: usize = 64;
/// No question is longer (RFC 1035 section 2.3.4; EDNS does not lengthen questions).
const MAX_QUESTION: usize = 1232;

/// What is asked of policy and told to the log.
pub trait Rules: Send + Sync + 'static {
    /// Whether a rule of the workload mentions this name.
    fn mentions(&self, host: &HostName) -> bool;
    /// A name was asked for that no rule mentions.
    fn refused(&self, name: &str);
}

/// Answers one workload's questions until the socket breaks.
pub async fn serve(socket: UdpSocket, resolver: Resolver, rules: Arc<dyn Rules>) {
    let socket = Arc::new(socket);
    let turns = Arc::new(Semaphore::new(AT_ONCE));
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
            send(&socket, &reply, client).await;
            drop(turn);
        });
    }
}

async fn send(socket: &UdpSocket, reply: &Message, client: SocketAddr) {
    let sent = match reply.to_vec() {
        Ok(bytes) => socket.send_to(&bytes, client).await.map(drop),
        Err(error) => Err(std::io::Error::other(error)),
    };
    if let Err(error) = sent {
        tracing::debug!(%error, "a DNS answer could not be sent");
    }
}

/// The answer to a question.
async fn answer(question: &Message, resolver: &Resolver, rules: &dyn Rules) -> Message {
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
    let host = HostName::parse(&name).ok().filter(|host| rules.mentions(host));
    let Some(host) = host else {
        rules.refused(&name);
        return Err(ResponseCode::NXDomain);
    };
    if !matches!(query.query_type(), RecordType::A | RecordType::AAAA) {
        // The name is there, this kind of record is not.
        return Ok(Vec::new());
    }
    let addresses = resolver.addresses(&host).await.map_err(|error| match error {
        Error::NotFound { .. } => ResponseCode::NXDomain,
        Error::Hosts { .. } | Error::Setup { .. } | Error::Failed { .. } | Error::Timeout { .. } => {
            tracing::warn!(%error, "a workload's name could not be resolved");
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
mod tests {
    use std::str::FromStr as _;
    use std::sync::Mutex;

    use hickory_proto::rr::Name;

    use super::super::resolver::Settings;
    use super::*;

    #[derive(Default)]
    struct Only(Mutex<Vec<String>>);

    impl Rules for Only {
        fn mentions(&self, host: &HostName) -> bool {
            host.as_str() == "api.example.com"
        }
        fn refused(&self, name: &str) {
            self.0.lock().unwrap().push(name.to_owned());
        }
    }

    fn ask(name: &str, kind: RecordType) -> Message {
        let mut question = Message::query();
        question.add_query(Query::query(Name::from_str(name).unwrap(), kind));
        question
    }

    fn resolver() -> Resolver {
        let hosts =
            "192.0.2.7 api.example.com\n2001:db8::7 api.example.com\n192.0.2.8 other.example.com".into();
        Resolver::new(&Settings {
            resolvers: Vec::new(),
            hosts,
        })
        .unwrap()
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
        assert!(rules.0.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_name_that_no_rule_mentions_does_not_exist_and_is_told_to_the_log() {
        let (resolver, rules) = (resolver(), Only::default());
        let reply = answer(&ask("other.example.com.", RecordType::A), &resolver, &rules).await;
        assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
        assert!(reply.answers.is_empty());
        assert_eq!(*rules.0.lock().unwrap(), ["other.example.com."]);
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
