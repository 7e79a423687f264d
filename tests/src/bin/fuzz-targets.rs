//! Prints what can be fuzzed, for `cargo xtask fuzz`: name, tab, description.

fn main() {
    for target in tests::fuzz::targets() {
        println!("{}\t{}", target.name, target.about);
    }
}
