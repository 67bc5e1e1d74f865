//! `weft-init`: sets the redirect rules of one pod, then ends.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use ipnet::IpNet;
use weft_cni_init::{
    CaptureRules, Family, PROXY_UID, apply, enter_network_namespace, remove, verify,
};

/// Sets the rules that lead a pod's connections into its proxy.
///
/// Exit codes: 0 the rules stand, 1 they do not.
#[derive(Parser)]
#[command(name = "weft-init", version)]
struct Args {
    /// User that the proxy runs as
    #[arg(long, default_value_t = PROXY_UID)]
    proxy_uid: u32,
    /// Ports of the pod that are not captured
    #[arg(long, value_delimiter = ',', value_name = "PORT,...")]
    exclude_inbound_ports: Vec<u16>,
    /// Ports that the application calls directly
    #[arg(long, value_delimiter = ',', value_name = "PORT,...")]
    exclude_outbound_ports: Vec<u16>,
    /// Addresses that the application calls directly
    #[arg(long, value_delimiter = ',', value_name = "CIDR,...")]
    exclude_outbound_cidrs: Vec<IpNet>,
    /// Users whose calls are not captured
    #[arg(long, value_delimiter = ',', value_name = "UID,...")]
    exclude_uids: Vec<u32>,
    /// Leave DNS questions alone
    #[arg(long)]
    no_dns: bool,
    /// Network namespace to set the rules in; the current one if absent
    #[arg(long, value_name = "FILE")]
    netns: Option<PathBuf>,
    /// Only check that exactly these rules stand
    #[arg(long, conflicts_with_all = ["remove", "print"])]
    verify: bool,
    /// Take the rules away
    #[arg(long, conflicts_with = "print")]
    remove: bool,
    /// Print the rules and set nothing
    #[arg(long)]
    print: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weft-init: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    let rules = CaptureRules {
        proxy_uid: args.proxy_uid,
        exclude_inbound_ports: args.exclude_inbound_ports.clone(),
        exclude_outbound_ports: args.exclude_outbound_ports.clone(),
        exclude_outbound_cidrs: args.exclude_outbound_cidrs.clone(),
        exclude_uids: args.exclude_uids.clone(),
        dns: !args.no_dns,
    };
    if args.print {
        for family in [Family::V4, Family::V6] {
            println!("# {}", family.restore_program());
            print!("{}", rules.transaction(family, ""));
        }
        return Ok(());
    }
    if let Some(path) = &args.netns {
        enter_network_namespace(path)?;
    }
    if args.remove {
        remove()?;
    } else if args.verify {
        verify(&rules)?;
    } else {
        apply(&rules)?;
    }
    Ok(())
}
