//! ADD and DEL of Twill beside the reference plugins.

fn main() {}
