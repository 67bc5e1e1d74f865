//! `meshctl`: the operator's tool.

mod analyze;
mod authz;
mod ca;
mod check;
mod cli;
mod cluster;
mod edges;
mod inject;
mod local;
mod operator;
mod output;
mod proxy;
mod tap;
mod version;

use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{} {error:#}", output::red("error:"));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        // These enter namespaces, which only a process without threads may.
        Command::Local(command) => local::run(command),
        Command::Proxy(command) => proxy::run(command),
        Command::Install(args) => cluster::install::install(&args, false),
        Command::Upgrade(args) => cluster::install::install(&args, true),
        Command::Uninstall(args) => cluster::install::uninstall(&args),
        Command::Inject(args) => inject::run(&args, true),
        Command::Uninject(args) => inject::run(&args, false),
        Command::Ca(command) => ca::run(command),
        Command::Stat(args) => edges::stat(&args),
        Command::Edges(args) => edges::edges(&args),
        Command::Check(args) => check::run(&args),
        Command::Authz(command) => authz::run(command),
        Command::Analyze(args) => analyze::run(&args),
        Command::Tap(args) => tap::tap(&args),
        Command::Top(args) => tap::top(&args),
        Command::Version(args) => version::run(&args),
        Command::Completion { shell } => {
            use clap::CommandFactory;
            clap_complete::generate(
                shell,
                &mut Cli::command(),
                "meshctl",
                &mut std::io::stdout(),
            );
            Ok(ExitCode::SUCCESS)
        }
    }
}
