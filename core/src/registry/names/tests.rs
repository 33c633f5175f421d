use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UdpSocket},
    task::JoinHandle,
};

use super::*;

const A: u16 = 1;
const AAAA: u16 = 28;

/// What the server does with a question over UDP.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Udp {
    Answer,
    Truncate,
    Drop,
    ServerFailure,
}

/// A name server on loopback with the records it is given (RFC 1035). It knows no compression.
struct Server {
    address: SocketAddr,
    /// `udp name type`, in the order of arrival.
    log: Arc<Mutex<Vec<String>>>,
    tasks: [JoinHandle<()>; 2],
}

type Records = Arc<BTreeMap<&'static str, Vec<&'static str>>>;

impl Server {
    async fn start(records: &[(&'static str, &[&'static str])], udp: Udp) -> Server {
        let records: Records =
            Arc::new(records.iter().map(|(name, to)| (*name, to.to_vec())).collect());
        let log: Arc<Mutex<Vec<String>>> = Arc::default();
        // The same port for both; another process may have it.
        let (listener, socket) = loop {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            if let Ok(socket) = UdpSocket::bind(address).await {
                break (listener, socket);
            }
        };
        let address = listener.local_addr().unwrap();
        let tasks = [
            tokio::spawn(serve_udp(socket, records.clone(), log.clone(), udp)),
            tokio::spawn(serve_tcp(listener, records, log.clone())),
        ];
        Server { address, log, tasks }
    }

    fn names(&self, hosts: &str, change: impl FnOnce(&mut Settings)) -> Names {
        let mut settings = Settings { servers: vec![self.address], ..Settings::default() };
        settings.timeout_seconds = 1;
        change(&mut settings);
        Names::with_settings(hosts.as_bytes(), &settings)
    }

    fn log(&self) -> Vec<String> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

async fn serve_udp(socket: UdpSocket, records: Records, log: Arc<Mutex<Vec<String>>>, udp: Udp) {
    let mut buffer = [0; 2048];
    while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
        let question = &buffer[..length];
        let mut answer = reply(question, &records, "udp", &log);
        match udp {
            Udp::Answer => {}
            Udp::Drop => continue,
            Udp::Truncate => {
                answer.truncate(12 + question_bytes(question));
                answer[2] |= 0b10;
                answer[6..12].fill(0);
            }
            Udp::ServerFailure => {
                answer.truncate(12 + question_bytes(question));
                answer[3] = 0x82;
                answer[6..12].fill(0);
            }
        }
        let _ = socket.send_to(&answer, peer).await;
    }
}

async fn serve_tcp(listener: TcpListener, records: Records, log: Arc<Mutex<Vec<String>>>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let (records, log) = (records.clone(), log.clone());
        tokio::spawn(async move {
            while let Ok(length) = stream.read_u16().await {
                let mut question = vec![0; length.into()];
                stream.read_exact(&mut question).await.unwrap();
                let answer = reply(&question, &records, "tcp", &log);
                stream.write_u16(answer.len() as u16).await.unwrap();
                stream.write_all(&answer).await.unwrap();
            }
        });
    }
}

fn question_bytes(message: &[u8]) -> usize {
    message[12..].iter().position(|byte| *byte == 0).unwrap() + 5
}

fn asked(message: &[u8]) -> (String, u16) {
    let (mut at, mut labels) = (12, Vec::new());
    while message[at] != 0 {
        let length = usize::from(message[at]);
        labels.push(String::from_utf8_lossy(&message[at + 1..at + 1 + length]).to_lowercase());
        at += 1 + length;
    }
    (labels.join("."), u16::from_be_bytes([message[at + 1], message[at + 2]]))
}

fn reply(message: &[u8], records: &Records, way: &str, log: &Mutex<Vec<String>>) -> Vec<u8> {
    let (name, kind) = asked(message);
    let word = if kind == A { "A" } else { "AAAA" };
    log.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{way} {name} {word}"));
    let question = &message[12..12 + question_bytes(message)];
    let found: Vec<Vec<u8>> = records
        .get(name.as_str())
        .into_iter()
        .flatten()
        .filter_map(|address| data(address, kind))
        .collect();
    let code = if records.contains_key(name.as_str()) { 0x80 } else { 0x83 };
    let mut answer = vec![message[0], message[1], 0x81, code, 0, 1, 0, found.len() as u8];
    answer.extend([0, 0, 0, 0]);
    answer.extend(question);
    for data in found {
        answer.extend([0xc0, 12]);
        answer.extend(kind.to_be_bytes());
        answer.extend([0, 1, 0, 0, 0, 60, 0, data.len() as u8]);
        answer.extend(data);
    }
    answer
}

fn data(address: &str, kind: u16) -> Option<Vec<u8>> {
    match address.parse().unwrap() {
        IpAddr::V4(v4) => (kind == A).then(|| v4.octets().to_vec()),
        IpAddr::V6(v6) => (kind == AAAA).then(|| v6.octets().to_vec()),
    }
}

fn addresses(list: &[&str]) -> Vec<IpAddr> {
    list.iter().map(|address| address.parse().unwrap()).collect()
}

#[tokio::test]
async fn the_hosts_file_and_localhost_come_first() {
    let server = Server::start(&[("reg.example", &["192.0.2.9"])], Udp::Answer).await;
    let hosts = "192.0.2.1 reg.example alias # not this\n\n::1 REG.example.\nnonsense here\n";
    let names = server.names(hosts, |_| {});
    let expected = addresses(&["192.0.2.1", "::1"]);
    assert_eq!(names.resolve("Reg.Example").await.unwrap(), expected);
    assert_eq!(names.resolve("alias.").await.unwrap(), expected[..1]);
    let loopback = addresses(&["127.0.0.1", "::1"]);
    assert_eq!(names.resolve("localhost").await.unwrap(), loopback);
    assert_eq!(names.resolve("a.localhost.").await.unwrap(), loopback);
    assert_eq!(names.resolve("[::1]").await.unwrap(), loopback[1..]);
    assert_eq!(names.resolve("10.0.0.1").await.unwrap(), addresses(&["10.0.0.1"]));
    assert!(server.log().is_empty(), "{:?}", server.log());
    for word in ["not", "this", "here"] {
        assert!(names.resolve(word).await.is_err(), "{word}");
    }
}

#[tokio::test]
async fn both_families_are_asked_and_ipv6_goes_first() {
    let records: &[(&str, &[&str])] =
        &[("both.example", &["192.0.2.1", "2001:db8::1"]), ("four.example", &["192.0.2.4"])];
    let server = Server::start(records, Udp::Answer).await;
    let names = server.names("", |_| {});
    let both = names.resolve("both.example").await.unwrap();
    assert_eq!(both, addresses(&["2001:db8::1", "192.0.2.1"]));
    assert_eq!(names.resolve("four.example").await.unwrap(), addresses(&["192.0.2.4"]));
    // Answers are kept.
    let before = server.log().len();
    names.clone().resolve("both.example").await.unwrap();
    assert_eq!(server.log().len(), before);
    let four = server.names("", |settings| settings.v4_only = true);
    assert_eq!(four.resolve("both.example").await.unwrap(), addresses(&["192.0.2.1"]));
}

#[tokio::test]
async fn a_truncated_answer_is_had_over_tcp() {
    let records: &[(&str, &[&str])] = &[("big.example", &["192.0.2.1", "192.0.2.2"])];
    let server = Server::start(records, Udp::Truncate).await;
    let found = server.names("", |_| {}).resolve("big.example").await.unwrap();
    assert_eq!(found, addresses(&["192.0.2.1", "192.0.2.2"]));
    assert!(server.log().contains(&"tcp big.example A".to_owned()), "{:?}", server.log());
}

#[tokio::test]
async fn tcp_serves_where_udp_is_not_wanted() {
    let records: &[(&str, &[&str])] = &[("x.example", &["192.0.2.1"])];
    let server = Server::start(records, Udp::Answer).await;
    let names = server.names("", |settings| settings.tcp_only = true);
    assert_eq!(names.resolve("x.example").await.unwrap(), addresses(&["192.0.2.1"]));
    assert!(server.log().iter().all(|line| line.starts_with("tcp ")), "{:?}", server.log());
}

#[tokio::test]
async fn search_domains_and_ndots() {
    let records: &[(&str, &[&str])] =
        &[("reg.ns.svc.cluster.local", &["10.1.1.1"]), ("reg.example", &["192.0.2.1"])];
    let server = Server::start(records, Udp::Answer).await;
    let cluster = |settings: &mut Settings| {
        settings.search = vec!["ns.svc.cluster.local".into(), "svc.cluster.local".into()];
        settings.ndots = 5;
    };
    let names = server.names("", cluster);
    assert_eq!(names.resolve("reg").await.unwrap(), addresses(&["10.1.1.1"]));
    assert_eq!(server.log()[0].split(' ').nth(1), Some("reg.ns.svc.cluster.local"));
    assert_eq!(names.resolve("reg.example").await.unwrap(), addresses(&["192.0.2.1"]));
    assert!(server.log().iter().any(|line| line.contains("reg.example.svc.cluster.local")));
    let before = server.log().len();
    assert_eq!(names.resolve("reg.example.").await.unwrap(), addresses(&["192.0.2.1"]));
    assert!(!server.log()[before..].iter().any(|line| line.contains("cluster")));
    // With few dots asked for, the name as it is goes first.
    let names = server.names("", |settings| {
        cluster(settings);
        settings.ndots = 1;
    });
    let before = server.log().len();
    assert_eq!(names.resolve("reg.example").await.unwrap(), addresses(&["192.0.2.1"]));
    assert!(!server.log()[before..].iter().any(|line| line.contains("cluster")));
}

#[tokio::test]
async fn what_is_not_there_and_what_fails_are_two_things() {
    let server = Server::start(&[("empty.example", &[])], Udp::Answer).await;
    let names = server.names("", |_| {});
    for name in ["none.example", "empty.example", "a..b", &"x".repeat(300)] {
        let error = names.resolve(name).await.unwrap_err();
        assert!(matches!(error, NameError::Unknown { .. }), "{name}: {error}");
        assert!(error.to_string().contains("127.0.0.1"));
    }
    let server = Server::start(&[], Udp::ServerFailure).await;
    let names = server.names("", |settings| settings.attempts = 1);
    let error = names.resolve("reg.example").await.unwrap_err();
    assert!(matches!(&error, NameError::Failed { .. }), "{error}");
}

#[tokio::test]
async fn the_second_server_answers_where_the_first_is_silent() {
    let silent = Server::start(&[], Udp::Drop).await;
    let records: &[(&str, &[&str])] = &[("x.example", &["192.0.2.1"]), ("y.example", &[])];
    let server = Server::start(records, Udp::Answer).await;
    let names = server.names("", |settings| settings.servers.insert(0, silent.address));
    assert_eq!(names.resolve("x.example").await.unwrap(), addresses(&["192.0.2.1"]));
    let before = silent.log().len();
    assert!(before > 0);
    // From then on it is asked first.
    names.resolve("y.example").await.unwrap_err();
    assert_eq!(silent.log().len(), before);
}

#[test]
fn resolv_conf_as_glibc_reads_it() {
    let text = "# c\n; c\nnameserver 10.0.0.2\nnameserver fe80::1%eth0\nnameserver  2001:db8::53 \n\
                nameserver 10.0.0.3\nnameserver 10.0.0.4\nnameserver\ndomain first.example\n\
                search a.example b.example\noptions ndots:5 timeout:99 attempts:0 edns0 no-aaaa ndots:x\nunknown word\n";
    let settings = Settings::parse(text);
    let servers: Vec<String> = settings.servers.iter().map(|one| one.ip().to_string()).collect();
    assert_eq!(servers, ["10.0.0.2", "2001:db8::53", "10.0.0.3"]);
    assert_eq!(settings.search, ["a.example", "b.example"]);
    assert_eq!((settings.ndots, settings.timeout_seconds, settings.attempts), (5, 30, 1));
    assert!(settings.v4_only && !settings.tcp_only);
    let none = Settings::parse("");
    assert_eq!(none.servers, ["127.0.0.1:53".parse().unwrap()]);
    assert_eq!(Settings::parse("search a\ndomain b c\n").search, ["b"]);
}
