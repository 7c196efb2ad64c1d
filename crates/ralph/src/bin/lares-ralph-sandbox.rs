//! The launcher of `lares sandbox` by itself, for tests.

fn main() -> std::process::ExitCode {
    lares_agents::sandbox::launcher_main(std::env::args_os().skip(1))
}
