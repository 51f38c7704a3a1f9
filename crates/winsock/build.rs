//! The name of the shared library, for the dynamic loader.

fn main() {
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libportkeep_winsock.so.0");
    println!("cargo::rerun-if-changed=build.rs");
}
