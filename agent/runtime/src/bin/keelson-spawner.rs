//! The spawner as a program of its own, for programs whose `main` is not theirs to begin, such as test harnesses. The
//! agent uses itself instead.

fn main() {
    keelson_runtime::spawner_main_if_requested();
    eprintln!("keelson-spawner is started by keelson-runtime only");
    std::process::exit(2);
}
