//! The rules as text, in the spelling that `iptables-save` gives back.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{ADMIN_PORT, DNS_PORT, INBOUND_PORT, OUTBOUND_PORT, PROXY_UID, SELF_CALL_SOURCE};

/// Chain for what the pod's processes send.
const OUTPUT: &str = "WEFT_OUTPUT";
/// Chain for what arrives from outside.
const INPUT: &str = "WEFT_PREROUTING";

/// An address family, each with tables of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// `iptables`.
    V4,
    /// `ip6tables`.
    V6,
}

impl Family {
    /// The program that sets rules.
    pub fn restore_program(self) -> &'static str {
        match self {
            Self::V4 => "iptables-restore",
            Self::V6 => "ip6tables-restore",
        }
    }

    /// The program that reads rules back.
    pub fn save_program(self) -> &'static str {
        match self {
            Self::V4 => "iptables-save",
            Self::V6 => "ip6tables-save",
        }
    }
}

/// What a rule looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Match {
    Source(IpNet),
    Destination(IpNet),
    NotDestination(IpNet),
    /// Leaves through `lo`.
    Loopback,
    Protocol(Protocol),
    DestinationPort(u16),
    /// The user whose process sends.
    User(u32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Chain {
    /// What arrives from outside.
    Input,
    /// What the pod's processes send.
    Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Goes where it was going.
    Leave,
    /// Goes to this port of the pod.
    Redirect(u16),
}

/// One rule, whatever sets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    pub chain: Chain,
    pub matches: Vec<Match>,
    pub action: Action,
}

impl Rule {
    fn new(chain: Chain, matches: Vec<Match>, action: Action) -> Self {
        Self {
            chain,
            matches,
            action,
        }
    }

    fn as_iptables(&self) -> String {
        let chain = match self.chain {
            Chain::Input => INPUT,
            Chain::Output => OUTPUT,
        };
        let mut text = format!("-A {chain}");
        let mut protocol = "";
        for part in &self.matches {
            text.push(' ');
            text.push_str(&match part {
                Match::Source(cidr) => format!("-s {cidr}"),
                Match::Destination(cidr) => format!("-d {cidr}"),
                Match::NotDestination(cidr) => format!("! -d {cidr}"),
                Match::Loopback => "-o lo".to_owned(),
                Match::Protocol(Protocol::Tcp) => {
                    protocol = "tcp";
                    "-p tcp".to_owned()
                }
                Match::Protocol(Protocol::Udp) => {
                    protocol = "udp";
                    "-p udp".to_owned()
                }
                Match::DestinationPort(port) => format!("-m {protocol} --dport {port}"),
                Match::User(uid) => format!("-m owner --uid-owner {uid}"),
            });
        }
        match self.action {
            Action::Leave => text.push_str(" -j RETURN"),
            Action::Redirect(port) => {
                text.push_str(&format!(" -j REDIRECT --to-ports {port}"));
            }
        }
        text
    }
}

/// What is led into the proxy, and what is left alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureRules {
    /// The proxy's user.
    pub proxy_uid: u32,
    /// Ports of the pod whose callers reach the application directly.
    pub exclude_inbound_ports: Vec<u16>,
    /// Ports that the application calls directly.
    pub exclude_outbound_ports: Vec<u16>,
    /// Addresses that the application calls directly.
    pub exclude_outbound_cidrs: Vec<IpNet>,
    /// Users whose calls are left alone, besides the proxy's.
    pub exclude_uids: Vec<u32>,
    /// Lead DNS questions into the proxy.
    pub dns: bool,
}

impl Default for CaptureRules {
    fn default() -> Self {
        Self {
            proxy_uid: PROXY_UID,
            exclude_inbound_ports: Vec::new(),
            exclude_outbound_ports: Vec::new(),
            exclude_outbound_cidrs: Vec::new(),
            exclude_uids: Vec::new(),
            dns: true,
        }
    }
}

impl CaptureRules {
    /// The rules in the mesh's own chains, one a line, as `iptables-save` spells them.
    pub fn chain_rules(&self, family: Family) -> Vec<String> {
        self.rules(family).iter().map(Rule::as_iptables).collect()
    }

    /// The rules of a family, in their order: first those for what arrives.
    pub(crate) fn rules(&self, family: Family) -> Vec<Rule> {
        let mut rules = self.input_rules();
        rules.extend(self.output_rules(family));
        rules
    }

    fn input_rules(&self) -> Vec<Rule> {
        let rule = |matches, action| Rule::new(Chain::Input, matches, action);
        let mut rules = Vec::new();
        for port in [ADMIN_PORT].iter().chain(&self.exclude_inbound_ports) {
            let matches = vec![
                Match::Protocol(Protocol::Tcp),
                Match::DestinationPort(*port),
            ];
            rules.push(rule(matches, Action::Leave));
        }
        let tcp = vec![Match::Protocol(Protocol::Tcp)];
        rules.push(rule(tcp, Action::Redirect(INBOUND_PORT)));
        rules
    }

    fn output_rules(&self, family: Family) -> Vec<Rule> {
        let mut rules = Vec::new();
        let mut rule = |matches, action| rules.push(Rule::new(Chain::Output, matches, action));
        let tcp = Match::Protocol(Protocol::Tcp);
        // The proxy calls its own pod as any other: through the inbound side.
        let mut own = match family {
            Family::V4 => vec![Match::Source(IpAddr::from(SELF_CALL_SOURCE).into())],
            Family::V6 => vec![
                Match::Source(IpAddr::from(Ipv6Addr::LOCALHOST).into()),
                Match::NotDestination(IpAddr::from(Ipv6Addr::LOCALHOST).into()),
            ],
        };
        own.extend([Match::Loopback, tcp.clone(), Match::User(self.proxy_uid)]);
        rule(own, Action::Redirect(INBOUND_PORT));
        for uid in [self.proxy_uid].iter().chain(&self.exclude_uids) {
            rule(vec![Match::User(*uid)], Action::Leave);
        }
        if self.dns {
            for protocol in [Protocol::Udp, Protocol::Tcp] {
                let question = vec![Match::Protocol(protocol), Match::DestinationPort(53)];
                rule(question, Action::Redirect(DNS_PORT));
            }
        }
        rule(vec![Match::Loopback], Action::Leave);
        for port in &self.exclude_outbound_ports {
            let matches = vec![tcp.clone(), Match::DestinationPort(*port)];
            rule(matches, Action::Leave);
        }
        let ours = |cidr: &&IpNet| matches!(cidr, IpNet::V4(_)) == (family == Family::V4);
        for cidr in self.exclude_outbound_cidrs.iter().filter(ours) {
            rule(vec![Match::Destination(cidr.trunc())], Action::Leave);
        }
        rule(vec![tcp], Action::Redirect(OUTBOUND_PORT));
        rules
    }

    /// The jumps from the kernel's chains.
    pub fn jumps() -> [String; 2] {
        [
            format!("-A PREROUTING -p tcp -j {INPUT}"),
            format!("-A OUTPUT -j {OUTPUT}"),
        ]
    }

    /// One transaction for `iptables-restore --noflush`. `existing` is what
    /// `iptables-save` says now: a jump that is there is not set twice.
    pub fn transaction(&self, family: Family, existing: &str) -> String {
        let mut text = format!("*nat\n:{INPUT} - [0:0]\n:{OUTPUT} - [0:0]\n");
        let rules = self.chain_rules(family);
        let missing = Self::jumps()
            .into_iter()
            .filter(|jump| !has_line(existing, jump));
        for line in rules.into_iter().chain(missing) {
            text.push_str(&line);
            text.push('\n');
        }
        text.push_str("COMMIT\n");
        text
    }

    /// A transaction that takes the rules away; `None` if there are none.
    pub fn removal(existing: &str) -> Option<String> {
        let mut text = "*nat\n".to_owned();
        let chains = [INPUT, OUTPUT].map(|chain| format!(":{chain} - [0:0]\n"));
        if !existing.contains(&format!(":{OUTPUT} ")) {
            return None;
        }
        text.extend(chains);
        for jump in Self::jumps().iter().filter(|jump| has_line(existing, jump)) {
            text.push_str(&jump.replacen("-A", "-D", 1));
            text.push('\n');
        }
        text.push_str(&format!("-X {INPUT}\n-X {OUTPUT}\nCOMMIT\n"));
        Some(text)
    }

    /// Rules that ought to be there and are not, or that stand where they
    /// ought not to.
    pub fn differences(&self, family: Family, saved: &str) -> Vec<String> {
        // Chain by chain: `iptables-save` sorts the chains.
        let prefixes = [format!("-A {INPUT} "), format!("-A {OUTPUT} ")];
        let of_chain = |prefix| {
            let lines = saved.lines().map(str::trim);
            lines.filter(move |line: &&str| line.starts_with(prefix))
        };
        let found: Vec<&str> = prefixes
            .iter()
            .map(String::as_str)
            .flat_map(of_chain)
            .collect();
        let wanted = self.chain_rules(family);
        let mut differences: Vec<String> = Self::jumps()
            .iter()
            .filter(|jump| !has_line(saved, jump))
            .map(|jump| format!("missing: {jump}"))
            .collect();
        if !wanted.iter().map(String::as_str).eq(found.iter().copied()) {
            let missing = wanted.iter().filter(|w| !found.contains(&w.as_str()));
            differences.extend(missing.map(|w| format!("missing: {w}")));
            let foreign = found.iter().filter(|f| !wanted.iter().any(|w| w == *f));
            differences.extend(foreign.map(|f| format!("not ours: {f}")));
            if differences.is_empty() {
                differences.push("the rules stand in another order".to_owned());
            }
        }
        differences
    }
}

fn has_line(text: &str, line: &str) -> bool {
    text.lines().any(|l| l.trim() == line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_application_is_redirected_and_the_proxy_is_not() {
        let text = CaptureRules::default().transaction(Family::V4, "");
        let at = |needle: &str| text.find(needle);
        let own = at("-A WEFT_OUTPUT -m owner --uid-owner 1337 -j RETURN");
        let all = at("-A WEFT_OUTPUT -p tcp -j REDIRECT --to-ports 15001");
        assert!(own.is_some() && own < all, "{text}");
        assert!(at("-A OUTPUT -j WEFT_OUTPUT").is_some());
    }

    #[test]
    fn a_jump_that_is_there_is_not_set_twice() {
        let existing = "-A OUTPUT -j WEFT_OUTPUT\n";
        let text = CaptureRules::default().transaction(Family::V4, existing);
        assert!(!text.contains("-A OUTPUT -j WEFT_OUTPUT"));
        assert!(text.contains("-A PREROUTING -p tcp -j WEFT_PREROUTING"));
    }

    #[test]
    fn a_missing_or_foreign_rule_is_seen() {
        let rules = CaptureRules::default();
        let mut saved: Vec<String> = rules.chain_rules(Family::V4);
        saved.extend(CaptureRules::jumps());
        assert!(rules.differences(Family::V4, &saved.join("\n")).is_empty());
        let lost = saved.remove(2);
        let told = rules.differences(Family::V4, &saved.join("\n"));
        assert_eq!(told, [format!("missing: {lost}")]);
    }

    #[test]
    fn exclusions_of_the_other_family_are_left_out() {
        let rules = CaptureRules {
            exclude_outbound_cidrs: vec!["192.0.2.0/24".parse().unwrap_or_default()],
            ..Default::default()
        };
        assert!(
            rules
                .transaction(Family::V4, "")
                .contains("-d 192.0.2.0/24 -j RETURN")
        );
        assert!(!rules.transaction(Family::V6, "").contains("192.0.2.0"));
    }
}
