//! The same rules by nftables, told to the kernel directly (nfnetlink): nothing
//! has to be installed beside this program.
//!
//! Each family has a table of its own, which one transaction replaces as a
//! whole; afterwards it is read back.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

use crate::CaptureRules;
use crate::rules::{Action, Chain, Family, Match, Protocol, Rule};

/// Name of the tables.
const TABLE: &str = "weft";

// linux/netfilter/nfnetlink.h and nf_tables.h.
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const DELETE_TABLE: u16 = (SUBSYSTEM << 8) | 2;
const NEW_CHAIN: u16 = (SUBSYSTEM << 8) | 3;
const GET_CHAIN: u16 = (SUBSYSTEM << 8) | 4;
const NEW_RULE: u16 = (SUBSYSTEM << 8) | 6;
const GET_RULE: u16 = (SUBSYSTEM << 8) | 7;
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const DUMP: u16 = 0x300;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
const NESTED: u16 = 0x8000;
const MSG_ERROR: u16 = 2;
const MSG_DONE: u16 = 3;
const REGISTER: u32 = 1;
const VERDICT: u32 = 0;
const ACCEPT: u32 = 1;
/// NF_IP_PRI_NAT_DST.
const PRIORITY: i32 = -100;
/// NF_NAT_RANGE_PROTO_SPECIFIED.
const PROTO_SPECIFIED: u32 = 2;

/// Attributes, one after the other.
#[derive(Default)]
struct Attributes(Vec<u8>);

impl Attributes {
    fn put(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn text(self, kind: u16, text: &str) -> Self {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        self.put(kind, &bytes)
    }

    fn number(self, kind: u16, number: u32) -> Self {
        self.put(kind, &number.to_be_bytes())
    }

    fn nested(self, kind: u16, inner: Attributes) -> Self {
        self.put(kind | NESTED, &inner.0)
    }
}

/// An expression of a rule, by name.
fn expression(name: &str, data: Attributes) -> Attributes {
    Attributes::default().text(1, name).nested(2, data)
}

fn value(bytes: &[u8]) -> Attributes {
    Attributes::default().put(1, bytes)
}

fn load_meta(key: u32) -> Attributes {
    expression(
        "meta",
        Attributes::default().number(1, REGISTER).number(2, key),
    )
}

fn load_payload(base: u32, offset: u32, length: u32) -> Attributes {
    let data = Attributes::default()
        .number(1, REGISTER)
        .number(2, base)
        .number(3, offset)
        .number(4, length);
    expression("payload", data)
}

fn compare(equal: bool, bytes: &[u8]) -> Attributes {
    let data = Attributes::default()
        .number(1, REGISTER)
        .number(2, u32::from(!equal))
        .nested(3, value(bytes));
    expression("cmp", data)
}

fn mask(bytes: &[u8]) -> Attributes {
    let data = Attributes::default()
        .number(1, REGISTER)
        .number(2, REGISTER)
        .number(3, bytes.len() as u32)
        .nested(4, value(bytes))
        .nested(5, value(&vec![0; bytes.len()]));
    expression("bitwise", data)
}

fn bytes_of(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// An address of the network header: `source` or the destination.
fn address(cidr: &ipnet::IpNet, source: bool, equal: bool) -> Vec<Attributes> {
    let bytes = bytes_of(cidr.addr());
    let length = bytes.len() as u32;
    let first = if length == 4 { 12 } else { 8 };
    let offset = if source { first } else { first + length };
    let mut parts = vec![load_payload(1, offset, length)];
    if cidr.prefix_len() < cidr.max_prefix_len() {
        parts.push(mask(&bytes_of(cidr.netmask())));
    }
    parts.push(compare(equal, &bytes));
    parts
}

fn expressions(rule: &Rule, loopback: u32) -> Vec<Attributes> {
    let mut all = Vec::new();
    for part in &rule.matches {
        match part {
            Match::Source(cidr) => all.extend(address(cidr, true, true)),
            Match::Destination(cidr) => all.extend(address(cidr, false, true)),
            Match::NotDestination(cidr) => all.extend(address(cidr, false, false)),
            Match::Loopback => all.extend([load_meta(5), compare(true, &loopback.to_ne_bytes())]),
            Match::Protocol(Protocol::Tcp) => all.extend([load_meta(16), compare(true, &[6])]),
            Match::Protocol(Protocol::Udp) => all.extend([load_meta(16), compare(true, &[17])]),
            Match::DestinationPort(port) => {
                all.extend([load_payload(2, 2, 2), compare(true, &port.to_be_bytes())]);
            }
            Match::User(uid) => all.extend([load_meta(10), compare(true, &uid.to_ne_bytes())]),
        }
    }
    match rule.action {
        Action::Leave => {
            let verdict = Attributes::default().number(1, ACCEPT);
            let data = Attributes::default().nested(2, verdict);
            let data = Attributes::default().number(1, VERDICT).nested(2, data);
            all.push(expression("immediate", data));
        }
        Action::Redirect(port) => {
            let data = Attributes::default()
                .number(1, REGISTER)
                .nested(2, value(&port.to_be_bytes()));
            all.push(expression("immediate", data));
            let data = Attributes::default()
                .number(1, REGISTER)
                .number(2, REGISTER)
                .number(3, PROTO_SPECIFIED);
            all.push(expression("redir", data));
        }
    }
    all
}

impl Family {
    fn number(self) -> u8 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }
}

impl Chain {
    const ALL: [Self; 2] = [Self::Input, Self::Output];

    fn name(self) -> &'static str {
        match self {
            Self::Input => "prerouting",
            Self::Output => "output",
        }
    }

    /// NF_INET_PRE_ROUTING and NF_INET_LOCAL_OUT.
    fn hook(self) -> u32 {
        match self {
            Self::Input => 0,
            Self::Output => 3,
        }
    }
}

fn table() -> Attributes {
    Attributes::default().text(1, TABLE)
}

fn chain_attributes(chain: Chain) -> Attributes {
    let hook = Attributes::default()
        .number(1, chain.hook())
        .put(2, &PRIORITY.to_be_bytes());
    Attributes::default()
        .text(1, TABLE)
        .text(3, chain.name())
        .nested(4, hook)
        .number(5, ACCEPT)
        .text(7, "nat")
}

fn rule_attributes(rule: &Rule, loopback: u32) -> Attributes {
    let list = expressions(rule, loopback)
        .into_iter()
        .fold(Attributes::default(), |list, e| list.nested(1, e));
    Attributes::default()
        .text(1, TABLE)
        .text(2, rule.chain.name())
        .nested(4, list)
}

struct Message {
    kind: u16,
    flags: u16,
    family: u8,
    body: Vec<u8>,
}

impl Message {
    fn new(kind: u16, flags: u16, family: Family, body: Attributes) -> Self {
        Self {
            kind,
            flags,
            family: family.number(),
            body: body.0,
        }
    }

    fn encode(&self, number: u32, resource: u16) -> Vec<u8> {
        let length = 20 + self.body.len() as u32;
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(self.kind.to_ne_bytes());
        bytes.extend((self.flags | REQUEST).to_ne_bytes());
        bytes.extend(number.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend([self.family, 0]);
        bytes.extend(resource.to_be_bytes());
        bytes.extend(&self.body);
        bytes
    }
}

/// A netlink socket of the current network namespace.
struct Netlink(OwnedFd);

/// A message that the kernel sent: its kind and what follows its header.
type Heard = (u16, Vec<u8>);

impl Netlink {
    fn open() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkNetFilter,
        )?;
        Ok(Self(socket))
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let kernel = NetlinkAddr::new(0, 0);
        sendto(self.0.as_raw_fd(), bytes, &kernel, MsgFlags::empty())?;
        Ok(())
    }

    fn hear(&self) -> io::Result<Vec<Heard>> {
        let mut buffer = vec![0; 256 * 1024];
        let n = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let mut rest = buffer.get(..n).unwrap_or_default();
        let mut all = Vec::new();
        while let (Some(length), Some(kind)) = (number_at(rest, 0), rest.get(4..6)) {
            let length = (length as usize).clamp(16, rest.len().max(16));
            let kind = u16::from_ne_bytes(kind.try_into().unwrap_or_default());
            all.push((kind, rest.get(16..length).unwrap_or_default().to_vec()));
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(all)
    }

    /// One transaction: all of it or nothing.
    fn commit(&self, messages: &[Message]) -> io::Result<()> {
        let edge = |kind| Message {
            kind,
            flags: 0,
            family: 0,
            body: Vec::new(),
        };
        let mut bytes = edge(BATCH_BEGIN).encode(0, SUBSYSTEM);
        for (index, message) in messages.iter().enumerate() {
            let message = Message {
                flags: message.flags | ACK,
                body: message.body.clone(),
                ..*message
            };
            bytes.extend(message.encode(index as u32 + 1, 0));
        }
        bytes.extend(edge(BATCH_END).encode(messages.len() as u32 + 1, SUBSYSTEM));
        self.send(&bytes)?;
        let mut left = messages.len();
        while left > 0 {
            for (kind, body) in self.hear()? {
                let error = number_at(&body, 0).unwrap_or_default() as i32;
                if kind == MSG_ERROR && error != 0 {
                    return Err(io::Error::from_raw_os_error(-error));
                }
                left = left.saturating_sub(usize::from(kind == MSG_ERROR));
            }
        }
        Ok(())
    }

    /// The attributes of everything of a kind in a family.
    fn dump(&self, kind: u16, family: Family) -> io::Result<Vec<Vec<u8>>> {
        let asked = Message::new(kind, DUMP, family, Attributes::default());
        self.send(&asked.encode(1, 0))?;
        let mut found = Vec::new();
        loop {
            for (kind, body) in self.hear()? {
                match kind {
                    MSG_DONE => return Ok(found),
                    MSG_ERROR => {
                        let error = number_at(&body, 0).unwrap_or_default() as i32;
                        return Err(io::Error::from_raw_os_error(-error));
                    }
                    _ => found.push(body.get(4..).unwrap_or_default().to_vec()),
                }
            }
        }
    }
}

fn number_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(u32::from_ne_bytes(bytes))
}

/// Attributes that were read: kind and value.
fn parse(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut all = Vec::new();
    while let Some(header) = bytes.get(..4) {
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & !NESTED;
        let Some(value) = bytes.get(4..length) else {
            break;
        };
        all.push((kind, value));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    all
}

fn find(bytes: &[u8], kind: u16) -> &[u8] {
    parse(bytes)
        .into_iter()
        .find(|(k, _)| *k == kind)
        .map_or(&[], |(_, v)| v)
}

fn is_text(bytes: &[u8], text: &str) -> bool {
    bytes.strip_suffix(&[0]) == Some(text.as_bytes())
}

/// What matters of an expression: its name and what it compares or sets. The
/// kernel adds attributes of its own, so those that were set are looked for.
fn holds(found: &[u8], set: &[u8]) -> bool {
    let found = parse(found);
    parse(set).into_iter().all(|(kind, value)| {
        let same = found.iter().find(|(k, _)| *k == kind);
        same.is_some_and(|(_, theirs)| {
            *theirs == value || (value.len() >= 8 && holds(theirs, value))
        })
    })
}

fn loopback() -> io::Result<u32> {
    Ok(nix::net::if_::if_nametoindex("lo")?)
}

/// Sets the rules of a family in place of those that are there.
pub fn apply(rules: &CaptureRules, family: Family) -> io::Result<()> {
    let loopback = loopback()?;
    // Made so that it can be deleted, then made anew.
    let mut messages = vec![
        Message::new(NEW_TABLE, CREATE, family, table()),
        Message::new(DELETE_TABLE, 0, family, table()),
        Message::new(NEW_TABLE, CREATE, family, table()),
    ];
    for chain in Chain::ALL {
        messages.push(Message::new(
            NEW_CHAIN,
            CREATE,
            family,
            chain_attributes(chain),
        ));
    }
    for rule in rules.rules(family) {
        messages.push(Message::new(
            NEW_RULE,
            CREATE | APPEND,
            family,
            rule_attributes(&rule, loopback),
        ));
    }
    Netlink::open()?.commit(&messages)
}

/// Takes a family's rules away; does nothing where there are none.
pub fn remove(family: Family) -> io::Result<()> {
    let messages = [
        Message::new(NEW_TABLE, CREATE, family, table()),
        Message::new(DELETE_TABLE, 0, family, table()),
    ];
    Netlink::open()?.commit(&messages)
}

/// Rules that ought to be there and are not, or that stand where they ought
/// not to.
pub fn differences(rules: &CaptureRules, family: Family) -> io::Result<Vec<String>> {
    let loopback = loopback()?;
    let netlink = Netlink::open()?;
    let mut differences = Vec::new();
    let chains = netlink.dump(GET_CHAIN, family)?;
    for chain in Chain::ALL {
        let wanted = chain_attributes(chain);
        if !chains.iter().any(|found| holds(found, &wanted.0)) {
            differences.push(format!("missing: chain {} of table {TABLE}", chain.name()));
        }
    }
    let found = netlink.dump(GET_RULE, family)?;
    for chain in Chain::ALL {
        let found: Vec<&Vec<u8>> = found
            .iter()
            .filter(|r| is_text(find(r, 1), TABLE) && is_text(find(r, 2), chain.name()))
            .collect();
        let wanted = rules.rules(family);
        let wanted: Vec<&Rule> = wanted.iter().filter(|r| r.chain == chain).collect();
        if found.len() != wanted.len() {
            let (has, ought) = (found.len(), wanted.len());
            differences.push(format!(
                "chain {} has {has} rules and ought to have {ought}",
                chain.name()
            ));
        }
        for (index, (rule, found)) in wanted.iter().zip(&found).enumerate() {
            let set = expressions(rule, loopback);
            let there = parse(find(found, 4));
            let same = set.len() == there.len()
                && set
                    .iter()
                    .zip(&there)
                    .all(|(set, (_, there))| holds(there, &set.0));
            if !same {
                differences.push(format!(
                    "rule {index} of chain {} is another: {rule:?}",
                    chain.name()
                ));
            }
        }
    }
    Ok(differences)
}
