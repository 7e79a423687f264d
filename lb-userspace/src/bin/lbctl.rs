//! lbctl: arguments, run; nothing else.

use std::process::ExitCode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    lb_userspace::cli::run().await
}
