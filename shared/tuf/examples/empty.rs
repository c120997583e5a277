//! Nothing: the size of a program in itself, to take away from that of `verify_folder`.

fn main() {}
