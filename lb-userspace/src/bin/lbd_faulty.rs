//! lbd in which promises can be broken, beside the one in which they cannot: `--fault NAME`, for the tests of the tests.

#[path = "lbd.rs"]
mod lbd;

fn main() -> std::process::ExitCode {
    lbd::main()
}
